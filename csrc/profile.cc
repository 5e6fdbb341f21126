#include "profile.h"

#include <chrono>

namespace mdrt {

std::vector<StepProfile> profile_component(Model& model, const Stop& stop, const std::string& component,
                                           const mdrt_tensor* inputs, int32_t num_inputs, int32_t rounds) {
  if (rounds < 1) throw fail(MDRT_ERROR_ARGUMENT, "rounds is %d; measure at least one", rounds);
  const Graph& graph = model.graph(component);
  const std::vector<Feed> feeds = read_inputs(graph, inputs, num_inputs, true);
  std::vector<Shape> shapes;
  for (const Feed& feed : feeds) shapes.push_back(feed.shape);
  std::vector<int32_t> wanted;
  for (const GraphOutput& output : graph.outputs) wanted.push_back(output.value);
  Executor& executor = model.executor(component);
  model.release_memory(&executor);
  executor.prepare(shapes, wanted);

  std::vector<StepProfile> profile;
  for (const auto& step : executor.plan().steps) profile.push_back({step.get(), {}});
  for (int32_t round = -1; round < rounds; ++round) {
    executor.start(feeds);
    for (StepProfile& seen : profile) {
      const auto begin = std::chrono::steady_clock::now();
      executor.finish_step(*stop.cancel);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      if (round >= 0) seen.seconds.push_back(seconds.count());
    }
    if (stop.poll && stop.poll(stop.user) != 0) throw Error(MDRT_ERROR_CANCELLED, "cancelled");
  }
  return profile;
}

}  // namespace mdrt

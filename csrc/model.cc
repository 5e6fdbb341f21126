#include "model.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace mdrt {

Model::Model(std::unique_ptr<Bundle> bundle, int threads, int64_t max_memory_bytes)
    : bundle_(std::move(bundle)), pool_(threads) {
  options_.max_memory_bytes = max_memory_bytes;
  const char* fuse = getenv("MDRT_FUSE");
  options_.fuse = !fuse || strcmp(fuse, "0") != 0;
  const std::string winograd = getenv("MDRT_WINOGRAD") ? getenv("MDRT_WINOGRAD") : "";
  if (winograd == "0") options_.winograd = Winograd::never;
  if (winograd == "1") options_.winograd = Winograd::wherever_possible;
}

const PipelineInfo& Model::pipeline() const {
  if (!bundle_->pipeline()) {
    throw Error(MDRT_ERROR_ARGUMENT,
                "this bundle has no pipeline, only components; run a component or open a complete bundle");
  }
  return *bundle_->pipeline();
}

const Tokenizer& Model::tokenizer() {
  if (!tokenizer_) {
    if (!bundle_->tokenizer()) throw Error(MDRT_ERROR_ARGUMENT, "this bundle has no tokenizer; open a complete bundle");
    tokenizer_ = std::make_unique<Tokenizer>(*bundle_->tokenizer());
  }
  return *tokenizer_;
}

const Graph& Model::graph(const std::string& component) const {
  if (const Graph* graph = bundle_->graph(component)) return *graph;
  std::string known;
  for (const Graph& graph : bundle_->graphs()) known += (known.empty() ? "" : ", ") + graph.name;
  throw fail(MDRT_ERROR_ARGUMENT, "there is no component %.64s; this bundle has: %s", component.c_str(), known.c_str());
}

Executor& Model::executor(const std::string& component) {
  std::unique_ptr<Executor>& executor = executors_[component];
  if (!executor) executor = std::make_unique<Executor>(*bundle_, graph(component), pool_, options_);
  return *executor;
}

void Model::set_plan_options(const std::string& isa, bool fuse) {
  executors_.clear();
  options_.isa = isa;
  options_.fuse = fuse;
}

void Model::release_memory(const Executor* keep) {
  for (auto& [name, executor] : executors_) {
    if (executor && executor.get() != keep) executor->release_memory();
  }
}

double run_slice(Executor& executor, int64_t limit_macs, const std::atomic<bool>& cancel, Pace* pace) {
  const double before = executor.macs_done();
  const auto begin = std::chrono::steady_clock::now();
  const double fraction = executor.advance(std::min(limit_macs, pace->slice_macs()), cancel);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  pace->measured(executor.macs_done() - before, elapsed.count());
  return fraction;
}

std::vector<Feed> order_feeds(const Graph& graph, const std::map<std::string, Feed>& by_name) {
  std::vector<Feed> feeds;
  for (const GraphInput& input : graph.inputs) {
    const auto found = by_name.find(input.name);
    if (found == by_name.end()) {
      throw fail(MDRT_ERROR_ARGUMENT, "%s needs the input %s", graph.name.c_str(), input.name.c_str());
    }
    feeds.push_back(found->second);
  }
  if (by_name.size() != feeds.size()) {
    std::string known;
    for (const GraphInput& input : graph.inputs) known += (known.empty() ? "" : ", ") + input.name;
    throw fail(MDRT_ERROR_ARGUMENT, "%s was given %zu inputs, but takes %zu: %s", graph.name.c_str(), by_name.size(),
               feeds.size(), known.c_str());
  }
  return feeds;
}

}  // namespace mdrt

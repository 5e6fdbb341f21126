#include "component.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/checked.h"
#include "capi.h"

namespace mdrt {
namespace {

int64_t size_bytes(const int64_t* shape, int32_t rank) {
  int64_t bytes = 4;    // both dtypes of the interface
  for (int32_t i = 0; i < rank; ++i) bytes = checked_mul(bytes, shape[i]);
  return bytes;
}

// A value by the name of an output or, failing that, of any input or node.
int32_t find_value(const Graph& graph, const char* name) {
  for (const GraphOutput& output : graph.outputs) {
    if (output.name == name) return output.value;
  }
  for (int32_t value = 0; value < graph.value_count(); ++value) {
    if (!graph.is_weight(value) && graph.value_name(value) == name) return value;
  }
  throw fail(MDRT_ERROR_ARGUMENT, "%s has no output or inner value called %.256s", graph.name.c_str(), name);
}

void check_shape(const char* name, const mdrt_tensor& tensor) {
  if (tensor.rank < 1 || tensor.rank > 6) {
    throw fail(MDRT_ERROR_ARGUMENT, "input %.256s has rank %d, but must have 1 to 6", name, tensor.rank);
  }
  for (int32_t i = 0; i < tensor.rank; ++i) {
    if (tensor.shape[i] >= 1) continue;
    throw fail(MDRT_ERROR_ARGUMENT, "input %.256s has a dimension of %lld", name,
               static_cast<long long>(tensor.shape[i]));
  }
}

void check_data(const char* name, const mdrt_tensor& tensor) {
  if (!tensor.data) throw fail(MDRT_ERROR_ARGUMENT, "the data of input %.256s is NULL", name);
  const int64_t needed = size_bytes(tensor.shape, tensor.rank);
  if (tensor.size_bytes == static_cast<size_t>(needed)) return;
  throw fail(MDRT_ERROR_ARGUMENT, "input %.256s of this shape has %lld bytes, but size_bytes is %zu", name,
             static_cast<long long>(needed), tensor.size_bytes);
}

// The values that are asked for, one per output.
std::vector<int32_t> find_values(const Graph& graph, const mdrt_tensor* outputs, int32_t num_outputs) {
  if (num_outputs < 1) throw Error(MDRT_ERROR_ARGUMENT, "no output is asked for; name at least one");
  required(outputs, "outputs");
  std::vector<int32_t> values;
  for (int32_t i = 0; i < num_outputs; ++i) {
    const char* name = &required(outputs[i].name, "the name of an output");
    if (outputs[i].dtype != MDRT_FP32) throw fail(MDRT_ERROR_ARGUMENT, "output %.256s must have dtype MDRT_FP32", name);
    values.push_back(find_value(graph, name));
  }
  return values;
}

void describe(mdrt_tensor* output, const Shape& shape) {
  output->rank = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), output->shape);
  const int64_t needed = size_bytes(output->shape, output->rank);
  if (!output->data || output->size_bytes >= static_cast<size_t>(needed)) return;
  throw fail(MDRT_ERROR_ARGUMENT, "output %.256s needs %lld bytes, but size_bytes is %zu", output->name,
             static_cast<long long>(needed), output->size_bytes);
}

void compute(Executor& executor, const std::vector<Feed>& feeds, const Stop& stop) {
  Pace pace;
  executor.start(feeds);
  while (run_slice(executor, std::numeric_limits<int64_t>::max(), *stop.cancel, &pace) < 1) {
    if (stop.poll && stop.poll(stop.user) != 0) throw Error(MDRT_ERROR_CANCELLED, "cancelled");
  }
}

// A graph input asked for as an output: the executor does not keep it, the caller's array has it.
void copy_feed(const GraphInput& input, const void* data, int64_t count, float* out) {
  if (input.dtype == DType::fp32) {
    std::copy_n(static_cast<const float*>(data), count, out);
  } else {
    std::transform(static_cast<const int32_t*>(data), static_cast<const int32_t*>(data) + count, out,
                   [](int32_t id) { return static_cast<float>(id); });
  }
}

}  // namespace

std::vector<Feed> read_inputs(const Graph& graph, const mdrt_tensor* inputs, int32_t num_inputs, bool need_data) {
  if (num_inputs < 0) throw fail(MDRT_ERROR_ARGUMENT, "num_inputs is %d", num_inputs);
  if (num_inputs > 0) required(inputs, "inputs");
  std::map<std::string, Feed> by_name;
  for (int32_t i = 0; i < num_inputs; ++i) {
    const mdrt_tensor& tensor = inputs[i];
    const char* name = &required(tensor.name, "the name of an input");
    check_shape(name, tensor);
    if (need_data) check_data(name, tensor);
    for (const GraphInput& input : graph.inputs) {
      if (input.name != name || tensor.dtype == (input.dtype == DType::int32 ? MDRT_INT32 : MDRT_FP32)) continue;
      throw fail(MDRT_ERROR_ARGUMENT, "input %.256s must have dtype %s", name, dtype_name(input.dtype));
    }
    Feed feed = {tensor.data, Shape(tensor.shape, tensor.shape + tensor.rank)};
    if (!by_name.emplace(name, std::move(feed)).second)
      throw fail(MDRT_ERROR_ARGUMENT, "input %.256s is given twice", name);
  }
  return order_feeds(graph, by_name);
}

void run_component(Model& model, const Stop& stop, const std::string& component, const mdrt_tensor* inputs,
                   int32_t num_inputs, mdrt_tensor* outputs, int32_t num_outputs) {
  const Graph& graph = model.graph(component);
  const std::vector<int32_t> values = find_values(graph, outputs, num_outputs);
  const bool need_data =
      std::any_of(outputs, outputs + num_outputs, [](const mdrt_tensor& output) { return output.data; });
  const std::vector<Feed> feeds = read_inputs(graph, inputs, num_inputs, need_data);
  std::vector<Shape> shapes;
  for (const Feed& feed : feeds) shapes.push_back(feed.shape);
  std::vector<int32_t> wanted;          // what the executor has to keep
  for (int32_t value : values) {
    if (value >= graph.weight_base() && std::find(wanted.begin(), wanted.end(), value) == wanted.end())
      wanted.push_back(value);
  }
  Executor& executor = model.executor(component);
  model.release_memory(&executor);
  executor.prepare(shapes, wanted);
  for (size_t i = 0; i < values.size(); ++i) describe(&outputs[i], executor.value_shape(values[i]));
  if (!need_data) return;
  if (!wanted.empty()) compute(executor, feeds, stop);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!outputs[i].data) continue;
    float* out = static_cast<float*>(outputs[i].data);
    const size_t value = static_cast<size_t>(values[i]);
    if (value < feeds.size()) {
      copy_feed(graph.inputs[value], feeds[value].data, size_bytes(outputs[i].shape, outputs[i].rank) / 4, out);
    } else {
      executor.fetch(values[i], out);
    }
  }
}

}  // namespace mdrt

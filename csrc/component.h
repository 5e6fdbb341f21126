// One component run by the names of its arrays: what mdrt_run does.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "mdrt.h"
#include "model.h"

namespace mdrt {

// How a run is stopped from outside.
struct Stop {
  const std::atomic<bool>* cancel;
  int (*poll)(void* user);    // may be nullptr
  void* user;
};

// The given arrays in the order of graph.inputs, checked against its names and dtypes and their own shapes and byte
// counts. `need_data` is false when only shapes are wanted. Throws Error(MDRT_ERROR_ARGUMENT).
std::vector<Feed> read_inputs(const Graph& graph, const mdrt_tensor* inputs, int32_t num_inputs, bool need_data);

// Fills rank and shape of every output and the data of those that have any. Throws Error.
void run_component(Model& model, const Stop& stop, const std::string& component, const mdrt_tensor* inputs,
                   int32_t num_inputs, mdrt_tensor* outputs, int32_t num_outputs);

}  // namespace mdrt

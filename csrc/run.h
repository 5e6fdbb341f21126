// Executes one graph: plans for the given shapes, then runs the plan in slices.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
#include "graph.h"
#include "ops.h"

namespace mdrt {

struct Feed {
  const void* data;     // dense, channels last, the dtype of the graph input
  Shape shape;
};

struct PlanOptions {
  std::string isa;              // empty: the best this CPU has, or MDRT_ISA
  bool fuse = true;             // MDRT_FUSE=0 turns it off
  Winograd winograd = Winograd::where_it_pays;   // MDRT_WINOGRAD: 0 never, 1 wherever possible
  int64_t max_memory_bytes = 0; // anonymous memory; 0: what the system has available
};

class Bundle;
class Plan;

// One graph ready to run. Not thread-safe; the bundle, which has the graph, must outlive it.
class Executor {
 public:
  Executor(const Bundle& bundle, const Graph& graph, ThreadPool& pool, const PlanOptions& options);
  ~Executor();

  // Makes (or finds) the plan for these input shapes and wanted values, in the order of graph.inputs.
  // Throws Error(MDRT_ERROR_ARGUMENT) for shapes, Error(MDRT_ERROR_MEMORY) naming need and limit.
  void prepare(const std::vector<Shape>& input_shapes, const std::vector<int32_t>& wanted_values);

  const Shape& value_shape(int32_t value) const;     // after prepare
  int64_t arena_bytes() const;                        // anonymous memory that the plan needs
  int64_t macs() const;
  int step_count() const;
  std::string describe() const;                       // the plan as text, one line per step

  // Runs: start() copies the feeds in, advance() runs steps until `macs_per_slice` are done, or up to twice as many, and returns
  // the fraction done (1 = finished), fetch() copies a wanted value out, dense, as fp32: NaN throughout when an int8 layer was
  // to read NaN or infinity, which bytes would hide. `cancel` is polled per tile and makes advance() throw
  // Error(MDRT_ERROR_CANCELLED).
  // `weights`: whether this run gives back the pages of weights that no later step of it reads.
  enum class Weights : uint8_t { keep, release };
  void start(const std::vector<Feed>& feeds, Weights weights = Weights::keep);
  double advance(int64_t macs_per_slice, const std::atomic<bool>& cancel);
  double macs_done() const;                           // since start
  void fetch(int32_t value, float* out) const;

  // advance(), but exactly to the end of the step at hand.
  void finish_step(const std::atomic<bool>& cancel);
  const Plan& plan() const { return *plan_; }         // after prepare

  // Frees the arena; the next start() takes it again.
  void release_memory();

 private:
  std::unique_ptr<Plan> plan_;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mdrt

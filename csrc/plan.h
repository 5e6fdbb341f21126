// A plan: a graph for fixed shapes as a list of kernel calls over one arena. Made in milliseconds, run many times.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "graph.h"
#include "ops.h"
#include "registry.h"

namespace mdrt {

// One kernel call; its tasks may run in any order on any thread.
class Step {
 public:
  virtual ~Step() = default;
  virtual void run(int64_t task, void* scratch) const = 0;
  virtual const void* args() const = 0;

  std::string name;             // kernel and value, for people
  int32_t node = -1;            // of the graph: the op at the heart of what is fused here
  int32_t strips = 1;           // steps that do this, each for some of the rows
  int64_t tasks = 1;
  int64_t scratch_bytes = 0;    // per thread
  int64_t macs = 0;
};

template <class Args>
class KernelStep : public Step {
 public:
  using Kernel = void (*)(const Args*, int64_t, void*);
  explicit KernelStep(Kernel kernel) : kernel_(kernel) {}
  void run(int64_t task, void* scratch) const override { kernel_(&data, task, scratch); }
  const void* args() const override { return &data; }
  Args data = {};

 private:
  Kernel kernel_;
};

// A piece of the arena that lives from its first step to its last.
struct Buffer {
  int64_t size_bytes = 0;
  int first_step = 0, last_step = 0;
  int64_t offset = 0;
};

// Where a value lies. Rank 4 is (batch, height, width, channels); lower ranks have height 1.
struct ValuePlace {
  int32_t buffer = -1;
  DType dtype = DType::fp32;
  int64_t batch = 0, height = 0, width = 0, channels = 0;   // logical
  int64_t stride = 0;                                       // elements between pixels
  int64_t padded() const { return round_up(channels, kPanel); }
  int64_t pixels() const { return height * width; }         // per image

  static int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
};

// Anonymous memory, reserved at once, taken page by page when touched, given back by release().
class Arena {
 public:
  explicit Arena(int64_t size_bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  std::byte* base() const { return base_; }
  void release();

 private:
  std::byte* base_ = nullptr;
  size_t size_bytes_ = 0;
};

// Weights, next to each other in the file, that no step after `last_step` reads.
struct WeightRange {
  int last_step;
  const std::byte *begin, *end;
};

class Plan {
 public:
  std::vector<Shape> shapes;                  // of every value
  std::vector<ValuePlace> places;             // of every value that exists in memory
  std::vector<std::unique_ptr<Step>> steps;
  std::vector<Buffer> buffers;
  std::vector<int> weight_readers;            // per weight: the step that reads it last
  std::vector<WeightRange> weight_ranges;     // all weights, in the order of last_step
  std::unique_ptr<Arena> arena;
  int64_t arena_bytes = 0;                    // buffers
  int64_t scratch_bytes = 0;                  // per thread
  int64_t macs = 0;
  int32_t not_finite = 0;                     // 1: what became bytes in this run held NaN or infinity
  std::byte* at(int32_t buffer) const { return arena->base() + buffers[static_cast<size_t>(buffer)].offset; }
};

struct PlanRequest {
  const Graph& graph;
  std::vector<Shape> input_shapes;
  std::vector<int32_t> wanted;                // values that can be fetched afterwards
  const Isa& isa;
  bool fuse;
  Winograd winograd;
  int threads;
  int64_t max_memory_bytes;                   // 0: what the system has available
};

// Throws Error(MDRT_ERROR_ARGUMENT) for shapes, Error(MDRT_ERROR_MEMORY) with need and limit.
std::unique_ptr<Plan> make_plan(const PlanRequest& request);

}  // namespace mdrt

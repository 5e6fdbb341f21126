#include "run.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "bundle.h"
#include "plan.h"
#include "registry.h"

namespace mdrt {

struct Executor::Impl {
  const Bundle& bundle;
  const Graph& graph;
  ThreadPool& pool;
  PlanOptions options;
  const Isa& isa;
  std::vector<Shape> input_shapes;
  std::vector<int32_t> wanted;
  Weights weights = Weights::keep;
  size_t step = 0;          // the next one
  int64_t task = 0;         // its next task
  double macs_done = 0;
  bool started = false;
  size_t released = 0;      // weight ranges

  Impl(const Bundle& b, const Graph& g, ThreadPool& p, const PlanOptions& o)
      : bundle(b), graph(g), pool(p), options(o), isa(choose_isa(o.isa)) {}

  void copy_in(const Plan& plan, size_t input, const Feed& feed);
  void copy_ids(const Plan& plan, size_t input, const Feed& feed);
  void release_weights(const Plan& plan);       // that no step from the next one on reads
  void run_tasks(const Plan& plan, int64_t count, const std::atomic<bool>& cancel);    // the next ones of the step at hand
};

namespace {

struct TaskRange {
  const Step* step;
  int64_t first;
  std::byte* scratch;
  int64_t scratch_bytes;    // per worker
};

void run_task(void* context, int64_t index, int worker) {
  const TaskRange& range = *static_cast<const TaskRange*>(context);
  range.step->run(range.first + index, range.scratch + worker * range.scratch_bytes);
}

ActivationView view_of(const Plan& plan, const ValuePlace& place) {
  return {plan.at(place.buffer), place.dtype, place.padded(), place.stride};
}

int64_t element_count(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

// The smallest table that a graph input is an index into; 0: it is none.
int64_t index_limit(const Graph& graph, size_t input) {
  int64_t limit = 0;
  for (const Node& node : graph.nodes) {
    if (node.op != OpType::embedding || node.inputs[0] != static_cast<int32_t>(input)) continue;
    const int64_t rows = attribute_int(node, "num_embeddings");
    limit = limit == 0 ? rows : std::min(limit, rows);
  }
  return limit;
}

}  // namespace

Executor::Executor(const Bundle& bundle, const Graph& graph, ThreadPool& pool, const PlanOptions& options)
    : impl_(std::make_unique<Impl>(bundle, graph, pool, options)) {}

Executor::~Executor() = default;

void Executor::prepare(const std::vector<Shape>& input_shapes, const std::vector<int32_t>& wanted_values) {
  Impl& e = *impl_;
  e.started = false;
  if (plan_ && e.input_shapes == input_shapes && e.wanted == wanted_values) return;
  plan_.reset();
  plan_ = make_plan({e.graph, input_shapes, wanted_values, e.isa, e.options.fuse, e.options.winograd, e.pool.size(), e.options.max_memory_bytes});
  e.input_shapes = input_shapes;
  e.wanted = wanted_values;
}

const Shape& Executor::value_shape(int32_t value) const { return plan_->shapes[static_cast<size_t>(value)]; }

double Executor::macs_done() const { return impl_->macs_done; }
int64_t Executor::arena_bytes() const { return plan_->arena_bytes + plan_->scratch_bytes * impl_->pool.size(); }

int64_t Executor::macs() const { return plan_->macs; }

int Executor::step_count() const { return static_cast<int>(plan_->steps.size()); }

std::string Executor::describe() const {
  char line[160];
  snprintf(line, sizeof line, "isa %s, %d steps, %.3f GMAC, arena %.1f MB, scratch %.1f KB per thread\n", impl_->isa.name, step_count(),
           static_cast<double>(macs()) * 1e-9, static_cast<double>(plan_->arena_bytes) * 1e-6,
           static_cast<double>(plan_->scratch_bytes) * 1e-3);
  std::string text = line;
  for (const auto& step : plan_->steps) {
    snprintf(line, sizeof line, "  %6lld tasks  %9.3f MMAC", static_cast<long long>(step->tasks), static_cast<double>(step->macs) * 1e-6);
    text += step->name + line;
    if (step->strips > 1) text += "  one of " + std::to_string(step->strips) + " strips";
    text += "\n";
  }
  return text;
}

void Executor::Impl::copy_ids(const Plan& plan, size_t input, const Feed& feed) {
  const int32_t* ids = static_cast<const int32_t*>(feed.data);
  const int64_t count = element_count(feed.shape), limit = index_limit(graph, input);
  for (int64_t i = 0; i < count; ++i) {
    if (limit > 0 && (ids[i] < 0 || ids[i] >= limit)) {
      throw fail(MDRT_ERROR_ARGUMENT, "%s holds %d, but ids go from 0 to %lld", graph.inputs[input].name.c_str(), ids[i],
                 static_cast<long long>(limit - 1));
    }
  }
  memcpy(plan.at(plan.places[input].buffer), ids, static_cast<size_t>(count) * sizeof(int32_t));
}

void Executor::Impl::copy_in(const Plan& plan, size_t input, const Feed& feed) {
  const ValuePlace& place = plan.places[input];
  if (graph.inputs[input].dtype == DType::int32) return copy_ids(plan, input, feed);
  if (feed.shape.size() == 1) {
    memcpy(plan.at(place.buffer), feed.data, static_cast<size_t>(feed.shape[0]) * sizeof(float));
    return;
  }
  ConvertArgs args = {};
  args.dense_in = static_cast<const float*>(feed.data);
  args.view = view_of(plan, place);
  args.pixels = place.batch * place.pixels();
  args.channels = place.channels;
  for (int64_t task = 0; task * 256 < args.pixels; ++task) isa.kernels->convert(&args, task, nullptr);
}

void Executor::start(const std::vector<Feed>& feeds, Weights weights) {
  Impl& e = *impl_;
  e.weights = weights;
  e.released = 0;
  for (size_t i = 0; i < feeds.size(); ++i) e.copy_in(*plan_, i, feeds[i]);
  e.step = 0;
  e.task = 0;
  e.macs_done = 0;
  plan_->not_finite = 0;
  e.started = true;
}

void Executor::Impl::release_weights(const Plan& plan) {
  const std::vector<WeightRange>& ranges = plan.weight_ranges;
  for (; released < ranges.size() && static_cast<size_t>(ranges[released].last_step) < step; ++released) {
    bundle.release_pages(ranges[released].begin, ranges[released].end);
  }
}

void Executor::Impl::run_tasks(const Plan& plan, int64_t count, const std::atomic<bool>& cancel) {
  const Step& current = *plan.steps[step];
  TaskRange range = {&current, task, plan.arena->base() + plan.arena_bytes, plan.scratch_bytes};
  if (!pool.run(count, run_task, &range, &cancel)) {
    started = false;
    throw Error(MDRT_ERROR_CANCELLED, "cancelled");
  }
  task += count;
  if (task == current.tasks) {
    ++step;
    task = 0;
    if (weights == Weights::release) release_weights(plan);
  }
}

double Executor::advance(int64_t macs_per_slice, const std::atomic<bool>& cancel) {
  Impl& e = *impl_;
  const Plan& plan = *plan_;
  if (!e.started) throw Error(MDRT_ERROR_STATE, "nothing is running; start first");
  const double slice = static_cast<double>(macs_per_slice), end = e.macs_done + slice;
  while (e.step < plan.steps.size() && e.macs_done < end) {
    const Step& step = *plan.steps[e.step];
    const double macs_per_task = static_cast<double>(step.macs) / static_cast<double>(step.tasks);
    int64_t count = step.tasks - e.task;
    const double pieces = std::ceil(macs_per_task * static_cast<double>(count) / slice);
    // Threads wait for each other wherever a step is broken: only one that is longer than a slice is, into even pieces, and
    // those are whole rounds of the pool.
    if (pieces > 1) {
      const double rounds = std::ceil(static_cast<double>(count) / pieces / e.pool.size());
      count = std::min(count, static_cast<int64_t>(rounds) * e.pool.size());
    }
    e.run_tasks(plan, count, cancel);
    e.macs_done += macs_per_task * static_cast<double>(count);
  }
  if (e.step == plan.steps.size()) return 1;
  return plan.macs > 0 ? std::min(e.macs_done / static_cast<double>(plan.macs), 0.999999) : 0;
}

void Executor::finish_step(const std::atomic<bool>& cancel) {
  Impl& e = *impl_;
  if (!e.started || e.step == plan_->steps.size()) throw Error(MDRT_ERROR_STATE, "no step is left to run; start first");
  e.run_tasks(*plan_, plan_->steps[e.step]->tasks - e.task, cancel);
}

void Executor::fetch(int32_t value, float* out) const {
  const Plan& plan = *plan_;
  const ValuePlace& place = plan.places[static_cast<size_t>(value)];
  if (plan.not_finite) {
    std::fill_n(out, element_count(plan.shapes[static_cast<size_t>(value)]), std::numeric_limits<float>::quiet_NaN());
    return;
  }
  if (plan.shapes[static_cast<size_t>(value)].size() == 1) {
    memcpy(out, plan.at(place.buffer), static_cast<size_t>(place.batch) * sizeof(float));
    return;
  }
  ConvertArgs args = {};
  args.dense_out = out;
  args.view = view_of(plan, place);
  args.pixels = place.batch * place.pixels();
  args.channels = place.channels;
  for (int64_t task = 0; task * 256 < args.pixels; ++task) impl_->isa.kernels->convert(&args, task, nullptr);
}

void Executor::release_memory() {
  if (plan_) plan_->arena->release();
  impl_->started = false;
}

}  // namespace mdrt

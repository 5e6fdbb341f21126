// An open bundle with what is needed to run it: a thread pool, a tokenizer and one executor per component.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
#include "bundle.h"
#include "run.h"
#include "tokenizer.h"

namespace mdrt {

// Not thread-safe.
class Model {
 public:
  Model(std::unique_ptr<Bundle> bundle, int threads, int64_t max_memory_bytes);

  const Bundle& bundle() const { return *bundle_; }
  // Throws Error(MDRT_ERROR_ARGUMENT) when the bundle was written without one.
  const PipelineInfo& pipeline() const;
  const Tokenizer& tokenizer();
  // Throws Error(MDRT_ERROR_ARGUMENT) naming the components that exist.
  const Graph& graph(const std::string& component) const;
  Executor& executor(const std::string& component);

  // Forces an ISA ("" = the best) and fusion on or off; executors are made anew.
  void set_plan_options(const std::string& isa, bool fuse);
  // Frees the arenas of all executors but `keep` (may be nullptr), so that the limit holds for one component at a time.
  void release_memory(const Executor* keep);

 private:
  std::unique_ptr<Bundle> bundle_;
  ThreadPool pool_;
  PlanOptions options_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::map<std::string, std::unique_ptr<Executor>> executors_;
};

// How many multiply-adds make about 50 ms on this machine: the length of a slice between two callbacks. Learns from
// every slice, most from the last ones.
class Pace {
 public:
  int64_t slice_macs() const { return static_cast<int64_t>(macs_ / seconds_ * kSliceSeconds) + 1; }
  void measured(double macs, double seconds) {
    macs_ += macs;
    seconds_ += seconds;
    if (seconds_ < kRememberedSeconds) return;
    macs_ /= 2;
    seconds_ /= 2;
  }

 private:
  static constexpr double kSliceSeconds = 0.05, kRememberedSeconds = 0.2;
  double macs_ = 1e7, seconds_ = 0.001;     // a guess that the first slice outweighs
};

// Runs one slice of at most `limit_macs`; returns the fraction that is done. Throws as Executor::advance does.
double run_slice(Executor& executor, int64_t limit_macs, const std::atomic<bool>& cancel, Pace* pace);

// Feeds by input name in the order of graph.inputs: every input exactly once, nothing else.
// Throws Error(MDRT_ERROR_ARGUMENT).
std::vector<Feed> order_feeds(const Graph& graph, const std::map<std::string, Feed>& by_name);

}  // namespace mdrt

#include "peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/error.h"
#include "base/threads.h"

namespace mdrt {
namespace {

using Kernel = void (*)(const PeakArgs*, int64_t task, void* scratch);

constexpr int64_t kTasksPerThread = 64;         // so that no thread waits long for one that started its last task
constexpr double kPassSeconds = 0.01;           // long against the waking of a thread
constexpr int64_t kReadFloats = 1 << 18;        // of a task: 1 MiB
constexpr int64_t kReadTasks = 256;

class Meter {
 public:
  Meter(Kernel kernel, int threads) : kernel_(kernel), pool_(threads) {}

  int threads() const { return pool_.size(); }

  // Seconds of one pass over `tasks` tasks.
  double run(PeakArgs* args, int64_t tasks) {
    macs_.assign(static_cast<size_t>(tasks), 0);
    results_.assign(static_cast<size_t>(tasks), 0.0);
    args->macs = macs_.data();
    args->results = results_.data();
    Call call = {kernel_, args};
    const auto begin = std::chrono::steady_clock::now();
    pool_.run(tasks, run_task, &call, nullptr);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  double macs() const {
    double total = 0;
    for (int64_t count : macs_) total += static_cast<double>(count);
    return total;
  }

 private:
  struct Call {
    Kernel kernel;
    const PeakArgs* args;
  };
  static void run_task(void* context, int64_t task, int) {
    const Call& call = *static_cast<const Call*>(context);
    call.kernel(call.args, task, nullptr);
  }

  Kernel kernel_;
  ThreadPool pool_;
  std::vector<int64_t> macs_;
  std::vector<double> results_;
};

double measure_macs(Kernel kernel, int threads, int passes) {
  Meter meter(kernel, threads);
  PeakArgs args = {};
  args.rounds = 64;
  const int64_t tasks = meter.threads() * kTasksPerThread;
  while (meter.run(&args, tasks) < kPassSeconds) args.rounds *= 2;
  double best = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const double seconds = meter.run(&args, tasks);
    best = std::max(best, meter.macs() / seconds);
  }
  return best;
}

double measure_read(Kernel kernel, int threads, int passes) {
  Meter meter(kernel, threads);
  const std::vector<float> memory(static_cast<size_t>(kReadTasks * kReadFloats), 1.0f);
  PeakArgs args = {};
  args.memory = memory.data();
  args.floats = kReadFloats;
  double best = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const double seconds = meter.run(&args, kReadTasks);
    best = std::max(best, static_cast<double>(memory.size() * sizeof(float)) / seconds);
  }
  return best;
}

}  // namespace

double measure_peak(const std::string& what, const Isa& isa, int threads, int passes) {
  if (passes < 1) throw fail(MDRT_ERROR_ARGUMENT, "a peak needs 1 pass or more, not %d", passes);
  if (what == "fp32") return measure_macs(isa.kernels->peak_fp32, threads, passes);
  if (what == "int8") return measure_macs(isa.kernels->peak_int8, threads, passes);
  if (what == "read") return measure_read(isa.kernels->peak_read, threads, passes);
  throw fail(MDRT_ERROR_ARGUMENT, "\"%.32s\" is no peak; measure fp32, int8 or read", what.c_str());
}

}  // namespace mdrt

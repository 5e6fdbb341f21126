// Opens, plans and runs mutated bundles through the C API. Built with sanitizers by run.py; uses mdrt.h only, so the same
// program also runs against the library that is shipped.
//
//   fuzz_bundle SEED.mdrt... --container N --graph N --seed S [--first CASE] [--only CASE]
//
// A case must end in MDRT_OK or a typed error, must not take more than a second of CPU time (a run is cancelled after
// 200 ms), and opening must not allocate more than 40 bytes per byte of input plus 1 MB.
#include <malloc.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "mdrt.h"
#include "mutate.h"

extern "C" void __sanitizer_set_death_callback(void (*)(void)) __attribute__((weak));

namespace {

std::atomic<int64_t> live_bytes{0}, peak_bytes{0};
char current_case[80] = "no case";

void say_case() {
  const ssize_t ignored = write(2, current_case, strlen(current_case));
  static_cast<void>(ignored);
}

void on_signal(int number) {
  say_case();
  const char* why = number == SIGALRM ? "does not end: more than five minutes\n" : number == SIGPROF ? "does not end: more than 20 s of CPU time\n" : "crashes\n";
  const ssize_t ignored = write(2, why, strlen(why));
  static_cast<void>(ignored);
  _exit(99);
}

void* counted(size_t size, size_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), size == 0 ? 1 : size) != 0) throw std::bad_alloc();
  const int64_t live = live_bytes += static_cast<int64_t>(malloc_usable_size(memory));
  int64_t peak = peak_bytes;
  while (live > peak && !peak_bytes.compare_exchange_weak(peak, live)) {
  }
  return memory;
}

void uncounted(void* memory) {
  if (memory == nullptr) return;
  live_bytes -= static_cast<int64_t>(malloc_usable_size(memory));
  free(memory);
}

}  // namespace

void* operator new(size_t size) { return counted(size, 16); }
void* operator new[](size_t size) { return counted(size, 16); }
void* operator new(size_t size, std::align_val_t alignment) { return counted(size, static_cast<size_t>(alignment)); }
void* operator new(size_t size, const std::nothrow_t&) noexcept try { return counted(size, 16); } catch (...) { return nullptr; }
void operator delete(void* memory, const std::nothrow_t&) noexcept { uncounted(memory); }
void operator delete(void* memory) noexcept { uncounted(memory); }
void operator delete[](void* memory) noexcept { uncounted(memory); }
void operator delete(void* memory, size_t) noexcept { uncounted(memory); }
void operator delete[](void* memory, size_t) noexcept { uncounted(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { uncounted(memory); }

namespace {

constexpr int64_t kMaxMemory = 64 << 20;
constexpr double kMaxSeconds = 1.0;

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Cancels a model that has been running for 200 ms.
class Watchdog {
 public:
  Watchdog() : thread_([this] { watch(); }) {}
  ~Watchdog() {
    set(nullptr, true);
    thread_.join();
  }
  void set(mdrt_model* model, bool stop = false) {
    const std::lock_guard<std::mutex> lock(mutex_);
    model_ = model;
    since_ = std::chrono::steady_clock::now();
    stop_ = stop;
    if (stop) wake_.notify_one();
  }

 private:
  void watch() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stop_) {
      wake_.wait_for(lock, std::chrono::milliseconds(20));
      if (model_ != nullptr && std::chrono::steady_clock::now() - since_ > std::chrono::milliseconds(200)) mdrt_cancel(model_);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  mdrt_model* model_ = nullptr;
  std::chrono::steady_clock::time_point since_;
  bool stop_ = false;
  std::thread thread_;
};

struct Counts {
  int64_t cases = 0, opened = 0, reached = 0, planned = 0, ran = 0, failures = 0;    // reached: cases with a plan
  int64_t status[10] = {};
  double slowest = 0, most_per_byte = 0;
};

class Fuzzer {
 public:
  Fuzzer(std::vector<std::string> seeds, uint64_t seed) : seeds_(std::move(seeds)), seed_(seed) {}

  void run(bool graph, int64_t index, Counts& counts) {
    fuzz::Random random(seed_ * 1000003 + static_cast<uint64_t>(index) * 2 + (graph ? 1 : 0));
    snprintf(current_case, sizeof current_case, "\nCASE: --%s --seed %llu --only %lld\n", graph ? "graph" : "container",
             static_cast<unsigned long long>(seed_), static_cast<long long>(index));
    alarm(300);    // sleeps for ever; generous, because a busy machine may stop us for long
    const itimerval limit = {{0, 0}, {20, 0}};    // loops for ever
    setitimer(ITIMER_PROF, &limit, nullptr);
    const std::string& from = seeds_[random.below(seeds_.size())];
    const std::string file = graph ? fuzz::mutate_graph(from, random) : fuzz::mutate_container(from, random);
    void* exact = nullptr;    // an exact heap block: a sanitizer sees every byte read past its end
    if (posix_memalign(&exact, 64, std::max<size_t>(file.size(), 1)) != 0) abort();
    memcpy(exact, file.data(), file.size());
    const double begin = cpu_seconds();
    const int64_t planned = counts.planned;
    one_case(exact, file.size(), random, counts);
    const double seconds = cpu_seconds() - begin;
    free(exact);
    ++counts.cases;
    if (counts.planned > planned) ++counts.reached;
    counts.slowest = std::max(counts.slowest, seconds);
    if (seconds > kMaxSeconds) fail(counts, "took %.2f s", seconds);
  }

 private:
  template <class... Values>
  void fail(Counts& counts, const char* format, Values... values) {
    ++counts.failures;
    say_case();
    fprintf(stderr, format, values...);
    fputc('\n', stderr);
  }

  void one_case(const void* data, size_t size, fuzz::Random& random, Counts& counts) {
    mdrt_options options;
    mdrt_options_init(&options);
    options.threads = 1;
    options.max_memory_bytes = kMaxMemory;
    mdrt_model* model = nullptr;
    char message[512] = "";
    const int64_t before = live_bytes;
    peak_bytes = before;
    const mdrt_status status = mdrt_open_memory(data, size, &options, &model, message, sizeof message);
    const int64_t peak = peak_bytes - before;
    counts.most_per_byte = std::max(counts.most_per_byte, static_cast<double>(peak) / static_cast<double>(size + 1));
    if (peak > static_cast<int64_t>(40 * size) + (1 << 20)) fail(counts, "%lld bytes for %zu", static_cast<long long>(peak), size);
    note(status, message, counts);
    if (status != MDRT_OK) return;
    ++counts.opened;
    watchdog_.set(model);
    mdrt_verify(model);
    int32_t components = 0;
    mdrt_get_component_count(model, &components);
    for (int32_t i = 0; i < components; ++i) {
      const char* name = nullptr;
      mdrt_get_component_name(model, i, &name);
      run_component(model, name, random, counts);
    }
    if (random.one_in(8)) generate(model, random, counts);
    watchdog_.set(nullptr);
    mdrt_close(model);
  }

  void note(mdrt_status status, const char* message, Counts& counts) {
    if (status < 0 || status > 9) return fail(counts, "status %d", static_cast<int>(status));
    ++counts.status[status];
    if (status == MDRT_ERROR_INTERNAL) fail(counts, "internal error: %s", message);
    if (status != MDRT_OK && strlen(message) < 8) fail(counts, "status %d says only '%s'", static_cast<int>(status), message);
  }

  void run_component(mdrt_model* model, const char* component, fuzz::Random& random, Counts& counts) {
    std::vector<mdrt_tensor> inputs, outputs;
    std::vector<std::vector<float>> buffers;
    mdrt_tensor tensor;
    const int64_t same = random.one_in(2) ? 1 + static_cast<int64_t>(random.below(9)) : 0, batch = 1 + static_cast<int64_t>(random.below(3));
    for (int32_t i = 0; mdrt_get_input(model, component, i, &tensor) == MDRT_OK; ++i) {
      for (int32_t d = 0; d < tensor.rank; ++d)
        if (tensor.shape[d] == 0) tensor.shape[d] = d == 0 ? batch : same != 0 ? same : 1 + static_cast<int64_t>(random.below(9));
      inputs.push_back(tensor);
    }
    for (int32_t i = 0; mdrt_get_output(model, component, i, &tensor) == MDRT_OK; ++i) {
      tensor.dtype = MDRT_FP32;
      outputs.push_back(tensor);
    }
    const auto call = [&] {
      const mdrt_status status = mdrt_run(model, component, inputs.data(), static_cast<int32_t>(inputs.size()), outputs.data(),
                                          static_cast<int32_t>(outputs.size()));
      note(status, status == MDRT_OK ? "" : mdrt_error_message(model), counts);
      return status == MDRT_OK;
    };
    const auto allocate = [&](mdrt_tensor& of) {
      int64_t count = 1;
      for (int32_t d = 0; d < of.rank; ++d) count = count > kMaxMemory ? count : count * of.shape[d];
      if (count > kMaxMemory / 4) return false;
      buffers.emplace_back(static_cast<size_t>(count));
      for (float& value : buffers.back()) value = static_cast<float>(static_cast<double>(random.next() >> 40) * 0x1p-23 - 1);
      if (of.dtype == MDRT_INT32)
        for (float& value : buffers.back()) {
          const int32_t id = static_cast<int32_t>(random.one_in(50) ? random.next() : random.below(8));
          memcpy(&value, &id, 4);
        }
      of.data = buffers.back().data();
      of.size_bytes = buffers.back().size() * 4;
      return true;
    };
    for (mdrt_tensor& output : outputs) output.data = nullptr;
    if (!call()) return;
    ++counts.planned;
    for (mdrt_tensor& input : inputs)
      if (!allocate(input)) return;
    for (mdrt_tensor& output : outputs)
      if (!allocate(output)) return;
    if (call()) ++counts.ran;
  }

  void generate(mdrt_model* model, fuzz::Random& random, Counts& counts) {
    int32_t width = 0, height = 0;
    if (mdrt_get_size(model, &width, &height) != MDRT_OK || static_cast<int64_t>(width) * height > 1 << 16) return;
    mdrt_generate_params params;
    mdrt_generate_params_init(&params);
    params.prompt = random.one_in(2) ? "ab a" : "b\xc3\xa9 <|endoftext|> ab!";
    params.seed = random.next();
    std::vector<uint8_t> pixels(static_cast<size_t>(width) * static_cast<size_t>(height) * 3);
    const mdrt_status status = mdrt_generate(model, &params, nullptr, nullptr, pixels.data(), static_cast<size_t>(width) * 3);
    note(status, status == MDRT_OK ? "" : mdrt_error_message(model), counts);
    if (status == MDRT_OK) ++counts.ran;
  }

  std::vector<std::string> seeds_;
  uint64_t seed_;
  Watchdog watchdog_;
};

void report(const char* kind, const Counts& counts) {
  printf("%s: %lld cases, %lld opened, %.1f %% reached planning, %lld runs, %lld failures; slowest %.3f s, most %.1f bytes per byte\n",
         kind, static_cast<long long>(counts.cases), static_cast<long long>(counts.opened),
         100.0 * static_cast<double>(counts.reached) / static_cast<double>(counts.cases), static_cast<long long>(counts.ran),
         static_cast<long long>(counts.failures), counts.slowest, counts.most_per_byte);
  printf("  statuses:");
  for (const int64_t count : counts.status) printf(" %lld", static_cast<long long>(count));
  printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> seeds;
  int64_t cases[2] = {0, 0}, first = 0, only = -1;
  uint64_t seed = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.compare(0, 2, "--") != 0) {
      std::ifstream file(argument, std::ios::binary);
      seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
      continue;
    }
    const char* value = i + 1 < argc ? argv[++i] : "0";
    if (argument == "--container") cases[0] = strtoll(value, nullptr, 10);
    if (argument == "--graph") cases[1] = strtoll(value, nullptr, 10);
    if (argument == "--seed") seed = strtoull(value, nullptr, 10);
    if (argument == "--first") first = strtoll(value, nullptr, 10);
    if (argument == "--only") only = strtoll(value, nullptr, 10);
  }
  if (seeds.empty() || seeds[0].empty()) {
    fprintf(stderr, "usage: fuzz_bundle SEED.mdrt... --container N --graph N --seed S [--only CASE]\n");
    return 2;
  }
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_case);
  else
    for (const int number : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) signal(number, on_signal);
  for (const int number : {SIGALRM, SIGPROF}) signal(number, on_signal);
  int64_t failures = 0;
  Fuzzer fuzzer(seeds, seed);
  for (const int kind : {0, 1}) {
    Counts counts;
    for (int64_t i = first; i < cases[kind]; ++i)
      if (only < 0 || only == i) fuzzer.run(kind == 1, i, counts);
    if (cases[kind] > 0) report(kind == 1 ? "graph" : "container", counts);
    failures += counts.failures;
    if (kind == 1 && counts.cases >= 1000 && counts.reached * 5 < counts.cases) {
      fprintf(stderr, "fewer than 20 %% of the changed graphs reach planning: the fuzzer has lost its aim\n");
      ++failures;
    }
  }
  return failures == 0 ? 0 : 1;
}

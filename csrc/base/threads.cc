#include "base/threads.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>
#include <cstdlib>

#include "base/cpu.h"
#include "base/error.h"

namespace mdrt {
namespace {

constexpr int kMaxThreads = 256;
constexpr int64_t kSpinNanoseconds = 1000000;     // as long as the last task of another thread may take: waking up costs a twentieth of it

int thread_count(int wanted) {
  if (wanted > 0) return wanted > kMaxThreads ? kMaxThreads : wanted;
  if (const char* text = getenv("MDRT_THREADS")) {
    char* end = nullptr;
    const long number = strtol(text, &end, 10);
    if (end == text || *end || number < 1 || number > kMaxThreads) {
      throw fail(MDRT_ERROR_ARGUMENT, "MDRT_THREADS is \"%s\"; set it to a number from 1 to %d or unset it", text, kMaxThreads);
    }
    return static_cast<int>(number);
  }
  return usable_cores();
}

int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000000000} + now.tv_nsec;
}

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits for `ready` without sleeping, for a short while; returns whether it came.
template <class Ready>
bool spin(Ready ready) {
  const int64_t end = nanoseconds() + kSpinNanoseconds;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause_briefly();
    }
  } while (nanoseconds() < end);
  return ready();
}

}  // namespace

// A call is published by `generation`; every helper thread takes part in every call once, and `running` counts those that
// are not done yet. So the fields of a call change only while no helper looks at them.
struct ThreadPool::Impl {
  struct Worker {
    Impl* pool;
    int index;
    uint64_t seen;      // the last call that this thread took part in
    pthread_t thread;
  };

  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER, idle = PTHREAD_COND_INITIALIZER;
  Worker workers[kMaxThreads];
  int started = 0;        // helper threads alive
  pid_t owner = 0;        // the process that started them
  bool may_spin = false;  // there is a core for every thread
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> generation{0};
  std::atomic<int> running{0};

  // The current call.
  void (*task)(void*, int64_t, int) = nullptr;
  void* context = nullptr;
  const std::atomic<bool>* cancel = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};

  void claim(int worker) {
    for (;;) {
      if (cancel && cancel->load(std::memory_order_relaxed)) return;
      const int64_t index = next.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) return;
      task(context, index, worker);
    }
  }

  void await_call(uint64_t seen) {
    const auto called = [&] { return stop.load() || generation.load() != seen; };
    if (may_spin && spin(called)) return;
    pthread_mutex_lock(&mutex);
    while (!called()) pthread_cond_wait(&wake, &mutex);
    pthread_mutex_unlock(&mutex);
  }

  static void* loop(void* argument) {
    Worker& self = *static_cast<Worker*>(argument);
    Impl& pool = *self.pool;
    for (;;) {
      pool.await_call(self.seen);
      if (pool.stop.load()) return nullptr;
      self.seen = pool.generation.load();
      pool.claim(self.index);
      if (pool.running.fetch_sub(1) == 1) {
        pthread_mutex_lock(&pool.mutex);
        pthread_cond_signal(&pool.idle);
        pthread_mutex_unlock(&pool.mutex);
      }
    }
  }

  // Threads do not survive fork(): the child finds another owner and starts its own.
  void start(int helpers) {
    const pid_t process = getpid();
    if (owner != process) {
      pthread_mutex_init(&mutex, nullptr);
      pthread_cond_init(&wake, nullptr);
      pthread_cond_init(&idle, nullptr);
      started = 0;
      running = 0;
      owner = process;
    }
    while (started < helpers) {
      Worker& worker = workers[started];
      worker = {this, started + 1, generation.load(), {}};
      if (pthread_create(&worker.thread, nullptr, loop, &worker) != 0) break;   // fewer threads do the same work
      ++started;
    }
  }

  void call() {
    running = started;
    pthread_mutex_lock(&mutex);
    ++generation;
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&mutex);
    claim(0);
    const auto done = [&] { return running.load() == 0; };
    if (may_spin && spin(done)) return;
    pthread_mutex_lock(&mutex);
    while (!done()) pthread_cond_wait(&idle, &mutex);
    pthread_mutex_unlock(&mutex);
  }
};

ThreadPool::ThreadPool(int threads) : impl_(nullptr), size_(thread_count(threads)) {
  impl_ = new Impl;
  impl_->may_spin = size_ <= usable_cores();
}

ThreadPool::~ThreadPool() {
  if (impl_->owner == getpid()) {
    pthread_mutex_lock(&impl_->mutex);
    impl_->stop = true;
    pthread_cond_broadcast(&impl_->wake);
    pthread_mutex_unlock(&impl_->mutex);
    for (int i = 0; i < impl_->started; ++i) pthread_join(impl_->workers[i].thread, nullptr);
  }
  delete impl_;
}

bool ThreadPool::run(int64_t count, void (*task)(void*, int64_t, int), void* context, const std::atomic<bool>* cancel) {
  Impl& pool = *impl_;
  pool.task = task;
  pool.context = context;
  pool.cancel = cancel;
  pool.count = count;
  pool.next.store(0, std::memory_order_relaxed);
  if (size_ > 1 && count > 1) {
    pool.start(size_ - 1);
    pool.call();
  } else {
    pool.claim(0);
  }
  return !(cancel && cancel->load(std::memory_order_relaxed));
}

}  // namespace mdrt

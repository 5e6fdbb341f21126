#include "base/threads.h"

#include <pthread.h>
#include <unistd.h>
#include <cerrno>
#include <cstdlib>
#include <new>

#include "base/cpu.h"
#include "base/error.h"

namespace mdrt {
namespace {

int thread_count(int wanted) {
  if (wanted > 0) return wanted > 256 ? 256 : wanted;
  if (const char* text = getenv("MDRT_THREADS")) {
    char* end = nullptr;
    const long number = strtol(text, &end, 10);
    if (end == text || *end || number < 1 || number > 256) {
      throw fail(MDRT_ERROR_ARGUMENT, "MDRT_THREADS is \"%s\"; set it to a number from 1 to 256 or unset it", text);
    }
    return static_cast<int>(number);
  }
  return usable_cores();
}

}  // namespace

struct ThreadPool::Impl {
  struct Worker {
    Impl* pool;
    int index;
    uint64_t seen;      // the last call that this thread took part in
    pthread_t thread;
  };

  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER, idle = PTHREAD_COND_INITIALIZER;
  Worker workers[256];
  int started = 0;        // helper threads alive
  pid_t owner = 0;        // the process that started them
  bool stop = false;

  // The current call.
  uint64_t generation = 0;
  int running = 0;
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

  static void* loop(void* argument) {
    Worker& self = *static_cast<Worker*>(argument);
    Impl& pool = *self.pool;
    pthread_mutex_lock(&pool.mutex);
    for (;;) {
      while (!pool.stop && pool.generation == self.seen) pthread_cond_wait(&pool.wake, &pool.mutex);
      if (pool.stop) break;
      self.seen = pool.generation;
      pthread_mutex_unlock(&pool.mutex);
      pool.claim(self.index);
      pthread_mutex_lock(&pool.mutex);
      if (--pool.running == 0) pthread_cond_signal(&pool.idle);
    }
    pthread_mutex_unlock(&pool.mutex);
    return nullptr;
  }

  // Threads do not survive fork(): the child finds another owner and starts its own.
  void start(int helpers) {
    const pid_t process = getpid();
    if (owner != process) {
      pthread_mutex_init(&mutex, nullptr);
      pthread_cond_init(&wake, nullptr);
      pthread_cond_init(&idle, nullptr);
      started = 0;
      generation = 0;
      running = 0;
      owner = process;
    }
    while (started < helpers) {
      Worker& worker = workers[started];
      worker = {this, started + 1, generation, {}};
      if (pthread_create(&worker.thread, nullptr, loop, &worker) != 0) break;   // fewer threads do the same work
      ++started;
    }
  }
};

ThreadPool::ThreadPool(int threads) : impl_(nullptr), size_(thread_count(threads)) { impl_ = new Impl; }

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
    pthread_mutex_lock(&pool.mutex);
    pool.running = pool.started;
    ++pool.generation;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
    pool.claim(0);
    pthread_mutex_lock(&pool.mutex);
    while (pool.running > 0) pthread_cond_wait(&pool.idle, &pool.mutex);
    pthread_mutex_unlock(&pool.mutex);
  } else {
    pool.claim(0);
  }
  return !(cancel && cancel->load(std::memory_order_relaxed));
}

}  // namespace mdrt

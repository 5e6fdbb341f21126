// A pool of threads that claim tasks. Which thread runs a task never changes what the task computes.
#pragma once

#include <atomic>
#include <cstdint>

namespace mdrt {

class ThreadPool {
 public:
  // threads <= 0: MDRT_THREADS, else the number of physical cores this process may use.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Calls task(context, index, worker) for every index in [0, count), from size() threads (the caller is worker 0), and
  // returns when all are done. Stops claiming as soon as *cancel is true; returns false then. Survives fork().
  bool run(int64_t count, void (*task)(void* context, int64_t index, int worker), void* context,
           const std::atomic<bool>* cancel);

 private:
  struct Impl;
  Impl* impl_;
  int size_;
};

}  // namespace mdrt

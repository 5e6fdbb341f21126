// The thread pool under load: every task exactly once, calls back to back, cancelled calls, after fork(). For TSan too.
#include <sys/wait.h>
#include <unistd.h>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/threads.h"

using namespace mdrt;

namespace {

struct Counters {
  std::vector<int> tasks;
  std::atomic<bool> cancel{false};
};

void count(void* context, int64_t index, int) { ++static_cast<Counters*>(context)->tasks[static_cast<size_t>(index)]; }

void count_and_cancel(void* context, int64_t index, int worker) {
  count(context, index, worker);
  if (index == 3) static_cast<Counters*>(context)->cancel = true;
}

void require(bool holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "pool: %s\n", what);
  exit(1);
}

void exercise(ThreadPool& pool, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    Counters counters;
    counters.tasks.assign(static_cast<size_t>(1 + round % 37), 0);
    require(pool.run(static_cast<int64_t>(counters.tasks.size()), count, &counters, &counters.cancel), "a call was not finished");
    for (int times : counters.tasks) require(times == 1, "a task did not run exactly once");
  }
  Counters counters;
  counters.tasks.assign(100000, 0);
  require(!pool.run(100000, count_and_cancel, &counters, &counters.cancel), "a cancelled call says it was finished");
  require(counters.tasks.back() == 0, "a cancelled call went on");
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    exercise(pool, 3000);
    const pid_t child = fork();
    if (child == 0) {
      alarm(10);
      exercise(pool, 100);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    require(status == 0, "the pool did not survive fork()");
    exercise(pool, 100);
  }
  printf("pool: 4 sizes, %d calls each, fork and cancel: correct\n", 3000);
  return 0;
}

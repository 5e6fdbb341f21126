/* start MODEL.mdrt: prints the clock (CLOCK_MONOTONIC, seconds) at main(), after opening, when the first kernel is about to
 * run, and at the first event of progress. benchmarks/start.py compiles and runs it. */
#include <mdrt.h>
#include <stdio.h>
#include <time.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int main(int argc, char** argv) {
  const double begun = now();
  if (argc != 2) return fprintf(stderr, "usage: %s MODEL.mdrt\n", argv[0]), 2;
  mdrt_model* model;
  char message[512];
  if (mdrt_open(argv[1], NULL, &model, message, sizeof message) != MDRT_OK) return fprintf(stderr, "%s\n", message), 1;
  const double opened = now();

  mdrt_generate_params params;
  mdrt_generate_params_init(&params);
  params.prompt = "tiger on a blue background";
  params.seed = 1;
  mdrt_job* job;
  if (mdrt_begin(model, &params, &job) != MDRT_OK) return fprintf(stderr, "%s\n", mdrt_error_message(model)), 1;
  const double ready = now();
  mdrt_event event;
  if (mdrt_advance(job, &event) != MDRT_OK) return fprintf(stderr, "%s\n", mdrt_error_message(model)), 1;
  printf("%.9f %.9f %.9f %.9f\n", begun, opened, ready, now());
  mdrt_end(job);
  mdrt_close(model);
  return 0;
}

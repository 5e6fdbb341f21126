// What this instruction set can do at most: multiply-adds between registers, and reading of memory. Benchmarks measure these
// first and state the speed of a kernel as a share of them.

// Makes the compiler forget what `x` holds, at no cost: else it would take equal products out of a loop.
#if defined(__AVX512F__)
#define MDRT_FORGET(x) __asm__("" : "+v"(x))
#elif defined(__x86_64__)
#define MDRT_FORGET(x) __asm__("" : "+x"(x))
#elif defined(__aarch64__)
#define MDRT_FORGET(x) __asm__("" : "+w"(x))
#else
#define MDRT_FORGET(x) __asm__("" : "+m"(x))
#endif

namespace {

// Sums that do not wait for each other: more than latency times units of any core, no more than registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPeakSums = 16;
#elif defined(__FMA__)
constexpr int kPeakSums = 12;
#else
constexpr int kPeakSums = 8;        // products take registers too
#endif
constexpr int kPeakRepeats = 4;     // in a row, so that counting the rounds costs nothing

}  // namespace

static void peak_fp32(const PeakArgs* args, int64_t task, void*) {
  vf sums[kPeakSums];
#pragma GCC unroll 16
  for (int i = 0; i < kPeakSums; ++i) sums[i] = splat(static_cast<float>(i));
  vf a = splat(0.5f), b = splat(0.25f);
  for (int64_t round = 0; round < args->rounds; ++round) {
#pragma GCC unroll 4
    for (int repeat = 0; repeat < kPeakRepeats; ++repeat) {
#pragma GCC unroll 16
      for (int i = 0; i < kPeakSums; ++i) {
        MDRT_FORGET(a);
        sums[i] += a * b;
      }
    }
  }
  vf total = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < kPeakSums; ++i) total += sums[i];
  args->results[task] = static_cast<double>(sum(total));
  args->macs[task] = args->rounds * kPeakRepeats * kPeakSums * VL;
}

static void peak_read(const PeakArgs* args, int64_t task, void*) {
  constexpr int kLoads = 8;
  const float* from = args->memory + task * args->floats;
  vf sums[kLoads] = {};
  for (int64_t i = 0; i < args->floats; i += kLoads * VL) {
#pragma GCC unroll 8
    for (int j = 0; j < kLoads; ++j) sums[j] += load(from + i + j * VL);
  }
  vf total = sums[0];
#pragma GCC unroll 8
  for (int j = 1; j < kLoads; ++j) total += sums[j];
  args->results[task] = static_cast<double>(sum(total));
}

#undef MDRT_FORGET

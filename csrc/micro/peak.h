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

// The arithmetic of the int8 tile: the instructions that it needs for exact sums, with nothing to load.
#if defined(__AMX_INT8__)
static void peak_int8(const PeakArgs* args, int64_t task, void*) {
  alignas(64) int8_t ones[1024];
  alignas(64) int32_t sums[256];
  memset(ones, 1, sizeof ones);
  int8_tile_begin();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  for (int64_t round = 0; round < args->rounds; ++round) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  int8_tile_end();
  args->results[task] = static_cast<double>(sums[0]);
  args->macs[task] = args->rounds * 4 * (16 * 16 * 64);
}
#elif defined(__aarch64__)
static void peak_int8(const PeakArgs* args, int64_t task, void*) {
  int32x4_t sums[kPeakSums];
#pragma GCC unroll 16
  for (int i = 0; i < kPeakSums; ++i) sums[i] = vdupq_n_s32(i);
  int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(2);
  MDRT_FORGET(b);       // else its equal halves are known, and one product is as good as two
  for (int64_t round = 0; round < args->rounds; ++round) {
#pragma GCC unroll 4
    for (int repeat = 0; repeat < kPeakRepeats; ++repeat) {
#pragma GCC unroll 16
      for (int i = 0; i < kPeakSums; ++i) {
        MDRT_FORGET(a);
        sums[i] = int8_step(sums[i], a, b);
      }
    }
  }
  int32x4_t total = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < kPeakSums; ++i) total = vaddq_s32(total, sums[i]);
  args->results[task] = static_cast<double>(vgetq_lane_s32(total, 0));
  args->macs[task] = args->rounds * kPeakRepeats * kPeakSums * kInt8StepMacs;
}
#else
// Of all sums, so that none of them is left out.
template <int kRows, int kVectors>
static double one_result(const vi (&sums)[kRows][kVectors]) {
  vi total = {};
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) total += sums[r][j];
  }
  return static_cast<double>(total[0]);
}

#ifdef MDRT_WIDE_INT8_A
static void peak_int8(const PeakArgs* args, int64_t task, void*) {
  constexpr int kQuads = 4;
  const int32_t a[2 * kQuads] = {1, 2, 3, 4, 5, 6, 7, 8};
  vi sums[kInt16Rows][kInt16Vectors], pairs[kInt16Vectors], partners[kInt16Vectors];
#pragma GCC unroll 4
  for (int j = 0; j < kInt16Vectors; ++j) {
    pairs[j] = splat_int(j + 1);
    partners[j] = splat_int(j + 3);
#pragma GCC unroll 4
    for (int r = 0; r < kInt16Rows; ++r) sums[r][j] = splat_int(r);
  }
  for (int64_t round = 0; round < args->rounds; ++round) {
#pragma GCC unroll 4
    for (int quad = 0; quad < kQuads; ++quad) {
#pragma GCC unroll 4
      for (int r = 0; r < kInt16Rows; ++r) add_quad(sums[r], a + 2 * quad, pairs, partners);
    }
  }
  args->results[task] = one_result(sums);
  args->macs[task] = args->rounds * kQuads * kInt16Rows * kPanel * 4;
}
#else
static void peak_int8(const PeakArgs* args, int64_t task, void*) {
  constexpr int kPeakRows = int8_rows(kInt8Panels), kPeakVectors = kInt8Columns / VL;
  vi sums[kPeakRows][kPeakVectors], b[kPeakVectors];
#pragma GCC unroll 16
  for (int j = 0; j < kPeakVectors; ++j) {
    b[j] = splat_int(0x01020304 * (j + 1));
    MDRT_FORGET(b[j]);
#pragma GCC unroll 16
    for (int r = 0; r < kPeakRows; ++r) sums[r][j] = splat_int(r);
  }
  vi a = splat_int(0x04030201);
  for (int64_t round = 0; round < args->rounds; ++round) {
#pragma GCC unroll 16
    for (int r = 0; r < kPeakRows; ++r) {
      MDRT_FORGET(a);
#pragma GCC unroll 16
      for (int j = 0; j < kPeakVectors; ++j) sums[r][j] = dot4(sums[r][j], a, b[j]);
    }
  }
  args->results[task] = one_result(sums);
  args->macs[task] = args->rounds * kPeakRows * kPeakVectors * VL * 4;
}
#endif
#endif

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

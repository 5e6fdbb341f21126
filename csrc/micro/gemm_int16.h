// Register tile gemm_int16: C (up to 6 x 16, int32) = or += A (rows of 16-bit pairs) * B, exact.
//
// B lies as [pair][16 columns][2]; which two k make a pair is the caller's affair, as long as A has them in the same order.

namespace {

typedef int16_t vs __attribute__((vector_size(VL * 4)));
typedef int32_t vi_bytes __attribute__((vector_size(VL * 4), aligned(1), may_alias));

inline vi even_bytes(vi x) { return reinterpret_cast<vi>(reinterpret_cast<vs>(x) << 8 >> 8); }
inline vi odd_bytes(vi x) { return reinterpret_cast<vi>(reinterpret_cast<vs>(x) >> 8); }

// acc[column] += a[2] . b[column][2]
#if defined(__AVX512BW__)
inline vi dot2(vi acc, vi a, vi b) {
  return acc + reinterpret_cast<vi>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
#elif defined(__AVX2__)
inline vi dot2(vi acc, vi a, vi b) {
  return acc + reinterpret_cast<vi>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
#else
inline vi dot2(vi acc, vi a, vi b) { return acc + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16); }
#endif

constexpr int kInt16Rows = 6;

// rows: the first pair of each; c: (rows, 16).
template <int kRows>
void multiply_int16(const int32_t* const* rows, int64_t pairs, const int32_t* b, int32_t* c, bool accumulate) {
  constexpr int kVectors = static_cast<int>(kPanel) / VL;
  vi acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) acc[r][j] = accumulate ? load_int(c + r * kPanel + j * VL) : vi{};
  }
  for (int64_t pair = 0; pair < pairs; ++pair, b += kPanel) {
    vi bv[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) bv[j] = load_int(b + j * VL);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const vi a = splat_int(rows[r][pair]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) acc[r][j] = dot2(acc[r][j], a, bv[j]);
#if defined(__AVX2__)
      // Keeps gcc from computing all products before the first sum, which does not fit into the registers.
      __asm__ volatile("" : "+x"(acc[r][0]), "+x"(acc[r][kVectors - 1]));
#endif
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store_int(c + r * kPanel + j * VL, acc[r][j]);
  }
}

// Any number of rows, six at a time; what is left takes one or two smaller tiles.
inline void multiply_int16(const int32_t* const* rows, int64_t count, int64_t pairs, const int32_t* b, int32_t* c, bool accumulate) {
  for (; count > 8 || count == 6 || count == 5; count -= kInt16Rows, rows += kInt16Rows, c += kInt16Rows * kPanel) {
    multiply_int16<kInt16Rows>(rows, pairs, b, c, accumulate);
  }
  for (; count > 0; count -= 4, rows += 4, c += 4 * kPanel) multiply_int16<4>(rows, pairs, b, c, accumulate);
}

}  // namespace

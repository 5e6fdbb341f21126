// Register tile gemm_int16: C (up to 4 x 16, int32) = or += A (rows of 16-bit numbers) * B, exact modulo 2^32.
//
// Four k make a quad, two pairs of 16 bits: x, their partners x'. Both lie side by side, in A for each row, in B as [quad][pair][16
// columns][2]. S. Winograd, "A New Algorithm for Inner Product", IEEE Transactions on Computers C-17, 1968:
//   x . y + x' . y' = (x + y') . (x' + y) - x . x' - y . y'
// One instruction that multiplies serves four k instead of two, and its price, two additions, any vector unit can pay. What rows
// and columns contribute alone is summed where they are made.

namespace {

typedef int16_t vs __attribute__((vector_size(VL * 4)));
typedef int32_t vi_bytes __attribute__((vector_size(VL * 4), aligned(1), may_alias));

inline vi even_bytes(vi x) { return reinterpret_cast<vi>(reinterpret_cast<vs>(x) << 8 >> 8); }
inline vi odd_bytes(vi x) { return reinterpret_cast<vi>(reinterpret_cast<vs>(x) >> 8); }
inline vi add_pairs(vi a, vi b) { return reinterpret_cast<vi>(reinterpret_cast<vs>(a) + reinterpret_cast<vs>(b)); }

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

// Pairs and their partners side by side, as rows have them.
inline void store_quads(int32_t* out, vi pairs, vi partners) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i a = reinterpret_cast<__m256i>(pairs), b = reinterpret_cast<__m256i>(partners);
  const __m256i low = _mm256_unpacklo_epi32(a, b), high = _mm256_unpackhi_epi32(a, b);
  store_int(out, reinterpret_cast<vi>(_mm256_permute2x128_si256(low, high, 0x20)));
  store_int(out + VL, reinterpret_cast<vi>(_mm256_permute2x128_si256(low, high, 0x31)));
#else
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) {
    out[2 * i] = pairs[i];
    out[2 * i + 1] = partners[i];
  }
#endif
}

inline int32_t sum_lanes(vi x) {
  typedef int32_t vi4 __attribute__((vector_size(16)));
  vi4 quarters[VL / 4];
  memcpy(quarters, &x, sizeof x);
  vi4 total = quarters[0];
  for (int i = 1; i < VL / 4; ++i) total += quarters[i];
  return (total[0] + total[2]) + (total[1] + total[3]);
}

constexpr int kInt16Rows = 4, kInt16Quads = 4, kInt16Vectors = static_cast<int>(kPanel) / VL;

// The products of one quad of one row, x[2], with 16 columns.
inline void add_quad(vi* acc, const int32_t* x, const vi* pairs, const vi* partners) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // Written out, for compilers move registers here: gcc 12's code reaches two thirds of the speed.
  vi a, b, c, d;
  __asm__(
      "vpbroadcastd %[x0], %[a]\n\t"
      "vpbroadcastd %[x1], %[b]\n\t"
      "vpaddw %[partners0], %[a], %[c]\n\t"
      "vpaddw %[pairs0], %[b], %[d]\n\t"
      "vpaddw %[partners1], %[a], %[a]\n\t"
      "vpaddw %[pairs1], %[b], %[b]\n\t"
      "vpmaddwd %[c], %[d], %[c]\n\t"
      "vpmaddwd %[a], %[b], %[a]\n\t"
      "vpaddd %[c], %[acc0], %[acc0]\n\t"
      "vpaddd %[a], %[acc1], %[acc1]"
      : [acc0] "+x"(acc[0]), [acc1] "+x"(acc[1]), [a] "=&x"(a), [b] "=&x"(b), [c] "=&x"(c), [d] "=&x"(d)
      : [x0] "m"(x[0]), [x1] "m"(x[1]), [pairs0] "x"(pairs[0]), [pairs1] "x"(pairs[1]), [partners0] "x"(partners[0]),
        [partners1] "x"(partners[1]));
#else
  const vi a = splat_int(x[0]), b = splat_int(x[1]);
#pragma GCC unroll 4
  for (int j = 0; j < kInt16Vectors; ++j) acc[j] = dot2(acc[j], add_pairs(a, partners[j]), add_pairs(b, pairs[j]));
#endif
}

// c (rows, 16) = or += (x + y') . (x' + y). rows: the first quad of each; quads: a multiple of kInt16Quads.
template <int kRows>
void multiply_int16(const int32_t* const* rows, int64_t quads, const int32_t* b, int32_t* c, bool accumulate) {
  vi acc[kRows][kInt16Vectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kInt16Vectors; ++j) acc[r][j] = accumulate ? load_int(c + r * kPanel + j * VL) : vi{};
  }
  for (int64_t quad = 0; quad < quads; quad += kInt16Quads, b += 2 * kInt16Quads * kPanel) {
#pragma GCC unroll 4
    for (int q = 0; q < kInt16Quads; ++q) {
      vi pairs[kInt16Vectors], partners[kInt16Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < kInt16Vectors; ++j) {
        pairs[j] = load_int(b + 2 * q * kPanel + j * VL);
        partners[j] = load_int(b + (2 * q + 1) * kPanel + j * VL);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) add_quad(acc[r], rows[r] + 2 * (quad + q), pairs, partners);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kInt16Vectors; ++j) store_int(c + r * kPanel + j * VL, acc[r][j]);
  }
}

// Any number of rows; pointers must exist up to the next multiple of four.
inline void multiply_int16(const int32_t* const* rows, int64_t count, int64_t quads, const int32_t* b, int32_t* c, bool accumulate) {
  for (; count > 2; count -= kInt16Rows, rows += kInt16Rows, c += kInt16Rows * kPanel) {
    multiply_int16<kInt16Rows>(rows, quads, b, c, accumulate);
  }
  if (count == 2) multiply_int16<2>(rows, quads, b, c, accumulate);
  if (count == 1) multiply_int16<1>(rows, quads, b, c, accumulate);
}

}  // namespace

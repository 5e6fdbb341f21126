// One vector type over the GCC/Clang vector extensions: the SIMD vocabulary of every kernel body.
//
// Included inside `namespace mdrt::<isa>`: no std::, and everything has internal linkage, so that no symbol compiled
// with one ISA's flags can be the copy that the linker keeps for another.

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));          // VL floats
typedef int32_t vi __attribute__((vector_size(VL * 4)));        // VL integers, also lane masks
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef float vf_unaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));       // VL halves as bits
typedef uint16_t vh_unaligned __attribute__((vector_size(VL * 2), aligned(2), may_alias));

namespace {

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

inline vf splat(float x) { return x - vf{}; }
inline vi splat_int(int32_t x) { return x - vi{}; }
inline vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
inline void store(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }
inline vi load_int(const int32_t* p) { return *reinterpret_cast<const vi_unaligned*>(p); }
inline void store_int(int32_t* p, vi x) { *reinterpret_cast<vi_unaligned*>(p) = x; }
// Of a NaN and a number, the second.
#if defined(__AVX512F__)
inline vf max(vf a, vf b) { return reinterpret_cast<vf>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b))); }
inline vf min(vf a, vf b) { return reinterpret_cast<vf>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b))); }
#elif defined(__AVX__)
inline vf max(vf a, vf b) { return reinterpret_cast<vf>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b))); }
inline vf min(vf a, vf b) { return reinterpret_cast<vf>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b))); }
#else
inline vf max(vf a, vf b) { return a > b ? a : b; }
inline vf min(vf a, vf b) { return a < b ? a : b; }
#endif
inline vf bits_to_float(vi x) { return reinterpret_cast<vf>(x); }
inline vi float_to_bits(vf x) { return reinterpret_cast<vi>(x); }

// Lanes 0 .. count-1.
inline vi lane_below(int64_t count) {
  vi lane;
  for (int i = 0; i < VL; ++i) lane[i] = i;
  return lane < static_cast<int32_t>(count < VL ? count : VL);
}

// Reductions and 1 / x (within 1 ulp for normal x) in the instructions that each ISA has for them.
#if defined(__AVX512F__)
inline float sum(vf x) { return _mm512_reduce_add_ps(reinterpret_cast<__m512>(x)); }
inline float max_lane(vf x) { return _mm512_reduce_max_ps(reinterpret_cast<__m512>(x)); }
inline vf reciprocal(vf x) {
  const vf r = reinterpret_cast<vf>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
  return r + r * (1.0f - x * r);
}
#elif defined(__aarch64__)
inline float sum(vf x) { return vaddvq_f32(reinterpret_cast<float32x4_t>(x)); }
inline float max_lane(vf x) { return vmaxvq_f32(reinterpret_cast<float32x4_t>(x)); }
inline vf reciprocal(vf x) { return 1.0f / x; }
#else
typedef float vf4 __attribute__((vector_size(16)));
inline vf4 quarter(vf x, int i) {
  vf4 out;
  memcpy(&out, reinterpret_cast<const char*>(&x) + 16 * i, 16);
  return out;
}
inline float sum(vf x) {
  vf4 total = quarter(x, 0);
  for (int i = 1; i < VL / 4; ++i) total += quarter(x, i);
  return (total[0] + total[2]) + (total[1] + total[3]);
}
inline float max_lane(vf x) {
  vf4 top = quarter(x, 0);
  for (int i = 1; i < VL / 4; ++i) top = top > quarter(x, i) ? top : quarter(x, i);
  const float a = top[0] > top[2] ? top[0] : top[2], b = top[1] > top[3] ? top[1] : top[3];
  return a > b ? a : b;
}
inline vf reciprocal(vf x) { return 1.0f / x; }
#endif

// The value, hidden from the compiler so that it cannot contract the operation that made it with the one that uses it.
inline vf rounded(vf x) {
#if defined(__x86_64__) || defined(__i386__)
  __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#else
  __asm__("" : "+m"(x));
#endif
  return x;
}

// Halves are IEEE binary16; rounding is to nearest, ties to even.
#if defined(__AVX512F__)
inline vf load_half(const uint16_t* p) {
  return reinterpret_cast<vf>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline void store_half(uint16_t* p, vf x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
inline vf load_half(const uint16_t* p) {
  return reinterpret_cast<vf>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_half(uint16_t* p, vf x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__aarch64__)
inline vf load_half(const uint16_t* p) { return reinterpret_cast<vf>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))); }
inline void store_half(uint16_t* p, vf x) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(x))));
}
#else
// Without conversion instructions: exponents are moved by a multiplication, which also makes subnormals right.
inline vf load_half(const uint16_t* p) {
  vu h = __builtin_convertvector(*reinterpret_cast<const vh_unaligned*>(p), vu);
  vu sign = (h & 0x8000u) << 16;
  vu magnitude = (h & 0x7fffu) << 13;
  vf scaled = bits_to_float(reinterpret_cast<vi>(magnitude)) * 0x1p112f;
  vi special = scaled >= 65536.0f;                                   // infinity and NaN keep their payload
  vu bits = special ? (magnitude | 0x7f800000u) : reinterpret_cast<vu>(float_to_bits(scaled));
  return bits_to_float(reinterpret_cast<vi>(bits | sign));
}
inline void store_half(uint16_t* p, vf x) {
  vu bits = reinterpret_cast<vu>(float_to_bits(x));
  vu sign = (bits >> 16) & 0x8000u;
  vu magnitude = bits & 0x7fffffffu;
  vu normal = magnitude - (112u << 23);
  normal = (normal + 0xfffu + ((normal >> 13) & 1u)) >> 13;
  // Adding 0.5 aligns a subnormal's last kept bit with a float's last bit, so the addition itself rounds.
  vu subnormal = reinterpret_cast<vu>(float_to_bits(bits_to_float(reinterpret_cast<vi>(magnitude)) + 0.5f)) - 0x3f000000u;
  vu half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? vu{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? vu{} + 0x7e00u : half;
  *reinterpret_cast<vh_unaligned*>(p) = __builtin_convertvector(half | sign, vh);
}
#endif

// e^(kSign x) with a relative error of at most 2^-24 (4 + |x|), for exponents up to 87; the polynomials are minimax ones of degree 5.
#if defined(__AVX512F__)
// 2^y, of y's fraction by polynomial and of what lies below it by scaling: two instructions that no argument leads astray.
template <int kSign>
inline vf exp_signed(vf x) {
  constexpr int kDown = 0x09;
  const __m512 y = reinterpret_cast<__m512>(min(x * (kSign * 1.44269504088896341f), splat(126.0f)));
  const vf f = reinterpret_cast<vf>(_mm512_reduce_ps(y, kDown));
  vf p = splat(1.86713e-3f);
  p = p * f + 9.017031e-3f;
  p = p * f + 5.5799913e-2f;
  p = p * f + 2.4016444e-1f;
  p = p * f + 6.931513e-1f;
  p = p * f + 1.0f;
  return reinterpret_cast<vf>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), y));
}
#else
// Cody-Waite reduction; adding a power of 2 to a float's exponent multiplies by it.
template <int kSign>
inline vf exp_signed(vf x) {
  x = kSign > 0 ? min(max(x, splat(-87.0f)), splat(88.0f)) : min(max(x, splat(-88.0f)), splat(87.0f));
  const vf shifted = x * (kSign * 1.44269504088896341f) + 12582912.0f;   // 1.5 * 2^23: the integer lands in the low bits
  const vf n = shifted - 12582912.0f;
  vf r = kSign > 0 ? x - n * 0.693359375f : -x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = splat(8.312501e-3f);
  p = p * r + 4.189033e-2f;
  p = p * r + 1.6667116e-1f;
  p = p * r + 4.999923e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << 23));
}
#endif

inline vf exp(vf x) { return exp_signed<1>(x); }
inline vf silu(vf x) { return x * reciprocal(1.0f + exp_signed<-1>(x)); }
inline vf quick_gelu(vf x) { return x * reciprocal(1.0f + exp_signed<-1>(1.702f * x)); }

// x * Phi(x) with erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
inline vf gelu(vf x) {
  vf z = x * 0.70710678118654752f;
  vf magnitude = z < 0.0f ? -z : z;
  vf t = reciprocal(1.0f + 0.3275911f * magnitude);
  vf p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  vf tail = p * t * exp_signed<-1>(magnitude * magnitude);                   // erfc(|z|)
  vf cdf = z < 0.0f ? 0.5f * tail : 1.0f - 0.5f * tail;
  return x * cdf;
}

inline vf activate(vf x, Activation activation) {
  switch (activation) {
    case Activation::silu: return silu(x);
    case Activation::gelu: return gelu(x);
    case Activation::quick_gelu: return quick_gelu(x);
    default: return x;
  }
}

// Element access to a tensor that is stored as fp32 or fp16.
inline vf load_as(const void* base, int64_t index, DType dtype) {
  return dtype == DType::fp16 ? load_half(static_cast<const uint16_t*>(base) + index)
                              : load(static_cast<const float*>(base) + index);
}
inline void store_as(void* base, int64_t index, DType dtype, vf x) {
  if (dtype == DType::fp16) {
    store_half(static_cast<uint16_t*>(base) + index, x);
  } else {
    store(static_cast<float*>(base) + index, x);
  }
}

}  // namespace

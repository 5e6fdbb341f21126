// What an int8 layer reads: bytes, one scale per pixel (from the pixel's largest magnitude) or one scale and zero point for all.
// Normalisation, activation, concatenation and a depthwise convolution in front of the layer happen on the way.
//
// Every step is a float32 operation of its own, so the bytes are the same on every ISA for the same float32 values.

namespace {

typedef int8_t vb __attribute__((vector_size(VL)));
typedef int8_t vb_unaligned __attribute__((vector_size(VL), aligned(1), may_alias));

// Magnitudes as their bits: integers in the same order, above which NaN and infinity stand.
inline vi magnitude_bits(vf x) { return float_to_bits(x) & 0x7fffffff; }
inline vi larger(vi a, vi b) { return a > b ? a : b; }

inline int32_t largest_lane(vi x) {
  int32_t lanes[VL], largest = 0;         // an index into x itself would keep x in memory, in its caller's loop too
  store_int(lanes, x);
  for (int32_t lane : lanes) largest = largest > lane ? largest : lane;
  return largest;
}

// Nearest integers, ties to even, of values below 2^22 in magnitude, plus kRoundBits: the sum's unit of the last place is 1.
constexpr int32_t kRoundBits = 0x4b400000;
inline vi round_bits(vf x) { return float_to_bits(x + 12582912.0f); }

// The low bytes of integers that a byte of the layer's kind holds.
inline void store_int8(int8_t* out, vi q) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(q)));
#elif defined(__AVX2__)
  const __m256i all = reinterpret_cast<__m256i>(q);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
#ifdef MDRT_UNSIGNED_INT8_A
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
#else
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packs_epi16(words, words));
#endif
#else
  *reinterpret_cast<vb_unaligned*>(out) = __builtin_convertvector(q, vb);
#endif
}

// Bytes cannot hold NaN or infinity; what is not finite raises a flag instead.
inline void note_not_finite(int32_t largest_bits, int32_t* not_finite) {
  if (largest_bits >= 0x7f800000) __atomic_store_n(not_finite, 1, __ATOMIC_RELAXED);
}

inline void clear_bytes(int8_t* row, int64_t channels) {
  const int64_t end = round_up(channels, kInt8Align);
  if (end > channels) memset(row + channels, 0, static_cast<size_t>(end - channels));
}

// One pixel, one scale: out = round(x / s) with s = max|x| / 127, or 1 if that is zero or subnormal. Returns s.
inline float quantize_pixel(const float* x, int64_t channels, int8_t* out, int32_t* not_finite) {
  vi top = {};
  for (int64_t c = 0; c < channels; c += VL) top = larger(top, magnitude_bits(load(x + c)));
  const int32_t largest_bits = largest_lane(top);
  note_not_finite(largest_bits, not_finite);
  float largest;
  memcpy(&largest, &largest_bits, sizeof(largest));
  const float step = largest / 127.0f, scale = step >= 0x1p-126f ? step : 1.0f;
  const float inverse = 1.0f / scale;
  for (int64_t c = 0; c < channels; c += VL) {
    const vf q = min(max(rounded(load(x + c) * inverse), splat(-127.0f)), splat(127.0f));
    store_int8(out + c, round_bits(q) + (kInt8Offset - kRoundBits));
  }
  clear_bytes(out, channels);
  return scale;
}

// What all pixels have in common where they have one scale.
struct Int8Input {
  float inverse;        // of the scale
  vf low, high;         // of what a byte holds, less the zero point
  vi offset;            // from round_bits to the stored byte
};

inline Int8Input int8_input(const QuantizeArgs& a) {
  const int32_t zero_point = *a.input_zero_point;
  return {1.0f / *a.input_scale, splat(static_cast<float>(-128 - zero_point)), splat(static_cast<float>(127 - zero_point)),
          splat_int(zero_point + kInt8Offset - kRoundBits)};
}

// One scale for all pixels. Returns the larger of `magnitudes` and those of this pixel.
inline vi quantize_pixel(const float* x, int64_t channels, const Int8Input& input, int8_t* out, vi magnitudes) {
  for (int64_t c = 0; c < channels; c += VL) {
    const vf value = load(x + c), q = min(max(rounded(value * input.inverse), input.low), input.high);
    magnitudes = larger(magnitudes, magnitude_bits(value));
    store_int8(out + c, round_bits(q) + input.offset);
  }
  clear_bytes(out, channels);
  return magnitudes;
}

// Writes floats of `count` pixels as bytes. A function of its own, because what lives across its callers' calls lives in memory.
__attribute__((noinline)) void write_bytes(const QuantizeArgs& a, const float* rows, int64_t pixel, int64_t count) {
  const int64_t channels = a.layer.k_channels, bytes = round_up(channels, kInt8Align), stride = a.output.stride;
  const bool widened = a.output.widened;
  int8_t* out = static_cast<int8_t*>(a.output.data) + pixel * stride;
  if (a.pixel_scale) {
    for (int64_t i = 0; i < count; ++i) {
      write_int8_pixel(out + i * stride, bytes, widened, [&](int8_t* to) {
        a.pixel_scale[pixel + i] = quantize_pixel(rows + i * channels, channels, to, a.not_finite);
      });
    }
    return;
  }
  const Int8Input input = int8_input(a);
  vi magnitudes = {};
  for (int64_t i = 0; i < count; ++i) {
    write_int8_pixel(out + i * stride, bytes, widened, [&](int8_t* to) {
      magnitudes = quantize_pixel(rows + i * channels, channels, input, to, magnitudes);
    });
  }
  note_not_finite(largest_lane(magnitudes), a.not_finite);
}

// Pixels that are floats at a time: they stay in the first-level cache.
inline int64_t quantize_run(const GemmArgs& g) {
  constexpr int64_t kFloats = 4096;
  return g.k_channels < kFloats ? kFloats / g.k_channels : 1;
}

// rows: (quantize_run, k_channels)
inline void quantize_pixels(const QuantizeArgs& a, int64_t first, int64_t end, float* rows) {
  const GemmArgs& g = a.layer;
  const int64_t image_pixels = g.in_h * g.in_w, run = quantize_run(g);
  for (int64_t pixel = first, count; pixel < end; pixel += count) {
    count = end - pixel < run ? end - pixel : run;
    const float* scale = nullptr;
    if (g.norm) {
      const int64_t left = image_pixels - pixel % image_pixels;
      if (count > left) count = left;
      scale = g.norm + pixel / image_pixels * 2 * g.k_channels;
    }
    int64_t k0 = 0;
    for (int s = 0; s < g.num_sources; ++s) {
      const ActivationView& source = g.sources[s];
      choose_load(source.dtype, g.norm != nullptr, g.input_activation)(
          rows + k0, g.k_channels, element(source.data, pixel * source.stride, source.dtype), source.stride, count, source.channels,
          scale ? scale + k0 : nullptr, scale ? scale + g.k_channels + k0 : nullptr);
      k0 += source.channels;
    }
    write_bytes(a, rows, pixel, count);
  }
}

}  // namespace

static int64_t quantize_scratch_bytes(const QuantizeArgs* args) {
  const GemmArgs& g = args->layer;
  if (!g.depthwise) return quantize_run(g) * g.k_channels * static_cast<int64_t>(sizeof(float));
  const GemmScratch s = gemm_scratch(g);
  return (s.tile + g.block_h * g.block_w * g.k_channels) * static_cast<int64_t>(sizeof(float));
}

static void quantize(const QuantizeArgs* args, int64_t task, void* scratch) {
  const QuantizeArgs& a = *args;
  const GemmArgs& g = a.layer;
  if (!g.depthwise) {
    const int64_t first = task * a.block_pixels;
    quantize_pixels(a, first, first + a.block_pixels < a.pixels ? first + a.block_pixels : a.pixels, static_cast<float*>(scratch));
    return;
  }
  const GemmScratch s = gemm_scratch(g);
  const GemmTask t = gemm_task(g, task);
  float* tile = static_cast<float*>(scratch);
  float* rows = tile + s.tile;
  const TileRegion region = {t.image, t.y0 * g.stride_h - g.pad_top, t.x0 * g.stride_w - g.pad_left,
                             (t.h - 1) * g.stride_h + g.kernel_h, (t.w - 1) * g.stride_w + g.kernel_w};
  int64_t source_k0 = 0;
  for (int source = 0; source < g.num_sources; ++source) {
    const int64_t channels = g.sources[source].channels;
    for (int64_t c0 = 0; c0 < channels; c0 += g.k_block) {
      const int64_t depth = channels - c0 < g.k_block ? channels - c0 : g.k_block, k0 = source_k0 + c0;
      load_tile(g, region, source, c0, k0, depth, tile, s.tile_stride);
      depthwise_tile(g, tile, region.w, t.h, t.w, k0, depth, s.tile_stride, rows + k0,
                     g.k_channels);
    }
    source_k0 += channels;
  }
  for (int64_t y = 0; y < t.h; ++y) {
    write_bytes(a, rows + y * t.w * g.k_channels, (t.image * g.out_h + t.y0 + y) * g.out_w + t.x0, t.w);
  }
}

// What an int8 layer reads: bytes, one scale per pixel (from the pixel's largest magnitude) or one scale and zero point for all.
// Normalisation, activation, concatenation and a depthwise convolution in front of the layer happen on the way.
//
// Every step is a float32 operation of its own, so the bytes are the same on every ISA for the same float32 values.

namespace {

typedef int8_t vb __attribute__((vector_size(VL)));
typedef int8_t vb_unaligned __attribute__((vector_size(VL), aligned(1), may_alias));

inline vf absolute(vf x) { return bits_to_float(float_to_bits(x) & 0x7fffffff); }

// Nearest integers, ties to even, of values below 2^22 in magnitude: the sum's unit of the last place is 1.
inline vi round_to_int(vf x) { return float_to_bits(x + 12582912.0f) - 0x4b400000; }

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

// Bytes cannot hold NaN or infinity; what is not finite raises a flag instead. The difference of a finite number with itself is 0.
inline void note_not_finite(vf differences, int32_t* not_finite) {
  if (sum(differences) != 0) __atomic_store_n(not_finite, 1, __ATOMIC_RELAXED);
}

inline void clear_bytes(int8_t* row, int64_t channels) {
  const int64_t end = round_up(channels, kInt8Align);
  if (end > channels) memset(row + channels, 0, static_cast<size_t>(end - channels));
}

// One pixel, one scale: out = round(x / s) with s = max|x| / 127, or 1 if that is zero or subnormal. Returns s.
inline float quantize_pixel(const float* x, int64_t channels, int8_t* out, vf* differences) {
  vf top = {}, sum = *differences;
  for (int64_t c = 0; c < channels; c += VL) {
    const vf value = load(x + c);
    top = max(top, absolute(value));
    sum += value - value;
  }
  *differences = sum;
  const float largest = max_lane(top);
  const float step = largest / 127.0f, scale = step >= 0x1p-126f ? step : 1.0f;
  const float inverse = 1.0f / scale;
  for (int64_t c = 0; c < channels; c += VL) {
    const vf q = min(max(rounded(load(x + c) * inverse), splat(-127.0f)), splat(127.0f));
    store_int8(out + c, round_to_int(q) + kInt8Offset);
  }
  clear_bytes(out, channels);
  return scale;
}

// Writes pixels as bytes. No destructor says what `finish` says: one would bring exceptions into a kernel.
class ByteWriter {
 public:
  explicit ByteWriter(const QuantizeArgs& args) : args_(args), inverse_(args.pixel_scale ? 1.0f : 1.0f / *args.input_scale) {
    if (args.pixel_scale) return;
    zero_point_ = *args.input_zero_point;
    low_ = splat(static_cast<float>(-128 - zero_point_));
    high_ = splat(static_cast<float>(127 - zero_point_));
  }

  void finish() const { note_not_finite(differences_, args_.not_finite); }

  void write(const float* x, int64_t pixel) {
    const int64_t channels = args_.layer.k_channels;
    int8_t* out = static_cast<int8_t*>(args_.output.data) + pixel * args_.output.stride;
    if (args_.pixel_scale) {
      args_.pixel_scale[pixel] = quantize_pixel(x, channels, out, &differences_);
      return;
    }
    vf differences = differences_;
    for (int64_t c = 0; c < channels; c += VL) {
      const vf value = load(x + c), q = min(max(rounded(value * inverse_), low_), high_);
      differences += value - value;
      store_int8(out + c, round_to_int(q) + (zero_point_ + kInt8Offset));
    }
    differences_ = differences;
    clear_bytes(out, channels);
  }

 private:
  const QuantizeArgs& args_;
  const float inverse_;       // of the scale of all pixels
  int32_t zero_point_ = 0;
  vf low_ = {}, high_ = {}, differences_ = {};
};

// Pixels that are floats at a time: they stay in the first-level cache.
inline int64_t quantize_run(const GemmArgs& g) {
  constexpr int64_t kFloats = 4096;
  return g.k_channels < kFloats ? kFloats / g.k_channels : 1;
}

// rows: (quantize_run, k_channels)
inline void quantize_pixels(const QuantizeArgs& a, int64_t first, int64_t end, float* rows) {
  const GemmArgs& g = a.layer;
  ByteWriter writer(a);
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
    for (int64_t i = 0; i < count; ++i) writer.write(rows + i * g.k_channels, pixel + i);
  }
  writer.finish();
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
  ByteWriter writer(a);
  for (int64_t i = 0; i < t.h * t.w; ++i) {
    writer.write(rows + i * g.k_channels, (t.image * g.out_h + t.y0 + i / t.w) * g.out_w + t.x0 + i % t.w);
  }
  writer.finish();
}

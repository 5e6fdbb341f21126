// GroupNorm in two steps (sums over fixed blocks of pixels, then scale and shift per channel) and LayerNorm.
//
// Sums are shifted by the image's first pixel, so that a large mean does not drown a small variance, and are added in
// block order in float64: the bits do not depend on the number of threads.

namespace {

// Sums of kVectors vectors of channels over pixels [first, end), each channel in the order of pixels. Several vectors at a time, since
// each addition waits for the one before.
template <int kVectors>
void sum_channels(const ActivationView& x, const char* origin, int64_t first, int64_t end, int64_t c, float* sums, float* squares) {
  vf shift[kVectors], total[kVectors], square[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    shift[v] = load_as(origin, c + v * VL, x.dtype);
    total[v] = square[v] = vf{};
  }
  for (int64_t i = first; i < end; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const vf d = load_as(origin, i * x.stride + c + v * VL, x.dtype) - shift[v];
      total[v] += d;
      square[v] += d * d;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    store(sums + c + v * VL, total[v]);
    store(squares + c + v * VL, square[v]);
  }
}

}  // namespace

static void group_norm_sums(const GroupNormStatsArgs* args, int64_t task, void*) {
  constexpr int kTogether = 4;
  const GroupNormStatsArgs& a = *args;
  const int64_t image = task / a.blocks, block = task % a.blocks;
  const int64_t first = block * a.block_pixels;
  const int64_t end = first + a.block_pixels < a.pixels ? first + a.block_pixels : a.pixels;
  float* sums = a.sums + task * 2 * a.k_channels;
  float* squares = sums + a.k_channels;
  for (int s = 0; s < a.num_sources; ++s) {
    const ActivationView& x = a.sources[s];
    const char* origin = element(x.data, image * a.pixels * x.stride, x.dtype);
    int64_t c = 0;
    for (; c + kTogether * VL <= x.channels; c += kTogether * VL) sum_channels<kTogether>(x, origin, first, end, c, sums, squares);
    for (; c < x.channels; c += VL) sum_channels<1>(x, origin, first, end, c, sums, squares);
    sums += x.channels;
    squares += x.channels;
  }
}

namespace {

inline float first_pixel(const GroupNormStatsArgs& a, int64_t image, int64_t channel) {
  int s = 0;
  while (channel >= a.sources[s].channels) channel -= a.sources[s++].channels;
  const ActivationView& x = a.sources[s];
  const int64_t index = image * a.pixels * x.stride + channel;
  if (x.dtype == DType::fp32) return static_cast<const float*>(x.data)[index];
  uint16_t halves[VL] = {static_cast<const uint16_t*>(x.data)[index]};
  return load_half(halves)[0];
}

}  // namespace

// One task per image and group.
static void group_norm_finish(const GroupNormStatsArgs* args, int64_t task, void*) {
  const GroupNormStatsArgs& a = *args;
  const int64_t image = task / a.groups, group = task % a.groups;
  const int64_t size = a.channels / a.groups, first = group * size;
  const double count = static_cast<double>(a.pixels);
  float* scale = a.norm + image * 2 * a.k_channels;
  float* shift = scale + a.k_channels;
  const float* blocks = a.sums + image * a.blocks * 2 * a.k_channels;
  double mean = 0, squares = 0;
  // Two passes over the channels: the mean first, then the squares about it.
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t c = first; c < first + size; ++c) {
      double sum = 0, square = 0;
      for (int64_t b = 0; b < a.blocks; ++b) {
        sum += static_cast<double>(blocks[b * 2 * a.k_channels + c]);
        square += static_cast<double>(blocks[(b * 2 + 1) * a.k_channels + c]);
      }
      const double origin = static_cast<double>(first_pixel(a, image, c));
      if (pass == 0) {
        mean += origin + sum / count;
      } else {
        const double d = origin - mean;
        squares += square + 2 * d * sum + count * d * d;
      }
    }
    if (pass == 0) mean /= static_cast<double>(size);
  }
  const double variance = squares / (count * static_cast<double>(size));
  const double inverse = 1.0 / __builtin_sqrt((variance > 0 ? variance : 0) + a.eps);
  for (int64_t c = first; c < first + size; ++c) {
    const double weight = static_cast<double>(a.weight[c]) * inverse;
    scale[c] = static_cast<float>(weight);
    shift[c] = static_cast<float>(static_cast<double>(a.bias[c]) - mean * weight);
  }
  if (group == a.groups - 1) {
    for (int64_t c = a.channels; c < a.k_channels; ++c) scale[c] = shift[c] = 0;
  }
}

static void norm_apply(const NormApplyArgs* args, int64_t task, void*) {
  const NormApplyArgs& a = *args;
  const int64_t image = task / a.blocks, first = task % a.blocks * a.block_pixels;
  const int64_t end = first + a.block_pixels < a.pixels ? first + a.block_pixels : a.pixels;
  for (int64_t i = first; i < end; ++i) {
    const int64_t pixel = image * a.pixels + i;
    int64_t k = 0;
    for (int s = 0; s < a.num_sources; ++s) {
      const ActivationView& x = a.sources[s];
      const float* scale = a.norm + image * 2 * a.output.channels + k;
      for (int64_t c = 0; c < x.channels; c += VL) {
        vf y = load_as(x.data, pixel * x.stride + c, x.dtype) * load(scale + c) + load(scale + a.output.channels + c);
        store_as(a.output.data, pixel * a.output.stride + k + c, a.output.dtype, activate(y, a.activation));
      }
      k += x.channels;
    }
  }
}

static int64_t layer_norm_scratch_bytes(const LayerNormArgs* args) {
  return args->output.dtype == DType::int8 ? args->output.channels * static_cast<int64_t>(sizeof(float)) : 0;
}

static void layer_norm(const LayerNormArgs* args, int64_t task, void* scratch) {
  const LayerNormArgs& a = *args;
  const bool quantized = a.output.dtype == DType::int8;
  float* row = static_cast<float*>(scratch);
  const int64_t first = task * a.block_pixels;
  const int64_t end = first + a.block_pixels < a.pixels ? first + a.block_pixels : a.pixels;
  const float inverse_size = 1.0f / static_cast<float>(a.size);
  vf differences = {};
  for (int64_t i = first; i < end; ++i) {
    const char* x = element(a.input.data, i * a.input.stride, a.input.dtype);
    vf total = {};
    for (int64_t c = 0; c < a.input.channels; c += VL) total += load_as(x, c, a.input.dtype);
    const float mean = sum(total) * inverse_size;
    vf square = {};
    for (int64_t c = 0; c < a.input.channels; c += VL) {
      const vf d = load_as(x, c, a.input.dtype) - mean;
      square += lane_below(a.size - c) ? d * d : vf{};     // channel padding does not count
    }
    const float inverse = 1.0f / __builtin_sqrtf(sum(square) * inverse_size + a.eps);
    for (int64_t c = 0; c < a.input.channels; c += VL) {
      const vf y = (load_as(x, c, a.input.dtype) - mean) * inverse * load(a.weight + c) + load(a.bias + c);
      if (quantized) {
        store(row + c, y);
      } else {
        store_as(a.output.data, i * a.output.stride + c, a.output.dtype, y);
      }
    }
    if (quantized) {
      int8_t* out = static_cast<int8_t*>(a.output.data) + i * a.output.stride;
      a.pixel_scale[i] = quantize_pixel(row, a.output.channels, out, &differences);
    }
  }
  if (quantized) note_not_finite(differences, a.not_finite);
}

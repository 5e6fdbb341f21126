// GroupNorm in two steps (sums over fixed blocks of pixels, then scale and shift per channel) and LayerNorm.
//
// Sums of blocks are added in their order in float64: the bits do not depend on the number of threads.

// One task per image and block.
static void group_norm_sums(const GroupNormSumsArgs* args, int64_t task, void*) {
  const GroupNormSumsArgs& a = *args;
  const int64_t first = task % a.blocks * a.block_pixels;
  const int64_t count = a.pixels - first < a.block_pixels ? a.pixels - first : a.block_pixels;
  const PixelBlock block = {task / a.blocks * a.pixels + first, 1, count, count};
  sum_block(a.input, block, 0, a.input.channels, a.sums + task * sums_row(a.input.channels));
}

namespace {

// Sums of one channel of an image over its blocks.
struct ChannelMoments {
  double pixels, sum, squares;      // squares: of the differences from `mean`
};

inline ChannelMoments channel_moments(const GroupNormFinishArgs::Source& source, int64_t image, int64_t channel, double mean) {
  const int64_t row_size = sums_row(source.channels);
  const float* row = source.sums + image * source.blocks * row_size;
  ChannelMoments m = {};
  for (int64_t b = 0; b < source.blocks; ++b, row += row_size) {
    const double pixels = static_cast<double>(row[3 * source.channels]), origin = static_cast<double>(row[channel]);
    const double sum = static_cast<double>(row[source.channels + channel]), square = static_cast<double>(row[2 * source.channels + channel]);
    const double d = origin - mean;
    m.pixels += pixels;
    m.sum += pixels * origin + sum;
    m.squares += square + 2 * d * sum + pixels * d * d;
  }
  return m;
}

// Of channels [first, end) of all sources together.
inline ChannelMoments group_moments(const GroupNormFinishArgs& a, int64_t image, int64_t first, int64_t end, double mean) {
  ChannelMoments group = {};
  for (int64_t c = first; c < end; ++c) {
    int s = 0;
    int64_t channel = c;
    while (channel >= a.sources[s].channels) channel -= a.sources[s++].channels;
    const ChannelMoments m = channel_moments(a.sources[s], image, channel, mean);
    group.pixels += m.pixels;
    group.sum += m.sum;
    group.squares += m.squares;
  }
  return group;
}

}  // namespace

// One task per image and group: the mean first, then the squares about it.
static void group_norm_finish(const GroupNormFinishArgs* args, int64_t task, void*) {
  const GroupNormFinishArgs& a = *args;
  const int64_t image = task / a.groups, group = task % a.groups;
  const int64_t size = a.channels / a.groups, first = group * size;
  float* scale = a.norm + image * 2 * a.k_channels;
  float* shift = scale + a.k_channels;
  const ChannelMoments sums = group_moments(a, image, first, first + size, 0);
  const double mean = sums.sum / sums.pixels;
  const double variance = group_moments(a, image, first, first + size, mean).squares / sums.pixels;
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

namespace {

// Sum over `size` channels of x - mean, or of its square; four sums at a time, since each addition waits for the one before.
template <bool kSquares>
float sum_differences(const float* x, int64_t size, float mean) {
  constexpr int kTogether = 4;
  const auto term = [=](int64_t c) {
    const vf d = load(x + c) - mean;
    return kSquares ? d * d : d;
  };
  vf totals[kTogether] = {};
  int64_t c = 0;
  for (; c + kTogether * VL <= size; c += kTogether * VL) {
#pragma GCC unroll 4
    for (int v = 0; v < kTogether; ++v) totals[v] += term(c + v * VL);
  }
  for (; c < size; c += VL) totals[0] += lane_below(size - c) ? term(c) : vf{};     // channel padding does not count
  return sum((totals[0] + totals[1]) + (totals[2] + totals[3]));
}

}  // namespace

static int64_t layer_norm_scratch_bytes(const LayerNormArgs* args) {
  return args->input.channels * static_cast<int64_t>(sizeof(float));
}

static void layer_norm(const LayerNormArgs* args, int64_t task, void* scratch) {
  const LayerNormArgs& a = *args;
  const int64_t channels = a.input.channels;
  float* row = static_cast<float*>(scratch);
  const int64_t first = task * a.block_pixels;
  const int64_t end = first + a.block_pixels < a.pixels ? first + a.block_pixels : a.pixels;
  const float inverse_size = 1.0f / static_cast<float>(a.size);
  const LoadPixels load_row = choose_load(a.input.dtype, false, Activation::none);
  for (int64_t i = first; i < end; ++i) {
    load_row(row, channels, element(a.input.data, i * a.input.stride, a.input.dtype), a.input.stride, 1, channels, nullptr, nullptr);
    const float mean = sum_differences<false>(row, a.size, 0.0f) * inverse_size;
    const float variance = sum_differences<true>(row, a.size, mean) * inverse_size;
    const float inverse = 1.0f / __builtin_sqrtf(variance + a.eps);
    for (int64_t c = 0; c < channels; c += VL) store(row + c, (load(row + c) - mean) * inverse * load(a.weight + c) + load(a.bias + c));
    if (a.output.dtype == DType::int8) {
      int8_t* pixel = static_cast<int8_t*>(a.output.data) + i * a.output.stride;
      write_int8_pixel(pixel, round_up(a.output.channels, kInt8Align), a.output.widened, [&](int8_t* out) {
        a.pixel_scale[i] = quantize_pixel(row, a.output.channels, out, a.not_finite);
      });
    } else {
      for (int64_t c = 0; c < channels; c += VL) store_as(a.output.data, i * a.output.stride + c, a.output.dtype, load(row + c));
    }
  }
}

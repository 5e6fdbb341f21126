// What stands alone when it cannot be fused: activations, sums, gates, copies, tables, the way in and out.

namespace {

inline void clear_padding(const ActivationView& x, int64_t pixel, int64_t channels) {
  const int64_t size = x.dtype == DType::fp16 ? 2 : 4;
  char* row = const_cast<char*>(element(x.data, pixel * x.stride + channels, x.dtype));
  memset(row, 0, static_cast<size_t>((x.channels - channels) * size));
}

// Element by element, for channel ranges that do not begin at a multiple of the vector length.
inline float read(const ActivationView& x, int64_t pixel, int64_t c) {
  const int64_t index = pixel * x.stride + c;
  if (x.dtype == DType::fp32) return static_cast<const float*>(x.data)[index];
  uint16_t halves[VL] = {static_cast<const uint16_t*>(x.data)[index]};
  return load_half(halves)[0];
}

inline void write(const ActivationView& x, int64_t pixel, int64_t c, float value) {
  const int64_t index = pixel * x.stride + c;
  if (x.dtype == DType::fp32) {
    static_cast<float*>(x.data)[index] = value;
  } else {
    uint16_t halves[VL];
    store_half(halves, splat(value));
    static_cast<uint16_t*>(x.data)[index] = halves[0];
  }
}

}  // namespace

static void pointwise(const PointwiseArgs* args, int64_t task, void*) {
  const PointwiseArgs& p = *args;
  const int64_t image = task / p.blocks, first = task % p.blocks * p.block_pixels;
  const int64_t end = first + p.block_pixels < p.pixels ? first + p.block_pixels : p.pixels;
  for (int64_t i = first; i < end; ++i) {
    const int64_t pixel = image * p.pixels + i;
    const int64_t b_pixel = p.kind == PointwiseKind::add_image ? image : pixel;
    if (p.kind == PointwiseKind::gate && p.gate_offset % VL != 0) {
      for (int64_t c = 0; c < p.channels; ++c) {
        const vf gate = activate(splat(read(p.a, pixel, p.gate_offset + c)), p.activation);
        write(p.output, pixel, c, read(p.a, pixel, c) * gate[0]);
      }
      clear_padding(p.output, pixel, p.channels);
      continue;
    }
    for (int64_t c = 0; c < p.output.channels; c += VL) {
      vf x = load_as(p.a.data, pixel * p.a.stride + c, p.a.dtype);
      if (p.kind == PointwiseKind::activate) {
        x = activate(x, p.activation);
      } else if (p.kind == PointwiseKind::gate) {
        if (p.gate_offset + c >= p.a.channels) {
          x = vf{};
        } else {
          x *= activate(load_as(p.a.data, pixel * p.a.stride + p.gate_offset + c, p.a.dtype), p.activation);
        }
      } else {
        x += load_as(p.b.data, b_pixel * p.b.stride + c, p.b.dtype);
      }
      store_as(p.output.data, pixel * p.output.stride + c, p.output.dtype, x);
    }
    if (p.kind == PointwiseKind::gate) clear_padding(p.output, pixel, p.channels);
  }
}

// One task per output row.
static void copy(const CopyArgs* args, int64_t task, void*) {
  const CopyArgs& a = *args;
  const int64_t image = task / a.out_h, y = task % a.out_h;
  const bool vectors = a.output_channel % VL == 0 && a.channels % VL == 0;
  for (int64_t x = 0; x < a.out_w; ++x) {
    const int64_t from = (image * a.in_h + y * a.in_h / a.out_h) * a.in_w + x * a.in_w / a.out_w;
    const int64_t to = (image * a.out_h + y) * a.out_w + x;
    if (vectors) {
      for (int64_t c = 0; c < a.channels; c += VL) {
        store_as(a.output.data, to * a.output.stride + a.output_channel + c, a.output.dtype,
                 load_as(a.input.data, from * a.input.stride + c, a.input.dtype));
      }
    } else {
      for (int64_t c = 0; c < a.channels; ++c) write(a.output, to, a.output_channel + c, read(a.input, from, c));
    }
    if (a.last) clear_padding(a.output, to, a.output_channel + a.channels);
  }
}

namespace {

// Channels [c, c + VL) of one row of a table.
inline vf load_row(const void* table, DType dtype, int64_t stride, const float* scale, int64_t row, int64_t c) {
  if (dtype != DType::int8) return load_as(table, row * stride + c, dtype);
  const vb bytes = *reinterpret_cast<const vb_unaligned*>(static_cast<const int8_t*>(table) + row * stride + c);
  return rounded(__builtin_convertvector(bytes, vf) * scale[row]);
}

}  // namespace

// One task per token.
static void embedding(const EmbeddingArgs* args, int64_t task, void*) {
  const EmbeddingArgs& a = *args;
  const int64_t id = a.ids[task], position = task % a.length;
  for (int64_t c = 0; c < a.output.channels; c += VL) {
    const vf x = load_row(a.table, a.table_dtype, a.table_stride, a.table_scale, id, c) +
                 load_row(a.positions, a.positions_dtype, a.positions_stride, a.positions_scale, position, c);
    store_as(a.output.data, task * a.output.stride + c, a.output.dtype, x);
  }
}

// One task per 256 pixels.
static void convert(const ConvertArgs* args, int64_t task, void*) {
  const ConvertArgs& a = *args;
  const int64_t end = (task + 1) * 256 < a.pixels ? (task + 1) * 256 : a.pixels;
  for (int64_t i = task * 256; i < end; ++i) {
    if (a.dense_in) {
      const float* from = a.dense_in + i * a.channels;
      int64_t c = 0;
      for (; c + VL <= a.channels; c += VL) store_as(a.view.data, i * a.view.stride + c, a.view.dtype, load(from + c));
      for (; c < a.channels; ++c) write(a.view, i, c, from[c]);
      clear_padding(a.view, i, a.channels);
    } else {
      float* to = a.dense_out + i * a.channels;
      int64_t c = 0;
      for (; c + VL <= a.channels; c += VL) store(to + c, load_as(a.view.data, i * a.view.stride + c, a.view.dtype));
      for (; c < a.channels; ++c) to[c] = read(a.view, i, c);
    }
  }
}

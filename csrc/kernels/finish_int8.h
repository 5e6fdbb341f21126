// What the int32 sums of a register tile become: floats in their place, then whatever follows the product, then the output.
//
// A step is a loop of its own over the tile, which lies in the first-level cache. What a layer has is asked once a tile and a pixel's
// address is formed once a row; for every vector both would take more instructions than the arithmetic.

namespace {

// What turns sums of some columns into floats: (sum - offset * weight_sum) * (s * weight_scale) + bias. Integers are taken modulo
// 2^32, since a broken file may hold any weight_sum.
struct Int8Columns {
  int32_t correction[kInt8Columns];   // offset * weight_sum
  float factor[kInt8Columns];         // s * weight_scale, without s where it differs from pixel to pixel
  float bias[kInt8Columns];
};

inline void read_columns(const GemmArgs& g, int64_t column, int64_t columns, Int8Columns* out) {
  const float scale = g.pixel_scale ? 1.0f : *g.input_scale;
  const int32_t offset = g.pixel_scale ? kInt8Offset : kInt8Offset + *g.input_zero_point;    // of the stored bytes above the values
  for (int64_t j = 0; j < columns; j += VL) {
    const vu weight_sum = reinterpret_cast<vu>(load_int(g.weight_sum + column + j));
    store_int(out->correction + j, reinterpret_cast<vi>(static_cast<uint32_t>(offset) * weight_sum));
    store(out->factor + j, scale * load(g.weight_scale + column + j));
    store(out->bias + j, g.bias ? load(g.bias + column + j) : vf{});
  }
}

// A register tile on its way: sums of `rows` rows, kInt8Columns apart, and of the gate's columns if there is one.
struct Int8Sums {
  int32_t *c, *gate;
  const int64_t* pixels;        // of the output, one for each row
  int64_t rows, column;
};

inline vf load_float(const int32_t* sums) { return load(reinterpret_cast<const float*>(sums)); }
inline void store_float(int32_t* sums, vf x) { store(reinterpret_cast<float*>(sums), x); }

template <int kColumns, bool kPixelScale>
void dequantize(const Int8Sums& sums, const float* pixel_scale, const Int8Columns& columns, int32_t* c) {
  const int64_t* pixels = sums.pixels;
  for (const int32_t* end = c + sums.rows * kInt8Columns; c < end; c += kInt8Columns, ++pixels) {
    const vf scale = kPixelScale ? splat(pixel_scale[*pixels]) : vf{};
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; j += VL) {
      vf factor = load(columns.factor + j);
      if (kPixelScale) factor = rounded(scale * factor);
      const vu sum = reinterpret_cast<vu>(load_int(c + j)) - reinterpret_cast<vu>(load_int(columns.correction + j));
      store_float(c + j, rounded(__builtin_convertvector(reinterpret_cast<vi>(sum), vf) * factor) + load(columns.bias + j));
    }
  }
}

template <int kColumns>
void dequantize(const Int8Sums& sums, const float* pixel_scale, const Int8Columns& columns, int32_t* c) {
  if (pixel_scale) {
    dequantize<kColumns, true>(sums, pixel_scale, columns, c);
  } else {
    dequantize<kColumns, false>(sums, nullptr, columns, c);
  }
}

// c = activation(c), or c * activation(gate).
template <int kColumns, Activation kActivation, bool kGated>
void activate_rows(int32_t* c, const int32_t* gate, int64_t rows) {
  for (const int32_t* end = c + rows * kInt8Columns; c < end; c += kInt8Columns, gate += kInt8Columns) {
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; j += VL) {
      const vf x = load_float(c + j);
      store_float(c + j, kGated ? x * activate(load_float(gate + j), kActivation) : activate(x, kActivation));
    }
  }
}

template <int kColumns, bool kGated>
void activate_rows(Activation activation, const Int8Sums& sums) {
  switch (activation) {
    case Activation::silu: return activate_rows<kColumns, Activation::silu, kGated>(sums.c, sums.gate, sums.rows);
    case Activation::gelu: return activate_rows<kColumns, Activation::gelu, kGated>(sums.c, sums.gate, sums.rows);
    case Activation::quick_gelu: return activate_rows<kColumns, Activation::quick_gelu, kGated>(sums.c, sums.gate, sums.rows);
    default:
      if (kGated) activate_rows<kColumns, Activation::none, kGated>(sums.c, sums.gate, sums.rows);
  }
}

template <int kColumns>
void add_to_columns(const Int8Sums& sums, const float* added) {
  int32_t* c = sums.c;
  for (const int32_t* end = c + sums.rows * kInt8Columns; c < end; c += kInt8Columns) {
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; j += VL) store_float(c + j, load_float(c + j) + load(added + j));
  }
}

template <int kColumns, DType kDType>
void add_pixels(const Int8Sums& sums, const ActivationView& x) {
  int32_t* c = sums.c;
  const int64_t* pixels = sums.pixels;
  for (const int32_t* end = c + sums.rows * kInt8Columns; c < end; c += kInt8Columns, ++pixels) {
    const int64_t first = *pixels * x.stride + sums.column;
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; j += VL) store_float(c + j, load_float(c + j) + load_as(x.data, first + j, kDType));
  }
}

template <int kColumns, DType kDType>
void store_pixels(const Int8Sums& sums, const ActivationView& x) {
  const int32_t* c = sums.c;
  const int64_t* pixels = sums.pixels;
  for (const int32_t* end = c + sums.rows * kInt8Columns; c < end; c += kInt8Columns, ++pixels) {
    const int64_t first = *pixels * x.stride + sums.column;
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; j += VL) store_as(x.data, first + j, kDType, load_float(c + j));
  }
}

template <int kColumns>
void finish_sums(const GemmArgs& g, int64_t image, const Int8Sums& sums, const Int8Columns& value, const Int8Columns& gate) {
  dequantize<kColumns>(sums, g.pixel_scale, value, sums.c);
  if (g.gated) {
    dequantize<kColumns>(sums, g.pixel_scale, gate, sums.gate);
    activate_rows<kColumns, true>(g.activation, sums);
  } else {
    if (g.image_bias) add_to_columns<kColumns>(sums, g.image_bias + image * g.image_bias_stride + sums.column);
    activate_rows<kColumns, false>(g.activation, sums);
  }
  if (g.residual.data) {
    if (g.residual.dtype == DType::fp16) {
      add_pixels<kColumns, DType::fp16>(sums, g.residual);
    } else {
      add_pixels<kColumns, DType::fp32>(sums, g.residual);
    }
  }
  if (g.output.dtype == DType::fp16) {
    store_pixels<kColumns, DType::fp16>(sums, g.output);
  } else {
    store_pixels<kColumns, DType::fp32>(sums, g.output);
  }
}

// What a tile will add to and write over, brought near while it multiplies: columns of pixels lie far apart.
inline void fetch_results(const GemmArgs& g, const Int8Sums& sums, int64_t columns) {
  for (int64_t r = 0; r < sums.rows; ++r) {
    fetch_pixel<true>(g.output.data, sums.pixels[r] * g.output.stride + sums.column, columns, g.output.dtype);
    if (!g.residual.data) continue;
    fetch_pixel<false>(g.residual.data, sums.pixels[r] * g.residual.stride + sums.column, columns, g.residual.dtype);
  }
}

}  // namespace

#include "formats.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/checked.h"

namespace mdrt {
namespace {

struct Half {
  uint16_t bits;
};

// Round to nearest even, by the usual trick: for results below 2^-14 the float adder itself rounds, otherwise adding half
// of the last kept bit (and the bit itself, for ties) carries correctly into the exponent.
Half to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits >= 0x47800000u) {
    half = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (bits < 0x38800000u) {
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;    // the unit of the last place of 0.5 is 2^-24, the smallest half
    uint32_t sum;
    memcpy(&sum, &magnitude, 4);
    half = sum - 0x3f000000u;
  } else {
    half = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

float to_float(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 31u;
  const uint32_t mantissa = value.bits & 0x3ffu;
  uint32_t bits;
  if (exponent == 31) {
    bits = 0x7f800000u | mantissa << 13;
  } else if (exponent != 0) {
    bits = ((exponent + 112) << 23) | mantissa << 13;
  } else {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    memcpy(&bits, &magnitude, 4);
  }
  bits |= sign;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

template <class T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline Half from_float<Half>(float value) {
  return to_half(value);
}
template <>
inline int8_t from_float<int8_t>(float value) {
  return static_cast<int8_t>(value);
}
template <>
inline int32_t from_float<int32_t>(float value) {
  return static_cast<int32_t>(value);
}
inline float as_float(float value) { return value; }
inline float as_float(Half value) { return to_float(value); }
inline float as_float(int8_t value) { return static_cast<float>(value); }
inline float as_float(int32_t value) { return static_cast<float>(value); }

int64_t r16(int64_t value) { return round_up(value, kPanel); }

// How many successive k of one column lie side by side in a panel: what one instruction takes of int8.
constexpr int64_t panel_group(int64_t element_bytes) { return element_bytes == 1 ? 4 : 1; }
// Rows of tables are whole cache lines of the smallest format that they are compared with.
int64_t table_stride(int64_t n, int64_t element_bytes) { return round_up(n, element_bytes == 1 ? 64 : 32); }

struct PanelSizes {
  int64_t out, in, taps, panels, depth;    // depth: K of a panel, padding included
};

PanelSizes panel_sizes(const Shape& logical) {
  PanelSizes s{};
  s.out = logical[0];
  s.in = logical[1];
  s.taps = logical.size() == 4 ? logical[2] * logical[3] : 1;
  s.panels = r16(s.out) / kPanel;
  s.depth = s.taps * r16(s.in);
  return s;
}

// Where k of column 0 is in a panel; column j follows j * panel_group later.
template <class T>
int64_t panel_row(int64_t k) {
  constexpr int64_t group = panel_group(sizeof(T));
  return k / group * group * kPanel + k % group;
}

template <class T>
void pack_panel(const float* source, const Shape& logical, void* destination) {
  const PanelSizes s = panel_sizes(logical);
  T* panel = static_cast<T*>(destination);
  const int64_t row = s.in * s.taps, padded_in = r16(s.in);
  for (int64_t p = 0; p < s.panels; ++p, panel += s.depth * kPanel) {
    const int64_t columns = std::min(kPanel, s.out - p * kPanel);
    const float* first = source + p * kPanel * row;
    std::fill(panel, panel + s.depth * kPanel, T{});
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      for (int64_t c = 0; c < s.in; ++c) {
        const float* from = first + c * s.taps + tap;
        T* to = panel + panel_row<T>(tap * padded_in + c);
        for (int64_t j = 0; j < columns; ++j) to[j * panel_group(sizeof(T))] = from_float<T>(from[j * row]);
      }
    }
  }
}

template <class T>
void unpack_panel(const void* source, const Shape& logical, float* destination) {
  const PanelSizes s = panel_sizes(logical);
  const T* stored = static_cast<const T*>(source);
  const int64_t padded_in = r16(s.in);
  for (int64_t o = 0; o < s.out; ++o) {
    const T* column = stored + (o / kPanel) * s.depth * kPanel + o % kPanel * panel_group(sizeof(T));
    float* row = destination + o * s.in * s.taps;
    for (int64_t c = 0; c < s.in; ++c)
      for (int64_t tap = 0; tap < s.taps; ++tap)
        row[c * s.taps + tap] = as_float(column[panel_row<T>(tap * padded_in + c)]);
  }
}

template <class T>
void pack_table(const float* source, const Shape& logical, void* destination) {
  const int64_t n = logical[1], stride = table_stride(n, sizeof(T));
  T* row = static_cast<T*>(destination);
  for (int64_t r = 0; r < logical[0]; ++r, row += stride, source += n) {
    for (int64_t i = 0; i < n; ++i) row[i] = from_float<T>(source[i]);
    std::fill(row + n, row + stride, T{});
  }
}

template <class T>
void unpack_table(const void* source, const Shape& logical, float* destination) {
  const int64_t n = logical[1], stride = table_stride(n, sizeof(T));
  const T* row = static_cast<const T*>(source);
  for (int64_t r = 0; r < logical[0]; ++r, row += stride, destination += n)
    for (int64_t i = 0; i < n; ++i) destination[i] = as_float(row[i]);
}

template <class T>
void pack_vector(const float* source, const Shape& logical, void* destination) {
  T* out = static_cast<T*>(destination);
  for (int64_t i = 0; i < logical[0]; ++i) out[i] = from_float<T>(source[i]);
  std::fill(out + logical[0], out + r16(logical[0]), T{});
}

template <class T>
void unpack_vector(const void* source, const Shape& logical, float* destination) {
  const T* in = static_cast<const T*>(source);
  for (int64_t i = 0; i < logical[0]; ++i) destination[i] = as_float(in[i]);
}

void pack_depthwise(const float* source, const Shape& logical, void* destination) {
  const int64_t channels = logical[0], taps = logical[1] * logical[2];
  float* out = static_cast<float*>(destination);
  for (int64_t tap = 0; tap < taps; ++tap, out += r16(channels)) {
    for (int64_t c = 0; c < channels; ++c) out[c] = source[c * taps + tap];
    std::fill(out + channels, out + r16(channels), 0.0f);
  }
}

void unpack_depthwise(const void* source, const Shape& logical, float* destination) {
  const int64_t channels = logical[0], taps = logical[1] * logical[2];
  const float* in = static_cast<const float*>(source);
  for (int64_t tap = 0; tap < taps; ++tap, in += r16(channels))
    for (int64_t c = 0; c < channels; ++c) destination[c * taps + tap] = in[c];
}

constexpr Format kFormats[] = {
#define MDRT_FORMAT(format, kind, dtype, pack, unpack) {#format, #kind, WeightKind::kind, DType::dtype, pack, unpack},
#include "formats.def"
#undef MDRT_FORMAT
};

int64_t elements(const Shape& shape) {
  int64_t product = 1;
  for (const int64_t size : shape) product = checked_mul(product, size);
  return product;
}

int64_t stored_bytes(const Format& format, const Shape& logical) {
  return checked_mul(elements(stored_shape(format.kind, format.dtype, logical)), dtype_bytes(format.dtype));
}

void check_range_of_half(const float* source, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(source[i]);
    if (magnitude > largest && magnitude <= 3.4028235e38f) largest = magnitude;
  }
  if (largest >= 65520.0f)
    throw fail(MDRT_ERROR_ARGUMENT, "fp16 ends at 65504 and the largest value is %.9g; store this weight as fp32",
               static_cast<double>(largest));
}

void check_integers(const float* source, int64_t count, float largest) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::fabs(source[i]) <= largest && source[i] == std::trunc(source[i])) continue;
    throw fail(MDRT_ERROR_ARGUMENT, "%.9g is no integer from %.0f to %.0f", static_cast<double>(source[i]),
               static_cast<double>(-largest), static_cast<double>(largest));
  }
}

// Refuses what the stored type cannot hold. int8 leaves out -128, which exact kernels without VNNI cannot multiply; int32
// ends where float no longer counts every integer.
void check_values(DType dtype, const float* source, int64_t count) {
  if (dtype == DType::fp16) check_range_of_half(source, count);
  if (dtype == DType::int8) check_integers(source, count, 127);
  if (dtype == DType::int32) check_integers(source, count, 0x1p24f);
}

bool all_zero(const std::byte* from, int64_t size_bytes) {
  return std::all_of(from, from + size_bytes, [](std::byte b) { return b == std::byte{0}; });
}

// Rows of `count` elements that repeat every `stride` elements and of which the first `used` hold data.
bool row_ends_are_zero(const std::byte* at, int64_t rows, int64_t used, int64_t stride, int64_t element_bytes) {
  for (int64_t r = 0; r < rows; ++r)
    if (!all_zero(at + (r * stride + used) * element_bytes, (stride - used) * element_bytes)) return false;
  return true;
}

bool panel_padding_is_zero(const std::byte* at, const PanelSizes& s, int64_t element) {
  const int64_t group = panel_group(element), whole = s.in / group * group;
  const int64_t last = s.out - (s.panels - 1) * kPanel;    // columns of the last panel
  const std::byte* last_panel = at + (s.panels - 1) * s.depth * kPanel * element;
  if (!row_ends_are_zero(last_panel, s.depth / group, last * group, kPanel * group, element)) return false;
  for (int64_t i = 0; i < s.panels * s.taps; ++i) {
    const std::byte* channels = at + i * r16(s.in) * kPanel * element;
    if (whole < s.in && !row_ends_are_zero(channels + whole * kPanel * element, kPanel, s.in - whole, group, element)) return false;
    if (!row_ends_are_zero(channels, 1, round_up(s.in, group) * kPanel, r16(s.in) * kPanel, element)) return false;
  }
  return true;
}

}  // namespace

const Format& find_format(const std::string& kind, const std::string& format) {
  bool kind_known = false, format_known = false;
  for (const Format& row : kFormats) {
    if (kind == row.kind_name && format == row.name) return row;
    kind_known |= kind == row.kind_name;
    format_known |= format == row.name;
  }
  if (!kind_known) throw fail(MDRT_ERROR_ARGUMENT, "'%.64s' is no kind of weight", kind.c_str());
  if (!format_known) throw fail(MDRT_ERROR_ARGUMENT, "'%.64s' is no weight format", format.c_str());
  throw fail(MDRT_ERROR_ARGUMENT, "a %s is never stored as %s; use fp32", kind.c_str(), format.c_str());
}

const Format* find_format(WeightKind kind, DType dtype) {
  for (const Format& row : kFormats)
    if (row.kind == kind && row.dtype == dtype) return &row;
  return nullptr;
}

const char* weight_kind_name(WeightKind kind) {
  for (const Format& row : kFormats)
    if (row.kind == kind) return row.kind_name;
  return "";
}

Shape stored_shape(WeightKind kind, DType dtype, const Shape& logical) {
  if (find_format(kind, dtype) == nullptr)
    throw fail(MDRT_ERROR_ARGUMENT, "a %s is never stored as %s", weight_kind_name(kind), dtype_name(dtype));
  const size_t rank = logical.size();
  const bool rank_fits = kind == WeightKind::panel ? rank == 2 || rank == 4
                                                   : rank == (kind == WeightKind::vector ? 1u : kind == WeightKind::table ? 2u : 3u);
  if (!rank_fits) throw fail(MDRT_ERROR_ARGUMENT, "a %s cannot have %zu dimensions", weight_kind_name(kind), rank);
  for (const int64_t size : logical)
    if (size < 1) throw fail(MDRT_ERROR_ARGUMENT, "a %s cannot have a dimension of %lld", weight_kind_name(kind), static_cast<long long>(size));
  Shape stored;
  switch (kind) {
    case WeightKind::panel: {
      const int64_t taps = rank == 4 ? checked_mul(logical[2], logical[3]) : 1;
      const int64_t group = panel_group(dtype_bytes(dtype));
      stored = {r16(logical[0]) / kPanel, checked_mul(taps, r16(logical[1])) / group, kPanel * group};
      break;
    }
    case WeightKind::vector: stored = {r16(logical[0])}; break;
    case WeightKind::table: stored = {logical[0], table_stride(logical[1], dtype_bytes(dtype))}; break;
    case WeightKind::depthwise: stored = {checked_mul(logical[1], logical[2]), r16(logical[0])}; break;
  }
  checked_mul(elements(stored), dtype_bytes(dtype));    // refuses what no file can hold
  return stored;
}

void pack(const Format& format, const float* source, const Shape& logical, void* destination, int64_t destination_bytes) {
  const int64_t need = stored_bytes(format, logical);
  if (need != destination_bytes)
    throw fail(MDRT_ERROR_ARGUMENT, "packing needs %lld bytes, got %lld", static_cast<long long>(need),
               static_cast<long long>(destination_bytes));
  check_values(format.dtype, source, elements(logical));
  format.pack(source, logical, destination);
}

void unpack(const Format& format, const void* source, int64_t source_bytes, const Shape& logical, float* destination) {
  const int64_t need = stored_bytes(format, logical);
  if (need != source_bytes)
    throw fail(MDRT_ERROR_ARGUMENT, "the stored weight has %lld bytes, not %lld", static_cast<long long>(source_bytes),
               static_cast<long long>(need));
  format.unpack(source, logical, destination);
}

bool padding_is_zero(const Format& format, const void* stored, const Shape& logical) {
  const std::byte* at = static_cast<const std::byte*>(stored);
  const int64_t element = dtype_bytes(format.dtype);
  switch (format.kind) {
    case WeightKind::vector: return row_ends_are_zero(at, 1, logical[0], r16(logical[0]), element);
    case WeightKind::table: return row_ends_are_zero(at, logical[0], logical[1], table_stride(logical[1], element), element);
    case WeightKind::depthwise:
      return row_ends_are_zero(at, logical[1] * logical[2], logical[0], r16(logical[0]), element);
    case WeightKind::panel: return panel_padding_is_zero(at, panel_sizes(logical), element);
  }
  return false;
}

}  // namespace mdrt

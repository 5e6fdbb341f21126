// Stored weights: what pack() makes of a logical fp32 array, and back (docs/format.md, "Stored weights").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph.h"

namespace mdrt {

using Shape = std::vector<int64_t>;    // logical, channels last

struct Format {
  const char* name;      // "fp32", "fp16", "int8", "int32"
  const char* kind_name;
  WeightKind kind;
  DType dtype;           // of the stored tensor
  void (*pack)(const float* source, const Shape& logical, void* destination);
  void (*unpack)(const void* source, const Shape& logical, float* destination);
};

// The row for these words. Throws Error(MDRT_ERROR_ARGUMENT) naming the word that is not known.
const Format& find_format(const std::string& kind, const std::string& format);
// nullptr when this kind of weight is never stored in this dtype.
const Format* find_format(WeightKind kind, DType dtype);
const char* weight_kind_name(WeightKind kind);

// The stored shape of a weight of this logical shape: what pack() makes and the file must hold.
// Logical shapes: panel (out, in, kernel_h, kernel_w) or (out, in); vector (n); table (rows, n); depthwise (channels, kernel_h, kernel_w).
// Throws Error(MDRT_ERROR_ARGUMENT).
Shape stored_shape(WeightKind kind, DType dtype, const Shape& logical);

// Checks the sizes, then converts. pack() throws Error(MDRT_ERROR_ARGUMENT) when a finite number does not fit into fp16, or
// a number is no integer of the range that int8 (-127 to 127) or int32 (-2^24 to 2^24) takes.
void pack(const Format& format, const float* source, const Shape& logical, void* destination, int64_t destination_bytes);
void unpack(const Format& format, const void* source, int64_t source_bytes, const Shape& logical, float* destination);

// True when everything that packing adds around the logical array is zero.
bool padding_is_zero(const Format& format, const void* stored, const Shape& logical);

}  // namespace mdrt

// Checked integer arithmetic for numbers that come from a file or a caller.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace mdrt {

inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) throw Error(MDRT_ERROR_ARGUMENT, "a size exceeds 63 bits; use smaller shapes");
  return sum;
}

inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product)) throw Error(MDRT_ERROR_ARGUMENT, "a size exceeds 63 bits; use smaller shapes");
  return product;
}

// Smallest multiple of `step` (a power of two) that is >= `value`.
inline int64_t round_up(int64_t value, int64_t step) { return checked_add(value, step - 1) & -step; }

}  // namespace mdrt

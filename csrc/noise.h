// Philox 4x32-10 normal noise: the same bits on every platform (docs/numerics.md).
#pragma once

#include <cstdint>

namespace mdrt {

// out[i], i in [0, count): element i of the tensor number `offset` that is drawn for `seed`.
void philox_normal(uint64_t seed, uint32_t offset, int64_t count, float* out);

}  // namespace mdrt

// Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011) and Box-Muller in double
// precision, rounded once. The build must pass -ffp-contract=off for the same bits everywhere.
#include "noise.h"

#include <cmath>

#include "base/math64.h"

namespace mdrt {
namespace {

struct Pair {
  uint32_t first, second;
};

// The first two of Philox's four words for the counter (offset, 0, element, 0).
Pair philox(uint64_t seed, uint32_t offset, uint32_t element) {
  uint32_t c0 = offset, c1 = 0, c2 = element, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = uint64_t{0xD2511F53} * c0;
    const uint64_t r = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(r >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(r);
    c3 = static_cast<uint32_t>(p);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {c0, c1};
}

}  // namespace

void philox_normal(uint64_t seed, uint32_t offset, int64_t count, float* out) {
  constexpr double two_pi = 0x1.921fb54442d18p+2;
  for (int64_t i = 0; i < count; ++i) {
    const Pair g = philox(seed, offset, static_cast<uint32_t>(i));
    const double u = g.first * 0x1p-32 + 0x1p-33;
    const double v = (g.second * 0x1p-32 + 0x1p-33) * two_pi;
    // IEEE 754 defines the square root to the last bit, so std::sqrt is the same everywhere.
    out[i] = static_cast<float>(std::sqrt(-2 * log64(u)) * sin64(v));
  }
}

}  // namespace mdrt

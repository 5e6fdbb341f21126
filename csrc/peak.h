// What this machine can do at most, measured by the units of an instruction set themselves (micro/peak.h).
#pragma once

#include <string>

#include "registry.h"

namespace mdrt {

// Per second, of all `threads` (as for ThreadPool) together, the best of several passes within about 0.3 s:
//   "fp32", "int8": multiply-adds between registers
//   "read": bytes read from a buffer that is larger than caches are, as far as memory allows
// Throws Error(MDRT_ERROR_ARGUMENT) for another word.
double measure_peak(const std::string& what, const Isa& isa, int threads);

}  // namespace mdrt

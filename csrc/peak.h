// What this machine can do at most, measured by the units of an instruction set themselves (micro/peak.h).
#pragma once

#include <string>

#include "registry.h"

namespace mdrt {

// Per second, of all `threads` (as for ThreadPool) together, the best of `passes`:
//   "fp32", "int8": multiply-adds between registers, a pass of about 0.01 s
//   "read": bytes read from a buffer of 256 MiB, once in a pass
// Throws Error(MDRT_ERROR_ARGUMENT) for another word or no pass.
double measure_peak(const std::string& what, const Isa& isa, int threads, int passes);

}  // namespace mdrt

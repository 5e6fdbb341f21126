// What this CPU and this process may use.
#pragma once

namespace mdrt {

// Whether the CPU (and the operating system) has every feature of a blank-separated list, spelled as in cmake/isa.cmake.
bool cpu_has(const char* features);
// All known features that this CPU has, blank-separated.
const char* cpu_features();
// Physical cores that the process may run on, at least 1.
int usable_cores();

}  // namespace mdrt

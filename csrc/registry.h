// The instruction sets this library was compiled for, and which one to use.
#pragma once

#include <string>
#include <vector>

#include "kernels/args.h"

namespace mdrt {

struct Isa {
  const char* name;
  const char* features;         // what it needs, blank-separated
  const char* flags;            // what the compiler was given for its kernels
  const KernelTable* kernels;
};

// In the order of cmake/isa.cmake: worst first.
const std::vector<Isa>& compiled_isas();
bool is_usable(const Isa& isa);

// The kernels of `name`; "" means MDRT_ISA, else the last usable row. Throws Error(MDRT_ERROR_ARGUMENT) for a name that is
// not compiled in and Error(MDRT_ERROR_VERSION) for one that this CPU cannot run.
const Isa& choose_isa(const std::string& name);

}  // namespace mdrt

#include "registry.h"

#include <cstdlib>

#include "base/cpu.h"
#include "base/error.h"

namespace mdrt {

#define MDRT_ISA(name, features, flags) extern const KernelTable kernel_table_##name;
#include "mdrt_isa_list.inc"
#undef MDRT_ISA

const std::vector<Isa>& compiled_isas() {
  static const std::vector<Isa> isas = {
#define MDRT_ISA(name, features, flags) {#name, features, flags, &kernel_table_##name},
#include "mdrt_isa_list.inc"
#undef MDRT_ISA
  };
  return isas;
}

bool is_usable(const Isa& isa) { return cpu_has(isa.features); }

const Isa& choose_isa(const std::string& name) {
  std::string wanted = name;
  if (wanted.empty()) {
    if (const char* forced = getenv("MDRT_ISA")) wanted = forced;
  }
  const Isa* best = nullptr;
  std::string known;
  for (const Isa& isa : compiled_isas()) {
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
    if (wanted == isa.name) {
      if (!is_usable(isa)) throw fail(MDRT_ERROR_VERSION, "this CPU cannot run ISA %s: it lacks one of: %s", isa.name, isa.features);
      return isa;
    }
    if (is_usable(isa)) best = &isa;
  }
  if (!wanted.empty()) throw fail(MDRT_ERROR_ARGUMENT, "ISA %s is not compiled in; choose one of: %s", wanted.c_str(), known.c_str());
  if (!best) throw Error(MDRT_ERROR_VERSION, "no compiled ISA runs on this CPU");
  return *best;
}

}  // namespace mdrt

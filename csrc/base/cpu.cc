#include "base/cpu.h"

#include <sched.h>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace mdrt {
namespace {

struct Feature {
  const char* name;
  bool present;
};

#if defined(__x86_64__)

uint64_t enabled_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low | static_cast<uint64_t>(high) << 32;
}

// Linux gives a process the large tile registers only when it asks (Documentation/arch/x86/xstate.rst).
bool may_use_amx(uint64_t state, uint32_t leaf7_edx) {
  constexpr uint64_t kTileState = 0x60000;
  constexpr uint32_t kTileAndInt8 = 0x3000000;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if ((state & kTileState) != kTileState || (leaf7_edx & kTileAndInt8) != kTileAndInt8) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

std::string detect() {
  uint32_t a, b, c, d, b7 = 0, c7 = 0, d7 = 0, a71 = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return "";
  const bool osxsave = c >> 27 & 1;
  const uint64_t state = osxsave ? enabled_state() : 0;
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  const uint32_t c1 = c;
  if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) && a >= 1) {
    uint32_t b1, c1_unused, d1;
    __get_cpuid_count(7, 1, &a71, &b1, &c1_unused, &d1);
  }
  const Feature features[] = {
      {"avx2", ymm && (b7 >> 5 & 1)},          {"fma", ymm && (c1 >> 12 & 1)},
      {"f16c", ymm && (c1 >> 29 & 1)},         {"avxvnni", ymm && (a71 >> 4 & 1)},
      {"avx512f", zmm && (b7 >> 16 & 1)},      {"avx512dq", zmm && (b7 >> 17 & 1)},
      {"avx512bw", zmm && (b7 >> 30 & 1)},     {"avx512vl", zmm && (b7 >> 31 & 1)},
      {"avx512vnni", zmm && (c7 >> 11 & 1)},   {"amxint8", may_use_amx(state, d7)},
  };
  std::string text;
  for (const Feature& feature : features) {
    if (feature.present) text += (text.empty() ? "" : " ") + std::string(feature.name);
  }
  return text;
}

#elif defined(__aarch64__)

std::string detect() {
  const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
  const Feature features[] = {
      {"neon", (hwcap >> 1 & 1) != 0},
      {"fp16", (hwcap >> 10 & 1) != 0},        // half arithmetic (ASIMDHP)
      {"dotprod", (hwcap >> 20 & 1) != 0},
      {"i8mm", (hwcap2 >> 13 & 1) != 0},
  };
  std::string text;
  for (const Feature& feature : features) {
    if (feature.present) text += (text.empty() ? "" : " ") + std::string(feature.name);
  }
  return text;
}

#else

std::string detect() { return ""; }

#endif

int read_number(int cpu, const char* file) {
  char path[128];
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, file);
  FILE* stream = fopen(path, "re");
  if (!stream) return -1;
  int number = -1;
  if (fscanf(stream, "%d", &number) != 1) number = -1;
  fclose(stream);
  return number;
}

}  // namespace

const char* cpu_features() {
  static const std::string features = detect();
  return features.c_str();
}

bool cpu_has(const char* wanted) {
  const std::string have = " " + std::string(cpu_features()) + " ";
  std::string_view rest = wanted;
  while (!rest.empty()) {
    const size_t end = rest.find(' ');
    const std::string_view word = rest.substr(0, end);
    if (!word.empty() && have.find(" " + std::string(word) + " ") == std::string::npos) return false;
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  return true;
}

int usable_cores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  // Cores are told apart by the first of their threads: on boards with several clusters the numbers of cores (core_id) repeat.
  std::set<int> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const int first_thread = read_number(cpu, "thread_siblings_list");
    cores.insert(first_thread < 0 ? cpu : first_thread);
  }
  return cores.empty() ? 1 : static_cast<int>(cores.size());
}

}  // namespace mdrt

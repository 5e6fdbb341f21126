#include "crc32c.h"

#include <array>
#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mdrt {
namespace {

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// table[k][b]: the effect of byte b followed by k zero bytes (slicing by eight).
constexpr Tables make_tables() {
  Tables table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0x82f63b78u : 0u);
    table[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k)
    for (size_t byte = 0; byte < 256; ++byte)
      table[k][byte] = (table[k - 1][byte] >> 8) ^ table[0][table[k - 1][byte] & 255u];
  return table;
}

constexpr Tables kTables = make_tables();

uint64_t load64(const unsigned char* at) {
  uint64_t word;
  memcpy(&word, at, 8);
  return word;
}

uint32_t update_portable(uint32_t crc, const unsigned char* at, size_t size) {
  const auto& t = kTables;
  for (; size >= 8; size -= 8, at += 8) {
    const uint64_t x = load64(at) ^ crc;
    crc = t[7][x & 255] ^ t[6][x >> 8 & 255] ^ t[5][x >> 16 & 255] ^ t[4][x >> 24 & 255] ^ t[3][x >> 32 & 255] ^
          t[2][x >> 40 & 255] ^ t[1][x >> 48 & 255] ^ t[0][x >> 56];
  }
  for (; size > 0; --size, ++at) crc = (crc >> 8) ^ t[0][(crc ^ *at) & 255u];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2,crc32"))) uint32_t update_hardware(uint32_t crc, const unsigned char* at, size_t size) {
  uint64_t wide = crc;
  for (; size >= 8; size -= 8, at += 8) wide = __builtin_ia32_crc32di(wide, load64(at));
  crc = static_cast<uint32_t>(wide);
  for (; size > 0; --size, ++at) crc = __builtin_ia32_crc32qi(crc, *at);
  return crc;
}
bool has_hardware() { return __builtin_cpu_supports("sse4.2") != 0; }
#elif defined(__aarch64__) && defined(__linux__)
uint32_t update_hardware(uint32_t crc, const unsigned char* at, size_t size) {
  for (; size >= 8; size -= 8, at += 8)
    asm(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(load64(at)));
  for (; size > 0; --size, ++at) asm(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(uint32_t{*at}));
  return crc;
}
bool has_hardware() { return (getauxval(AT_HWCAP) & (1ul << 7)) != 0; }    // HWCAP_CRC32
#else
uint32_t update_hardware(uint32_t crc, const unsigned char* at, size_t size) { return update_portable(crc, at, size); }
bool has_hardware() { return false; }
#endif

}  // namespace

uint32_t crc32c(uint32_t crc, const void* data, size_t size_bytes) {
  static const bool hardware = has_hardware();
  const unsigned char* at = static_cast<const unsigned char*>(data);
  return ~(hardware ? update_hardware(~crc, at, size_bytes) : update_portable(~crc, at, size_bytes));
}

}  // namespace mdrt

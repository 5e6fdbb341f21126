// CRC32C (Castagnoli), as in iSCSI and ext4.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mdrt {

// Continues `crc` over more bytes; start with 0.
uint32_t crc32c(uint32_t crc, const void* data, size_t size_bytes);

}  // namespace mdrt

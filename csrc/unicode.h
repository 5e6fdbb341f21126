// The parts of Unicode that CLIP's tokenizer uses; unicode_tables.inc names the versions.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace mdrt {

// Code points of `text`; throws Error(MDRT_ERROR_ARGUMENT) at the first byte that is not valid UTF-8.
std::vector<uint32_t> decode_utf8(std::string_view text);
// Appends the UTF-8 form of a code point that decode_utf8 could have returned.
void append_utf8(uint32_t code, std::vector<uint8_t>& bytes);

// Normalisation form C.
std::vector<uint32_t> normalize_nfc(const std::vector<uint32_t>& codes);
// Full lower case of each code point by itself, without regard to its neighbours.
std::vector<uint32_t> to_lower(const std::vector<uint32_t>& codes);

enum class CharacterClass { letter, number, space, other };
CharacterClass character_class(uint32_t code);

}  // namespace mdrt

// Normalisation follows Unicode Standard Annex 15 (decompose, order, compose), Hangul by arithmetic as in chapter 3.12.
#include "unicode.h"

#include <algorithm>
#include <cstddef>

#include "base/error.h"

namespace mdrt {
namespace {

struct CodeRange {
  uint32_t first, last;
};
struct LowerRange {
  uint32_t first, last, step;
  int32_t distance;
};
struct CombiningRange {
  uint32_t first, last, combining_class;
};
struct Decomposition {
  uint32_t code, first, second;
};
struct Composition {
  uint32_t first, second, code;
};

#include "unicode_tables.inc"

constexpr uint32_t hangul_base = 0xAC00, hangul_count = 11172;
constexpr uint32_t leading_base = 0x1100, leading_count = 19;
constexpr uint32_t vowel_base = 0x1161, vowel_count = 21;
constexpr uint32_t trailing_base = 0x11A7, trailing_count = 28;   // trailing_base itself stands for "none"

// The range that holds `code`, or nullptr.
template <typename Range, size_t count>
const Range* find_range(const Range (&ranges)[count], uint32_t code) {
  const Range* range =
      std::lower_bound(ranges, ranges + count, code, [](const Range& r, uint32_t value) { return r.last < value; });
  return range != ranges + count && range->first <= code ? range : nullptr;
}

uint32_t combining_class(uint32_t code) {
  const CombiningRange* range = code < 0x300 ? nullptr : find_range(combining_ranges, code);
  return range ? range->combining_class : 0;
}

void append_decomposed(uint32_t code, std::vector<uint32_t>& out) {
  const uint32_t syllable = code - hangul_base;
  if (syllable < hangul_count) {
    out.push_back(leading_base + syllable / (vowel_count * trailing_count));
    out.push_back(vowel_base + syllable % (vowel_count * trailing_count) / trailing_count);
    if (syllable % trailing_count) out.push_back(trailing_base + syllable % trailing_count);
    return;
  }
  const auto* end = std::end(decompositions);
  const auto* row = std::lower_bound(std::begin(decompositions), end, code,
                                     [](const Decomposition& d, uint32_t value) { return d.code < value; });
  if (row == end || row->code != code) {
    out.push_back(code);
    return;
  }
  append_decomposed(row->first, out);   // the table is a few levels deep
  if (row->second) append_decomposed(row->second, out);
}

// The primary composite of a pair, or 0.
uint32_t compose(uint32_t first, uint32_t second) {
  const uint32_t leading = first - leading_base, vowel = second - vowel_base;
  if (leading < leading_count && vowel < vowel_count) {
    return hangul_base + (leading * vowel_count + vowel) * trailing_count;
  }
  const uint32_t syllable = first - hangul_base, trailing = second - trailing_base;
  if (syllable < hangul_count && syllable % trailing_count == 0 && trailing - 1 < trailing_count - 1) {
    return first + trailing;
  }
  const auto* end = std::end(compositions);
  const auto* row =
      std::lower_bound(std::begin(compositions), end, first, [second](const Composition& c, uint32_t value) {
        return c.first != value ? c.first < value : c.second < second;
      });
  return row != end && row->first == first && row->second == second ? row->code : 0;
}

void order_marks(std::vector<uint32_t>& codes) {
  for (size_t begin = 0; begin < codes.size();) {
    size_t end = begin;
    while (end < codes.size() && combining_class(codes[end])) ++end;
    const auto first = codes.begin() + static_cast<ptrdiff_t>(begin);
    std::stable_sort(first, codes.begin() + static_cast<ptrdiff_t>(end),
                     [](uint32_t a, uint32_t b) { return combining_class(a) < combining_class(b); });
    begin = end + 1;
  }
}

void compose_marks(std::vector<uint32_t>& codes) {
  constexpr size_t none = static_cast<size_t>(-1);
  size_t size = 0, starter = none;
  uint32_t last_class = 0;   // of the last code kept after the starter
  for (const uint32_t code : codes) {
    const uint32_t code_class = combining_class(code);
    // A mark is blocked from its starter by a kept code of the same or a higher class in between.
    const bool adjacent = starter != none && size == starter + 1;
    if (starter != none && (adjacent || (last_class != 0 && last_class < code_class))) {
      if (const uint32_t composite = compose(codes[starter], code)) {
        codes[starter] = composite;
        continue;
      }
    }
    if (code_class == 0) starter = size;
    last_class = code_class;
    codes[size++] = code;
  }
  codes.resize(size);
}

uint32_t lower_of(uint32_t code) {
  if (code < 0x80) return code - 'A' < 26 ? code + 32 : code;
  const LowerRange* range = find_range(lower_ranges, code);
  if (!range || (code - range->first) % range->step) return code;
  return code + static_cast<uint32_t>(range->distance);
}

}  // namespace

std::vector<uint32_t> decode_utf8(std::string_view text) {
  static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
  std::vector<uint32_t> codes;
  codes.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const uint32_t lead = static_cast<uint8_t>(text[i]);
    const size_t more = lead < 0x80 ? 0 : lead < 0xC0 ? 4 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : lead < 0xF8 ? 3 : 4;
    bool valid = more < 4 && more < text.size() - i;
    uint32_t code = more ? lead & (0x3Fu >> more) : lead;
    for (size_t k = 1; valid && k <= more; ++k) {
      const uint32_t byte = static_cast<uint8_t>(text[i + k]);
      valid = (byte & 0xC0) == 0x80;
      code = code << 6 | (byte & 0x3F);
    }
    if (!valid || code < smallest[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
      throw fail(MDRT_ERROR_ARGUMENT, "the text is not valid UTF-8 at byte %zu; encode it as UTF-8", i);
    }
    codes.push_back(code);
    i += more + 1;
  }
  return codes;
}

void append_utf8(uint32_t code, std::vector<uint8_t>& bytes) {
  const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  static const uint8_t lead[] = {0, 0xC0, 0xE0, 0xF0};
  bytes.push_back(static_cast<uint8_t>(lead[more] | code >> (6 * more)));
  for (int k = more - 1; k >= 0; --k) bytes.push_back(static_cast<uint8_t>(0x80 | ((code >> (6 * k)) & 0x3F)));
}

std::vector<uint32_t> normalize_nfc(const std::vector<uint32_t>& codes) {
  // Nothing below U+0300 changes unless a mark follows.
  if (std::all_of(codes.begin(), codes.end(), [](uint32_t code) { return code < 0x300; })) return codes;
  std::vector<uint32_t> result;
  result.reserve(codes.size());
  for (const uint32_t code : codes) append_decomposed(code, result);
  order_marks(result);
  compose_marks(result);
  return result;
}

std::vector<uint32_t> to_lower(const std::vector<uint32_t>& codes) {
  std::vector<uint32_t> result;
  result.reserve(codes.size());
  for (const uint32_t code : codes) {
    if (code == 0x130) {   // I with dot above: the only letter whose lower case is longer
      result.push_back('i');
      result.push_back(0x307);
    } else {
      result.push_back(lower_of(code));
    }
  }
  return result;
}

CharacterClass character_class(uint32_t code) {
  if (find_range(letter_ranges, code)) return CharacterClass::letter;
  if (find_range(number_ranges, code)) return CharacterClass::number;
  if (find_range(space_ranges, code)) return CharacterClass::space;
  return CharacterClass::other;
}

}  // namespace mdrt

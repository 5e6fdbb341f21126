// Byte-level BPE as CLIP uses it: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016;
// Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
//
// Text -> special tokens are cut out -> NFC -> lower case -> words -> bytes, one symbol each -> merges, best rank first
#include "tokenizer.h"

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <queue>
#include <string>

#include "base/error.h"
#include "unicode.h"

namespace mdrt {
namespace {

constexpr size_t max_text_bytes = size_t{1} << 20;
// With tables at most half full, honest data needs a few dozen steps; data made to collide is refused, not searched.
constexpr size_t max_probes = 512;
constexpr size_t max_special_bytes = 256;
constexpr std::string_view word_end = "</w>";

uint64_t mix(uint64_t x) {   // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

size_t table_size(size_t count) {
  size_t size = 16;
  while (size < 2 * count) size *= 2;
  return size;
}

[[noreturn]] void fail_collisions(const char* what) {
  throw fail(MDRT_ERROR_BUNDLE, "tokenizer: the %s cannot be indexed, too many hashes agree; convert it again", what);
}

// A polynomial hash: that of a concatenation follows from those of its parts.
struct TextHash {
  uint64_t value = 0, power = 1;

  static TextHash of(std::string_view text) {
    constexpr uint64_t base = 0x9E3779B97F4A7C15;
    TextHash hash;
    for (const char c : text) {
      hash.value = hash.value * base + static_cast<uint8_t>(c) + 1;
      hash.power *= base;
    }
    return hash;
  }
  TextHash then(TextHash next) const { return {value * next.power + next.value, power * next.power}; }
};

// Token -> id, needed while the tokenizer is built.
class Vocabulary {
 public:
  explicit Vocabulary(const TokenizerInfo& info) {
    if (!info.vocabulary || info.vocab_size < 1 || info.vocab_size > info.vocabulary_bytes) {
      throw fail(MDRT_ERROR_BUNDLE, "tokenizer: vocab_size is %d for a vocabulary of %lld bytes; a token takes 2 bytes",
                 info.vocab_size, static_cast<long long>(info.vocabulary_bytes));
    }
    read_tokens(info);
    slots_.assign(table_size(tokens_.size()), -1);
    hashes_.reserve(tokens_.size());
    for (size_t id = 0; id < tokens_.size(); ++id) {
      hashes_.push_back(TextHash::of(tokens_[id]));
      int32_t& slot = slots_[probe(tokens_[id], {}, hashes_[id])];
      if (slot >= 0) {
        throw fail(MDRT_ERROR_BUNDLE, "tokenizer: tokens %d and %zu are equal; a token has one id", slot, id);
      }
      slot = static_cast<int32_t>(id);
    }
  }

  std::string_view token(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }
  int32_t find(std::string_view token) const { return slots_[probe(token, {}, TextHash::of(token))]; }   // -1: absent
  int32_t find_concatenation(int32_t a, int32_t b) const {
    const auto i = static_cast<size_t>(a), k = static_cast<size_t>(b);
    return slots_[probe(tokens_[i], tokens_[k], hashes_[i].then(hashes_[k]))];
  }

 private:
  void read_tokens(const TokenizerInfo& info) {
    const char* at = info.vocabulary;
    const char* const end = at + info.vocabulary_bytes;
    tokens_.reserve(static_cast<size_t>(info.vocab_size));
    for (int id = 0; id < info.vocab_size; ++id) {
      const char* stop = std::find(at, end, '\n');
      if (stop == end) {
        throw fail(MDRT_ERROR_BUNDLE, "tokenizer: the vocabulary ends after %d of %d tokens", id, info.vocab_size);
      }
      if (stop == at) throw fail(MDRT_ERROR_BUNDLE, "tokenizer: token %d is empty; every token needs a character", id);
      tokens_.emplace_back(at, static_cast<size_t>(stop - at));
      at = stop + 1;
    }
    if (std::any_of(at, end, [](char c) { return c != 0; })) {
      throw fail(MDRT_ERROR_BUNDLE, "tokenizer: the vocabulary goes on after its %d tokens; only zeros may follow",
                 info.vocab_size);
    }
  }

  // The slot of first + second, or the free one where it would go.
  size_t probe(std::string_view first, std::string_view second, TextHash hash) const {
    const size_t mask = slots_.size() - 1;
    size_t slot = mix(hash.value) & mask;
    for (size_t step = 0; step < max_probes; ++step, slot = (slot + 1) & mask) {
      if (slots_[slot] < 0) return slot;
      const std::string_view token = tokens_[static_cast<size_t>(slots_[slot])];
      if (token.size() == first.size() + second.size() && token.substr(0, first.size()) == first &&
          token.substr(first.size()) == second) {
        return slot;
      }
    }
    fail_collisions("vocabulary");
  }

  std::vector<std::string_view> tokens_;
  std::vector<TextHash> hashes_;
  std::vector<int32_t> slots_;   // ids, -1: free
};

// Pair of ids -> rank and merged id.
class MergeTable {
 public:
  struct Entry {
    uint64_t pair = empty;
    int32_t rank = 0, merged = 0;
  };

  MergeTable(const TokenizerInfo& info, const Vocabulary& vocabulary) {
    if (info.num_merges < 0 || info.num_merges > INT32_MAX || (info.num_merges && !info.merges)) {
      throw fail(MDRT_ERROR_BUNDLE, "tokenizer: num_merges is %lld; it must be 0 to 2147483647",
                 static_cast<long long>(info.num_merges));
    }
    entries_.resize(table_size(static_cast<size_t>(info.num_merges)));
    for (int32_t rank = 0; rank < info.num_merges; ++rank) {
      const int32_t* ids = info.merges + 2 * static_cast<int64_t>(rank);
      const int32_t a = ids[0], b = ids[1];
      if (a < 0 || b < 0 || a >= info.vocab_size || b >= info.vocab_size) {
        throw fail(MDRT_ERROR_BUNDLE, "tokenizer: merge %d is (%d, %d); ids must be in [0, %d)", rank, a, b,
                   info.vocab_size);
      }
      const int32_t merged = vocabulary.find_concatenation(a, b);
      if (merged < 0) {
        throw fail(MDRT_ERROR_BUNDLE, "tokenizer: merge %d of %d and %d gives no token of the vocabulary", rank, a, b);
      }
      const uint64_t pair = key(a, b);
      entries_[probe(pair)] = {pair, rank, merged};   // of equal pairs the last one counts
    }
  }

  const Entry* find(int32_t a, int32_t b) const {
    const Entry& entry = entries_[probe(key(a, b))];
    return entry.pair == empty ? nullptr : &entry;
  }

 private:
  static constexpr uint64_t empty = ~uint64_t{0};
  static uint64_t key(int32_t a, int32_t b) { return static_cast<uint64_t>(a) << 32 | static_cast<uint32_t>(b); }

  size_t probe(uint64_t pair) const {
    const size_t mask = entries_.size() - 1;
    size_t slot = mix(pair) & mask;
    for (size_t step = 0; step < max_probes; ++step, slot = (slot + 1) & mask) {
      if (entries_[slot].pair == empty || entries_[slot].pair == pair) return slot;
    }
    fail_collisions("merges");
  }

  std::vector<Entry> entries_;
};

// CLIP spells bytes as characters: printable Latin-1 as itself, the others as U+0100, U+0101, ... in their order.
void append_byte_spelling(uint32_t byte, uint32_t& next, std::string& out) {
  const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
  std::vector<uint8_t> bytes;
  append_utf8(printable ? byte : next++, bytes);
  out.assign(bytes.begin(), bytes.end());
}

using Codes = std::vector<uint32_t>;

bool starts_with(const Codes& codes, size_t at, std::string_view ascii) {
  if (ascii.size() > codes.size() - at) return false;
  for (size_t i = 0; i < ascii.size(); ++i) {
    if (codes[at + i] != static_cast<uint8_t>(ascii[i])) return false;
  }
  return true;
}

// These two, once in another case, are three words ("<|", the name, "|>"), whatever marks follow. 0: not here.
size_t spelled_special_length(const Codes& codes, size_t at) {
  for (const std::string_view name : {"<|startoftext|>", "<|endoftext|>"}) {
    if (starts_with(codes, at, name)) return name.size();
  }
  return 0;
}

// Length of the word at `at`: 's and its like, a run of letters, one number, a run of anything else but space.
size_t word_length(const Codes& codes, size_t at) {
  for (const std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (starts_with(codes, at, ending)) return ending.size();
  }
  const CharacterClass first = character_class(codes[at]);
  size_t length = 1;
  if (first == CharacterClass::number) return length;
  while (at + length < codes.size() && character_class(codes[at + length]) == first) ++length;
  return length;
}

}  // namespace

struct Tokenizer::Impl {
  Impl(const TokenizerInfo& info, const Vocabulary& vocabulary);

  void encode_ordinary(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_word(const Codes& codes, size_t at, size_t length, std::vector<int32_t>& ids) const;
  void merge(const std::vector<uint8_t>& bytes, std::vector<int32_t>& ids) const;
  std::vector<int32_t> encode_content(std::string_view text) const;

  struct Special {
    std::string text;
    int32_t id;
  };

  MergeTable merges;
  int32_t byte_ids[2][256];   // [1]: with "</w>", the last byte of a word
  std::vector<Special> specials;
  int32_t bos, eos, pad;
  size_t model_max_length;
};

Tokenizer::Impl::Impl(const TokenizerInfo& info, const Vocabulary& vocabulary)
    : merges(info, vocabulary), bos(info.bos_token_id), eos(info.eos_token_id), pad(info.pad_token_id) {
  if (info.model_max_length < 2) {
    throw fail(MDRT_ERROR_BUNDLE, "tokenizer: model_max_length is %d; it must be 2 or more", info.model_max_length);
  }
  model_max_length = static_cast<size_t>(info.model_max_length);
  const struct {
    const char* name;
    int32_t id;
  } named[] = {{"bos", bos}, {"eos", eos}, {"pad", pad}, {"unk", info.unk_token_id}};
  for (const auto& [name, id] : named) {
    if (id < 0 || id >= info.vocab_size) {
      throw fail(MDRT_ERROR_BUNDLE, "tokenizer: %s_token_id is %d; it must be in [0, %d)", name, id, info.vocab_size);
    }
    const std::string_view token = vocabulary.token(id);
    if (token.size() > max_special_bytes) {
      throw fail(MDRT_ERROR_BUNDLE, "tokenizer: token %d (%s_token_id) has %zu bytes; at most %zu are allowed", id,
                 name, token.size(), max_special_bytes);
    }
    specials.push_back({std::string(token), id});
  }
  // At one place the longest special token wins.
  std::sort(specials.begin(), specials.end(),
            [](const Special& a, const Special& b) { return a.text.size() > b.text.size(); });

  uint32_t next = 0x100;
  std::string spelling;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    append_byte_spelling(byte, next, spelling);
    for (const int last : {0, 1}) {
      const int32_t id = vocabulary.find(last ? spelling.append(word_end) : spelling);
      byte_ids[last][byte] = id < 0 ? info.unk_token_id : id;
    }
  }
}

// Special tokens are found before normalisation: in other case, or behind a mark that composes, they are plain text.
std::vector<int32_t> Tokenizer::Impl::encode_content(std::string_view text) const {
  if (text.size() > max_text_bytes) {
    throw fail(MDRT_ERROR_ARGUMENT, "the text has %zu bytes; at most %zu are read, give a shorter prompt", text.size(),
               max_text_bytes);
  }
  decode_utf8(text);   // positions in its error count from the start of the whole text
  std::vector<int32_t> ids;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const auto special = std::find_if(specials.begin(), specials.end(), [&](const Special& candidate) {
      return text.compare(at, candidate.text.size(), candidate.text) == 0;
    });
    if (special == specials.end()) {
      ++at;
      continue;
    }
    encode_ordinary(text.substr(begin, at - begin), ids);
    ids.push_back(special->id);
    begin = at += special->text.size();
  }
  encode_ordinary(text.substr(begin), ids);
  return ids;
}

void Tokenizer::Impl::encode_ordinary(std::string_view text, std::vector<int32_t>& ids) const {
  const Codes codes = to_lower(normalize_nfc(decode_utf8(text)));
  for (size_t at = 0; at < codes.size();) {
    if (const size_t length = spelled_special_length(codes, at)) {
      encode_word(codes, at, 2, ids);
      encode_word(codes, at + 2, length - 4, ids);
      encode_word(codes, at + length - 2, 2, ids);
      at += length;
    } else if (character_class(codes[at]) == CharacterClass::space) {
      ++at;
    } else {
      const size_t length_of_word = word_length(codes, at);
      encode_word(codes, at, length_of_word, ids);
      at += length_of_word;
    }
  }
}

void Tokenizer::Impl::encode_word(const Codes& codes, size_t at, size_t length, std::vector<int32_t>& ids) const {
  std::vector<uint8_t> bytes;
  for (size_t i = at; i < at + length; ++i) append_utf8(codes[i], bytes);
  merge(bytes, ids);
}

// Joins the pair of best rank, leftmost first, until none is left. A heap and a linked list keep this at O(n log n).
void Tokenizer::Impl::merge(const std::vector<uint8_t>& bytes, std::vector<int32_t>& ids) const {
  struct Symbol {
    int32_t id, previous, next;   // id -1: joined to the symbol on its left
  };
  struct Candidate {
    int32_t rank, at, merged;
    bool operator<(const Candidate& other) const {   // std::priority_queue serves the largest first
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto count = static_cast<int32_t>(bytes.size());   // far below 2^31: the text is capped
  std::vector<Symbol> symbols(bytes.size());
  const auto symbol = [&](int32_t at) -> Symbol& { return symbols[static_cast<size_t>(at)]; };
  for (int32_t i = 0; i < count; ++i) {
    symbol(i) = {byte_ids[i + 1 == count][bytes[static_cast<size_t>(i)]], i - 1, i + 1};
  }
  std::priority_queue<Candidate> candidates;
  const auto consider = [&](int32_t at) {
    if (at < 0 || symbol(at).next == count) return;
    if (const auto* entry = merges.find(symbol(at).id, symbol(symbol(at).next).id)) {
      candidates.push({entry->rank, at, entry->merged});
    }
  };
  for (int32_t i = 0; i < count; ++i) consider(i);

  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = symbol(best.at);
    if (left.id < 0 || left.next == count) continue;
    Symbol& right = symbol(left.next);
    const auto* entry = merges.find(left.id, right.id);
    if (!entry || entry->merged != best.merged) continue;   // a neighbour has changed since
    left.id = best.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next < count) symbol(left.next).previous = best.at;
    consider(left.previous);
    consider(best.at);
  }
  for (int32_t i = 0; i < count; i = symbol(i).next) ids.push_back(symbol(i).id);
}

Tokenizer::Tokenizer(const TokenizerInfo& info) {
  const Vocabulary vocabulary(info);
  impl_ = new Impl(info, vocabulary);
}

Tokenizer::~Tokenizer() { delete impl_; }

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids = impl_->encode_content(text);
  ids.insert(ids.begin(), impl_->bos);
  ids.push_back(impl_->eos);
  return ids;
}

std::vector<int32_t> Tokenizer::encode_padded(std::string_view text) const {
  std::vector<int32_t> ids = impl_->encode_content(text);
  if (ids.size() > impl_->model_max_length - 2) ids.resize(impl_->model_max_length - 2);
  ids.insert(ids.begin(), impl_->bos);
  ids.push_back(impl_->eos);
  ids.resize(impl_->model_max_length, impl_->pad);
  return ids;
}

}  // namespace mdrt

// Mutated vocabularies and merges, random bytes as text: a typed error or ids in range, nothing else.
// fuzz_tokenizer [--count N] [--seed S] [--text-bytes N]; a case is a vocabulary. Build with MDRT_SANITIZE.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tokenizer.h"

namespace {

using Random = std::mt19937_64;

size_t below(Random& random, size_t limit) { return static_cast<size_t>(random() % limit); }

// What a TokenizerInfo points to.
struct Tables {
  std::vector<std::string> tokens;
  std::vector<std::pair<int32_t, int32_t>> merges;
  int ids[4] = {0, 1, 1, 1};
  int model_max_length = 24;
};

std::string random_text(Random& random, size_t max_bytes) {
  static const char* const pieces[] = {"<|startoftext|>", "<|endoftext|>", "<|ENDOFTEXT|>", "a", "ab", "bab", " ", "'s",
                                       "7", "!", "\xC4\xB0", "\xCC\x81", "\xEA\xB0\x80", "\xF0\x9F\x98\x80",
                                       "\xE1\xBA\x9B\xCC\xA3"};
  const size_t kind = below(random, 4);
  std::string text;
  for (const size_t size = below(random, max_bytes + 1); text.size() < size;) {
    if (kind == 0 || (kind == 1 && below(random, 50) == 0)) {
      text.push_back(static_cast<char>(random()));
    } else {
      text += pieces[below(random, sizeof pieces / sizeof *pieces)];
    }
  }
  return text;
}

// A sound vocabulary: letters, both forms, and the merges that make further tokens.
Tables sound_tables(Random& random) {
  Tables tables;
  tables.tokens = {"<|startoftext|>", "<|endoftext|>"};
  for (const char* end : {"", "</w>"}) {
    for (const char letter : std::string("abcdef!7'")) tables.tokens.push_back(letter + std::string(end));
  }
  for (size_t tries = below(random, 60); tries > 0; --tries) {
    const size_t a = 2 + below(random, tables.tokens.size() - 2), b = 2 + below(random, tables.tokens.size() - 2);
    const std::string joined = tables.tokens[a] + tables.tokens[b];
    if (joined.size() > 64) continue;
    const auto end = tables.tokens.end();
    if (std::find(tables.tokens.begin(), end, joined) == end) tables.tokens.push_back(joined);
    tables.merges.push_back({static_cast<int32_t>(a), static_cast<int32_t>(b)});
  }
  return tables;
}

int random_id(Random& random, const Tables& tables) {
  const int limit = static_cast<int>(tables.tokens.size());
  switch (below(random, 6)) {
    case 0: return -1;
    case 1: return limit;
    case 2: return static_cast<int>(random());
    default: return static_cast<int>(below(random, tables.tokens.size()));
  }
}

void mutate(Random& random, Tables& tables) {
  std::string& token = tables.tokens[below(random, tables.tokens.size())];
  switch (below(random, 8)) {
    case 0: token = random_text(random, 40); break;
    case 1: token = tables.tokens[below(random, tables.tokens.size())]; break;
    case 2: token.clear(); break;
    case 3: token.assign(below(random, 2000), 'a'); break;
    case 4: tables.merges.push_back({random_id(random, tables), random_id(random, tables)}); break;
    case 5: tables.ids[below(random, 4)] = random_id(random, tables); break;
    case 6: tables.model_max_length = static_cast<int>(below(random, 40)) - 2; break;
    case 7: std::shuffle(tables.merges.begin(), tables.merges.end(), random); break;
  }
}

// True when a tokenizer came of it. Blocks of exactly the stated size let the sanitizer see every step too far.
bool run(Random& random, const Tables& tables, int vocab_size_change, size_t text_bytes) {
  std::string blob;
  for (const std::string& token : tables.tokens) blob += token + '\n';
  if (below(random, 30) == 0 && !blob.empty()) blob.resize(below(random, blob.size()));
  const std::vector<char> vocabulary(blob.begin(), blob.end());
  std::vector<int32_t> merges;
  for (const auto& [a, b] : tables.merges) merges.insert(merges.end(), {a, b});
  const int size = static_cast<int>(tables.tokens.size()) + vocab_size_change;
  const mdrt::TokenizerInfo info{vocabulary.data(),       static_cast<int64_t>(vocabulary.size()),
                                 merges.data(),           static_cast<int64_t>(tables.merges.size()),
                                 size,                    tables.model_max_length,
                                 tables.ids[0],           tables.ids[1],
                                 tables.ids[2],           tables.ids[3]};
  try {
    const mdrt::Tokenizer tokenizer(info);
    for (int i = 0; i < 4; ++i) {
      const std::string text = random_text(random, text_bytes);
      try {
        const std::vector<char> exact(text.begin(), text.end());
        const std::string_view view(exact.data(), exact.size());
        const std::vector<int32_t> ids = tokenizer.encode(view), padded = tokenizer.encode_padded(view);
        const auto in_range = [size](int32_t id) { return id >= 0 && id < size; };
        if (ids.size() < 2 || padded.size() != static_cast<size_t>(tables.model_max_length) ||
            !std::all_of(ids.begin(), ids.end(), in_range) || !std::all_of(padded.begin(), padded.end(), in_range)) {
          fprintf(stderr, "ids out of range, or too few\n");
          abort();
        }
      } catch (const mdrt::Error& error) {
        if (error.status() != MDRT_ERROR_ARGUMENT) throw;
      }
    }
    return true;
  } catch (const mdrt::Error& error) {
    if (error.status() == MDRT_ERROR_BUNDLE) return false;
    fprintf(stderr, "wrong status %d: %s\n", static_cast<int>(error.status()), error.what());
    abort();
  }
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t count = 2000, seed = 1, text_bytes = 300;
  for (int i = 1; i < argc; i += 2) {
    uint64_t* value = !strcmp(argv[i], "--count")        ? &count
                      : !strcmp(argv[i], "--seed")       ? &seed
                      : !strcmp(argv[i], "--text-bytes") ? &text_bytes
                                                         : nullptr;
    if (!value || i + 1 == argc) {
      fprintf(stderr, "usage: %s [--count N] [--seed S] [--text-bytes N]\n", argv[0]);
      return 2;
    }
    *value = strtoull(argv[i + 1], nullptr, 10);
  }
  uint64_t usable = 0;
  for (uint64_t i = 0; i < count; ++i) {
    // Each case has its own seed: --count 1 --seed S+i repeats it.
    Random random(seed + i);
    Tables tables = sound_tables(random);
    for (size_t times = below(random, 3); times > 0; --times) mutate(random, tables);
    const int change = below(random, 20) ? 0 : static_cast<int>(below(random, 5)) - 2;
    usable += run(random, tables, change, static_cast<size_t>(text_bytes));
  }
  using Shown = unsigned long long;
  printf("%llu cases from seed %llu, %llu of them usable, no failure\n", Shown{count}, Shown{seed}, Shown{usable});
  return 0;
}

// CLIP's byte-level BPE: text -> token ids, identical to transformers' CLIPTokenizer.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "bundle.h"

namespace mdrt {

class Tokenizer {
 public:
  // Throws Error(MDRT_ERROR_BUNDLE) when the data is not a usable vocabulary.
  explicit Tokenizer(const TokenizerInfo& info);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;

  // begin, the tokens of `text`, end; no padding, no truncation. `text` is UTF-8 of at most 1 MiB; malformed bytes or a
  // longer text throw Error(MDRT_ERROR_ARGUMENT).
  std::vector<int32_t> encode(std::string_view text) const;
  // Exactly model_max_length ids: truncated (the end token stays last) or padded.
  std::vector<int32_t> encode_padded(std::string_view text) const;

 private:
  struct Impl;
  Impl* impl_;
};

}  // namespace mdrt

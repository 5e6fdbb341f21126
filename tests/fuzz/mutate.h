// Seeded, structure-aware mutations of .mdrt files for fuzz_bundle.cc. Knows the container's framing and JSON's tokens, nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fuzz {

// splitmix64: the same numbers everywhere, so that a seed is a complete bug report.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  // In [0, bound); bound 0 gives 0.
  uint64_t below(uint64_t bound) { return bound == 0 ? 0 : next() % bound; }
  bool one_in(uint64_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

// A file taken apart: JSON header text without padding, and everything behind it.
struct Container {
  std::string header, data;
};
Container take_apart(const std::string& file);
// Pads the header and states its length.
std::string put_together(const Container& container);

// Anything may change: bytes, lengths, numbers, tokens, order.
std::string mutate_container(const std::string& file, Random& random);
// The document's graphs change; the container stays sound.
std::string mutate_graph(const std::string& file, Random& random);

}  // namespace fuzz

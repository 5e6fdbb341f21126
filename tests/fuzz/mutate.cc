#include "mutate.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace fuzz {
namespace {

using Tokens = std::vector<std::string>;

const char* const kNumbers[] = {"0",          "-1",         "1",          "2",           "3",          "7",
                                "8",          "15",         "16",         "17",          "63",         "64",
                                "65",         "255",        "256",        "65535",       "65536",      "65537",
                                "1048577",    "2147483647", "2147483648", "-2147483648", "4294967295", "4294967296",
                                "1099511627776", "4611686018427387904", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
                                "18446744073709551615", "18446744073709551616", "1e3", "2.0", "0.5", "1e308", "1e999", "-0", "1e-320",
                                "00", "1.", "NaN", "Infinity", "true", "null", "\"\"", "[]", "{}"};

template <class List>
auto& pick(List& list, Random& random) {
  return *(std::begin(list) + static_cast<std::ptrdiff_t>(random.below(static_cast<uint64_t>(std::size(list)))));
}

Tokens split(const std::string& text) {
  Tokens tokens;
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 1;
    if (text[i] == '"') {
      while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, text.size());
    } else if (strchr("{}[],:", text[i]) == nullptr) {
      while (end < text.size() && strchr("{}[],:\"", text[end]) == nullptr) ++end;
    }
    tokens.push_back(text.substr(i, end - i));
    i = end;
  }
  return tokens;
}

std::string join(const Tokens& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

bool is_number(const std::string& token) {
  return !token.empty() && (token[0] == '-' || (token[0] >= '0' && token[0] <= '9'));
}

std::vector<size_t> positions(const Tokens& tokens, bool (*wanted)(const std::string&)) {
  std::vector<size_t> found;
  for (size_t i = 0; i < tokens.size(); ++i)
    if (wanted(tokens[i])) found.push_back(i);
  return found;
}

// One past the value that begins at `i`.
size_t skip_value(const Tokens& tokens, size_t i) {
  int depth = 0;
  for (; i < tokens.size(); ++i) {
    if (tokens[i] == "{" || tokens[i] == "[") ++depth;
    if (tokens[i] == "}" || tokens[i] == "]") --depth;
    if (depth <= 0) return i + 1;
  }
  return i;
}

void change_number(Tokens& tokens, Random& random) {
  const std::vector<size_t> numbers = positions(tokens, is_number);
  if (numbers.empty()) return;
  std::string& number = tokens[pick(numbers, random)];
  switch (random.below(4)) {
    case 0: number = pick(kNumbers, random); break;
    case 1: number = tokens[pick(numbers, random)]; break;
    default: number = std::to_string(static_cast<int64_t>(strtoull(number.c_str(), nullptr, 10) + random.below(5) - 2));
  }
}

void change_token(Tokens& tokens, Random& random) {
  if (tokens.empty()) return;
  const size_t i = random.below(tokens.size()), j = random.below(tokens.size());
  switch (random.below(5)) {
    case 0: tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(i)); break;
    case 1: tokens[i] = tokens[j]; break;
    case 2: std::swap(tokens[i], tokens[j]); break;
    case 3: tokens.insert(tokens.begin() + static_cast<std::ptrdiff_t>(i), tokens[j]); break;
    default: {    // a whole value appears or disappears
      const Tokens value(tokens.begin() + static_cast<std::ptrdiff_t>(i), tokens.begin() + static_cast<std::ptrdiff_t>(skip_value(tokens, i)));
      if (random.one_in(2)) tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(i), tokens.begin() + static_cast<std::ptrdiff_t>(i + value.size()));
      else tokens.insert(tokens.begin() + static_cast<std::ptrdiff_t>(j), value.begin(), value.end());
    }
  }
}

void change_string(Tokens& tokens, Random& random) {
  const std::vector<size_t> strings = positions(tokens, [](const std::string& t) { return t[0] == '"'; });
  if (strings.empty()) return;
  std::string& text = tokens[pick(strings, random)];
  switch (random.below(3)) {
    case 0: text = tokens[pick(strings, random)]; break;
    case 1: text.insert(1, std::string(random.below(300), 'a')); break;
    default: text.insert(1 + random.below(text.size() - 1), 1, static_cast<char>(random.next())); break;
  }
}

void change_bytes(std::string& bytes, Random& random) {
  if (bytes.empty()) return;
  const size_t at = random.below(bytes.size()), count = random.below(std::min<size_t>(bytes.size() - at, 64) + 1);
  switch (random.below(4)) {
    case 0: bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8))); break;
    case 1: bytes[at] = static_cast<char>(random.next()); break;
    case 2: bytes.erase(at, count); break;
    default: bytes.insert(random.below(bytes.size()), bytes.substr(at, count)); break;
  }
}

std::string unescape(const std::string& token) {
  std::string text;
  for (size_t i = 1; i + 1 < token.size(); ++i) {
    if (token[i] == '\\') ++i;
    text += token[i];
  }
  return text;
}

std::string escape(const std::string& text) {
  std::string token = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') token += '\\';
    token += c;
  }
  return token + "\"";
}

// Index of the token "mdrt"'s value in the header, 0 when there is none.
size_t document_at(const Tokens& tokens) {
  const auto key = std::find(tokens.begin(), tokens.end(), "\"mdrt\"");
  return tokens.end() - key > 2 ? static_cast<size_t>(key - tokens.begin()) + 2 : 0;
}

std::vector<size_t> values_of(const Tokens& tokens, const char* key) {
  std::vector<size_t> found;
  for (size_t i = 0; i + 2 < tokens.size(); ++i)
    if (tokens[i] == std::string("\"") + key + "\"" && tokens[i + 1] == ":") found.push_back(i + 2);
  return found;
}

// Changes one value of this key, or one number of the list there.
void change_value(Tokens& tokens, const char* key, std::initializer_list<const char*> choices, Random& random) {
  const std::vector<size_t> places = values_of(tokens, key);
  if (places.empty()) return;
  size_t at = pick(places, random);
  if (tokens[at] == "[") {
    const size_t end = skip_value(tokens, at);
    if (end - at < 3) return;
    at += 1 + 2 * random.below((end - at - 1) / 2);
  }
  tokens[at] = *(choices.begin() + random.below(choices.size()));
}

// A node uses some other value.
void change_node_input(Tokens& tokens, Random& random) {
  const std::vector<size_t> ops = values_of(tokens, "op");
  if (ops.empty()) return;
  size_t at = pick(ops, random);
  while (at < tokens.size() && tokens[at] != "[") ++at;
  const size_t end = skip_value(tokens, at);
  if (end >= tokens.size() || end - at < 3) return;
  std::string& number = tokens[at + 1 + 2 * random.below((end - at - 1) / 2)];
  const int64_t old = strtoll(number.c_str(), nullptr, 10);
  number = std::to_string(random.one_in(2) ? old / 2 + static_cast<int64_t>(random.below(20)) : static_cast<int64_t>(random.below(40)));
}

// A copy of a node under a new name, at the end of some list of nodes, where it may use everything.
void add_node(Tokens& tokens, Random& random) {
  const std::vector<size_t> ops = values_of(tokens, "op"), lists = values_of(tokens, "nodes");
  if (ops.empty() || lists.empty()) return;
  const size_t begin = pick(ops, random) - 3, list = pick(lists, random), end = skip_value(tokens, list) - 1;
  Tokens copy(tokens.begin() + static_cast<std::ptrdiff_t>(begin), tokens.begin() + static_cast<std::ptrdiff_t>(skip_value(tokens, begin)));
  for (size_t i = 0; i + 2 < copy.size(); ++i)
    if (copy[i] == "\"name\"") copy[i + 2] = "\"copy" + std::to_string(random.below(1000)) + "\"";
  copy.insert(copy.begin(), ",");
  tokens.insert(tokens.begin() + static_cast<std::ptrdiff_t>(end), copy.begin(), copy.end());
}

// A node loses its last inputs, or gets more: int8 layers have up to four that belong together.
void change_node_input_count(Tokens& tokens, Random& random) {
  const std::vector<size_t> ops = values_of(tokens, "op");
  if (ops.empty()) return;
  size_t at = pick(ops, random);
  while (at < tokens.size() && tokens[at] != "[") ++at;
  const size_t end = skip_value(tokens, at);
  if (end >= tokens.size() || end - at < 3) return;
  const auto last = tokens.begin() + static_cast<std::ptrdiff_t>(end - 1);
  const std::ptrdiff_t count = static_cast<std::ptrdiff_t>(1 + random.below(4));
  if (random.one_in(2)) {
    tokens.erase(std::max(last - 2 * count, tokens.begin() + static_cast<std::ptrdiff_t>(at) + 2), last);
  } else {
    Tokens more;
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      more.push_back(",");
      more.push_back(std::to_string(random.below(40)));
    }
    tokens.insert(last, more.begin(), more.end());
  }
}

// A number of some stored tensor becomes a special one: scales, sums and zero points are checked when a file is opened.
void change_stored_number(std::string& data, Random& random) {
  static const uint32_t kWords[] = {0,          1,          0x7f,       0x80,       0xffffff7f, 0xffffff80, 0xffffffff, 0x3f800000,
                                    0xbf800000, 0x00800000, 0x007fffff, 0x7f7fffff, 0x7f800000, 0x7fc00000, 0x80000000, 0x7fffffff};
  if (data.size() < 4) return;
  // At the beginning of a tensor, where vectors of one number have theirs, or anywhere.
  const size_t at = random.one_in(2) ? random.below(data.size() / 64) * 64 : random.below(data.size() / 4) * 4;
  memcpy(&data[at], &pick(kWords, random), 4);
}

void change_graph(Tokens& tokens, Random& random) {
  switch (random.below(15)) {
    case 0:
    case 1: change_node_input(tokens, random); break;
    case 2: add_node(tokens, random); break;
    case 3: change_value(tokens, "op", {"\"silu\"", "\"gelu\"", "\"quick_gelu\"", "\"gated_unit\"", "\"add\"", "\"concat\"", "\"resize_like\""}, random); break;
    case 4: change_value(tokens, "stride", {"1", "2", "3", "4", "5", "0"}, random); break;
    case 5: change_value(tokens, "pads", {"0", "1", "2", "3", "4", "-1"}, random); break;
    case 6: change_value(tokens, "num_heads", {"1", "2", "4", "8", "16", "3"}, random); break;
    case 7: change_value(tokens, "num_groups", {"1", "2", "4", "8", "16", "3"}, random); break;
    case 8: change_value(tokens, random.one_in(2) ? "attention_fn" : "is_causal", {"\"softmax\"", "\"relu\"", "\"true\"", "\"false\""}, random); break;
    case 9: change_value(tokens, "scale_factor", {"1", "2", "3", "8", "9"}, random); break;
    case 10: change_value(tokens, "shape", {"1", "2", "3", "5", "16", "100", "65536", "\"batch\"", "\"height\"", "\"x\""}, random); break;
    case 11: change_value(tokens, "value", {"3", "20", "25", "30", "35", "40"}, random); break;
    case 12: change_value(tokens, "kernel_size", {"1", "2", "3", "7", "8"}, random); break;
    case 13: random.one_in(3) ? change_node_input_count(tokens, random) : change_node_input(tokens, random); break;
    default: random.one_in(2) ? change_number(tokens, random) : change_token(tokens, random);
  }
}

}  // namespace

uint64_t Random::next() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

Container take_apart(const std::string& file) {
  uint64_t length = 0;
  if (file.size() >= 8) memcpy(&length, file.data(), 8);
  if (file.size() < 8 || length > file.size() - 8) return {file, ""};
  std::string header = file.substr(8, length);
  header.erase(header.find_last_not_of(' ') + 1);
  return {header, file.substr(8 + length)};
}

std::string put_together(const Container& container) {
  std::string header = container.header;
  header.append((64 - (header.size() + 8) % 64) % 64, ' ');
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + container.data;
}

std::string mutate_container(const std::string& file, Random& random) {
  Container container = take_apart(file);
  Tokens tokens = split(container.header);
  bool in_header = false;
  for (uint64_t count = 1 + random.below(3); count > 0; --count) {
    switch (random.below(8)) {
      case 0: change_bytes(container.data, random); break;
      case 1: container.data.resize(random.below(container.data.size() + 200)); break;
      case 2: change_token(tokens, random); in_header = true; break;
      case 3: change_string(tokens, random); in_header = true; break;
      case 4: {    // inside the document
        const size_t at = document_at(tokens);
        if (at == 0) break;
        Tokens inner = split(unescape(tokens[at]));
        random.one_in(3) ? change_token(inner, random) : random.one_in(3) ? change_string(inner, random) : change_number(inner, random);
        tokens[at] = escape(join(inner));
        in_header = true;
        break;
      }
      default: change_number(tokens, random); in_header = true;
    }
  }
  if (in_header) container.header = join(tokens);
  std::string result = put_together(container);
  if (random.one_in(6)) {    // also the framing
    if (random.one_in(2)) change_bytes(result, random);
    uint64_t length = result.size() - 8;
    switch (random.below(4)) {
      case 0: length = random.next() >> random.below(64); break;
      case 1: length = uint64_t{1} << random.below(64); break;
      case 2: length -= random.below(128); break;
      default: result.resize(random.below(result.size())); return result;
    }
    if (result.size() >= 8) memcpy(&result[0], &length, 8);
  }
  return result;
}

std::string mutate_graph(const std::string& file, Random& random) {
  Container container = take_apart(file);
  Tokens tokens = split(container.header);
  const size_t at = document_at(tokens);
  Tokens document = split(unescape(tokens[at]));
  for (uint64_t count = 1 + random.below(3); count > 0; --count) change_graph(document, random);
  tokens[at] = escape(join(document));
  container.header = join(tokens);
  if (random.one_in(6)) change_stored_number(container.data, random);
  return put_together(container);
}

}  // namespace fuzz

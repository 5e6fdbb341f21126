#include "json.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"

namespace mdrt {
namespace {

// More than any bundle needs; without a limit, sorting 400,000 keys would be the slowest thing a hostile header can ask for.
constexpr uint32_t kMaxKeys = 1 << 15;

}  // namespace

class JsonParser {
 public:
  JsonParser(Json& json, std::string_view text, int max_depth, const char* what)
      : json_(json), begin_(text.data()), at_(begin_), end_(begin_ + text.size()), max_depth_(max_depth), what_(what) {}

  void parse() {
    reserve();
    skip_blanks();
    value(0);
    skip_blanks();
    if (at_ != end_) refuse("there is more after the end of the document");
  }

 private:
  using Type = Json::Type;

  [[noreturn]] void refuse(const char* why) const {
    throw fail(MDRT_ERROR_BUNDLE, "%s: byte %lld: %s", what_, static_cast<long long>(at_ - begin_), why);
  }

  // Upper bounds, so that a hostile document costs one allocation of known size and no growth.
  void reserve() {
    size_t items = 1, characters = 0;
    bool quoted = false;
    for (const char* c = at_; c != end_; ++c) {
      if (*c == '"') quoted = !quoted;
      if (quoted) {
        ++characters;
        if (*c == '\\' && c + 1 != end_) ++c, ++characters;
      } else {
        items += *c == ',' || *c == ':' || *c == '[' || *c == '{';
      }
    }
    json_.items_.reserve(items);
    json_.text_.reserve(characters);
  }

  void skip_blanks() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }

  bool take(char c) {
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }

  size_t push(Type type) {
    Json::Item item{};
    item.type = type;
    json_.items_.push_back(item);
    return json_.items_.size() - 1;
  }

  void value(int depth) {
    if (at_ == end_) refuse("the document ends inside a value");
    switch (*at_) {
      case '{': container(depth + 1, Type::object, '}'); return;
      case '[': container(depth + 1, Type::array, ']'); return;
      case '"': string(); return;
      case 't': word("true", Type::boolean, 1); return;
      case 'f': word("false", Type::boolean, 0); return;
      case 'n': word("null", Type::null, 0); return;
      default: number();
    }
  }

  void word(std::string_view text, Type type, int64_t content) {
    if (static_cast<size_t>(end_ - at_) < text.size() || std::string_view(at_, text.size()) != text) refuse("no JSON value");
    at_ += text.size();
    json_.items_[push(type)].integer = content;
  }

  void container(int depth, Type type, char close) {
    if (depth > max_depth_) refuse("nested too deeply");
    const size_t self = push(type);
    ++at_;
    skip_blanks();
    uint32_t members = 0;
    if (!take(close)) {
      do {
        skip_blanks();
        if (type == Type::object) key();
        value(depth);
        ++members;
        skip_blanks();
      } while (take(','));
      if (!take(close)) refuse(type == Type::object ? "expected , or }" : "expected , or ]");
    }
    json_.items_[self].size = members;
    json_.items_[self].integer = static_cast<int64_t>(json_.items_.size() - self);
    if (type == Type::object) check_duplicates(static_cast<uint32_t>(self), members);
  }

  void key() {
    if (at_ == end_ || *at_ != '"') refuse("expected a key in quotes");
    string();
    skip_blanks();
    if (!take(':')) refuse("expected :");
    skip_blanks();
  }

  void check_duplicates(uint32_t self, uint32_t members) {
    if (members < 2) return;
    if (members > kMaxKeys) refuse("an object has more than 32768 keys");
    std::vector<uint32_t> keys;
    keys.reserve(members);
    Json::Value member = Json::Value(&json_, self).first();
    for (uint32_t i = 0; i < members; ++i, member = member.value().next()) keys.push_back(member.index_);
    const auto text = [this](uint32_t key) { return Json::Value(&json_, key).string(); };
    std::sort(keys.begin(), keys.end(), [&](uint32_t a, uint32_t b) { return text(a) < text(b); });
    const auto twin = std::adjacent_find(keys.begin(), keys.end(), [&](uint32_t a, uint32_t b) { return text(a) == text(b); });
    if (twin == keys.end()) return;
    throw fail(MDRT_ERROR_BUNDLE, "%s: byte %lld: the key '%.*s' occurs twice in one object", what_,
               static_cast<long long>(at_ - begin_), static_cast<int>(std::min<size_t>(text(*twin).size(), 256)), text(*twin).data());
  }

  // "-"? (0 | [1-9][0-9]*) ("." [0-9]+)? ([eE] [+-]? [0-9]+)?
  void number() {
    const char* first = at_;
    take('-');
    if (take('0')) {
      if (at_ != end_ && *at_ >= '0' && *at_ <= '9') refuse("a number begins with 0");
    } else {
      digits();
    }
    bool whole = true;
    if (take('.')) {
      whole = false;
      digits();
    }
    if (take('e') || take('E')) {
      whole = false;
      if (!take('+')) take('-');
      digits();
    }
    const size_t self = push(Type::integer);
    if (whole && std::from_chars(first, at_, json_.items_[self].integer).ec == std::errc()) return;
    double real = 0;
    const auto result = std::from_chars(first, at_, real);
    if (result.ec != std::errc()) refuse("a number does not fit into a double");
    json_.items_[self].type = Type::real;
    json_.items_[self].real = real;
  }

  void digits() {
    if (at_ == end_ || *at_ < '0' || *at_ > '9') refuse("no JSON value");
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
  }

  void string() {
    ++at_;
    const size_t self = push(Type::string), offset = json_.text_.size();
    for (;;) {
      const char* plain = at_;
      while (at_ != end_ && *at_ >= 0x20 && *at_ < 0x7f && *at_ != '"' && *at_ != '\\') ++at_;
      json_.text_.append(plain, at_);
      if (at_ == end_) refuse("the document ends inside a string");
      if (take('"')) break;
      if (take('\\')) {
        escape();
      } else {
        multibyte();
      }
    }
    json_.items_[self].integer = static_cast<int64_t>(offset);
    json_.items_[self].size = static_cast<uint32_t>(json_.text_.size() - offset);
  }

  void escape() {
    if (at_ == end_) refuse("the document ends inside a string");
    static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    const size_t simple = kFrom.find(*at_);
    if (simple != std::string_view::npos) {
      ++at_;
      json_.text_.push_back(kTo[simple]);
      return;
    }
    if (!take('u')) refuse("no such escape in a string");
    uint32_t code = hex();
    if (code == 0) refuse("a string holds a NUL");
    if (code >= 0xdc00 && code < 0xe000) refuse("half of a surrogate pair");
    if (code >= 0xd800 && code < 0xdc00) {
      if (!take('\\') || !take('u')) refuse("half of a surrogate pair");
      const uint32_t low = hex();
      if (low < 0xdc00 || low >= 0xe000) refuse("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(code);
  }

  uint32_t hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = at_ == end_ ? '\0' : *at_;
      uint32_t digit;
      if (c >= '0' && c <= '9') digit = static_cast<uint32_t>(c - '0');
      else if (c >= 'a' && c <= 'f') digit = static_cast<uint32_t>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') digit = static_cast<uint32_t>(c - 'A' + 10);
      else refuse("\\u needs four hexadecimal digits");
      code = code << 4 | digit;
    }
    return code;
  }

  void append_utf8(uint32_t code) {
    const auto tail = [&](int shift) { json_.text_.push_back(static_cast<char>(0x80u | (code >> shift & 0x3fu))); };
    if (code < 0x80) {
      json_.text_.push_back(static_cast<char>(code));
    } else if (code < 0x800) {
      json_.text_.push_back(static_cast<char>(0xc0u | code >> 6));
      tail(0);
    } else if (code < 0x10000) {
      json_.text_.push_back(static_cast<char>(0xe0u | code >> 12));
      tail(6), tail(0);
    } else {
      json_.text_.push_back(static_cast<char>(0xf0u | code >> 18));
      tail(12), tail(6), tail(0);
    }
  }

  // One character of two to four bytes; overlong forms, surrogates and code points above 10FFFF are refused.
  void multibyte() {
    const auto byte = [&](int64_t i) -> uint32_t {
      return i < end_ - at_ ? static_cast<unsigned char>(at_[i]) : 0u;
    };
    const uint32_t lead = byte(0);
    if (lead < 0x20 || lead == 0x7f) {
      if (lead == 0x7f) {
        json_.text_.push_back(*at_++);
        return;
      }
      refuse("a control character in a string");
    }
    const int length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    uint32_t low = 0x80, high = 0xbf;    // bounds of the second byte
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
    bool fits = lead >= 0xc2 && lead <= 0xf4 && byte(1) >= low && byte(1) <= high;
    for (int i = 2; i < length; ++i) fits = fits && (byte(i) & 0xc0u) == 0x80;
    if (!fits) refuse("a string is not valid UTF-8");
    json_.text_.append(at_, static_cast<size_t>(length));
    at_ += length;
  }

  Json& json_;
  const char* begin_;
  const char* at_;
  const char* end_;
  int max_depth_;
  const char* what_;
};

Json::Value Json::Value::next() const {
  const bool nests = type() == Type::array || type() == Type::object;
  return {json_, index_ + (nests ? static_cast<uint32_t>(item().integer) : 1u)};
}

Json::Json(std::string_view text, int max_depth, const char* what) { JsonParser(*this, text, max_depth, what).parse(); }

}  // namespace mdrt

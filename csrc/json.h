// A strict JSON parser for small documents from untrusted files: RFC 8259 without leniency, no duplicate keys, bounded
// depth, one flat array of 16-byte items and no recursion deeper than the depth limit.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace mdrt {

class Json {
 public:
  enum class Type : uint8_t { null, boolean, integer, real, string, array, object };

 private:
  struct Item {
    union {
      int64_t integer;    // also: a string's offset in text_; for arrays and objects: number of items up to the next value
      double real;
    };
    uint32_t size;        // bytes of a string, members of an array or object
    Type type;
  };

 public:
  // One value. Cheap to copy; valid while its Json lives.
  class Value {
   public:
    Type type() const { return item().type; }
    bool boolean() const { return item().integer != 0; }
    int64_t integer() const { return item().integer; }
    double real() const { return item().type == Type::integer ? static_cast<double>(item().integer) : item().real; }
    bool is_number() const { return item().type == Type::integer || item().type == Type::real; }
    std::string_view string() const { return {json_->text_.data() + item().integer, item().size}; }

    uint32_t size() const { return item().size; }    // members of an array or object
    // Walks an array's or object's members: for (Value v = first(); count--; v = v.next()).
    Value first() const { return {json_, index_ + 1}; }
    Value next() const;
    // Of an object's member: first() and next() go over the keys, each followed by its value.
    Value value() const { return {json_, index_ + 1}; }

    Value() = default;

   private:
    friend class Json;
    friend class JsonParser;
    Value(const Json* json, uint32_t index) : json_(json), index_(index) {}
    const Item& item() const { return json_->items_[index_]; }
    const Json* json_ = nullptr;
    uint32_t index_ = 0;
  };

  // Throws Error(MDRT_ERROR_BUNDLE): "<what>: byte N: ...".
  Json(std::string_view text, int max_depth, const char* what);
  Json(const Json&) = delete;
  Json& operator=(const Json&) = delete;

  Value root() const { return {this, 0}; }

 private:
  friend class JsonParser;
  std::vector<Item> items_;
  std::string text_;      // all strings, unescaped, one after another
};

}  // namespace mdrt

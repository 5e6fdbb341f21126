// How the parts of a bundle's document are read: objects with known keys, and tensors with one owner each.
// Everything here throws Error(MDRT_ERROR_BUNDLE) naming the field.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "bundle.h"
#include "json.h"

namespace mdrt {

// The members of one JSON object whose keys are known: none may be missing, none may be unknown.
class JsonFields {
 public:
  // `where` stands in front of every message and must outlive this.
  JsonFields(Json::Value object, const std::string& where, std::initializer_list<const char*> required,
             std::initializer_list<const char*> optional = {});
  bool has(const char* key) const { return find(key) != nullptr; }
  Json::Value at(const char* key) const;
  Json::Value array(const char* key) const;
  std::string_view string(const char* key) const;
  int64_t integer(const char* key, int64_t min, int64_t max) const;
  double real(const char* key, double min, double max) const;
  [[noreturn]] void refuse(const char* key, const std::string& what) const;

 private:
  struct Field {
    const char* key;
    Json::Value value;
  };
  const Field* find(const char* key) const;
  const std::string& where_;
  Field fields_[12];
  size_t count_ = 0;
};

// The tensors by name; every one may be claimed once, and all must be in the end.
class TensorIndex {
 public:
  explicit TensorIndex(const std::vector<StoredTensor>& tensors);
  // Position in the list, -1 when there is none.
  int64_t find(std::string_view name) const;
  const StoredTensor& claim(const std::string& name, const std::string& where);
  void check_all_claimed() const;

 private:
  const std::vector<StoredTensor>& tensors_;
  std::vector<uint32_t> sorted_;
  std::vector<bool> claimed_;
};

// Text from the file, fit for a message: at most 64 bytes of printable ASCII.
std::string printable(std::string_view text);

}  // namespace mdrt

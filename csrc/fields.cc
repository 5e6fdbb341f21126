#include "fields.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace mdrt {
namespace {

using Type = Json::Type;
using Value = Json::Value;

[[noreturn]] void refuse_at(const std::string& where, const std::string& what) { throw Error(MDRT_ERROR_BUNDLE, where + what); }

}  // namespace

std::string printable(std::string_view text) {
  std::string out(text.substr(0, 64));
  for (char& c : out)
    if (c < 0x20 || c > 0x7e) c = '?';
  return out;
}

JsonFields::JsonFields(Value object, const std::string& where, std::initializer_list<const char*> required,
                       std::initializer_list<const char*> optional)
    : where_(where) {
  if (object.type() != Type::object) refuse_at(where, "must be a JSON object");
  const bool others_allowed = optional.size() == 1 && strcmp(*optional.begin(), "*") == 0;
  Value key = object.first();
  for (uint32_t i = 0; i < object.size(); ++i, key = key.value().next()) {
    const auto same = [&](const char* name) { return key.string() == name; };
    auto name = std::find_if(required.begin(), required.end(), same);
    if (name == required.end()) {
      name = std::find_if(optional.begin(), optional.end(), same);
      if (name == optional.end()) {
        if (others_allowed) continue;
        refuse_at(where, "unknown key '" + printable(key.string()) + "'");
      }
    }
    fields_[count_++] = {*name, key.value()};
  }
  for (const char* name : required)
    if (!has(name)) refuse_at(where, std::string(name) + " is missing");
}

const JsonFields::Field* JsonFields::find(const char* key) const {
  const Field* end = fields_ + count_;
  const Field* found = std::find_if(fields_, end, [&](const Field& field) { return strcmp(field.key, key) == 0; });
  return found == end ? nullptr : found;
}

Value JsonFields::at(const char* key) const { return find(key)->value; }

void JsonFields::refuse(const char* key, const std::string& what) const { refuse_at(where_, std::string(key) + " " + what); }

Value JsonFields::array(const char* key) const {
  const Value value = at(key);
  if (value.type() != Type::array) refuse(key, "must be a list");
  return value;
}

std::string_view JsonFields::string(const char* key) const {
  const Value value = at(key);
  if (value.type() != Type::string) refuse(key, "must be a string");
  return value.string();
}

int64_t JsonFields::integer(const char* key, int64_t min, int64_t max) const {
  const Value value = at(key);
  if (value.type() != Type::integer || value.integer() < min || value.integer() > max)
    refuse(key, "must be an integer from " + std::to_string(min) + " to " + std::to_string(max));
  return value.integer();
}

double JsonFields::real(const char* key, double min, double max) const {
  const Value value = at(key);
  if (value.is_number() && value.real() >= min && value.real() <= max) return value.real();
  char range[80];
  snprintf(range, sizeof range, "must be a number from %g to %g", min, max);
  refuse(key, range);
}

TensorIndex::TensorIndex(const std::vector<StoredTensor>& tensors)
    : tensors_(tensors), sorted_(tensors.size()), claimed_(tensors.size(), false) {
  for (uint32_t i = 0; i < sorted_.size(); ++i) sorted_[i] = i;
  std::sort(sorted_.begin(), sorted_.end(), [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
}

int64_t TensorIndex::find(std::string_view name) const {
  const auto found = std::lower_bound(sorted_.begin(), sorted_.end(), name,
                                      [&](uint32_t i, std::string_view n) { return tensors_[i].name < n; });
  return found != sorted_.end() && tensors_[*found].name == name ? int64_t{*found} : -1;
}

const StoredTensor& TensorIndex::claim(const std::string& name, const std::string& where) {
  const int64_t index = find(name);
  if (index < 0) refuse_at(where, "the file has no tensor '" + printable(name) + "'");
  if (claimed_[static_cast<size_t>(index)]) refuse_at(where, "tensor '" + printable(name) + "' belongs to something else already");
  claimed_[static_cast<size_t>(index)] = true;
  return tensors_[static_cast<size_t>(index)];
}

void TensorIndex::check_all_claimed() const {
  const auto idle = std::find(claimed_.begin(), claimed_.end(), false);
  if (idle != claimed_.end())
    refuse_at("tensor '" + tensors_[static_cast<size_t>(idle - claimed_.begin())].name + "': ", "belongs to nothing in the document");
}

}  // namespace mdrt

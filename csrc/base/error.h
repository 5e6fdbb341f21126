// Errors inside libmdrt: one exception type, turned into an mdrt_status at the C boundary.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "mdrt.h"

namespace mdrt {

class Error : public std::runtime_error {
 public:
  Error(mdrt_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  mdrt_status status() const { return status_; }

 private:
  mdrt_status status_;
};

// printf-style: throw fail(MDRT_ERROR_BUNDLE, "tensor %s: ...", name).
__attribute__((format(printf, 2, 3))) inline Error fail(mdrt_status status, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return Error(status, text);
}

}  // namespace mdrt

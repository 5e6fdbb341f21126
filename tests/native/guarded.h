// Operands of kernels between unreadable pages, filled at random: what tests/native programs about kernels share.
#pragma once

#include <sys/mman.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/args.h"

namespace mdrt {

inline std::mt19937_64 generator;

inline int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
inline bool coin() { return pick(0, 1) == 1; }
inline int64_t padded(int64_t channels) { return (channels + kPanel - 1) / kPanel * kPanel; }
inline int64_t size_of(DType dtype) { return dtype == DType::fp16 ? 2 : 4; }

// Memory between two unreadable pages, flush against the one behind it or the one before it.
class Guarded {
 public:
  Guarded(int64_t bytes, bool at_end) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inner = (static_cast<size_t>(bytes) + page - 1) / page * page;
    size_ = inner + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, inner, PROT_READ | PROT_WRITE) != 0) {
      fprintf(stderr, "no memory\n");
      exit(2);
    }
    data = base_ + page + (at_end ? inner - static_cast<size_t>(bytes) : 0);
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  char* data;

 private:
  char* base_;
  size_t size_;
};

class Arguments {
 public:
  explicit Arguments(bool at_end) : at_end_(at_end) {}

  // For the sums of the output of a layer whose blocks are chosen.
  float* output_sums(const GemmArgs& g) {
    return reinterpret_cast<float*>(bytes(g.batch * g.blocks_y * g.blocks_x * sums_row(g.output.channels) * 4));
  }

  float* floats(int64_t count) {
    float* p = reinterpret_cast<float*>(bytes(count * 4));
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<float>(pick(-100, 100)) * 0.01f;
    return p;
  }
  char* bytes(int64_t count) {
    owned_.push_back(std::make_unique<Guarded>(count, at_end_));
    memset(owned_.back()->data, 0, static_cast<size_t>(count));
    return owned_.back()->data;
  }
  // `pixels` rows whose last one ends with its channels: nothing may be touched behind them.
  ActivationView view(int64_t pixels, int64_t channels, DType dtype) {
    const int64_t width = padded(channels), stride = width + (coin() ? kPanel : 0);
    const int64_t elements = (pixels - 1) * stride + width;
    ActivationView v = {bytes(elements * size_of(dtype)), dtype, width, stride};
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t i = p * stride + c;
        if (dtype == DType::fp32) {
          static_cast<float*>(v.data)[i] = static_cast<float>(pick(-100, 100)) * 0.01f;
        } else {
          const int64_t sign = coin() ? 0x8000 : 0;     // a call a line: their order is the same with every compiler
          static_cast<uint16_t*>(v.data)[i] = static_cast<uint16_t>(0x3000 + pick(0, 0xbff) + sign);
        }
      }
    }
    return v;
  }
  // int8, to be written by a kernel: pixels are whole cache lines.
  ActivationView quantized_view(int64_t pixels, int64_t channels) {
    const int64_t line = 64, width = (channels + line - 1) / line * line, stride = width + (coin() ? line : 0);
    return {bytes((pixels - 1) * stride + width), DType::int8, padded(channels), stride};
  }

  // Up to the last pixel's sum, which is what the tail begins with.
  ActivationView widened_view(int64_t pixels, int64_t channels, const TileInfo& tile) {
    const int64_t line = 64, width = (channels + line - 1) / line * line * tile.int8_bytes, stride = width + tile.int8_tail;
    ActivationView view = {bytes((pixels - 1) * stride + width + 4), DType::int8, padded(channels), stride};
    view.widened = true;
    return view;
  }

 private:
  bool at_end_;
  std::vector<std::unique_ptr<Guarded>> owned_;
};

inline DType any_dtype() { return coin() ? DType::fp32 : DType::fp16; }

template <class Args>
void run(void (*kernel)(const Args*, int64_t, void*), const Args& args, int64_t tasks, int64_t scratch_bytes, bool at_end) {
  Guarded scratch(scratch_bytes > 0 ? scratch_bytes : 64, at_end);
  for (int64_t task = 0; task < tasks; ++task) kernel(&args, task, scratch.data);
}

// --count N and --seed S of the command line; the seed is set. Returns N.
inline int64_t read_options(int argc, char** argv, int64_t count) {
  uint64_t seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--count") count = atoll(argv[i + 1]);
    if (std::string(argv[i]) == "--seed") seed = static_cast<uint64_t>(atoll(argv[i + 1]));
  }
  generator.seed(seed);
  return count;
}

}  // namespace mdrt

// The one parser of .mdrt bundles (docs/format.md). A Bundle is immutable after opening.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "graph.h"

namespace mdrt {

struct StoredTensor {
  std::string name;               // "<component>/<tensor>", "schedules/8", "tokenizer/vocabulary", ...
  DType dtype;
  std::vector<int64_t> shape;
  const std::byte* data;
  int64_t size_bytes;
  uint32_t crc32c;                // as stated in the file
};

// One row per model call; docs/format.md names the columns.
struct ScheduleRow {
  double t, p, q, clip, a, b, e, c1, c2, c3, d, keep, m, n;
};

struct Schedule {
  int num_inference_steps;
  std::string scheduler;          // "ddim", "ufogen", ...
  double guidance_scale;
  double init_noise_sigma;
  std::vector<ScheduleRow> rows;
};

struct PipelineInfo {
  int width, height;              // defaults, pixels
  int num_inference_steps;        // default
  int vae_scale_factor;           // pixels per latent cell
  int latent_channels;
  double scaling_factor, shift_factor;
  std::string noise;              // "philox"
  std::vector<Schedule> schedules;
};

struct TokenizerInfo {
  const char* vocabulary;         // tokens in the order of their ids, each ended by '\n'
  int64_t vocabulary_bytes;
  const int32_t* merges;          // pairs of ids, best first
  int64_t num_merges;
  int vocab_size, model_max_length;
  int bos_token_id, eos_token_id, pad_token_id, unk_token_id;
};

class Bundle {
 public:
  // Throws Error: MDRT_ERROR_IO (cannot be opened or read), MDRT_ERROR_BUNDLE (not a valid bundle; the message names the
  // field), MDRT_ERROR_VERSION (a newer format).
  static std::unique_ptr<Bundle> open(const char* path);
  // `data` must be 64-byte aligned and outlive the bundle.
  static std::unique_ptr<Bundle> from_memory(const void* data, size_t size_bytes);
  ~Bundle();

  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  const std::vector<Graph>& graphs() const { return graphs_; }
  const Graph* graph(const std::string& component) const;       // nullptr when absent
  const PipelineInfo* pipeline() const { return pipeline_.get(); }
  const TokenizerInfo* tokenizer() const { return tokenizer_.get(); }
  const std::string& metadata() const { return metadata_; }     // the JSON document
  int64_t file_bytes() const { return file_bytes_; }
  // Takes whole pages of [begin, end) out of this process's memory; when they are touched again they come from the page cache
  // or the file. Does nothing to a bundle in memory.
  void release_pages(const std::byte* begin, const std::byte* end) const;
  // Everything that needs all bytes read: CRC32C of the header and of every tensor against what the file states, padding,
  // and int8 weights against their sums. Throws Error(MDRT_ERROR_BUNDLE).
  void verify() const;

 private:
  friend class BundleParser;
  Bundle() = default;
  std::vector<StoredTensor> tensors_;
  std::vector<Graph> graphs_;
  std::unique_ptr<PipelineInfo> pipeline_;
  std::unique_ptr<TokenizerInfo> tokenizer_;
  std::string metadata_;
  const std::byte* base_ = nullptr;
  int64_t file_bytes_ = 0;
  int64_t header_bytes_ = 0;      // 8 + length of the JSON header
  bool mapped_ = false;
  int file_ = -1;                 // kept open for its shared lock
};

}  // namespace mdrt

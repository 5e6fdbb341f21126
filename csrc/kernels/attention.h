// Attention by blocks of queries and keys with the softmax kept running (Milakov and Gimelshein, 2018; Dao et al., 2022).
//
// A task is one head of one image and block_queries queries. K is brought into panels of 16 keys and V into panels of 16
// channels, so that both products run on the GEMM tile.

namespace {

constexpr int64_t kKeyBlock = 128;
constexpr int64_t kScoreRows = 32 / kTileRows * kTileRows;   // queries whose scores wait at a time: they stay in the first-level cache
constexpr int64_t kTokensAhead = 8;

struct AttentionScratch {
  int64_t d;                                      // head size padded to a panel
  int64_t q, q_stride, keys, values, scores, scores_stride, out, state;
  int64_t rows;                                   // queries of a block, padded to the tile
};

inline AttentionScratch attention_scratch(const AttentionArgs& a) {
  AttentionScratch s;
  s.d = round_up(a.head_dim, kPanel);
  s.rows = round_up(a.block_queries, kTileRows);
  s.q_stride = s.d + kPanel;
  s.q = s.rows * s.q_stride;
  s.keys = s.values = kKeyBlock * s.d;
  s.scores_stride = kKeyBlock + kPanel;
  s.scores = kScoreRows * s.scores_stride;
  s.out = s.rows * s.d;
  s.state = 2 * s.rows;
  return s;
}

// One head's `head_dim` channels of one token, padded to `d` with zeros. Reads nothing beyond the head.
inline void load_head(const ActivationView& x, int64_t token, int64_t channel, int64_t head_dim, int64_t d, float* out) {
  const char* from = element(x.data, token * x.stride + channel, x.dtype);
  int64_t c = 0;
  for (; c + VL <= head_dim; c += VL) store(out + c, load_as(from, c, x.dtype));
  if (c < head_dim) {
    float tail[VL] = {};
    uint16_t half_tail[VL] = {};
    if (x.dtype == DType::fp16) {
      memcpy(half_tail, from + c * 2, static_cast<size_t>(head_dim - c) * 2);
      store(tail, load_half(half_tail));
    } else {
      memcpy(tail, from + c * 4, static_cast<size_t>(head_dim - c) * 4);
    }
    store(out + c, load(tail));
    c += VL;
  }
  for (; c < d; c += VL) store(out + c, vf{});
}

// Tokens of one head lie far apart, where the hardware does not look ahead.
inline void fetch_head(const ActivationView& x, int64_t token, int64_t channel, int64_t head_dim) {
  constexpr int64_t kLine = 64;
  const char* from = element(x.data, token * x.stride + channel, x.dtype);
  const int64_t bytes = head_dim * (x.dtype == DType::fp16 ? 2 : 4);
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(from + i);
}

// out rows (queries, panels * 16) (+)= a rows (queries, depth) * b panels.
inline void multiply_rows(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, int64_t panels, float* c,
                          int64_t c_stride, bool accumulate) {
  static const int64_t no_offset[1] = {0};
  TileArgs tile;
  tile.tap_offsets = no_offset;
  tile.taps = 1;
  tile.depth = depth;
  tile.b_panel = depth * kPanel;
  tile.b_tap = 0;
  tile.c_stride = c_stride;
  tile.accumulate = accumulate;
  for (int64_t p = 0; p < panels;) {
    const int group = panel_group(panels - p);
    tile.b = b + p * tile.b_panel;
    for (int64_t m = 0; m < rows; m += kTileRows) {
      for (int r = 0; r < kTileRows; ++r) tile.rows[r] = a + (m + r) * a_stride;
      tile.c = c + m * c_stride + p * kPanel;
      run_tile(tile, group);
    }
    p += group;
  }
}

// Scores of one row become probabilities (softmax: relative to the running maximum); returns by how much what was
// summed before must be multiplied.
inline float weigh_row(const AttentionArgs& a, float* scores, int64_t keys, int64_t padded, int64_t visible, float* maximum,
                       float* total) {
  if (a.fn == AttentionFn::relu) {
    const float inverse = 1.0f / static_cast<float>(a.keys);
    for (int64_t j = 0; j < keys; ++j) scores[j] = j < visible && scores[j] > 0 ? scores[j] * inverse : 0.0f;
    for (int64_t j = keys; j < padded; ++j) scores[j] = 0.0f;
    return 1.0f;
  }
  const float low = -3.0e38f;
  for (int64_t j = visible < 0 ? 0 : visible; j < padded; ++j) scores[j] = low;
  vf top = splat(*maximum);
  for (int64_t j = 0; j < padded; j += VL) top = max(top, load(scores + j));
  const float new_maximum = max_lane(top);
  vf added = vf{};
  for (int64_t j = 0; j < padded; j += VL) {
    vf score = load(scores + j);
    vf weight = score <= low ? vf{} : exp(score - new_maximum);
    added += weight;
    store(scores + j, weight);
  }
  const float rescale = *maximum <= low ? 0.0f : exp(splat(*maximum - new_maximum))[0];
  *total = *total * rescale + sum(added);
  *maximum = new_maximum;
  return rescale;
}

}  // namespace

static int64_t attention_scratch_bytes(const AttentionArgs* args) {
  const AttentionScratch s = attention_scratch(*args);
  return (s.q + s.keys + s.values + s.scores + s.out + s.state + s.d) * static_cast<int64_t>(sizeof(float));
}

static void attention(const AttentionArgs* args, int64_t task, void* scratch) {
  const AttentionArgs& a = *args;
  const AttentionScratch s = attention_scratch(a);
  const int64_t head = task / a.query_blocks % a.heads, image = task / a.query_blocks / a.heads;
  const int64_t query0 = task % a.query_blocks * a.block_queries;
  const int64_t queries = a.queries - query0 < a.block_queries ? a.queries - query0 : a.block_queries;
  const int64_t rows = round_up(queries, kTileRows), channel = head * a.head_dim;
  float* q = static_cast<float*>(scratch);
  float* keys = q + s.q;
  float* values = keys + s.keys;
  float* scores = values + s.values;
  float* out = scores + s.scores;
  float* maximum = out + s.out;
  float* total = maximum + s.rows;
  float* token = total + s.rows;

  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.head_dim));
  for (int64_t i = 0; i < rows; ++i) {
    float* row = q + i * s.q_stride;
    if (i + kTokensAhead < queries) fetch_head(a.q, image * a.queries + query0 + i + kTokensAhead, channel, a.head_dim);
    load_head(a.q, image * a.queries + query0 + (i < queries ? i : queries - 1), channel, a.head_dim, s.d, row);
    for (int64_t c = 0; c < s.d; c += VL) store(row + c, load(row + c) * scale);
    maximum[i] = -3.0e38f;
    total[i] = 0;
  }
  const int64_t last_key = a.is_causal ? query0 + queries : a.keys;
  for (int64_t key0 = 0; key0 < last_key; key0 += kKeyBlock) {
    const int64_t count = a.keys - key0 < kKeyBlock ? a.keys - key0 : kKeyBlock;
    const int64_t padded = round_up(count, kPanel);
    for (int64_t j = 0; j < padded; ++j) {
      if (j + kTokensAhead < count) {
        fetch_head(a.k, image * a.keys + key0 + j + kTokensAhead, channel, a.head_dim);
        if (a.v.data != a.k.data) fetch_head(a.v, image * a.keys + key0 + j + kTokensAhead, channel, a.head_dim);
      }
      if (j < count) {
        load_head(a.k, image * a.keys + key0 + j, channel, a.head_dim, s.d, token);
      } else {
        memset(token, 0, static_cast<size_t>(s.d) * sizeof(float));
      }
      float* panel = keys + j / kPanel * s.d * kPanel + j % kPanel;
      for (int64_t c = 0; c < s.d; ++c) panel[c * kPanel] = token[c];
      if (a.v.data != a.k.data && j < count) load_head(a.v, image * a.keys + key0 + j, channel, a.head_dim, s.d, token);
      for (int64_t c = 0; c < s.d; c += kPanel) {
        memcpy(values + c * padded + j * kPanel, token + c, static_cast<size_t>(kPanel) * sizeof(float));
      }
    }
    for (int64_t row0 = 0; row0 < rows; row0 += kScoreRows) {
      const int64_t count_rows = rows - row0 < kScoreRows ? rows - row0 : kScoreRows;
      float* out_rows = out + row0 * s.d;
      multiply_rows(q + row0 * s.q_stride, s.q_stride, count_rows, keys, s.d, padded / kPanel, scores, s.scores_stride, false);
      for (int64_t i = 0; i < count_rows; ++i) {
        const int64_t visible = a.is_causal ? query0 + row0 + i + 1 - key0 : count;
        const float rescale = weigh_row(a, scores + i * s.scores_stride, count, padded, visible < count ? visible : count,
                                        maximum + row0 + i, total + row0 + i);
        if (key0 == 0 || rescale == 1.0f) continue;
        for (int64_t c = 0; c < s.d; c += VL) store(out_rows + i * s.d + c, load(out_rows + i * s.d + c) * rescale);
      }
      multiply_rows(scores, s.scores_stride, count_rows, values, padded, s.d / kPanel, out_rows, s.d, key0 != 0);
    }
  }
  for (int64_t i = 0; i < queries; ++i) {
    const float inverse = a.fn == AttentionFn::softmax ? 1.0f / total[i] : 1.0f;
    float* row = out + i * s.d;
    char* to = const_cast<char*>(element(a.output.data, (image * a.queries + query0 + i) * a.output.stride + channel, a.output.dtype));
    for (int64_t c = 0; c < a.head_dim; c += VL) {
      vf x = load(row + c) * inverse;
      if (c + VL <= a.head_dim) {
        store_as(to, c, a.output.dtype, x);
        continue;
      }
      float tail[VL];
      uint16_t half_tail[VL];
      store(tail, x);
      store_half(half_tail, x);
      const bool half = a.output.dtype == DType::fp16;
      const int64_t size = half ? 2 : 4;
      memcpy(to + c * size, half ? static_cast<const void*>(half_tail) : tail, static_cast<size_t>((a.head_dim - c) * size));
    }
    // The last head also clears the channel padding, which belongs to no head.
    if (head == a.heads - 1) {
      const int64_t end = a.heads * a.head_dim, size = a.output.dtype == DType::fp16 ? 2 : 4;
      memset(to + a.head_dim * size, 0, static_cast<size_t>((a.output.channels - end) * size));
    }
  }
}

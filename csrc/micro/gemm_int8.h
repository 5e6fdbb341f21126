// Register tile gemm_int8: C (MR x NR, int32) = A (MR rows of int8) * B (panels of 16 columns), exact, K in `taps` runs of `depth`.
//
// B lies in the packed layout of the file, [panel][K / 4][16 columns][4 k], on every ISA. Here is what tiles have in common and
// the tile that builds on dot4: 4 products of one column added to its int32 lane. An ISA supplies dot4 and the tile's size.

// What a stored activation byte is more than its value: unsigned instructions read bytes that are 128 higher, and the
// difference is taken back with the column sums of the weights.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define MDRT_UNSIGNED_INT8_A 1
#endif
#if defined(__AMX_INT8__)
#undef MDRT_UNSIGNED_INT8_A
#endif
#ifdef MDRT_UNSIGNED_INT8_A
constexpr int32_t kInt8Offset = 128;
#else
constexpr int32_t kInt8Offset = 0;
#endif

#if defined(__AMX_INT8__)
constexpr int kInt8Rows = 32, kInt8Panels = 2;
#elif defined(__AVX512VNNI__)
constexpr int kInt8Rows = 12, kInt8Panels = 4;
#elif defined(__AVXVNNI__)
constexpr int kInt8Rows = 6, kInt8Panels = 1;
#elif defined(__AVX512BW__)
constexpr int kInt8Rows = 8, kInt8Panels = 2;
#elif defined(__AVX2__)
constexpr int kInt8Rows = 128, kInt8Panels = 1;
#elif defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kInt8Rows = 66, kInt8Panels = 1;
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kInt8Rows = 6, kInt8Panels = 1;
#elif defined(__aarch64__)
constexpr int kInt8Rows = 2, kInt8Panels = 1;
#else
constexpr int kInt8Rows = 2, kInt8Panels = 1;
#endif
// MR of a tile of so many panels. Three or four leave fewer loads for a multiplication than two with more rows.
constexpr int int8_rows(int panels) { return panels > 2 ? 24 / panels : kInt8Rows; }
// Panels of a task are a multiple of this. Threes and fours make up any number but 1, 2 and 5.
constexpr int kInt8PanelStep = kInt8Panels == 4 ? 1 : kInt8Panels;
constexpr int64_t kInt8Align = 64;    // bytes of a stored pixel that may be read: a multiple of this
// Bytes of an element of A as the tile reads it, and of what stands behind a pixel; if there are 2, only widened pixels are read in
// place. Pointers to rows must exist up to a multiple of int8_row_step.
#if defined(__AVX2__) && !defined(__AVXVNNI__) && !defined(__AVX512BW__)
#define MDRT_WIDE_INT8_A 1
constexpr int64_t kInt8Bytes = 2, kInt8Tail = 64, kInt8TaskPanels = 6;
constexpr int64_t int8_row_step(int) { return kInt16Rows; }
#else
constexpr int64_t kInt8Bytes = 1, kInt8Tail = 0, kInt8TaskPanels = kInt8Panels == 4 ? 4 : 2;
constexpr int64_t int8_row_step(int panels) { return int8_rows(panels); }
#endif
// Whether a tile brings near the weights that come after its own. What it gains was measured on x86 only.
#if defined(__AVX2__)
constexpr bool kInt8FetchesAhead = true;
#else
constexpr bool kInt8FetchesAhead = false;
#endif
constexpr int kInt8Columns = kInt8Panels * static_cast<int>(kPanel);

struct Int8TileArgs {
  const int8_t* rows[kInt8Rows];  // A, elements of kInt8Bytes: one pointer per row; a row that does not exist repeats another
  int num_rows;                   // that exist
  const int64_t* tap_offsets;     // (taps) bytes from a row's pointer to the tap's first channel
  int64_t taps, depth;            // depth: a multiple of 16; A is zero from there to the next multiple of 64
  const int8_t* b;                // (panel, tap, depth / 4, 16, 4)
  int64_t b_panel;                // bytes
  int64_t b_step;                 // bytes from a panel of the tile to the next one
  int32_t* c;                     // (MR, NR)
  const int8_t *fetch, *fetch_end;  // if kInt8FetchesAhead: bytes of B that are needed next, to bring near meanwhile
};

#if defined(__AMX_INT8__)
#include "micro/gemm_int8_amx.h"
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#include "micro/gemm_int8_neoni8mm.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "micro/gemm_int8_neondot.h"
#elif defined(__aarch64__)
#include "micro/gemm_int8_neon.h"
#elif defined(MDRT_WIDE_INT8_A)
#include "micro/gemm_int8_wide.h"
#else
#include "micro/gemm_int8_dot4.h"
#endif

namespace {

#ifndef MDRT_WIDE_INT8_A
// A pixel as the tile reads it.
inline void copy_int8_pixel(int8_t* out, const int8_t* in, int64_t bytes) { memcpy(out, in, static_cast<size_t>(bytes)); }
#endif

// Has `write` write the bytes of a pixel, which are widened then if it is to be as the tile reads it: they lie in its second half first.
template <typename Write>
inline void write_int8_pixel(int8_t* pixel, int64_t bytes, bool widened, Write write) {
  int8_t* out = widened ? pixel + (kInt8Bytes - 1) * bytes : pixel;
  write(out);
  if (kInt8Bytes > 1 && widened) copy_int8_pixel(pixel, out, bytes);
}

}  // namespace

// Compiled once per row of cmake/isa.cmake, with that row's flags and MDRT_ISA_NAME. Exports one KernelTable.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels/args.h"

#define MDRT_JOIN_(a, b) a##b
#define MDRT_JOIN(a, b) MDRT_JOIN_(a, b)
#define MDRT_TEXT_(a) #a
#define MDRT_TEXT(a) MDRT_TEXT_(a)

namespace mdrt {
namespace MDRT_ISA_NAME {

#include "simd/vec.h"
// Bodies, in the order of use.
#include "micro/gemm_fp32.h"
#include "micro/gemm_int16.h"
#include "micro/gemm_int8.h"
#include "kernels/load_tile.h"
#include "kernels/load_weight.h"
#include "kernels/channel_sums.h"
#include "kernels/gemm.h"
#include "kernels/winograd.h"
#include "kernels/narrow.h"
#include "kernels/quantize.h"
#include "kernels/finish_int8.h"
#include "kernels/gemm_int8.h"
#include "kernels/winograd_int8.h"
#include "kernels/depthwise.h"
#include "kernels/attention.h"
#include "kernels/norm.h"
#include "kernels/elementwise.h"
#include "micro/peak.h"

}  // namespace MDRT_ISA_NAME

extern const KernelTable MDRT_JOIN(kernel_table_, MDRT_ISA_NAME);
const KernelTable MDRT_JOIN(kernel_table_, MDRT_ISA_NAME) = {
    MDRT_TEXT(MDRT_ISA_NAME),
    {MDRT_ISA_NAME::kTileRows, MDRT_ISA_NAME::kTileColumns, MDRT_ISA_NAME::kTileBlockPixels, MDRT_ISA_NAME::kTileWeightBytes,
     MDRT_ISA_NAME::kNarrowColumns,
     MDRT_ISA_NAME::kInt8PanelStep, MDRT_ISA_NAME::kInt8TaskPanels, MDRT_ISA_NAME::kInt8Bytes, MDRT_ISA_NAME::kInt8Tail,
     MDRT_ISA_NAME::kInt8WinogradPays},
    MDRT_ISA_NAME::gemm_scratch_bytes,
    MDRT_ISA_NAME::winograd_scratch_bytes,
    MDRT_ISA_NAME::narrow_scratch_bytes,
    MDRT_ISA_NAME::gemm_int8_scratch_bytes,
    MDRT_ISA_NAME::winograd_int8_scratch_bytes,
    MDRT_ISA_NAME::quantize_scratch_bytes,
    MDRT_ISA_NAME::layer_norm_scratch_bytes,
    MDRT_ISA_NAME::attention_scratch_bytes,
#define MDRT_KERNEL(name, Args) MDRT_ISA_NAME::name,
#include "kernels.def"
#undef MDRT_KERNEL
};

}  // namespace mdrt

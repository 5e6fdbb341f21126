#include <cmath>
#include <cstring>

#include "base/math64.h"
#include "lower.h"

namespace mdrt {

// Angles are rounded to float32 where PyTorch rounds them: at t = 999 an exact product would differ by 6e-5.
void timestep_embedding(const TimestepArgs* args, int64_t image, void*) {
  const int64_t half = args->size / 2;
  float* out = static_cast<float*>(args->output.data) + image * args->output.stride;
  const float t = args->timestep[image];
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = -9.210340371976184f * static_cast<float>(i) / static_cast<float>(half);    // -ln(10000) i / half
    const float angle = t * static_cast<float>(exp64(static_cast<double>(exponent)));
    out[i] = static_cast<float>(cos64(static_cast<double>(angle)));
    out[half + i] = static_cast<float>(sin64(static_cast<double>(angle)));
  }
  memset(out + args->size, 0, static_cast<size_t>(args->output.channels - args->size) * sizeof(float));
}

}  // namespace mdrt

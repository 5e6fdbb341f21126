// Strips: rows of a layer that run by themselves, so that what is made of their input need not exist for all rows at once.
// A strip is the same layer on a smaller image: no kernel knows that there are any.
#pragma once

#include <vector>

#include "kernels/args.h"

namespace mdrt {

struct Strip {
  int64_t image, images;        // of the batch
  int64_t out_y, out_h;         // rows of the output
  int64_t in_y, in_h;           // rows of the input that these need
  int64_t out_pixel, in_pixel;  // the first ones, counted over the batch
};

// How large the int8 copy of a layer's input may be: up to `whole_bytes` it is made at once, a larger one in strips of about
// `strip_bytes`, but of no less than one row of tasks.
struct StripRule {
  int64_t whole_bytes, strip_bytes;
};

// All of a layer as one strip.
Strip whole_layer(const GemmArgs& layer);

// Strips of `rows` output rows each, image after image. The resize before the layer, if any, must be by a whole number.
std::vector<Strip> cut_into_strips(const GemmArgs& layer, int64_t rows);

// The geometry of a layer becomes that of a strip.
void restrict_to(const Strip& strip, GemmArgs* layer);

}  // namespace mdrt

#include "strips.h"

#include <algorithm>

namespace mdrt {

Strip whole_layer(const GemmArgs& layer) { return {0, layer.batch, 0, layer.out_h, 0, layer.in_h, 0, 0}; }

std::vector<Strip> cut_into_strips(const GemmArgs& layer, int64_t rows) {
  const int64_t enlarged = layer.view_h / layer.in_h;
  std::vector<Strip> strips;
  for (int64_t image = 0; image < layer.batch; ++image) {
    for (int64_t y = 0; y < layer.out_h; y += rows) {
      Strip s = {image, 1, y, std::min(rows, layer.out_h - y), 0, 0, 0, 0};
      const int64_t first = y * layer.stride_h - layer.pad_top, last = first + (s.out_h - 1) * layer.stride_h + layer.kernel_h - 1;
      s.in_y = std::clamp<int64_t>(first / enlarged, 0, layer.in_h - 1);
      s.in_h = std::clamp<int64_t>(last / enlarged, s.in_y, layer.in_h - 1) - s.in_y + 1;
      s.out_pixel = (image * layer.out_h + s.out_y) * layer.out_w;
      s.in_pixel = (image * layer.in_h + s.in_y) * layer.in_w;
      strips.push_back(s);
    }
  }
  return strips;
}

void restrict_to(const Strip& strip, GemmArgs* layer) {
  // The strip's own first input row is row 0 now; a negative padding skips rows of it.
  layer->pad_top += strip.in_y * layer->view_h / layer->in_h - strip.out_y * layer->stride_h;
  layer->view_h = layer->view_h * strip.in_h / layer->in_h;
  layer->in_h = strip.in_h;
  layer->out_h = strip.out_h;
  layer->batch = strip.images;
}

}  // namespace mdrt

// From prompt to picture as a job that advances in slices: text encoder, schedule rows with the UNet, decoder.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "mdrt.h"
#include "model.h"

namespace mdrt {

class Job {
 public:
  // Checks the parameters and plans all stages, so a refusal (arguments, memory) comes before any work.
  // The model must outlive the calls to advance(). `params` and what it points to are not kept.
  Job(Model& model, const mdrt_generate_params& params);

  // Runs one slice: about 1/100 of the picture or 50 ms, whichever is shorter. `cancel` makes it throw Error(MDRT_ERROR_CANCELLED).
  mdrt_event advance(const std::atomic<bool>& cancel);
  bool done() const { return stage_ == MDRT_STAGE_DONE; }

  int width() const { return width_; }
  int height() const { return height_; }
  const std::vector<uint8_t>& pixels() const { return pixels_; }  // (height, width, 3); empty without a decoder stage
  std::array<int64_t, 4> latents_shape() const { return {1, channels_, latent_height_, latent_width_}; }
  void copy_latents(float* nchw) const;

 private:
  void choose_size(const mdrt_generate_params& params);
  void choose_schedule(const mdrt_generate_params& params);
  void plan_stages();
  void tokenize(const mdrt_generate_params& params);
  void draw_start_noise(const mdrt_generate_params& params);
  int64_t latent_count() const { return channels_ * latent_height_ * latent_width_; }
  std::vector<float> draw_noise();  // the next tensor, (latent_height, latent_width, channels)

  Executor& executor();
  void start_stage();
  void finish_stage();
  void finish_unet_call();
  void finish_decoder();
  double stage_macs(mdrt_stage stage) const;
  mdrt_event event(mdrt_stage stage, double stage_fraction) const;

  Model& model_;
  const PipelineInfo& pipeline_;
  int width_ = 0, height_ = 0;  // pixels
  int64_t channels_ = 0, latent_height_ = 0, latent_width_ = 0;
  std::vector<ScheduleRow> rows_;
  double guidance_scale_ = 1, init_noise_sigma_ = 1;
  int64_t batch_ = 1;  // 2: without and with the prompt
  uint64_t seed_ = 0;
  bool latent_only_ = false;

  int32_t text_output_ = 0, unet_output_ = 0, decoder_output_ = 0;  // value numbers
  Shape ids_shape_, context_shape_,
      sample_shape_;  // (batch, length), (batch, length, width), (batch, height, width, channels)
  double text_macs_ = 0, unet_macs_ = 0, decoder_macs_ = 0, total_macs_ = 0;

  mdrt_stage stage_ = MDRT_STAGE_TEXT_ENCODER;
  size_t row_ = 0;
  bool started_ = false;
  double macs_done_ = 0;  // of finished stages
  Pace pace_;
  uint32_t noise_offset_ = 0;
  std::vector<int32_t> ids_;
  std::vector<float> context_;
  std::vector<float> x_;  // (latent_height, latent_width, channels)
  std::array<std::vector<float>, 3> kept_;  // y1, y2, y3: latest first
  std::vector<uint8_t> pixels_;
};

// One row of the schedule: x becomes x'. `out` has `batch` model outputs: one, or without and with the prompt.
// `noise` may be empty when row.d is 0. kept[0..2] are y1..y3; row.keep pushes y.
void apply_schedule_row(const ScheduleRow& row, double guidance_scale, const std::vector<float>& out,
                        const std::vector<float>& noise, std::vector<float>* x,
                        std::array<std::vector<float>, 3>* kept);

}  // namespace mdrt

#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "noise.h"

namespace mdrt {
namespace {

constexpr double kSlicesPerPicture = 100;
constexpr int kMaxRows = 10000;

size_t element_count(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count = checked_mul(count, size);
  return static_cast<size_t>(count);
}

// Looks at the bits, so that no compiler flag can remove the test.
bool all_finite(const std::vector<float>& values) {
  uint32_t found = 0;
  for (float value : values) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    found |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return found == 0;
}

// (channels, pixels) <-> (pixels, channels)
void to_channels_last(const float* nchw, int64_t channels, int64_t pixels, float* nhwc) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) nhwc[p * channels + c] = nchw[c * pixels + p];
  }
}

void to_channels_first(const float* nhwc, int64_t channels, int64_t pixels, float* nchw) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) nchw[c * pixels + p] = nhwc[p * channels + c];
  }
}

int32_t output_value(const Graph& graph, const char* name) {
  for (const GraphOutput& output : graph.outputs) {
    if (output.name == name) return output.value;
  }
  throw fail(MDRT_ERROR_BUNDLE, "%s has no output %s, which a pipeline needs; convert the checkpoint again",
             graph.name.c_str(), name);
}

struct NamedInput {
  const char* name;
  DType dtype;
  Shape shape;
};

// The shapes in the order of graph.inputs. The pipeline knows its components by the names of their inputs.
std::vector<Shape> input_shapes(const Graph& graph, const std::vector<NamedInput>& inputs) {
  std::vector<Shape> shapes;
  for (const GraphInput& wanted : graph.inputs) {
    const auto found =
        std::find_if(inputs.begin(), inputs.end(), [&](const NamedInput& input) { return wanted.name == input.name; });
    if (found == inputs.end() || found->dtype != wanted.dtype) {
      throw fail(MDRT_ERROR_BUNDLE, "input %s of %s is not one that a pipeline can give; convert the checkpoint again",
                 wanted.name.c_str(), graph.name.c_str());
    }
    shapes.push_back(found->shape);
  }
  return shapes;
}

void expect_shape(const Graph& graph, const Executor& executor, int32_t value, const Shape& expected) {
  if (executor.value_shape(value) == expected) return;
  throw fail(MDRT_ERROR_BUNDLE, "the output of %s does not fit the pipeline's sizes; convert the checkpoint again",
             graph.name.c_str());
}

void check_schedule(const std::vector<ScheduleRow>& rows, double init_noise_sigma) {
  if (!(init_noise_sigma > 0) || !std::isfinite(init_noise_sigma)) {
    throw fail(MDRT_ERROR_ARGUMENT, "init_noise_sigma is %g, but must be a positive number", init_noise_sigma);
  }
  int kept = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const ScheduleRow& row = rows[i];
    for (double value :
         {row.t, row.p, row.q, row.clip, row.a, row.b, row.e, row.c1, row.c2, row.c3, row.d, row.keep, row.m, row.n}) {
      if (!std::isfinite(value))
        throw fail(MDRT_ERROR_ARGUMENT, "schedule row %zu holds a number that is not finite", i);
    }
    if (row.clip < 0)
      throw fail(MDRT_ERROR_ARGUMENT, "schedule row %zu has clip %g; use 0 for none, else a positive number", i,
                 row.clip);
    if (row.keep != 0 && row.keep != 1)
      throw fail(MDRT_ERROR_ARGUMENT, "schedule row %zu has keep %g; use 0 or 1", i, row.keep);
    const int needed = row.c3 != 0 ? 3 : row.c2 != 0 ? 2 : row.c1 != 0 ? 1 : 0;
    if (needed > kept)
      throw fail(MDRT_ERROR_ARGUMENT, "schedule row %zu uses y%d, but only %d earlier rows keep theirs", i, needed,
                 kept);
    if (row.keep == 1) ++kept;
  }
}

const Schedule& nearest_schedule(const PipelineInfo& pipeline, int count) {
  const Schedule* best = &pipeline.schedules.front();
  for (const Schedule& schedule : pipeline.schedules) {
    if (std::abs(schedule.num_inference_steps - count) < std::abs(best->num_inference_steps - count)) best = &schedule;
  }
  return *best;
}

}  // namespace

void apply_schedule_row(const ScheduleRow& row, double guidance_scale, const std::vector<float>& out,
                        const std::vector<float>& noise, std::vector<float>* x,
                        std::array<std::vector<float>, 3>* kept) {
  const size_t count = x->size();
  const bool guided = out.size() == 2 * count;
  std::vector<float> y_now(row.keep == 1 ? count : 0);
  const std::array<double, 3> c = {row.c1, row.c2, row.c3};
  for (size_t i = 0; i < count; ++i) {
    const double x_i = (*x)[i];
    double out_i = out[i];
    if (guided) out_i += guidance_scale * (static_cast<double>(out[count + i]) - out_i);
    double y = row.p * x_i + row.q * out_i;
    if (row.clip > 0) y = std::min(std::max(y, -row.clip), row.clip);
    double next = row.a * x_i + row.b * y + row.e * out_i;
    for (size_t k = 0; k < c.size(); ++k) {
      if (c[k] != 0) next += c[k] * static_cast<double>((*kept)[k][i]);
    }
    if (row.d != 0) next += row.d * static_cast<double>(noise[i]);
    if (row.keep == 1) y_now[i] = static_cast<float>(y);
    (*x)[i] = static_cast<float>(next);
  }
  if (row.keep == 1) {
    std::rotate(kept->begin(), kept->end() - 1, kept->end());
    (*kept)[0] = std::move(y_now);
  }
}

Job::Job(Model& model, const mdrt_generate_params& params) : model_(model), pipeline_(model.pipeline()) {
  choose_size(params);
  choose_schedule(params);
  seed_ = params.seed;
  latent_only_ = params.latent_only != 0;
  plan_stages();
  tokenize(params);
  draw_start_noise(params);
}

void Job::choose_size(const mdrt_generate_params& params) {
  const int scale = pipeline_.vae_scale_factor;
  const auto choose = [&](const char* name, int32_t wanted, int stored) {
    if (wanted == 0) return stored;
    if (wanted < 0) throw fail(MDRT_ERROR_ARGUMENT, "%s is %d, but must be positive", name, wanted);
    if (wanted % scale != 0) {
      const int64_t nearest = std::max<int64_t>(1, (static_cast<int64_t>(wanted) + scale / 2) / scale) * scale;
      throw fail(MDRT_ERROR_ARGUMENT, "%s is %d, but must be a multiple of %d; the nearest is %lld", name, wanted,
                 scale, static_cast<long long>(nearest));
    }
    return static_cast<int>(wanted);
  };
  width_ = choose("width", params.width, pipeline_.width);
  height_ = choose("height", params.height, pipeline_.height);
  channels_ = pipeline_.latent_channels;
  latent_width_ = width_ / scale;
  latent_height_ = height_ / scale;
}

void Job::choose_schedule(const mdrt_generate_params& params) {
  if (params.num_inference_steps < 0) {
    throw fail(MDRT_ERROR_ARGUMENT, "num_inference_steps is %d, but must be at least 1", params.num_inference_steps);
  }
  if (pipeline_.schedules.empty())
    throw Error(MDRT_ERROR_BUNDLE, "pipeline.schedules is empty; convert the checkpoint again");
  if ((params.schedule == nullptr) != (params.schedule_rows == 0)) {
    throw Error(MDRT_ERROR_ARGUMENT, "schedule and schedule_rows belong together; give both or neither");
  }
  int count = params.num_inference_steps;
  if (params.schedule) {
    if (params.schedule_rows < 0 || params.schedule_rows > kMaxRows) {
      throw fail(MDRT_ERROR_ARGUMENT, "schedule_rows is %d, but must be from 1 to %d", params.schedule_rows, kMaxRows);
    }
    if (count == 0) count = params.schedule_rows;
    for (int32_t i = 0; i < params.schedule_rows; ++i) {
      const mdrt_schedule_row& r = params.schedule[i];
      rows_.push_back({r.t, r.p, r.q, r.clip, r.a, r.b, r.e, r.c1, r.c2, r.c3, r.d, r.keep, r.m, r.n});
    }
    init_noise_sigma_ = params.init_noise_sigma;
  } else {
    if (count == 0) count = pipeline_.schedules.front().num_inference_steps;
    const Schedule& stored = nearest_schedule(pipeline_, count);
    if (stored.num_inference_steps != count) {
      std::string known;
      for (const Schedule& schedule : pipeline_.schedules) {
        known += (known.empty() ? "" : ", ") + std::to_string(schedule.num_inference_steps);
      }
      throw fail(MDRT_ERROR_ARGUMENT, "no schedule for %d steps is stored; use one of %.200s, or give the rows", count,
                 known.c_str());
    }
    rows_ = stored.rows;
    init_noise_sigma_ = stored.init_noise_sigma;
  }
  check_schedule(rows_, init_noise_sigma_);
  guidance_scale_ =
      std::isnan(params.guidance_scale) ? nearest_schedule(pipeline_, count).guidance_scale : params.guidance_scale;
  if (!std::isfinite(guidance_scale_))
    throw Error(MDRT_ERROR_ARGUMENT, "guidance_scale is infinite; use a number such as 7.5");
  batch_ = guidance_scale_ > 1 ? 2 : 1;
}

void Job::plan_stages() {
  model_.release_memory(nullptr);
  const Graph& text = model_.graph("text_encoder");
  text_output_ = output_value(text, "last_hidden_state");
  const TokenizerInfo* tokenizer = model_.bundle().tokenizer();
  if (!tokenizer) throw Error(MDRT_ERROR_ARGUMENT, "this bundle has no tokenizer; open a complete bundle");
  ids_shape_ = {batch_, tokenizer->model_max_length};
  Executor& text_executor = model_.executor(text.name);
  text_executor.prepare(input_shapes(text, {{"input_ids", DType::int32, ids_shape_}}), {text_output_});
  context_shape_ = text_executor.value_shape(text_output_);
  text_macs_ = static_cast<double>(text_executor.macs());

  const Graph& unet = model_.graph("unet");
  unet_output_ = output_value(unet, "out_sample");
  sample_shape_ = {batch_, latent_height_, latent_width_, channels_};
  Executor& unet_executor = model_.executor(unet.name);
  unet_executor.prepare(input_shapes(unet, {{"sample", DType::fp32, sample_shape_},
                                            {"timestep", DType::fp32, {batch_}},
                                            {"encoder_hidden_states", DType::fp32, context_shape_}}),
                        {unet_output_});
  expect_shape(unet, unet_executor, unet_output_, sample_shape_);
  unet_macs_ = static_cast<double>(unet_executor.macs());

  if (!latent_only_) {
    const Graph& decoder = model_.graph("vae_decoder");
    decoder_output_ = output_value(decoder, "sample");
    Executor& decoder_executor = model_.executor(decoder.name);
    const Shape latent = {1, latent_height_, latent_width_, channels_};
    decoder_executor.prepare(input_shapes(decoder, {{"latent_sample", DType::fp32, latent}}), {decoder_output_});
    expect_shape(decoder, decoder_executor, decoder_output_, {1, height_, width_, 3});
    decoder_macs_ = static_cast<double>(decoder_executor.macs());
  }
  total_macs_ = std::max(1.0, text_macs_ + static_cast<double>(rows_.size()) * unet_macs_ + decoder_macs_);
}

void Job::tokenize(const mdrt_generate_params& params) {
  if (!params.prompt) throw Error(MDRT_ERROR_ARGUMENT, "prompt is NULL; give a text, which may be empty");
  const Tokenizer& tokenizer = model_.tokenizer();
  if (batch_ == 2) ids_ = tokenizer.encode_padded(params.negative_prompt ? params.negative_prompt : "");
  const std::vector<int32_t> prompt = tokenizer.encode_padded(params.prompt);
  ids_.insert(ids_.end(), prompt.begin(), prompt.end());
}

void Job::draw_start_noise(const mdrt_generate_params& params) {
  if (params.latents) {
    x_.resize(static_cast<size_t>(latent_count()));
    to_channels_last(params.latents, channels_, latent_height_ * latent_width_, x_.data());
    if (!all_finite(x_)) throw Error(MDRT_ERROR_ARGUMENT, "latents hold NaN or infinity; give finite start noise");
  } else {
    x_ = draw_noise();
  }
  // The step noise has the same offsets whether or not the caller gave the start noise.
  noise_offset_ = 1;
  for (float& value : x_) value = static_cast<float>(static_cast<double>(value) * init_noise_sigma_);
}

std::vector<float> Job::draw_noise() {
  std::vector<float> nchw(static_cast<size_t>(latent_count())), nhwc(nchw.size());
  philox_normal(seed_, noise_offset_++, latent_count(), nchw.data());
  to_channels_last(nchw.data(), channels_, latent_height_ * latent_width_, nhwc.data());
  return nhwc;
}

Executor& Job::executor() {
  if (stage_ == MDRT_STAGE_TEXT_ENCODER) return model_.executor("text_encoder");
  return model_.executor(stage_ == MDRT_STAGE_UNET ? "unet" : "vae_decoder");
}

mdrt_event Job::advance(const std::atomic<bool>& cancel) {
  if (cancel) throw Error(MDRT_ERROR_CANCELLED, "cancelled");
  if (!started_) start_stage();
  const mdrt_stage stage = stage_;
  const int64_t limit = static_cast<int64_t>(total_macs_ / kSlicesPerPicture) + 1;
  const double stage_fraction = run_slice(executor(), limit, cancel, &pace_);
  if (stage_fraction < 1) return event(stage, stage_fraction);
  macs_done_ += stage_macs(stage);
  const mdrt_event finished = event(stage, 0);
  finish_stage();
  return done() ? event(MDRT_STAGE_DONE, 0) : finished;
}

double Job::stage_macs(mdrt_stage stage) const {
  return stage == MDRT_STAGE_TEXT_ENCODER ? text_macs_ : stage == MDRT_STAGE_UNET ? unet_macs_ : decoder_macs_;
}

mdrt_event Job::event(mdrt_stage stage, double stage_fraction) const {
  mdrt_event event = {};
  event.stage = stage;
  event.total = static_cast<int32_t>(rows_.size());
  event.step = stage == MDRT_STAGE_TEXT_ENCODER ? 0
               : stage == MDRT_STAGE_UNET       ? static_cast<int32_t>(row_) + 1
                                                : event.total;
  event.fraction =
      stage == MDRT_STAGE_DONE ? 1 : std::min(1.0, (macs_done_ + stage_fraction * stage_macs(stage)) / total_macs_);
  return event;
}

void Job::start_stage() {
  const Graph& graph = stage_ == MDRT_STAGE_TEXT_ENCODER ? model_.graph("text_encoder")
                       : stage_ == MDRT_STAGE_UNET       ? model_.graph("unet")
                                                         : model_.graph("vae_decoder");
  if (stage_ == MDRT_STAGE_TEXT_ENCODER) {
    executor().start(order_feeds(graph, {{"input_ids", {ids_.data(), ids_shape_}}}), Executor::Weights::release);
  } else if (stage_ == MDRT_STAGE_UNET) {
    std::vector<float> sample = x_;
    if (batch_ == 2) sample.insert(sample.end(), x_.begin(), x_.end());
    const std::vector<float> timestep(static_cast<size_t>(batch_), static_cast<float>(rows_[row_].t));
    const bool is_last = row_ + 1 == rows_.size();
    executor().start(order_feeds(graph, {{"sample", {sample.data(), sample_shape_}},
                                         {"timestep", {timestep.data(), {batch_}}},
                                         {"encoder_hidden_states", {context_.data(), context_shape_}}}),
                     is_last ? Executor::Weights::release : Executor::Weights::keep);
  } else {
    std::vector<float> latent(x_.size());
    for (size_t i = 0; i < x_.size(); ++i) {
      latent[i] = static_cast<float>(static_cast<double>(x_[i]) / pipeline_.scaling_factor + pipeline_.shift_factor);
    }
    executor().start(
        order_feeds(graph, {{"latent_sample", {latent.data(), {1, latent_height_, latent_width_, channels_}}}}),
        Executor::Weights::release);
  }
  started_ = true;
}

void Job::finish_stage() {
  started_ = false;
  if (stage_ == MDRT_STAGE_TEXT_ENCODER) {
    context_.resize(element_count(context_shape_));
    executor().fetch(text_output_, context_.data());
    executor().release_memory();
    stage_ = MDRT_STAGE_UNET;
  } else if (stage_ == MDRT_STAGE_UNET) {
    finish_unet_call();
  } else {
    finish_decoder();
    executor().release_memory();
    stage_ = MDRT_STAGE_DONE;
  }
}

void Job::finish_unet_call() {
  const ScheduleRow& row = rows_[row_];
  std::vector<float> out(element_count(sample_shape_));
  executor().fetch(unet_output_, out.data());
  apply_schedule_row(row, guidance_scale_, out, row.d != 0 ? draw_noise() : std::vector<float>(), &x_, &kept_);
  if (!all_finite(x_)) {
    throw fail(MDRT_ERROR_NUMERIC,
               "model call %zu of %zu gave NaN or infinity; check the file (mdrt inspect --verify) and guidance_scale",
               row_ + 1, rows_.size());
  }
  if (++row_ < rows_.size()) return;
  executor().release_memory();
  stage_ = latent_only_ ? MDRT_STAGE_DONE : MDRT_STAGE_VAE_DECODER;
}

void Job::finish_decoder() {
  std::vector<float> image(element_count({height_, width_, 3}));
  executor().fetch(decoder_output_, image.data());
  if (!all_finite(image)) {
    throw Error(MDRT_ERROR_NUMERIC, "the decoder gave NaN or infinity; check the file (mdrt inspect --verify)");
  }
  pixels_.resize(image.size());
  for (size_t i = 0; i < image.size(); ++i) {
    const float unit = std::min(std::max(image[i] / 2 + 0.5f, 0.0f), 1.0f);
    pixels_[i] = static_cast<uint8_t>(std::nearbyint(unit * 255.0f));
  }
}

void Job::copy_latents(float* nchw) const {
  to_channels_first(x_.data(), channels_, latent_height_ * latent_width_, nchw);
}

}  // namespace mdrt

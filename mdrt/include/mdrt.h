/* mdrt: a prompt becomes a picture on a CPU. C99, no dependencies.
 *
 * Every call returns an mdrt_status; none prints, aborts or keeps global state. Strings are UTF-8. Structs that the
 * caller fills begin with struct_size and are prepared by their init function. One model may be used by one thread at a
 * time; a second caller waits. mdrt_cancel may be called from any thread. */
#ifndef MDRT_H
#define MDRT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MDRT_API __attribute__((visibility("default")))
#else
#define MDRT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* declarations begin (read by cffi) */

typedef enum mdrt_status {
  MDRT_OK = 0,
  MDRT_ERROR_ARGUMENT = 1,    /* the caller's input is not acceptable */
  MDRT_ERROR_IO = 2,          /* a file cannot be opened or read */
  MDRT_ERROR_BUNDLE = 3,      /* the file is not a valid bundle */
  MDRT_ERROR_VERSION = 4,     /* the bundle's format or this CPU needs another mdrt */
  MDRT_ERROR_MEMORY = 5,      /* more memory needed than allowed or available */
  MDRT_ERROR_CANCELLED = 6,
  MDRT_ERROR_NUMERIC = 7,     /* NaN or infinity in a result */
  MDRT_ERROR_STATE = 8,       /* a call out of order, or on a closed handle */
  MDRT_ERROR_INTERNAL = 9
} mdrt_status;

typedef enum mdrt_dtype { MDRT_FP32 = 0, MDRT_INT32 = 1 } mdrt_dtype;

typedef struct mdrt_model mdrt_model;
typedef struct mdrt_job mdrt_job;

typedef struct mdrt_options {
  size_t struct_size;
  int32_t threads;            /* 0: MDRT_THREADS, else the physical cores this process may use */
  int64_t max_memory_bytes;   /* anonymous memory; 0: what the system has available */
} mdrt_options;

/* A dense array, channels last: (batch, height, width, channels), (batch, length, channels), (batch, ...). */
typedef struct mdrt_tensor {
  const char *name;
  mdrt_dtype dtype;
  int32_t rank;
  int64_t shape[6];           /* of a symbolic dimension of a component's input or output: 0 */
  void *data;
  size_t size_bytes;          /* of data */
} mdrt_tensor;

/* One model call: y = p*x + q*out, clamped to +-clip unless clip is 0;
 * x' = a*x + b*y + e*out + c1*y1 + c2*y2 + c3*y3 + d*noise, y1..y3 the kept earlier y; keep = 1 keeps y;
 * the known latent at the new level is m*latent + n*noise. */
typedef struct mdrt_schedule_row {
  double t, p, q, clip, a, b, e, c1, c2, c3, d, keep, m, n;
} mdrt_schedule_row;

typedef struct mdrt_generate_params {
  size_t struct_size;
  const char *prompt;
  const char *negative_prompt;           /* NULL: "" */
  int32_t width, height;                 /* pixels, 0: the bundle's */
  int32_t num_inference_steps;           /* 0: the bundle's default; must be stored unless schedule is given */
  double guidance_scale;                 /* NaN: the nearest stored count's; 1 or less: no second model call */
  uint64_t seed;
  const float *latents;                  /* start noise, NCHW, unit variance; NULL: drawn from seed */
  const mdrt_schedule_row *schedule;     /* the caller's rows, or NULL */
  int32_t schedule_rows;
  double init_noise_sigma;               /* with schedule */
  int32_t latent_only;                   /* 1: stop before the decoder */
} mdrt_generate_params;

typedef enum mdrt_stage {
  MDRT_STAGE_TEXT_ENCODER = 0,
  MDRT_STAGE_UNET = 1,
  MDRT_STAGE_VAE_DECODER = 2,
  MDRT_STAGE_DONE = 3
} mdrt_stage;

typedef struct mdrt_event {
  mdrt_stage stage;
  int32_t step, total;       /* model calls: the running one from 1 (0 before the first), and how many */
  double fraction;           /* of all multiply-adds of the picture, 0 to 1 */
} mdrt_event;

/* Called on the calling thread; a return value other than 0 cancels. */
typedef int (*mdrt_callback)(const mdrt_event *event, void *user);

MDRT_API const char *mdrt_version(void);
MDRT_API const char *mdrt_status_string(mdrt_status status);

MDRT_API void mdrt_options_init(mdrt_options *options);
MDRT_API void mdrt_generate_params_init(mdrt_generate_params *params);

/* Opens a bundle. `options` may be NULL. On failure *model is NULL and errbuf (may be NULL) holds a sentence. */
MDRT_API mdrt_status mdrt_open(const char *path, const mdrt_options *options, mdrt_model **model, char *errbuf,
                               size_t errbuf_size);
/* The same for a bundle in memory, which must be 64-byte aligned and outlive the model. */
MDRT_API mdrt_status mdrt_open_memory(const void *data, size_t size_bytes, const mdrt_options *options,
                                      mdrt_model **model, char *errbuf, size_t errbuf_size);
/* Not from inside a callback of this model. */
MDRT_API void mdrt_close(mdrt_model *model);
/* The sentence that belongs to the last failed call on this model; valid until the next call on it. */
MDRT_API const char *mdrt_error_message(const mdrt_model *model);
/* Makes the running call, or the next advance of an unfinished job, return MDRT_ERROR_CANCELLED. From any thread. */
MDRT_API void mdrt_cancel(mdrt_model *model);
/* Checksums of the whole file. */
MDRT_API mdrt_status mdrt_verify(mdrt_model *model);

/* Defaults of the bundle's pipeline; MDRT_ERROR_ARGUMENT when it has none. Counts that have a stored schedule come
 * through mdrt_get_schedule_count(); index 0 is the default. */
MDRT_API mdrt_status mdrt_get_size(mdrt_model *model, int32_t *width, int32_t *height);
MDRT_API mdrt_status mdrt_get_schedule_count(mdrt_model *model, int32_t *count);
MDRT_API mdrt_status mdrt_get_schedule(mdrt_model *model, int32_t index, int32_t *num_inference_steps,
                                       double *guidance_scale, const char **scheduler);

/* Components: "text_encoder", "unet", "vae_decoder", "vae_encoder". */
MDRT_API mdrt_status mdrt_get_component_count(mdrt_model *model, int32_t *count);
MDRT_API mdrt_status mdrt_get_component_name(mdrt_model *model, int32_t index, const char **name);
/* Fills name, dtype, rank, shape of the index-th input or output; MDRT_ERROR_ARGUMENT after the last. */
MDRT_API mdrt_status mdrt_get_input(mdrt_model *model, const char *component, int32_t index, mdrt_tensor *tensor);
MDRT_API mdrt_status mdrt_get_output(mdrt_model *model, const char *component, int32_t index, mdrt_tensor *tensor);
/* Runs one component. Outputs are asked for by name (any value of the graph but weights); one whose data is NULL only
 * gets its rank and shape, and when all of them are so nothing is run. Outputs are fp32. */
MDRT_API mdrt_status mdrt_run(mdrt_model *model, const char *component, const mdrt_tensor *inputs, int32_t num_inputs,
                              mdrt_tensor *outputs, int32_t num_outputs);

/* From prompt to RGB bytes: begin, advance until stage is MDRT_STAGE_DONE, get, end. mdrt_generate does all of it. A
 * model has one unfinished job at a time; until it is done or ended, begin, generate and run return MDRT_ERROR_STATE. A
 * job's results stay readable until mdrt_end, even after mdrt_close. */
MDRT_API mdrt_status mdrt_begin(mdrt_model *model, const mdrt_generate_params *params, mdrt_job **job);
MDRT_API mdrt_status mdrt_advance(mdrt_job *job, mdrt_event *event);
/* Copies the picture: height rows of width RGB pixels, stride_bytes apart. */
MDRT_API mdrt_status mdrt_get_pixels(mdrt_job *job, uint8_t *pixels, size_t stride_bytes);
/* Copies the final latent, NCHW fp32, unit variance; count = number of floats in `latents`. */
MDRT_API mdrt_status mdrt_get_latents(mdrt_job *job, float *latents, size_t count);
MDRT_API mdrt_status mdrt_get_latents_shape(mdrt_job *job, int64_t shape[4]);
MDRT_API void mdrt_end(mdrt_job *job);
MDRT_API mdrt_status mdrt_generate(mdrt_model *model, const mdrt_generate_params *params, mdrt_callback callback,
                                   void *user, uint8_t *pixels, size_t stride_bytes);

/* declarations end */

#ifdef __cplusplus
}
#endif
#endif /* MDRT_H */

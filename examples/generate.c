/* From a prompt to a picture: generate MODEL.mdrt "PROMPT" OUT.ppm
 *
 * cc -std=c99 generate.c $(pkg-config --cflags --libs mdrt) -o generate */
#include <mdrt.h>
#include <stdio.h>
#include <stdlib.h>

static int show_progress(const mdrt_event* event, void* user) {
  (void)user;
  fprintf(stderr, "\r%3.0f %%", 100 * event->fraction);
  return 0; /* another value cancels */
}

static int write_ppm(const char* path, const uint8_t* pixels, int32_t width, int32_t height) {
  const size_t size_bytes = (size_t)width * (size_t)height * 3;
  FILE* file = fopen(path, "wb");
  if (!file) return 0;
  const int written =
      fprintf(file, "P6 %d %d 255\n", (int)width, (int)height) > 0 && fwrite(pixels, 1, size_bytes, file) == size_bytes;
  return fclose(file) == 0 && written;
}

int main(int argc, char** argv) {
  if (argc != 4) return fprintf(stderr, "usage: %s MODEL.mdrt PROMPT OUT.ppm\n", argv[0]), 2;
  mdrt_model* model;
  char message[512];
  if (mdrt_open(argv[1], NULL, &model, message, sizeof message) != MDRT_OK) return fprintf(stderr, "%s\n", message), 1;

  mdrt_generate_params params;
  mdrt_generate_params_init(&params);
  params.prompt = argv[2];
  params.seed = 1;
  mdrt_status status = mdrt_get_size(model, &params.width, &params.height);
  const size_t row_bytes = (size_t)params.width * 3;
  uint8_t* pixels = status == MDRT_OK ? malloc(row_bytes * (size_t)params.height) : NULL;
  if (pixels) status = mdrt_generate(model, &params, show_progress, NULL, pixels, row_bytes);
  if (status != MDRT_OK) fprintf(stderr, "\n%s\n", mdrt_error_message(model));

  const int ok = pixels && status == MDRT_OK && write_ppm(argv[3], pixels, params.width, params.height);
  free(pixels);
  mdrt_close(model);
  return ok ? 0 : 1;
}

// Multiply-adds per second that a unit of this processor does at best, on registers alone.
//
//   cc -O2 -pthread peak.c -o peak && ./peak UNIT THREADS      prints GMAC/s, the best of five measurements
//
// A unit that the processor lacks ends the program by SIGILL: whoever calls it has looked before (peaks.py).
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 256
#define TWELVE(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)

// A loop of twelve independent accumulators; registers 12 and 13 hold ones, which cost as much as any other number.
#if defined(__x86_64__)
#define REGISTERS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14"
#define UNIT(name, width, value, op)                                                                                 \
  static void name(long n) {                                                                                         \
    const uint32_t one = value;                                                                                      \
    __asm__ volatile("vbroadcastss (%1), %%" width "12\n vmovaps %%" width "12, %%" width "13\n"                     \
                     TWELVE(ZERO) "1:\n" TWELVE(op) "dec %0\n jnz 1b\n vzeroupper"                                   \
                     : "+r"(n) : "r"(&one) : REGISTERS, "cc", "memory");                                             \
  }
#define ZERO(i) "vxorps %%xmm" #i ", %%xmm" #i ", %%xmm" #i "\n"
#define FMA_YMM(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n"
#define FMA_ZMM(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #i "\n"
#define BF16_ZMM(i) "vdpbf16ps %%zmm12, %%zmm13, %%zmm" #i "\n"
#define VNNI_VEX(i) "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm" #i "\n"
#define VNNI_ZMM(i) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #i "\n"
#define MADDUBS(i)                                                                                                   \
  "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n vpmaddwd %%ymm14, %%ymm13, %%ymm14\n vpaddd %%ymm14, %%ymm" #i ", %%ymm" #i "\n"
UNIT(fma_ymm, "ymm", 0x3f800000, FMA_YMM)
UNIT(fma_zmm, "zmm", 0x3f800000, FMA_ZMM)
UNIT(bf16_zmm, "zmm", 0x3f803f80, BF16_ZMM)
UNIT(vnni_vex, "ymm", 0x01010101, VNNI_VEX)
UNIT(vnni_zmm, "zmm", 0x01010101, VNNI_ZMM)
UNIT(maddubs, "ymm", 0x01010101, MADDUBS)

// Four tiles of 16x16 sums, from two tiles each of rows and columns, 64 bytes deep.
#define TILES(name, instruction)                                                                                     \
  static void name(long n) {                                                                                         \
    static const struct { uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; } config = { \
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};                              \
    static uint8_t data[1024];                                                                                       \
    memset(data, 1, sizeof data);                                                                                    \
    __asm__ volatile("ldtilecfg %1\n"                                                                                \
                     "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"                       \
                     "tileloadd (%2,%3), %%tmm4\n tileloadd (%2,%3), %%tmm5\n"                                       \
                     "tileloadd (%2,%3), %%tmm6\n tileloadd (%2,%3), %%tmm7\n"                                       \
                     "1:\n" instruction " %%tmm6, %%tmm4, %%tmm0\n" instruction " %%tmm7, %%tmm4, %%tmm1\n"          \
                     instruction " %%tmm6, %%tmm5, %%tmm2\n" instruction " %%tmm7, %%tmm5, %%tmm3\n"                 \
                     "dec %0\n jnz 1b\n tilerelease"                                                                 \
                     : "+r"(n) : "m"(config), "r"(data), "r"(64L) : "cc", "memory");                                 \
  }
TILES(amx_int8, "tdpbssd")
TILES(amx_bf16, "tdpbf16ps")
#elif defined(__aarch64__)
#define REGISTERS "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13"
#define UNIT(name, ones, op)                                                                                         \
  static void name(long n) {                                                                                         \
    __asm__ volatile(".arch armv8.2-a+dotprod+i8mm\n" ones TWELVE(ZERO) "1:\n" TWELVE(op)                            \
                     "subs %0, %0, #1\n b.ne 1b" : "+r"(n) : : REGISTERS, "cc");                                     \
  }
#define ZERO(i) "movi v" #i ".4s, #0\n"
#define FMLA(i) "fmla v" #i ".4s, v12.4s, v13.4s\n"
#define SDOT(i) "sdot v" #i ".4s, v12.16b, v13.16b\n"
#define SMMLA(i) "smmla v" #i ".4s, v12.16b, v13.16b\n"
UNIT(fmla, "fmov v12.4s, #1.0\n fmov v13.4s, #1.0\n", FMLA)
UNIT(sdot, "movi v12.16b, #1\n movi v13.16b, #1\n", SDOT)
UNIT(smmla, "movi v12.16b, #1\n movi v13.16b, #1\n", SMMLA)
#endif

// macs: multiply-adds in one turn of the loop.
static const struct unit { const char *name; void (*run)(long); double macs; } units[] = {
#if defined(__x86_64__)
    {"fma_ymm", fma_ymm, 12 * 8},    {"fma_zmm", fma_zmm, 12 * 16},   {"bf16_zmm", bf16_zmm, 12 * 32},
    {"vnni_vex", vnni_vex, 12 * 32}, {"vnni_zmm", vnni_zmm, 12 * 64}, {"maddubs", maddubs, 12 * 32},
    {"amx_int8", amx_int8, 4 * 16 * 16 * 64.0}, {"amx_bf16", amx_bf16, 4 * 16 * 16 * 32.0},
#elif defined(__aarch64__)
    {"fmla", fmla, 12 * 4}, {"sdot", sdot, 12 * 16}, {"smmla", smmla, 12 * 32},
#endif
};

static const struct unit *chosen;
static long turns = 1000;
static pthread_barrier_t barrier;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec * 1e-9;
}

static void *work(void *unused) {
  pthread_barrier_wait(&barrier);
  chosen->run(turns);
  pthread_barrier_wait(&barrier);
  return unused;
}

// Seconds that `threads` threads need for `turns` turns each.
static double measure(int threads) {
  pthread_t pool[MAX_THREADS];
  pthread_barrier_init(&barrier, NULL, threads + 1);
  for (int i = 0; i < threads; i++)
    if (pthread_create(&pool[i], NULL, work, NULL) != 0) exit(1);
  pthread_barrier_wait(&barrier);
  double start = now();
  pthread_barrier_wait(&barrier);
  double seconds = now() - start;
  for (int i = 0; i < threads; i++) pthread_join(pool[i], NULL);
  pthread_barrier_destroy(&barrier);
  return seconds;
}

int main(int argc, char **argv) {
  const int threads = argc == 3 ? atoi(argv[2]) : 0;
  for (size_t i = 0; argc == 3 && i < sizeof units / sizeof *units; i++)
    if (strcmp(units[i].name, argv[1]) == 0) chosen = &units[i];
  if (!chosen || threads < 1 || threads > MAX_THREADS) {
    fprintf(stderr, "usage: peak UNIT THREADS\n");
    return 2;
  }
#if defined(__x86_64__)
  syscall(SYS_arch_prctl, 0x1023, 18);  // ARCH_REQ_XCOMP_PERM: tiles must be asked for; without them this is refused and nothing else
#endif
  while (measure(threads) < 0.1) turns *= 2;
  double best = 0;
  for (int i = 0; i < 5; i++) {
    const double rate = chosen->macs * turns * threads / measure(threads) * 1e-9;
    best = rate > best ? rate : best;
  }
  printf("%.1f\n", best);
}

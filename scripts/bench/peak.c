/* The most that the processor's units can do: multiply-adds on registers, nothing loaded or stored. Prints "PRECISION GOPS" lines (a
   multiply-add is two operations), for as many threads as the first argument says. Each unit is used where the processor has it; bf16 and int8
   are those of AMX where it is there, else of AVX-512. Build: cc -O2 -pthread peak.c */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Independent sums: enough to fill the pipelines. */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)
enum { SUMS = 10, ROUNDS = 4000000, TILE_ROUNDS = 400000 };

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* The compiler must believe that results are wanted. */
#define KEEP(x) __asm__ volatile("" : : "x"(x))

__attribute__((target("avx2,fma"))) static void *fp32_256(void *unused) {
  __m256 sums[SUMS], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
#define START(k) sums[k] = _mm256_set1_ps(k);
#define STEP(k) sums[k] = _mm256_fmadd_ps(a, b, sums[k]);
  EACH(START)
  for (long i = 0; i < ROUNDS; i++) {
    EACH(STEP)
    __asm__ volatile("");
  }
#undef START
#undef STEP
  for (int k = 0; k < SUMS; k++) KEEP(sums[k]);
  return unused;
}

#define WIDE(NAME, TARGET, TYPE, ZERO, STEP_OF)                         \
  __attribute__((target(TARGET))) static void *NAME(void *unused) {     \
    TYPE sums[SUMS];                                                    \
    __m512i ones = _mm512_set1_epi8(1);                                 \
    for (int k = 0; k < SUMS; k++) sums[k] = ZERO;                      \
    TYPE s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3], s4 = sums[4]; \
    TYPE s5 = sums[5], s6 = sums[6], s7 = sums[7], s8 = sums[8], s9 = sums[9]; \
    for (long i = 0; i < ROUNDS; i++) {                                 \
      s0 = STEP_OF(s0); s1 = STEP_OF(s1); s2 = STEP_OF(s2); s3 = STEP_OF(s3); s4 = STEP_OF(s4); \
      s5 = STEP_OF(s5); s6 = STEP_OF(s6); s7 = STEP_OF(s7); s8 = STEP_OF(s8); s9 = STEP_OF(s9); \
      __asm__ volatile("");                                             \
    }                                                                   \
    KEEP(s0); KEEP(s1); KEEP(s2); KEEP(s3); KEEP(s4);                   \
    KEEP(s5); KEEP(s6); KEEP(s7); KEEP(s8); KEEP(s9);                   \
    return unused;                                                      \
  }

#define FMA(s) _mm512_fmadd_ps(_mm512_castsi512_ps(ones), _mm512_castsi512_ps(ones), s)
#define DOT_BF16(s) _mm512_dpbf16_ps(s, (__m512bh)ones, (__m512bh)ones)
#define DOT_INT8(s) _mm512_dpbusd_epi32(s, ones, ones)
WIDE(fp32_512, "avx512f", __m512, _mm512_setzero_ps(), FMA)
WIDE(bf16_512, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), DOT_BF16)
WIDE(int8_512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), DOT_INT8)

/* Without dot products: pairs of bytes into 16 bits, pairs of those into 32, and a sum. */
__attribute__((target("avx2"))) static void *int8_256(void *unused) {
  __m256i sums[SUMS], a = _mm256_set1_epi8(1), one = _mm256_set1_epi16(1);
#define START(k) sums[k] = _mm256_setzero_si256();
#define STEP(k) { __m256i p = _mm256_maddubs_epi16(a, a); __asm__ volatile("" : "+x"(p)); sums[k] = _mm256_add_epi32(sums[k], _mm256_madd_epi16(p, one)); }
  EACH(START)
  for (long i = 0; i < ROUNDS; i++) { EACH(STEP) }
  for (int k = 0; k < SUMS; k++) KEEP(sums[k]);
  return unused;
}

/* AMX: tiles of 16 rows of 64 bytes; four sums. */
struct __attribute__((packed)) tiles {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

__attribute__((target("amx-tile"))) static void tiles_on(void) {
  struct tiles config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int k = 0; k < 6; k++) config.bytes[k] = 64, config.rows[k] = 16;
  __asm__ volatile("" : : "r"(&config) : "memory"); /* GCC 12 takes the stores for dead otherwise. */
  _tile_loadconfig(&config);
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4); _tile_zero(5);
}

__attribute__((target("amx-tile,amx-bf16"))) static void *bf16_tiles(void *unused) {
  tiles_on();
  for (long i = 0; i < TILE_ROUNDS; i++) { _tile_dpbf16ps(0, 4, 5); _tile_dpbf16ps(1, 4, 5); _tile_dpbf16ps(2, 4, 5); _tile_dpbf16ps(3, 4, 5); }
  _tile_release();
  return unused;
}

__attribute__((target("amx-tile,amx-int8"))) static void *int8_tiles(void *unused) {
  tiles_on();
  for (long i = 0; i < TILE_ROUNDS; i++) { _tile_dpbusd(0, 4, 5); _tile_dpbusd(1, 4, 5); _tile_dpbusd(2, 4, 5); _tile_dpbusd(3, 4, 5); }
  _tile_release();
  return unused;
}

static void measure(const char *name, void *(*work)(void *), double operations, int threads) {
  double best = 1e9;
  for (int repeat = 0; repeat < 5; repeat++) {
    pthread_t running[256];
    double start = seconds();
    for (int k = 0; k < threads; k++)
      if (pthread_create(&running[k], 0, work, 0)) exit(1);
    for (int k = 0; k < threads; k++) pthread_join(running[k], 0);
    double taken = seconds() - start;
    if (taken < best) best = taken;
  }
  printf("%s %.0f\n", name, threads * operations / best * 1e-9);
}

int main(int count, char **arguments) {
  setvbuf(stdout, 0, _IOLBF, 0);
  int threads = count > 1 ? atoi(arguments[1]) : 2;
  if (threads < 1 || threads > 256) return 2;
  __builtin_cpu_init();
  int wide = __builtin_cpu_supports("avx512f"), bf16 = wide && __builtin_cpu_supports("avx512bf16"), vnni = wide && __builtin_cpu_supports("avx512vnni");
  /* The kernel lends the tiles' registers on request (ARCH_REQ_XCOMP_PERM, XTILEDATA). */
  int tiles = __builtin_cpu_supports("amx-tile") && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  if (!__builtin_cpu_supports("fma")) return 0;
  measure("fp32", wide ? fp32_512 : fp32_256, 2.0 * SUMS * ROUNDS * (wide ? 16 : 8), threads);
  if (tiles && __builtin_cpu_supports("amx-bf16")) measure("bf16", bf16_tiles, 2.0 * 4 * TILE_ROUNDS * 16 * 16 * 32, threads);
  else if (bf16) measure("bf16", bf16_512, 2.0 * SUMS * ROUNDS * 32, threads);
  if (tiles && __builtin_cpu_supports("amx-int8")) measure("int8", int8_tiles, 2.0 * 4 * TILE_ROUNDS * 16 * 16 * 64, threads);
  else if (vnni) measure("int8", int8_512, 2.0 * SUMS * ROUNDS * 64, threads);
  else measure("int8", int8_256, 2.0 * SUMS * ROUNDS * 32, threads);
  return 0;
}

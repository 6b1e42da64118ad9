/* The kernels in every set of instructions, and which of them this machine has. Part of mednca.c. */

#define GLUE_(a, b) a##_##b
#define GLUE(a, b) GLUE_(a, b)

#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__)) && !defined(MEDNCA_PORTABLE)
#include <immintrin.h>

/* Two adjacent int16 numbers. */
static INLINE int32_t pair(const int16_t *p)
{
    int32_t both;
    memcpy(&both, p, 4);
    return both;
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,prefer-vector-width=512")
#endif
#define NAME "avx512vnni"
#define KERNEL(name) GLUE(name, avx512vnni)
#define LANES 16
#define COLUMNS 4
#define ROWS 6
#define MADD(a, b, c) ((VEC)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define PAIRS 1
#define EACH(p) ((IVEC)_mm512_set1_epi32(pair(p)))
#define DOT(sum, a, b) ((IVEC)_mm512_dpwssd_epi32((__m512i)(sum), (__m512i)(a), _mm512_loadu_si512(b)))
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

/* Training with products of bfloat16 numbers: with one set of instructions only. */
#if defined(__clang__) ? __clang_major__ >= 11 : __GNUC__ >= 11
#define WITH_BFLOAT16
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,prefer-vector-width=512")
#endif
#include "train16.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif
#define NAME "avx512"
#define KERNEL(name) GLUE(name, avx512)
#define LANES 16
#define COLUMNS 4
#define ROWS 6
#define MADD(a, b, c) ((VEC)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define PAIRS 1
#define EACH(p) ((IVEC)_mm512_set1_epi32(pair(p)))
#define DOT(sum, a, b) ((sum) + (IVEC)_mm512_madd_epi16((__m512i)(a), _mm512_loadu_si512(b)))
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define NAME "avx2"
#define KERNEL(name) GLUE(name, avx2)
#define LANES 8
#define COLUMNS 2
#define ROWS 6
#define MADD(a, b, c) ((VEC)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define PAIRS 1
#define EACH(p) ((IVEC)_mm256_set1_epi32(pair(p)))
#define DOT(sum, a, b) ((sum) + (IVEC)_mm256_madd_epi16((__m256i)(a), _mm256_loadu_si256((const __m256i *)(b))))
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define NAME "sse2"
#define KERNEL(name) GLUE(name, sse2)
#define LANES 4
#define COLUMNS 2
#define ROWS 6
#define MADD(a, b, c) ((a) * (b) + (c))
#define PAIRS 1
#define EACH(p) ((IVEC)_mm_set1_epi32(pair(p)))
#define DOT(sum, a, b) ((sum) + (IVEC)_mm_madd_epi16((__m128i)(a), _mm_loadu_si128((const __m128i *)(b))))
#include "kernels.h"

#elif defined(__GNUC__) && defined(__aarch64__) && !defined(MEDNCA_PORTABLE)
#include <arm_neon.h>
#define NAME "neon"
#define KERNEL(name) GLUE(name, neon)
#define LANES 4
#define COLUMNS 4
#define ROWS 6
#define MADD(a, b, c) ((VEC)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define PAIRS 0
#define EACH(p) ((IVEC)vdupq_n_s32(*(p)))
#define DOT(sum, a, b) ((IVEC)vmlal_s16((int32x4_t)(sum), vmovn_s32((int32x4_t)(a)), vld1_s16(b)))
#include "kernels.h"

#elif defined(__GNUC__) && defined(__arm__) && __ARM_ARCH == 6 && !defined(__thumb__) && defined(__ARM_FEATURE_SIMD32) && \
    (__ARM_FP & 4) && !defined(MEDNCA_PORTABLE)
#define WITH_ARMV6
#define ARMV6
#include <arm_acle.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif

static INLINE int32_t pair(const int16_t *p)
{
    int32_t both;
    memcpy(&both, p, 4);
    return both;
}

#define NAME "armv6"
#define KERNEL(name) GLUE(name, armv6)
#define LANES 1
#define COLUMNS 4
#define ROWS 4
#define MADD(a, b, c) ((a) * (b) + (c))
#define PAIRS 1
#define EACH(p) pair(p)
#define DOT(sum, a, b) __smlad(a, pair(b), sum)
#include "kernels.h"
#undef ARMV6
#endif

/* C99 and nothing else. */
#define NAME "portable"
#define KERNEL(name) GLUE(name, portable)
#define LANES 1
#define COLUMNS 4
#define ROWS 4
#define MADD(a, b, c) ((a) * (b) + (c))
#define PAIRS 0
#define EACH(p) (*(p))
#define DOT(sum, a, b) ((sum) + (a) * *(b))
#include "kernels.h"

#ifdef WITH_ARMV6
/* A program for ARMv6 may run on a later machine, which has SMLAD but no short vectors: there these are illegal or, worse,
 * do a quarter of the work. */
static const Kernels kernels_simd32 = {
    .name = "simd32", .lanes = 8, .panel = 4, .pairs = 1, .rows = 12, .fp32 = fp32_portable, .int16 = dense16_armv6,
    .add = add_portable, .add16 = add16_armv6, .fires = fires_armv6, .forward = forward_portable, .backward = backward_portable,
};

static int short_vectors(void)
{
#ifdef __linux__
    return !(getauxval(AT_HWCAP) & (1ul << 12 | 1ul << 13 | 1ul << 14)); /* NEON, VFPv3, VFPv3 with 16 registers */
#else
    return 1;
#endif
}
#endif

/* All, best first, with whether this machine has them. */
static const Kernels *available(int32_t index)
{
    const Kernels *found[8];
    int32_t count = 0;
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__)) && !defined(MEDNCA_PORTABLE)
    __builtin_cpu_init();
    const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (wide && __builtin_cpu_supports("avx512vnni"))
        found[count++] = &kernels_avx512vnni;
    if (wide)
        found[count++] = &kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found[count++] = &kernels_avx2;
    found[count++] = &kernels_sse2;
#elif defined(__GNUC__) && defined(__aarch64__) && !defined(MEDNCA_PORTABLE)
    found[count++] = &kernels_neon;
#elif defined(WITH_ARMV6)
    found[count++] = short_vectors() ? &kernels_armv6 : &kernels_simd32;
#endif
    found[count++] = &kernels_portable;
    return index >= 0 && index < count ? found[index] : 0;
}

static const Kernels *find_kernels(const char *name)
{
    for (int32_t i = 0; available(i); i++)
        if (!strcmp(available(i)->name, name))
            return available(i);
    return 0;
}

const char *mednca_instructions(int32_t index)
{
    return available(index) ? available(index)->name : 0;
}

/* Whether this machine has the instructions of train16.h. */
int mednca_has_bfloat16(void)
{
#ifdef WITH_BFLOAT16
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}

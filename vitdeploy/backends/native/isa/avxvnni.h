// AVX-VNNI, 256 bits: Intel since Alder Lake and on small cores (N100), AMD since Zen 5. A vector is two registers; a
// tile's 12 sums, two weights and an input are 15 of 16.
//
// The same source is compiled a second time with AVX-512 VL's encoding of the one instruction (avx512vl.cpp), for
// processors that have that one: tests and benchmarks ask for it by name, since those run AVX-512 faster.

#pragma once

#include "../kernels.h"

namespace kernels::avxvnni {

constexpr char kName[] = "avxvnni";
constexpr Tile kTile{6, 16, 16, 4, 64};
extern const Steps steps;

[[maybe_unused]] static const char* missing() {
    __builtin_cpu_init();  // it asks the operating system's bits too
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return "AVX2 and FMA";
    return __builtin_cpu_supports("avxvnni") ? nullptr : "AVX-VNNI";
}

}  // namespace kernels::avxvnni

namespace kernels::avx512vl {

constexpr char kName[] = "avx512vl";
constexpr Tile kTile = avxvnni::kTile;
extern const Steps steps;

[[maybe_unused]] static const char* missing() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return "AVX2 and FMA";
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") ? nullptr : "AVX-512 VL and VNNI";
}

}  // namespace kernels::avx512vl

#ifdef KERNELS_STEPS

#include <immintrin.h>

#include <cstring>

namespace {

using kernels::avxvnni::kTile;
struct F {
    __m256 low, high;
};
using In = const F&;  // by value it would be copied in pieces of 8 bytes, and read back in 32
struct I {
    __m256i low, high;
};
using Four = __m256i;

F load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }

void store(float* to, F x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}

F all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)}; }
F larger(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
F smaller(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }

F rounded(F x) {
    constexpr int kEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.low, kEven), _mm256_round_ps(x.high, kEven)};
}

__m256 power_of_two(__m256 power) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

F times_power(F x, F power) { return mul(x, {power_of_two(power.low), power_of_two(power.high)}); }

float total(F x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

float largest(F x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

F first_of(F x, int count, F rest) {
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), places));
    const __m256 high = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), places));
    return {_mm256_blendv_ps(rest.low, x.low, low), _mm256_blendv_ps(rest.high, x.high, high)};
}

void quantize(F steps, uint8_t* out) {
    const __m256 most = _mm256_set1_ps(255.0f);
    const __m256i low = _mm256_cvtps_epi32(_mm256_min_ps(steps.low, most));
    const __m256i high = _mm256_cvtps_epi32(_mm256_min_ps(steps.high, most));
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);  // it packs halves
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
}

I begin(const int32_t*) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

I load_bytes(const int8_t* from) {
    const __m256i* at = reinterpret_cast<const __m256i*>(from);
    return {_mm256_load_si256(at), _mm256_load_si256(at + 1)};
}

F floats(I x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }

Four all_four(const uint8_t* from) {
    int four;
    std::memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

#ifdef KERNELS_EVEX
#define ENCODING "%{evex%}"
#else
#define ENCODING "%{vex%}"
#endif

inline __attribute__((always_inline)) void add_products(I& sum, Four inputs, I weights) {
    asm(ENCODING " vpdpbusd %2, %1, %0" : "+x"(sum.low) : "x"(inputs), "x"(weights.low));
    asm(ENCODING " vpdpbusd %2, %1, %0" : "+x"(sum.high) : "x"(inputs), "x"(weights.high));
}

#undef ENCODING

void turn8(const float* in, size_t from, float* out, size_t to) {
    __m256 r[8], t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(in + i * from);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

void turn(const float* in, size_t from, float* out, size_t to) {
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 16; j += 8) turn8(in + i * from + j, from, out + j * to + i, to);
}

}  // namespace

#endif

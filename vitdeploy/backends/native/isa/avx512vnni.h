// AVX-512 with VNNI: Intel since Cascade Lake and Ice Lake, AMD since Zen 4. A tile's 24 sums are 24 of 32 registers.

#pragma once

#include "../kernels.h"

namespace kernels::avx512vnni {

constexpr char kName[] = "avx512vnni";
constexpr Tile kTile{6, 64, 16, 4, 64};
extern const Steps steps;

[[maybe_unused]] static const char* missing() {
    __builtin_cpu_init();  // it asks the operating system's bits too
    if (!__builtin_cpu_supports("avx512f")) return "AVX-512";
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq")) return "AVX-512 BW and DQ";
    if (!__builtin_cpu_supports("avx512vl")) return "AVX-512 VL";
    return __builtin_cpu_supports("avx512vnni") ? nullptr : "AVX-512 VNNI";
}

}  // namespace kernels::avx512vnni

#ifdef KERNELS_STEPS

#include <immintrin.h>

#include <cstring>

namespace {

using kernels::avx512vnni::kTile;
using F = __m512;
using In = F;
using I = __m512i;
using Four = __m512i;

F load(const float* from) { return _mm512_loadu_ps(from); }
void store(float* to, F x) { _mm512_storeu_ps(to, x); }
F all(float x) { return _mm512_set1_ps(x); }
F add(F a, F b) { return _mm512_add_ps(a, b); }
F sub(F a, F b) { return _mm512_sub_ps(a, b); }
F mul(F a, F b) { return _mm512_mul_ps(a, b); }
F div(F a, F b) { return _mm512_div_ps(a, b); }
F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
F larger(F a, F b) { return _mm512_max_ps(a, b); }
F smaller(F a, F b) { return _mm512_min_ps(a, b); }
F rounded(F x) { return _mm512_roundscale_ps(x, 0); }
F times_power(F x, F power) { return _mm512_scalef_ps(x, power); }
float total(F x) { return _mm512_reduce_add_ps(x); }
float largest(F x) { return _mm512_reduce_max_ps(x); }

F first_of(F x, int count, F rest) { return _mm512_mask_mov_ps(rest, static_cast<__mmask16>((1u << count) - 1), x); }

void quantize(F steps, uint8_t* out) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_min_ps(steps, _mm512_set1_ps(255.0f)));
    const __m512i positive = _mm512_max_epi32(whole, _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtusepi32_epi8(positive));
}

I begin(const int32_t*) { return _mm512_setzero_si512(); }
I load_bytes(const int8_t* from) { return _mm512_load_si512(from); }
F floats(I x) { return _mm512_cvtepi32_ps(x); }

Four all_four(const uint8_t* from) {
    int four;
    std::memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
}

// by hand: GCC 12 keeps the sums of the intrinsic on the stack
inline __attribute__((always_inline)) void add_products(I& sum, Four inputs, I weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(inputs), "v"(weights));
}

void turn(const float* in, size_t from, float* out, size_t to) {
    __m512 r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(in + i * from);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_ps(out + (i + 0) * to, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
        _mm512_storeu_ps(out + (i + 8) * to, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
        _mm512_storeu_ps(out + (i + 4) * to, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
        _mm512_storeu_ps(out + (i + 12) * to, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd));
    }
}

}  // namespace

#endif

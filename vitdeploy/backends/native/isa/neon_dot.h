// NEON with dot products: Raspberry Pi 5, Jetson Orin, ARM's servers, Apple. A vector is four registers; a tile's 24 sums,
// four weights and an input are 29 of 32.
//
// The dot product takes signed inputs: they are made so by taking 128 off, for which the sums begin at 128 times the
// weights' sum. With I8MM (neon_i8mm.cpp: Graviton 3, Apple since M2) one takes unsigned inputs as they are.

#pragma once

#include "../kernels.h"

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace kernels::neon_dot {

constexpr char kName[] = "neon_dot";
constexpr Tile kTile{6, 16, 16, 4, 64};
extern const Steps steps;

[[maybe_unused]] static const char* missing() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & 1ul << 20 ? nullptr : "NEON's dot product";
#else
    return nullptr;  // every processor that macOS runs on has it
#endif
}

}  // namespace kernels::neon_dot

namespace kernels::neon_i8mm {

constexpr char kName[] = "neon_i8mm";
constexpr Tile kTile = neon_dot::kTile;
extern const Steps steps;

[[maybe_unused]] static const char* missing() {
#if defined(__linux__)
    return getauxval(AT_HWCAP2) & 1ul << 13 ? nullptr : "I8MM";
#else
    return "I8MM";
#endif
}

}  // namespace kernels::neon_i8mm

#ifdef KERNELS_STEPS

#include <arm_neon.h>

#include <cstring>

namespace {

using kernels::neon_dot::kTile;
struct F {
    float32x4_t a, b, c, d;
};
using In = F;  // in four registers
struct I {
    int32x4_t a, b, c, d;
};

F load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}; }

void store(float* to, F x) {
    vst1q_f32(to, x.a);
    vst1q_f32(to + 4, x.b);
    vst1q_f32(to + 8, x.c);
    vst1q_f32(to + 12, x.d);
}

template <class Do>
F each(Do made) {
    return {made(&F::a), made(&F::b), made(&F::c), made(&F::d)};
}

F all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}; }

F add(F x, F y) {
    return each([&](auto of) { return vaddq_f32(x.*of, y.*of); });
}

F sub(F x, F y) {
    return each([&](auto of) { return vsubq_f32(x.*of, y.*of); });
}

F mul(F x, F y) {
    return each([&](auto of) { return vmulq_f32(x.*of, y.*of); });
}

F div(F x, F y) {
    return each([&](auto of) { return vdivq_f32(x.*of, y.*of); });
}

F fma(F x, F y, F z) {
    return each([&](auto of) { return vfmaq_f32(z.*of, x.*of, y.*of); });
}

F larger(F x, F y) {
    return each([&](auto of) { return vbslq_f32(vcgtq_f32(x.*of, y.*of), x.*of, y.*of); });
}

F smaller(F x, F y) {
    return each([&](auto of) { return vbslq_f32(vcltq_f32(x.*of, y.*of), x.*of, y.*of); });
}

F rounded(F x) {
    return each([&](auto of) { return vrndnq_f32(x.*of); });
}

F times_power(F x, F power) {
    return each([&](auto of) {
        const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(power.*of), vdupq_n_s32(127));
        return vmulq_f32(x.*of, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    });
}

float total(F x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

float largest(F x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.c), vmaxq_f32(x.b, x.d))); }

F first_of(F x, int count, F rest) {
    const int32_t places[4] = {0, 1, 2, 3};
    int left = count + 4;
    return each([&](auto of) {
        left -= 4;
        return vbslq_f32(vcgtq_s32(vdupq_n_s32(left), vld1q_s32(places)), x.*of, rest.*of);
    });
}

uint16x4_t whole(float32x4_t steps) {
    const float32x4_t most = vdupq_n_f32(255.0f);
    return vqmovun_s32(vcvtnq_s32_f32(vbslq_f32(vcltq_f32(steps, most), steps, most)));
}

void quantize(F steps, uint8_t* out) {
    vst1_u8(out, vqmovn_u16(vcombine_u16(whole(steps.a), whole(steps.b))));
    vst1_u8(out + 8, vqmovn_u16(vcombine_u16(whole(steps.c), whole(steps.d))));
}

F floats(I x) { return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)}; }

I load_bytes(const int8_t* from) {
    const int32_t* at = reinterpret_cast<const int32_t*>(from);
    return {vld1q_s32(at), vld1q_s32(at + 4), vld1q_s32(at + 8), vld1q_s32(at + 12)};
}

#ifdef KERNELS_I8MM

using Four = uint8x16_t;

I begin(const int32_t*) { return {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}; }

Four all_four(const uint8_t* from) {
    uint32_t four;
    std::memcpy(&four, from, 4);
    return vreinterpretq_u8_u32(vdupq_n_u32(four));
}

int32x4_t products(int32x4_t sum, Four inputs, int32x4_t weights) {
    return vusdotq_s32(sum, inputs, vreinterpretq_s8_s32(weights));
}

#else

using Four = int8x16_t;

I begin(const int32_t* sums) {
    return {vshlq_n_s32(vld1q_s32(sums), 7), vshlq_n_s32(vld1q_s32(sums + 4), 7), vshlq_n_s32(vld1q_s32(sums + 8), 7),
            vshlq_n_s32(vld1q_s32(sums + 12), 7)};
}

Four all_four(const uint8_t* from) {
    uint32_t four;
    std::memcpy(&four, from, 4);
    return vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u));
}

int32x4_t products(int32x4_t sum, Four inputs, int32x4_t weights) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(weights), inputs);
}

#endif

void add_products(I& sum, Four inputs, I weights) {
    sum.a = products(sum.a, inputs, weights.a);
    sum.b = products(sum.b, inputs, weights.b);
    sum.c = products(sum.c, inputs, weights.c);
    sum.d = products(sum.d, inputs, weights.d);
}

void turn(const float* in, size_t from, float* out, size_t to) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) out[j * to + i] = in[i * from + j];
}

}  // namespace

#endif

// Plain C++ for any processor: slow, the reference for the others, and what each name of a header here means.

#pragma once

#include "../kernels.h"

namespace kernels::portable {

constexpr char kName[] = "portable";
constexpr Tile kTile{6, 16, 16, 4, 64};
extern const Steps steps;

[[maybe_unused]] static const char* missing() { return nullptr; }

}  // namespace kernels::portable

#ifdef KERNELS_STEPS

#include <cmath>
#include <cstring>

namespace {

using kernels::portable::kTile;
struct F {
    float at[16];
};
using In = const F&;  // what a function takes that is not inlined
struct I {
    int32_t at[16];
};
using Four = const uint8_t*;

template <class Do>
F each(Do value) {
    F made;
    for (int i = 0; i < 16; i++) made.at[i] = value(i);
    return made;
}

// Halves upon each other until one is left: the order in which registers are summed.
template <class Do>
float folded(F x, Do both) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x.at[i] = both(x.at[i], x.at[i + half]);
    return x.at[0];
}

F load(const float* from) {
    F x;
    std::memcpy(x.at, from, sizeof x.at);
    return x;
}

void store(float* to, const F& x) { std::memcpy(to, x.at, sizeof x.at); }

F all(float x) {
    return each([&](int) { return x; });
}

F add(const F& a, const F& b) {
    return each([&](int i) { return a.at[i] + b.at[i]; });
}

F sub(const F& a, const F& b) {
    return each([&](int i) { return a.at[i] - b.at[i]; });
}

F mul(const F& a, const F& b) {
    return each([&](int i) { return a.at[i] * b.at[i]; });
}

F div(const F& a, const F& b) {
    return each([&](int i) { return a.at[i] / b.at[i]; });
}

F fma(const F& a, const F& b, const F& c) {  // a b + c, rounded once
    return each([&](int i) { return __builtin_fmaf(a.at[i], b.at[i], c.at[i]); });
}

F larger(const F& a, const F& b) {  // b where one is no number
    return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
}

F smaller(const F& a, const F& b) {
    return each([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
}

F rounded(const F& x) {  // to a whole number, to the even one of two
    return each([&](int i) { return __builtin_nearbyintf(x.at[i]); });
}

F times_power(const F& x, const F& power) {  // x 2^power, of a whole power and a result that is no denormal
    return each([&](int i) { return __builtin_ldexpf(x.at[i], static_cast<int>(power.at[i])); });
}

F first_of(const F& x, int count, const F& rest) {  // the first `count` of x, the others of `rest`
    return each([&](int i) { return i < count ? x.at[i] : rest.at[i]; });
}

float total(const F& x) {
    return folded(x, [](float a, float b) { return a + b; });
}

float largest(const F& x) {
    return folded(x, [](float a, float b) { return a > b ? a : b; });
}

void quantize(const F& steps, uint8_t* out) {  // rounded as above, 0 to 255
    const F whole = rounded(larger(each([&](int i) { return steps.at[i] < 255 ? steps.at[i] : 255; }), all(0.0f)));
    for (int i = 0; i < 16; i++) out[i] = static_cast<uint8_t>(whole.at[i]);
}

I begin(const int32_t*) { return {}; }  // sums, of 16 columns whose weights add up to these

I load_bytes(const int8_t* from) {  // four bytes for each of 16 sums
    I x;
    std::memcpy(x.at, from, sizeof x.at);
    return x;
}

Four all_four(const uint8_t* from) { return from; }  // the same four for each sum

void add_products(I& sum, Four inputs, const I& weights) {  // to each sum the products of its four bytes with the inputs
    int8_t bytes[64];
    std::memcpy(bytes, weights.at, sizeof bytes);
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 4; k++) sum.at[i] += inputs[k] * bytes[4 * i + k];
}

F floats(const I& x) {
    return each([&](int i) { return static_cast<float>(x.at[i]); });
}

void turn(const float* in, size_t from, float* out, size_t to) {  // 16 x 16: rows `from` apart -> columns, `to` apart
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) out[j * to + i] = in[i * from + j];
}

}  // namespace

#endif

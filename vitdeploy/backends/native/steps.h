// The steps of a plain ViT in INT8, for the instruction set whose header was included before: its tile, its vectors of
// 16 floats (F) and of 16 sums (I), and what can be done with them. isa/portable.h says what each name means.
//
// The sums of a tile stay in registers while its weights stream by. What follows a product is done on the registers:
// scale and bias, then the residual, or GELU and the quantisation for the next product. Attention is float32, or INT8 where
// the form has it so, a head at a time, its scores in the cache. A product that was left out of INT8 is computed in float32
// by the same tiles.
//
// Vectors have 16 floats everywhere, of as many registers as that takes, and every product and sum of floats is done in
// the same order and rounded alike: one model gives the same bits on every processor.

#pragma once

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.h"

namespace {

using namespace kernels;

constexpr int kLanes = kTile.lanes, kRows = kTile.rows, kColumns = kTile.columns, kVectors = kColumns / kLanes;
static_assert(kLanes == 16 && kRows == 6 && kTile.group == 4 && kColumns % kLanes == 0, "what is written below");

int least(int a, int b) { return a < b ? a : b; }

int most(int a, int b) { return a < b ? b : a; }

int tiles_of(int rows) { return (rows + kRows - 1) / kRows; }

Rows at(const Rows& rows, size_t place) { return {rows.bytes + place, rows.floats + place}; }

F exponential(F x) {  // of x <= 87; relative error 2e-7 where x is small, 8e-6 at the ends
    x = larger(x, all(-87.0f));
    const F t = mul(x, all(1.44269504f));
    const F whole = rounded(t), part = sub(t, whole);
    F sum = all(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        sum = fma(sum, part, all(c));
    return times_power(sum, whole);
}

// x Phi(x), where Phi(x) - 1/2 = x P(x^2) / Q(x^2) within 7e-8 up to 5.25, fitted by least squares whose weights grow
// where the error is large (Lawson), and 1/2 beyond.
F gelu(In x) {
    const F z = larger(smaller(x, all(5.25f)), all(-5.25f)), t = mul(z, z);
    F over = all(6.04422166e-6f), under = all(5.15209048e-7f);
    for (float c : {3.27471492e-4f, 5.60606579e-3f, 5.07917291e-2f, 3.98941874e-1f}) over = fma(over, t, all(c));
    for (float c : {1.17458862e-4f, 2.78093525e-3f, 3.80604206e-2f, 2.93976074e-1f, 1.0f}) under = fma(under, t, all(c));
    return fma(x, div(mul(z, over), under), mul(x, all(0.5f)));
}

// x / (1 + exp(-y)), y = x (steep + cubic x^2): x times the sigmoid of y. GELU by tanh is (1.59576912, 0.0713548163),
// QuickGELU (1.702, 0), SiLU (1, 0).
F curve(In x, const Linear& next) {
    const F z = larger(smaller(x, all(1e6f)), all(-1e6f)), y = mul(z, fma(mul(z, z), all(next.cubic), all(next.steep)));
    return div(x, add(all(1.0f), exponential(smaller(sub(all(0.0f), y), all(87.0f)))));
}

// Sixteen values for a Linear, at a place of its input. What it takes is asked once for all of them: in the loops it
// would cost a twentieth of the time.
template <bool kExact>
void emit(F x, const Linear& next, const Rows& out, size_t at) {
    if (kExact)
        store(out.floats + at, x);
    else
        quantize(fma(x, all(next.inverse), all(next.zero)), out.bytes + at);
}

constexpr bool reads_out(Then then) { return then == Then::kAdd || then == Then::kGate || then == Then::kGateExact; }

constexpr bool makes_rows(Then then) { return then != Then::kStore && then != Then::kAdd; }

constexpr bool is_exact(Then then) {
    return then == Then::kGeluExact || then == Then::kCurveExact || then == Then::kGateExact;
}

// What follows a product, with its bias added: at a place of `out`, or of the input of `next`.
template <Then then>
void finish(F value, float* out, const Linear* next, const Rows& made, size_t at) {
    constexpr bool kExact = is_exact(then);
    switch (then) {
        case Then::kStore: return store(out + at, value);
        case Then::kAdd: return store(out + at, add(value, load(out + at)));
        case Then::kGelu:
        case Then::kGeluExact: return emit<kExact>(gelu(value), *next, made, at);
        case Then::kCurve:
        case Then::kCurveExact: return emit<kExact>(curve(value, *next), *next, made, at);
        case Then::kGate:
        case Then::kGateExact: return emit<kExact>(mul(curve(load(out + at), *next), value), *next, made, at);
    }
}

// Brings what `finish` will read and write of a tile's row into the cache: rows lie too far apart for the processor to guess.
template <Then then>
void fetch(const float* out, const Rows& made, size_t at) {
    if (makes_rows(then) && !is_exact(then)) __builtin_prefetch(made.bytes + at, 1);
    if (is_exact(then))
        for (int j = 0; j < kVectors; j++) __builtin_prefetch(made.floats + at + kLanes * j, 1);
    if (reads_out(then) || !makes_rows(then))
        for (int j = 0; j < kVectors; j++) __builtin_prefetch(out + at + kLanes * j, 1);
}

// R rows of x W in INT8, `apart` rows from each other, a tile's columns.
template <int R, Then then>
void tile(const uint8_t* x, int apart, const Linear& w, int column, float* out, const Rows& made, const Linear* next,
          const int8_t* ahead, int every) {
    const size_t from = static_cast<size_t>(apart) * w.inputs, to = static_cast<size_t>(apart) * w.outputs;
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) fetch<then>(out, made, i * to + column);
    I sum[R][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; j++) sum[i][j] = begin(w.sums + column + kLanes * j);
    const int8_t* b = w.weights + static_cast<size_t>(column) * w.inputs;
    for (int k = 0, due = 0; k < w.inputs; k += 4, b += 4 * kColumns) {
        if (k == due) {
            __builtin_prefetch(ahead, 0, 2);
            ahead += 64, due += every;
        }
        I weights[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; j++) weights[j] = load_bytes(b + 4 * kLanes * j);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            const Four four = all_four(x + i * from + k);
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; j++) add_products(sum[i][j], four, weights[j]);
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; j++) {
        const F scale = load(w.scale + column + kLanes * j), bias = load(w.bias + column + kLanes * j);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            const size_t at = i * to + column + kLanes * j;
            finish<then>(fma(floats(sum[i][j]), scale, bias), out, next, made, at);
        }
    }
}

template <Then then>
void rows_of(Choice rows, const uint8_t* x, const Linear& w, int column, float* out, const Rows& made,
             const Linear* next, const int8_t* ahead, int every) {
    const int apart = rows.apart;
    switch (rows.rows) {
        case 6: return tile<6, then>(x, apart, w, column, out, made, next, ahead, every);
        case 5: return tile<5, then>(x, apart, w, column, out, made, next, ahead, every);
        case 4: return tile<4, then>(x, apart, w, column, out, made, next, ahead, every);
        case 3: return tile<3, then>(x, apart, w, column, out, made, next, ahead, every);
        case 2: return tile<2, then>(x, apart, w, column, out, made, next, ahead, every);
        default: return tile<1, then>(x, apart, w, column, out, made, next, ahead, every);
    }
}

// Six rows times 16 V columns in float32: `keep(i, j, sum)` takes vector j of row i. The columns' weights are `stride`
// apart from one input to the next.
template <int V, class Keep>
void six_rows(const float* const* rows, const float* weights, int inputs, int stride, Keep keep) {
    F sum[kRows][V];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) sum[i][j] = all(0.0f);
    for (int k = 0; k < inputs; k++, weights += stride) {
        F b[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) b[j] = load(weights + kLanes * j);
#pragma GCC unroll 6
        for (int i = 0; i < kRows; i++) {
            const F a = all(rows[i][k]);
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) sum[i][j] = fma(a, b[j], sum[i][j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) keep(i, j, sum[i][j]);
}

// Up to six rows of x W in float32, a tile's columns.
template <Then then>
__attribute__((noinline)) void exact_tile(Choice rows, const float* x, const Linear& w, int column, float* out,
                                          const Rows& made, const Linear* next) {
    const size_t from = static_cast<size_t>(rows.apart) * w.inputs, to = static_cast<size_t>(rows.apart) * w.outputs;
    const float* lines[kRows];
    for (int i = 0; i < kRows; i++) lines[i] = x + least(i, rows.rows - 1) * from;
    const float* weights = w.exact + static_cast<size_t>(column) * w.inputs;
    six_rows<kVectors>(lines, weights, w.inputs, kColumns, [&](int i, int j, F sum) {
        if (i >= rows.rows) return;
        const int place = column + kLanes * j;
        finish<then>(add(sum, load(w.bias + place)), out, next, made, i * to + place);
    });
}

template <Then then>
void product(const Rows& x, Choice rows, const Linear& w, int first, float* out, const Rows& made, const Linear* next,
             Pieces pieces) {
    const int tiles = tiles_of(rows.rows);
    // each tile fetches its part of the weights of the next columns, a line of the cache every so many inputs
    const int every = most(tiles * 64 / kColumns / 4, 1) * 4;
    const size_t part = static_cast<size_t>((w.inputs + every - 1) / every) * 64;
    for (int piece = pieces.first; piece < pieces.last; piece++) {
        const int n = piece / tiles, t = piece % tiles;
        const int column = first + n * kColumns;
        const Choice these{least(kRows, rows.rows - t * kRows), rows.apart};
        const size_t row = static_cast<size_t>(t) * kRows * rows.apart, place = row * w.outputs;
        if (w.exact != nullptr) {
            exact_tile<then>(these, x.floats + row * w.inputs, w, column, out + place, at(made, place), next);
            continue;
        }
        const size_t block = static_cast<size_t>(first / kColumns + n + 1) * w.inputs * kColumns;
        rows_of<then>(these, x.bytes + row * w.inputs, w, column, out + place, at(made, place), next,
                      w.weights + block + t * part, every);
    }
}

template <bool kExact>
void normalise(const float* x, int width, int line, const Norm& norm, const Linear& next, const Rows& out, int apart,
               Pieces pieces) {
    const int whole = width / kLanes * kLanes;
    for (int r = pieces.first; r < pieces.last; r++) {
        const size_t start = static_cast<size_t>(r) * apart * line;
        const float* row = x + start;
        F sum = all(0.0f), squares = all(0.0f);
        for (int i = 0; i < width; i += kLanes) sum = add(sum, load(row + i));  // zeros behind the width
        const F mean = all(total(sum) / width);
        for (int i = 0; i < whole; i += kLanes) {
            const F off = sub(load(row + i), mean);
            squares = fma(off, off, squares);
        }
        if (whole < width) {
            const F off = first_of(sub(load(row + whole), mean), width - whole, all(0.0f));
            squares = fma(off, off, squares);
        }
        const F factor = all(1 / std::sqrt(total(squares) / width + norm.epsilon));
        for (int i = 0; i < width; i += kLanes) {
            const F unit = mul(sub(load(row + i), mean), factor);
            emit<kExact>(fma(unit, load(norm.weight + i), load(norm.bias + i)), next, out, start + i);
        }
    }
}

// Six rows times any number of columns that is whole vectors, as above: `keep(i, column, sum)`.
template <class Keep>
void six_rows_of(const float* const* rows, const float* weights, int inputs, int columns, Keep keep) {
    int at = 0;
    const auto pass = [&](int i, int j, F sum) { keep(i, at + kLanes * j, sum); };
    for (; at + kColumns <= columns; at += kColumns) six_rows<kVectors>(rows, weights + at, inputs, columns, pass);
    for (; at < columns; at += kLanes) six_rows<1>(rows, weights + at, inputs, columns, pass);
}

// Six rows of unsigned bytes times 16 V columns of signed ones, as above. Weights lie as (inputs / 4, columns, 4), `stride`
// bytes from one group of inputs to the next.
template <int V, class Keep>
void byte_rows(const uint8_t* const* rows, const int8_t* weights, const int32_t* sums, int groups, size_t stride,
                   Keep keep) {
    I sum[kRows][V];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) sum[i][j] = begin(sums + kLanes * j);
    for (int k = 0; k < groups; k++, weights += stride) {
        I b[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) b[j] = load_bytes(weights + 4 * kLanes * j);
#pragma GCC unroll 6
        for (int i = 0; i < kRows; i++) {
            const Four a = all_four(rows[i] + 4 * k);
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) add_products(sum[i][j], a, b[j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) keep(i, j, floats(sum[i][j]));
}

template <class Keep>
void byte_rows_of(const uint8_t* const* rows, const int8_t* weights, const int32_t* sums, int groups, int columns,
                      Keep keep) {
    const size_t stride = 4 * static_cast<size_t>(columns);
    int at = 0;
    const auto pass = [&](int i, int j, F sum) { keep(i, at + kLanes * j, sum); };
    for (; at + kColumns <= columns; at += kColumns)
        byte_rows<kVectors>(rows, weights + 4 * at, sums + at, groups, stride, pass);
    for (; at < columns; at += kLanes) byte_rows<1>(rows, weights + 4 * at, sums + at, groups, stride, pass);
}

// Brings a head's part of some tokens into the cache, which lie too far apart for the processor to guess.
void fetch_tokens(const float* part, int tokens, int head, size_t line) {
    for (int n = 0; n < tokens; n++)
        for (int d = 0; d < head; d += kLanes) __builtin_prefetch(part + n * line + d);
}

// The keys of a head as columns, and its values, from k and v of the first token.
void gather(const float* k, const float* v, const Attention& a, const Scratch& scratch) {
    const int padded = a.padded, whole = a.tokens / kLanes * kLanes;
    const size_t line = 3 * static_cast<size_t>(a.part);
    for (int n = 0; n < whole; n += kLanes) {
        fetch_tokens(k + (n + kLanes) * line, least(a.tokens - n - kLanes, kLanes), a.head, line);
        for (int d = 0; d < a.head; d += kLanes) turn(k + n * line + d, line, scratch.keys + d * padded + n, padded);
    }
    for (int d = 0; d < a.head; d++)
        for (int n = whole; n < padded; n++) scratch.keys[d * padded + n] = n < a.tokens ? k[n * line + d] : 0.0f;
    for (int n = 0; n < a.tokens; n++) {
        fetch_tokens(v + (n + kLanes) * line, least(a.tokens - n - kLanes, 1), a.head, line);
        std::memcpy(scratch.values + n * a.head, v + n * line, sizeof(float) * a.head);
    }
}

// Scores (padded) of one query -> their exponentials, in place; returns 1 / their sum. The last vector has `there`.
float softmax(float* row, int padded, int there) {
    float* end = row + padded - kLanes;
    store(end, first_of(load(end), there, all(-1e30f)));
    F high = load(row), sum = all(0.0f);
    for (int j = kLanes; j < padded; j += kLanes) high = larger(high, load(row + j));
    high = all(largest(high));
    for (int j = 0; j < padded; j += kLanes) {
        const F raised = exponential(sub(load(row + j), high));
        store(row + j, raised);
        sum = add(sum, raised);
    }
    return 1 / total(sum);
}

template <bool kExact>
void attend(const float* qkv, const Attention& a, int queries, const Linear& next, const Rows& out,
            const Scratch& scratch, Pieces pieces) {
    const int padded = a.padded, tiles = tiles_of(queries), there = kLanes - (padded - a.tokens);
    const size_t line = 3 * static_cast<size_t>(a.part);
    for (int piece = pieces.first; piece < pieces.last; piece++) {
        const int m = piece % tiles * kRows, head = piece / tiles % a.heads;
        const size_t image = piece / tiles / a.heads, row = image * a.tokens;
        const float* q = qkv + row * line + head * a.head;
        if (m == 0 || piece == pieces.first) gather(q + a.part, q + 2 * a.part, a, scratch);
        const float* lines[kRows];
        for (int i = 0; i < kRows; i++) lines[i] = q + least(m + i, queries - 1) * line;
        six_rows_of(lines, scratch.keys, a.head, padded, [&](int i, int column, F sum) {
            store(scratch.scores + i * padded + column, sum);
        });
        F factor[kRows];
        for (int i = 0; i < kRows; i++) {
            factor[i] = all(softmax(scratch.scores + i * padded, padded, there));
            lines[i] = scratch.scores + i * padded;
        }
        six_rows_of(lines, scratch.values, a.tokens, a.head, [&](int i, int column, F sum) {
            if (m + i < queries)
                emit<kExact>(mul(sum, factor[i]), next, out, (row + m + i) * a.part + head * a.head + column);
        });
    }
}

// Attention in INT8: where its bytes are in a thread's memory.
struct Bytes {
    int8_t *keys, *values;
    uint8_t *shares, *queries;
    int32_t *key_sums, *value_sums;
    float *key_offsets, *value_offsets;  // zero * sum: what sums of products have too much
    Bytes(const Scratch& s, const Attention& a)
        : keys(reinterpret_cast<int8_t*>(s.bytes)),
          values(keys + static_cast<size_t>(a.head) * a.padded),
          shares(s.bytes + 2 * static_cast<size_t>(a.head) * a.padded),
          queries(shares + static_cast<size_t>(kRows) * a.padded),
          key_sums(s.sums),
          value_sums(s.sums + a.padded),
          key_offsets(s.keys),
          value_offsets(s.values) {}
};

void round_row(const float* from, int count, float factor, float zero, uint8_t* out) {
    for (int i = 0; i < count; i += kLanes) quantize(fma(load(from + i), all(factor), all(zero)), out + i);
}

// The keys and values of a head as bytes, from k and v of the first token. Those of no token stay zeros.
void gather_bytes(const float* k, const float* v, const Attention& a, const Factors& f, const Bytes& to) {
    const size_t line = 3 * static_cast<size_t>(a.part);
    std::memset(to.value_sums, 0, sizeof(int32_t) * a.head);
    for (int n = 0; n < a.tokens; n++) {
        fetch_tokens(k + (n + kLanes) * line, least(a.tokens - n - kLanes, 1), a.head, line);
        round_row(k + n * line, a.head, 1 / f.key, 128.0f, to.queries);
        int32_t sum = -128 * a.head;
        for (int d = 0; d < a.head; d++) sum += to.queries[d];
        to.key_sums[n] = sum, to.key_offsets[n] = f.query_zero * static_cast<float>(sum);
        for (int d = 0; d < a.head; d += 4) {
            uint32_t four;
            std::memcpy(&four, to.queries + d, 4);
            four ^= 0x80808080u;  // 128 off each: signed
            std::memcpy(to.keys + (static_cast<size_t>(d) * a.padded + 4 * n), &four, 4);
        }
    }
    for (int n = 0; n < a.tokens; n += 4) {
        const int there = least(a.tokens - n, 4);
        fetch_tokens(v + (n + kLanes) * line, least(a.tokens - n - kLanes, 4), a.head, line);
        for (int r = 0; r < there; r++) round_row(v + (n + r) * line, a.head, 1 / f.value, 128.0f, to.queries + r * a.head);
        if (there < 4) std::memset(to.queries + there * a.head, 128, static_cast<size_t>(4 - there) * a.head);
        const uint8_t *first = to.queries, *second = first + a.head, *third = second + a.head, *fourth = third + a.head;
        for (int d = 0; d < a.head; d++) {
            const uint32_t four = first[d] | second[d] << 8 | third[d] << 16 | static_cast<uint32_t>(fourth[d]) << 24;
            const uint32_t signed_four = four ^ 0x80808080u;
            std::memcpy(to.values + (static_cast<size_t>(n) * a.head + 4 * d), &signed_four, 4);
            to.value_sums[d] += first[d] + second[d] + third[d] + fourth[d] - 4 * 128;
        }
    }
    for (int d = 0; d < a.head; d++) to.value_offsets[d] = f.share_zero * static_cast<float>(to.value_sums[d]);
}

template <bool kExact>
void attend_bytes(const float* qkv, const Attention& a, int queries, const Factors& f, const Linear& next,
                  const Rows& out, const Scratch& scratch, Pieces pieces) {
    const int padded = a.padded, tiles = tiles_of(queries), there = kLanes - (padded - a.tokens);
    const size_t line = 3 * static_cast<size_t>(a.part);
    const Bytes bytes(scratch, a);
    const uint8_t *rows[kRows], *shares[kRows];
    for (int i = 0; i < kRows; i++) rows[i] = bytes.queries + i * a.head, shares[i] = bytes.shares + i * padded;
    for (int piece = pieces.first; piece < pieces.last; piece++) {
        const int m = piece % tiles * kRows, head = piece / tiles % a.heads;
        const size_t image = piece / tiles / a.heads, row = image * a.tokens;
        const float* q = qkv + row * line + head * a.head;
        if (m == 0 || piece == pieces.first) gather_bytes(q + a.part, q + 2 * a.part, a, f, bytes);
        for (int i = 0; i < kRows; i++)
            round_row(q + least(m + i, queries - 1) * line, a.head, 1 / f.query, f.query_zero, bytes.queries + i * a.head);
        byte_rows_of(rows, bytes.keys, bytes.key_sums, a.head / 4, padded, [&](int i, int column, F sum) {
            const F scores = mul(sub(sum, load(bytes.key_offsets + column)), all(f.query * f.key));
            store(scratch.scores + i * padded + column, scores);
        });
        for (int i = 0; i < kRows; i++) {
            float* scores = scratch.scores + i * padded;
            const float factor = softmax(scores, padded, there) / f.share;
            round_row(scores, padded, factor, f.share_zero, bytes.shares + i * padded);
        }
        byte_rows_of(shares, bytes.values, bytes.value_sums, (a.tokens + 3) / 4, a.head, [&](int i, int column, F sum) {
            const F mixed = mul(sub(sum, load(bytes.value_offsets + column)), all(f.share * f.value));
            if (m + i < queries) emit<kExact>(mixed, next, out, (row + m + i) * a.part + head * a.head + column);
        });
    }
}

void embed(const float* lines, const Patches& p, int images, int line, float* x, Pieces pieces) {
    const int inputs = p.channels * p.side_y * p.side_x, patches = p.down * p.across, tokens = p.first + patches;
    const int all_rows = images * patches, tiles = tiles_of(all_rows);
    for (int piece = pieces.first; piece < pieces.last; piece++) {
        const int n = piece / tiles, first = piece % tiles * kRows;
        const float* rows[kRows];
        float* to[kRows];
        const float* positions[kRows];
        for (int i = 0; i < kRows; i++) {
            const int row = least(first + i, all_rows - 1), token = p.first + row % patches;
            rows[i] = lines + static_cast<size_t>(row) * inputs;
            to[i] = x + (static_cast<size_t>(row / patches) * tokens + token) * line + n * kColumns;
            positions[i] = p.positions + static_cast<size_t>(token) * line + n * kColumns;
            // the tokens in front of an image's first patch
            if (n == 0 && token == p.first)
                std::memcpy(to[i] - static_cast<size_t>(p.first) * line, p.positions, sizeof(float) * line * p.first);
        }
        const float* weights = p.weights + static_cast<size_t>(n) * kColumns * inputs;
        six_rows<kVectors>(rows, weights, inputs, kColumns, [&](int i, int j, F sum) {
            if (first + i < all_rows) store(to[i] + kLanes * j, add(sum, load(positions[i] + kLanes * j)));
        });
    }
}

void classify(const float* x, Choice rows, const Classifier& classifier, int line, float* logits, Pieces pieces) {
    for (int c = pieces.first; c < pieces.last; c++) {
        const float* weights = classifier.weights + static_cast<size_t>(c) * line;
        for (int r = 0; r < rows.rows; r++) {
            const float* row = x + static_cast<size_t>(r) * rows.apart * line;
            F sum = all(0.0f);
            for (int i = 0; i < line; i += kLanes) sum = fma(load(weights + i), load(row + i), sum);
            logits[static_cast<size_t>(r) * classifier.classes + c] = total(sum) + classifier.bias[c];
        }
    }
}

constexpr Steps kSteps = {
    embed,
    {normalise<false>, normalise<true>},
    {product<Then::kStore>, product<Then::kAdd>, product<Then::kGelu>, product<Then::kGeluExact>, product<Then::kCurve>,
     product<Then::kCurveExact>, product<Then::kGate>, product<Then::kGateExact>},
    {attend<false>, attend<true>},
    {attend_bytes<false>, attend_bytes<true>},
    classify,
};

}  // namespace

// What the steps of a plain ViT in INT8 compute, for kernels.cpp: AVX-512 with VNNI, a range of a step's pieces a call.
//
// Rows of every buffer are multiples of 64 long. What is there beyond a model's width has weights, scales and biases of
// zero (kernels.py packs them so), so that only LayerNorm has to know the width.
//
// A product is tiled in 6 rows by 64 columns, whose 24 sums stay in registers while its weights stream by, packed as
// (columns / 64, inputs / 4, 64, 4). What follows a product is done on the registers: scale and bias, then the
// residual, or GELU and the quantisation for the next product. Attention is float32, a head at a time, its scores in
// the cache.
// Zero points of the inputs are in the biases: (x - z) W = x W - z sum(W). A product that was left out of INT8 is
// computed in float32 by the same tiles.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kRows = 6, kColumns = 64;  // of a tile

struct Linear {
    int inputs, outputs;
    const int8_t* weights;  // packed
    const float* scale;     // input's scale * column's scale
    const float* bias;      // with the input's zero point in it
    float inverse, zero;    // of the input: round(x * inverse + zero)
    const float* exact;     // where it is left out of INT8: float32 weights, packed as (outputs / 64, inputs, 64)
};

// The input of a Linear, as that one reads it.
struct Rows {
    uint8_t* bytes;
    float* floats;
    Rows at(size_t place) const { return {bytes + place, floats + place}; }
};

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

struct Layer {
    Norm before, after;
    Linear qkv, output, fc1, fc2;
};

enum class Then { kStore, kAdd, kGelu, kGeluExact };  // the last two for the input of the next product

__m512 exponential(__m512 x) {  // of x <= 0; relative error 2e-7
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(t, 0), part = _mm512_sub_ps(t, whole);
    __m512 sum = _mm512_set1_ps(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(c));
    return _mm512_scalef_ps(sum, whole);
}

__m512 gelu(__m512 x) {  // Abramowitz and Stegun 7.1.26 for erf, error 1.5e-7
    const __m512 one = _mm512_set1_ps(1.0f), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 sum = _mm512_set1_ps(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f, 0.0f})
        sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(c));
    __m512 erf = _mm512_fnmadd_ps(sum, exponential(_mm512_fnmadd_ps(z, z, _mm512_setzero_ps())), one);
    erf = _mm512_mask_sub_ps(erf, _mm512_movepi32_mask(_mm512_castps_si512(x)), _mm512_setzero_ps(), erf);
    const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    return _mm512_fmadd_ps(half, erf, half);
}

void quantize(__m512 x, float inverse, float zero, uint8_t* out) {
    const __m512 steps = _mm512_fmadd_ps(x, _mm512_set1_ps(inverse), _mm512_set1_ps(zero));
    const __m512i whole = _mm512_max_epi32(_mm512_cvtps_epi32(steps), _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtusepi32_epi8(whole));
}

// Sixteen values for a Linear, at a place of its input. What it takes is asked once for all of them: in the loops it
// would cost a twentieth of the time.
template <bool kExact>
void emit(__m512 x, const Linear& next, const Rows& out, size_t at) {
    if (kExact)
        _mm512_storeu_ps(out.floats + at, x);
    else
        quantize(x, next.inverse, next.zero, out.bytes + at);
}

// What follows a product, with its bias added: at a place of `out`, or of the input of `next`.
template <Then then>
void finish(__m512 value, float* out, const Linear* next, const Rows& made, size_t at) {
    if (then == Then::kAdd) value = _mm512_add_ps(value, _mm512_loadu_ps(out + at));
    if (then == Then::kGelu)
        emit<false>(gelu(value), *next, made, at);
    else if (then == Then::kGeluExact)
        emit<true>(gelu(value), *next, made, at);
    else
        _mm512_storeu_ps(out + at, value);
}

template <int R, Then then>
void tile(const uint8_t* x, const Linear& w, int column, float* out, const Rows& made, const Linear* next,
          const int8_t* ahead, int every) {
    __m512i sum[R][4];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_si512();
    const int8_t* b = w.weights + static_cast<size_t>(column) * w.inputs;
    for (int k = 0, due = 0; k < w.inputs; k += 4, b += 4 * kColumns) {
        if (k == due) {
            _mm_prefetch(ahead, _MM_HINT_T1);
            ahead += 64, due += every;
        }
        const __m512i b0 = _mm512_load_si512(b), b1 = _mm512_load_si512(b + 64);
        const __m512i b2 = _mm512_load_si512(b + 128), b3 = _mm512_load_si512(b + 192);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            int four;
            std::memcpy(&four, x + static_cast<size_t>(i) * w.inputs + k, 4);
            const __m512i a = _mm512_set1_epi32(four);
            // by hand: GCC 12 keeps the sums of the intrinsic on the stack
            asm("vpdpbusd %2, %1, %0" : "+v"(sum[i][0]) : "v"(a), "v"(b0));
            asm("vpdpbusd %2, %1, %0" : "+v"(sum[i][1]) : "v"(a), "v"(b1));
            asm("vpdpbusd %2, %1, %0" : "+v"(sum[i][2]) : "v"(a), "v"(b2));
            asm("vpdpbusd %2, %1, %0" : "+v"(sum[i][3]) : "v"(a), "v"(b3));
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512 scale = _mm512_loadu_ps(w.scale + column + 16 * j);
        const __m512 bias = _mm512_loadu_ps(w.bias + column + 16 * j);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            const size_t at = static_cast<size_t>(i) * w.outputs + column + 16 * j;
            finish<then>(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), scale, bias), out, next, made, at);
        }
    }
}

template <Then then>
void rows_of(int rows, const uint8_t* x, const Linear& w, int column, float* out, const Rows& made, const Linear* next,
             const int8_t* ahead, int every) {
    switch (rows) {
        case 6: return tile<6, then>(x, w, column, out, made, next, ahead, every);
        case 5: return tile<5, then>(x, w, column, out, made, next, ahead, every);
        case 4: return tile<4, then>(x, w, column, out, made, next, ahead, every);
        case 3: return tile<3, then>(x, w, column, out, made, next, ahead, every);
        case 2: return tile<2, then>(x, w, column, out, made, next, ahead, every);
        default: return tile<1, then>(x, w, column, out, made, next, ahead, every);
    }
}

// Pieces of a step, from `first` up to `last`.
struct Pieces {
    int first, last;
};

int tiles_of(int rows) { return (rows + kRows - 1) / kRows; }

// Six rows times 16 V columns in float32: `keep(i, j, sum)` takes vector j of row i. The columns' weights are `stride`
// apart from one input to the next.
template <int V, class Keep>
void six_rows(const float* const* rows, const float* weights, int inputs, int stride, Keep keep) {
    __m512 sum[kRows][V];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) sum[i][j] = _mm512_setzero_ps();
    for (int k = 0; k < inputs; k++, weights += stride) {
        __m512 b[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) b[j] = _mm512_load_ps(weights + 16 * j);
#pragma GCC unroll 6
        for (int i = 0; i < kRows; i++) {
            const __m512 a = _mm512_set1_ps(rows[i][k]);
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) sum[i][j] = _mm512_fmadd_ps(a, b[j], sum[i][j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) keep(i, j, sum[i][j]);
}

// Up to six rows of x W in float32, 64 columns.
template <Then then>
__attribute__((noinline)) void exact_tile(int rows, const float* x, const Linear& w, int column, float* out,
                                          const Rows& made, const Linear* next) {
    const float* lines[kRows];
    for (int i = 0; i < kRows; i++) lines[i] = x + static_cast<size_t>(std::min(i, rows - 1)) * w.inputs;
    const float* weights = w.exact + static_cast<size_t>(column) * w.inputs;
    six_rows<4>(lines, weights, w.inputs, kColumns, [&](int i, int j, __m512 sum) {
        if (i >= rows) return;
        const int place = column + 16 * j;
        finish<then>(_mm512_add_ps(sum, _mm512_loadu_ps(w.bias + place)), out, next, made,
                     static_cast<size_t>(i) * w.outputs + place);
    });
}

// Columns of x W from `first` on, x (rows, inputs). A piece is a tile.
template <Then then>
void product(const Rows& x, int rows, const Linear& w, int first, float* out, const Rows& made, const Linear* next,
             Pieces pieces) {
    const int tiles = tiles_of(rows);
    // each tile fetches its part of the weights of the next columns, a line every so many inputs
    const int every = std::max(tiles / 4, 1) * 4;
    const size_t part = static_cast<size_t>((w.inputs + every - 1) / every) * 64;
    for (int piece = pieces.first; piece < pieces.last; piece++) {
        const int n = piece / tiles, t = piece % tiles;
        const int column = first + n * kColumns, count = std::min(kRows, rows - t * kRows);
        const size_t row = static_cast<size_t>(t) * kRows, at = row * w.outputs;
        if (w.exact != nullptr) {
            exact_tile<then>(count, x.floats + row * w.inputs, w, column, out + at, made.at(at), next);
            continue;
        }
        const size_t block = static_cast<size_t>(first / kColumns + n + 1) * w.inputs * kColumns;
        rows_of<then>(count, x.bytes + row * w.inputs, w, column, out + at, made.at(at), next,
                      w.weights + block + t * part, every);
    }
}

// LayerNorm of x (rows, width), rows `line` apart, for `next`. A piece is a row.
template <bool kExact>
void normalise(const float* x, int width, int line, const Norm& norm, const Linear& next, const Rows& out,
               Pieces pieces) {
    for (int r = pieces.first; r < pieces.last; r++) {
        const size_t start = static_cast<size_t>(r) * line;
        const float* row = x + start;
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (int i = 0; i < width; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(row + i));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
        for (int i = 0; i < width; i += 16) {
            const __m512 off = _mm512_sub_ps(_mm512_loadu_ps(row + i), mean);
            squares = _mm512_fmadd_ps(off, off, squares);
        }
        const __m512 factor = _mm512_set1_ps(1 / std::sqrt(_mm512_reduce_add_ps(squares) / width + norm.epsilon));
        for (int i = 0; i < width; i += 16) {
            const __m512 unit = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), mean), factor);
            const __m512 y = _mm512_fmadd_ps(unit, _mm512_loadu_ps(norm.weight + i), _mm512_loadu_ps(norm.bias + i));
            emit<kExact>(y, next, out, start + i);
        }
    }
}

// 16 x 16 floats: rows `from` apart -> columns, rows `to` apart.
void transpose16(const float* in, size_t from, float* out, size_t to) {
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

// Six rows times any number of columns that is a multiple of 16, as above: `keep(i, column, sum)`.
template <class Keep>
void six_rows_of(const float* const* rows, const float* weights, int inputs, int columns, Keep keep) {
    int at = 0;
    const auto pass = [&](int i, int j, __m512 sum) { keep(i, at + 16 * j, sum); };
    for (; at + 64 <= columns; at += 64) six_rows<4>(rows, weights + at, inputs, columns, pass);
    for (; at < columns; at += 16) six_rows<1>(rows, weights + at, inputs, columns, pass);
}

struct Scratch {
    float *keys, *values, *scores;  // (head, padded keys), (keys, head), (queries of a tile, padded keys)
};

struct Attention {
    int tokens, heads, head, part;  // head: floats of one, a multiple of 16; part: floats of all heads, padded
    int padded() const { return (tokens + 15) / 16 * 16; }
    size_t line() const { return 3 * static_cast<size_t>(part); }  // of a token's queries, keys and values
};

// The keys of a head as columns, and its values, from k and v of the first token.
void gather(const float* k, const float* v, const Attention& a, const Scratch& scratch) {
    const int padded = a.padded(), whole = a.tokens / 16 * 16;
    const size_t line = a.line();
    for (int d = 0; d < a.head; d += 16)
        for (int n = 0; n < whole; n += 16)
            transpose16(k + n * line + d, line, scratch.keys + d * padded + n, padded);
    for (int d = 0; d < a.head; d++)
        for (int n = whole; n < padded; n++) scratch.keys[d * padded + n] = n < a.tokens ? k[n * line + d] : 0.0f;
    for (int n = 0; n < a.tokens; n++)
        std::memcpy(scratch.values + n * a.head, v + n * line, sizeof(float) * a.head);
}

// Scores (padded) of one query -> their exponentials, in place; returns 1 / their sum.
float softmax(float* row, int padded, __mmask16 there) {
    float* end = row + padded - 16;
    _mm512_store_ps(end, _mm512_mask_mov_ps(_mm512_set1_ps(-1e30f), there, _mm512_load_ps(end)));
    __m512 most = _mm512_load_ps(row), sum = _mm512_setzero_ps();
    for (int j = 16; j < padded; j += 16) most = _mm512_max_ps(most, _mm512_load_ps(row + j));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int j = 0; j < padded; j += 16) {
        const __m512 raised = exponential(_mm512_sub_ps(_mm512_load_ps(row + j), most));
        _mm512_store_ps(row + j, raised);
        sum = _mm512_add_ps(sum, raised);
    }
    return 1 / _mm512_reduce_add_ps(sum);
}

// Of qkv (tokens, 3, part) the first `queries` tokens' queries -> out (queries, part), for `next`. A piece is a tile of
// queries of a head.
template <bool kExact>
void attend(const float* qkv, const Attention& a, int queries, const Linear& next, const Rows& out,
            const Scratch& scratch, Pieces pieces) {
    const int padded = a.padded(), tiles = tiles_of(queries);
    const auto there = static_cast<__mmask16>((1u << (16 - (padded - a.tokens))) - 1);
    for (int piece = pieces.first; piece < pieces.last; piece++) {
        const int m = piece % tiles * kRows;
        const float* q = qkv + piece / tiles * a.head;
        if (m == 0 || piece == pieces.first) gather(q + a.part, q + 2 * a.part, a, scratch);
        const float* lines[kRows];
        for (int i = 0; i < kRows; i++) lines[i] = q + std::min(m + i, queries - 1) * a.line();
        six_rows_of(lines, scratch.keys, a.head, padded, [&](int i, int column, __m512 sum) {
            _mm512_store_ps(scratch.scores + i * padded + column, sum);
        });
        __m512 factor[kRows];
        for (int i = 0; i < kRows; i++) {
            factor[i] = _mm512_set1_ps(softmax(scratch.scores + i * padded, padded, there));
            lines[i] = scratch.scores + i * padded;
        }
        six_rows_of(lines, scratch.values, a.tokens, a.head, [&](int i, int column, __m512 sum) {
            if (m + i < queries)
                emit<kExact>(_mm512_mul_ps(sum, factor[i]), next, out,
                             static_cast<size_t>(m + i) * a.part + piece / tiles * a.head + column);
        });
    }
}

// The convolution that cuts an image in patches, as a product: weights packed as (columns / 64, inputs, 64).
struct Patches {
    int channels, side_y, side_x, down, across;  // pixels of a patch's edges, patches in a column and in a row
    int first;                                   // tokens in front of the patches': the class token's
    const float *weights, *positions;            // positions (first + patches, line) have them, and biases, in them
    int count() const { return down * across; }
    int inputs() const { return channels * side_y * side_x; }
};

// Pixels (channels, height, width) -> lines (patches, inputs). A piece is a patch.
void cut(const float* pixels, const Patches& p, float* lines, Pieces pieces) {
    const size_t width = static_cast<size_t>(p.across) * p.side_x, height = static_cast<size_t>(p.down) * p.side_y;
    for (int n = pieces.first; n < pieces.last; n++) {
        const float* corner = pixels + n / p.across * p.side_y * width + n % p.across * p.side_x;
        float* line = lines + static_cast<size_t>(n) * p.inputs();
        for (int c = 0; c < p.channels; c++)
            for (int y = 0; y < p.side_y; y++, line += p.side_x)
                std::memcpy(line, corner + (c * height + y) * width, sizeof(float) * p.side_x);
    }
}

// Lines W + positions -> x (first + patches, line). A piece is a tile; the rows of `lines` are padded to whole ones.
void embed(const float* lines, const Patches& p, int line, float* x, Pieces pieces) {
    const int inputs = p.inputs(), tiles = tiles_of(p.count());
    if (pieces.first == 0) std::memcpy(x, p.positions, sizeof(float) * line * p.first);
    for (int piece = pieces.first; piece < pieces.last; piece++) {
        const int n = piece / tiles, m = piece % tiles * kRows;
        const float* rows[kRows];
        for (int i = 0; i < kRows; i++) rows[i] = lines + static_cast<size_t>(m + i) * inputs;
        const float* weights = p.weights + static_cast<size_t>(n) * kColumns * inputs;
        six_rows<4>(rows, weights, inputs, kColumns, [&](int i, int j, __m512 sum) {
            if (m + i >= p.count()) return;
            const size_t at = static_cast<size_t>(p.first + m + i) * line + n * kColumns + 16 * j;
            _mm512_storeu_ps(x + at, _mm512_add_ps(sum, _mm512_loadu_ps(p.positions + at)));
        });
    }
}

struct Classifier {
    int classes;
    const float *weights, *bias;  // (classes, line)
};

}  // namespace

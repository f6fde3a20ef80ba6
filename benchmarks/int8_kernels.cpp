// A ViT's encoder in INT8 by kernels of its own, for benchmarks/int8_kernels.py: AVX-512 with VNNI, one image a call.
//
// A product is tiled in 6 rows by 64 columns, whose 24 sums stay in registers while its weights stream by, packed as
// (columns / 64, inputs / 4, 64, 4). What follows a product is done on the registers: scale and bias, then the
// residual, or GELU and the quantisation for the next product. Attention is float32, a head at a time, its scores in
// the cache.
// Zero points of the inputs are in the biases: (x - z) W = x W - z sum(W).

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

namespace {

constexpr int kRows = 6, kColumns = 64, kHead = 64;  // of a tile; of a head

struct Linear {
    int inputs, outputs;
    const int8_t* weights;  // packed
    const float* scale;     // input's scale * column's scale
    const float* bias;      // with the input's zero point in it
    float inverse, zero;    // of the input: round(x * inverse + zero)
};

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

struct Layer {
    Norm before, after;
    Linear qkv, output, fc1, fc2;
};

enum class Then { kStore, kAdd, kGeluQuantize };

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

template <int R, Then then>
void tile(const uint8_t* x, const Linear& w, int column, float* out, uint8_t* bytes, const Linear* next,
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
            __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), scale, bias);
            if (then == Then::kAdd) value = _mm512_add_ps(value, _mm512_loadu_ps(out + at));
            if (then == Then::kGeluQuantize)
                quantize(gelu(value), next->inverse, next->zero, bytes + at);
            else
                _mm512_storeu_ps(out + at, value);
        }
    }
}

template <Then then>
void rows_of(int rows, const uint8_t* x, const Linear& w, int column, float* out, uint8_t* bytes, const Linear* next,
             const int8_t* ahead, int every) {
    switch (rows) {
        case 6: return tile<6, then>(x, w, column, out, bytes, next, ahead, every);
        case 5: return tile<5, then>(x, w, column, out, bytes, next, ahead, every);
        case 4: return tile<4, then>(x, w, column, out, bytes, next, ahead, every);
        case 3: return tile<3, then>(x, w, column, out, bytes, next, ahead, every);
        case 2: return tile<2, then>(x, w, column, out, bytes, next, ahead, every);
        default: return tile<1, then>(x, w, column, out, bytes, next, ahead, every);
    }
}

// Columns first to last of x W, x (rows, inputs); each thread takes its share of them.
template <Then then>
void product(const uint8_t* x, int rows, const Linear& w, int first, int last, float* out, uint8_t* bytes,
             const Linear* next, int thread, int threads) {
    const int blocks = (last - first) / kColumns, tiles = (rows + kRows - 1) / kRows;
    // each tile fetches its share of the weights of the next columns, a line every so many inputs
    const int every = std::max(tiles / 4, 1) * 4;
    const size_t share = static_cast<size_t>((w.inputs + every - 1) / every) * 64;
    for (int n = blocks * thread / threads; n < blocks * (thread + 1) / threads; n++)
        for (int t = 0; t < tiles; t++) {
            const size_t at = static_cast<size_t>(t) * kRows;
            const size_t block = static_cast<size_t>(first / kColumns + n + 1) * w.inputs * kColumns;
            rows_of<then>(std::min(kRows, rows - t * kRows), x + at * w.inputs, w, first + n * kColumns,
                          out + at * w.outputs, bytes + at * w.outputs, next, w.weights + block + t * share, every);
        }
}

// LayerNorm of x (rows, width); quantised for `next` if there is one, else as float32.
void normalise(const float* x, int rows, int width, const Norm& norm, const Linear* next, uint8_t* bytes, float* out,
               int thread, int threads) {
    for (int r = rows * thread / threads; r < rows * (thread + 1) / threads; r++) {
        const float* row = x + static_cast<size_t>(r) * width;
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
            if (next != nullptr)
                quantize(y, next->inverse, next->zero, bytes + static_cast<size_t>(r) * width + i);
            else
                _mm512_storeu_ps(out + static_cast<size_t>(r) * width + i, y);
        }
    }
}

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

struct Scratch {
    float *keys, *values, *scores;  // (head, padded keys), (keys, head), (queries of a tile, padded keys)
};

// One head of qkv (tokens, 3 * width), the first `queries` of its tokens -> out (queries, width), quantised for `next`.
void attend(const float* qkv, int tokens, int queries, int width, int head, const Linear& next, uint8_t* out,
            const Scratch& scratch) {
    const size_t line = 3 * static_cast<size_t>(width);
    const float *q = qkv + head * kHead, *k = q + width, *v = k + width;
    const int vectors = (tokens + 15) / 16, padded = 16 * vectors, whole = tokens / 16 * 16;
    for (int d = 0; d < kHead; d += 16)
        for (int n = 0; n < whole; n += 16)
            transpose16(k + n * line + d, line, scratch.keys + d * padded + n, padded);
    for (int d = 0; d < kHead; d++)
        for (int n = whole; n < padded; n++) scratch.keys[d * padded + n] = n < tokens ? k[n * line + d] : 0.0f;
    for (int n = 0; n < tokens; n++) std::memcpy(scratch.values + n * kHead, v + n * line, sizeof(float) * kHead);
    const auto there = static_cast<__mmask16>((1u << (16 - (padded - tokens))) - 1);
    for (int m = 0; m < queries; m += kRows) {
        const float* lines[kRows];
        for (int i = 0; i < kRows; i++) lines[i] = q + std::min(m + i, queries - 1) * line;
        int at = 0;
        const auto store = [&](int i, int j, __m512 sum) {
            _mm512_store_ps(scratch.scores + i * padded + at + 16 * j, sum);
        };
        for (; at + 64 <= padded; at += 64) six_rows<4>(lines, scratch.keys + at, kHead, padded, store);
        for (; at < padded; at += 16) six_rows<1>(lines, scratch.keys + at, kHead, padded, store);
        __m512 factor[kRows];
        for (int i = 0; i < kRows; i++) {
            float *row = scratch.scores + i * padded, *end = row + padded - 16;
            _mm512_store_ps(end, _mm512_mask_mov_ps(_mm512_set1_ps(-1e30f), there, _mm512_load_ps(end)));
            __m512 most = _mm512_load_ps(row), sum = _mm512_setzero_ps();
            for (int j = 1; j < vectors; j++) most = _mm512_max_ps(most, _mm512_load_ps(row + 16 * j));
            most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
            for (int j = 0; j < vectors; j++) {
                const __m512 raised = exponential(_mm512_sub_ps(_mm512_load_ps(row + 16 * j), most));
                _mm512_store_ps(row + 16 * j, raised);
                sum = _mm512_add_ps(sum, raised);
            }
            factor[i] = _mm512_set1_ps(1 / _mm512_reduce_add_ps(sum));
        }
        for (int i = 0; i < kRows; i++) lines[i] = scratch.scores + i * padded;
        six_rows<4>(lines, scratch.values, tokens, kHead, [&](int i, int j, __m512 sum) {
            if (m + i < queries)
                quantize(_mm512_mul_ps(sum, factor[i]), next.inverse, next.zero,
                         out + static_cast<size_t>(m + i) * width + head * kHead + 16 * j);
        });
    }
}

// The convolution that cuts an image in patches, as a product: weights packed as (columns / 64, inputs, 64).
struct Patches {
    int side, across, inputs;  // pixels of a patch's edge, patches in a row, 3 * side * side
    const float *weights, *positions;  // positions (1 + patches, width): the class token and biases are in them
};

// Pixels (3, edge, edge) -> lines (patches, inputs).
void cut(const float* pixels, const Patches& p, float* lines, int thread, int threads) {
    const int count = p.across * p.across, edge = p.across * p.side;
    for (int n = count * thread / threads; n < count * (thread + 1) / threads; n++)
        for (int c = 0; c < 3; c++)
            for (int y = 0; y < p.side; y++)
                std::memcpy(lines + static_cast<size_t>(n) * p.inputs + (c * p.side + y) * p.side,
                            pixels + (static_cast<size_t>(c) * edge + n / p.across * p.side + y) * edge +
                                n % p.across * p.side,
                            sizeof(float) * p.side);
}

// Lines W + positions -> x (1 + patches, width). The rows of `lines` are padded to a multiple of 6.
void embed(const float* lines, const Patches& p, int width, float* x, int thread, int threads) {
    const int count = p.across * p.across, blocks = width / kColumns;
    if (thread == 0) std::memcpy(x, p.positions, sizeof(float) * width);
    for (int n = blocks * thread / threads; n < blocks * (thread + 1) / threads; n++)
        for (int m = 0; m < count; m += kRows) {
            const float* rows[kRows];
            for (int i = 0; i < kRows; i++) rows[i] = lines + static_cast<size_t>(m + i) * p.inputs;
            const float* weights = p.weights + static_cast<size_t>(n) * kColumns * p.inputs;
            six_rows<4>(rows, weights, p.inputs, kColumns, [&](int i, int j, __m512 sum) {
                if (m + i >= count) return;
                const size_t at = static_cast<size_t>(1 + m + i) * width + n * kColumns + 16 * j;
                _mm512_storeu_ps(x + at, _mm512_add_ps(sum, _mm512_loadu_ps(p.positions + at)));
            });
        }
}

struct Classifier {
    int classes;
    const float *weights, *bias;  // (classes, width)
};

struct Encoder {
    int tokens, width, hidden, threads;
    std::vector<Layer> layers;
    Norm last;
    Patches patches;
    Classifier classifier;
    const float* pixels;
    float *lines, *x, *qkv, *made;
    uint8_t *a, *b, *wide;
    std::vector<Scratch> scratch;
    std::vector<std::thread> others;
    std::atomic<int> arrived{0}, phase{0};
    std::mutex mutex;
    std::condition_variable called;
    int call = 0;
    bool closed = false;

    void wait() {  // until every thread is here
        const int now = phase.load();
        if (arrived.fetch_add(1) + 1 == threads) {
            arrived = 0;
            phase++;
        } else
            while (phase.load() == now) _mm_pause();
    }

    void run(int thread) {
        _mm_setcsr(_mm_getcsr() | 0x8040);  // denormals are zeros: a softmax has many, and each costs 150 cycles
        const int heads = width / kHead;
        cut(pixels, patches, lines, thread, threads);
        wait();
        embed(lines, patches, width, x, thread, threads);
        wait();
        for (size_t i = 0; i < layers.size(); i++) {
            const Layer& layer = layers[i];
            const int rows = i + 1 == layers.size() ? 1 : tokens;  // a classifier reads one token of the last layer
            normalise(x, tokens, width, layer.before, &layer.qkv, a, nullptr, thread, threads);
            wait();
            product<Then::kStore>(a, rows, layer.qkv, 0, width, qkv, a, nullptr, thread, threads);
            product<Then::kStore>(a, tokens, layer.qkv, width, 3 * width, qkv, a, nullptr, thread, threads);
            wait();
            for (int h = heads * thread / threads; h < heads * (thread + 1) / threads; h++)
                attend(qkv, tokens, rows, width, h, layer.output, b, scratch[thread]);
            wait();
            product<Then::kAdd>(b, rows, layer.output, 0, width, x, b, nullptr, thread, threads);
            wait();
            normalise(x, rows, width, layer.after, &layer.fc1, a, nullptr, thread, threads);
            wait();
            product<Then::kGeluQuantize>(a, rows, layer.fc1, 0, hidden, nullptr, wide, &layer.fc2, thread, threads);
            wait();
            product<Then::kAdd>(wide, rows, layer.fc2, 0, width, x, b, nullptr, thread, threads);
            wait();
        }
        if (thread == 0) normalise(x, 1, width, last, nullptr, nullptr, made, 0, 1);
    }

    void serve(int thread) {
        for (int seen = 0;;) {
            std::unique_lock<std::mutex> lock(mutex);
            called.wait(lock, [&] { return closed || call != seen; });
            if (closed) return;
            seen = call;
            lock.unlock();
            run(thread);
        }
    }
};

template <class T>
T* room(size_t count) {
    const size_t bytes = (count * sizeof(T) + 4096 + 63) / 64 * 64;
    void* found = std::aligned_alloc(64, bytes);
    std::memset(found, 0, bytes);
    return static_cast<T*>(found);
}

}  // namespace

extern "C" {

Encoder* encoder_open(int width, int hidden, int count, const Layer* layers, Norm last, Patches patches,
                      Classifier classifier, int threads) {
    const int tokens = 1 + patches.across * patches.across;
    if (width % kColumns || hidden % kColumns) return nullptr;
    auto* made = new Encoder{};
    made->tokens = tokens, made->width = width, made->hidden = hidden, made->threads = threads, made->last = last;
    made->patches = patches, made->classifier = classifier;
    made->lines = room<float>(static_cast<size_t>(tokens + kRows) * patches.inputs);
    made->layers.assign(layers, layers + count);
    const size_t size = static_cast<size_t>(tokens) * width;
    made->x = room<float>(size), made->qkv = room<float>(3 * size), made->made = room<float>(width);
    made->a = room<uint8_t>(size), made->b = room<uint8_t>(size);
    made->wide = room<uint8_t>(static_cast<size_t>(tokens) * hidden);
    const int padded = (tokens + 15) / 16 * 16;
    for (int t = 0; t < threads; t++)
        made->scratch.push_back(
            {room<float>(kHead * padded), room<float>(kHead * padded), room<float>(kRows * padded)});
    for (int t = 1; t < threads; t++) made->others.emplace_back(&Encoder::serve, made, t);
    return made;
}

// Pixels (3, edge, edge) float32 -> logits (classes).
void encoder_run(Encoder* encoder, const float* pixels, float* logits) {
    encoder->pixels = pixels;
    {
        std::lock_guard<std::mutex> lock(encoder->mutex);
        encoder->call++;
    }
    encoder->called.notify_all();
    encoder->run(0);
    const Classifier& head = encoder->classifier;
    for (int c = 0; c < head.classes; c++) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < encoder->width; i += 16)
            sum = _mm512_fmadd_ps(_mm512_loadu_ps(head.weights + static_cast<size_t>(c) * encoder->width + i),
                                  _mm512_loadu_ps(encoder->made + i), sum);
        logits[c] = _mm512_reduce_add_ps(sum) + head.bias[c];
    }
}
}

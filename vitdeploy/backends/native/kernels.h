// What the steps of a plain ViT in INT8 work on, and what an instruction set states of itself and provides.
//
// Rows of every buffer are whole tiles long. What is there beyond a model's width has weights, scales and biases of
// zero (packing.py packs them so), so that only LayerNorm has to know the width.
//
// No inline function here has external linkage, nor may one in isa/: the linker keeps one copy of such a function, and
// that could be the one that was compiled for an instruction set which this processor lacks.

#pragma once

#include <cstddef>
#include <cstdint>

namespace kernels {

// Of a product, as its instruction set computes it. Weights are packed for it as (outputs / columns, inputs / group,
// columns, group).
struct Tile {
    int rows, columns;  // outputs that stay in registers while the weights stream by
    int lanes;          // floats of a vector: heads are padded to multiples of it
    int group;          // inputs that one instruction multiplies and adds to each sum
    int alignment;      // of constants and buffers, in bytes
};

struct Linear {
    int inputs, outputs;
    const int8_t* weights;  // packed
    const int32_t* sums;    // of each column's weights
    const float* scale;     // input's scale * column's scale
    const float* bias;      // with the input's zero point in it: (x - z) W = x W - z sum(W)
    float inverse, zero;    // of the input: round(x * inverse + zero)
    const float* exact;     // where it is left out of INT8: float32 weights, packed as (outputs / columns, inputs, columns)
    // of what stands in front of an MLP's second: x / (1 + exp(-x (steep + cubic x^2))); where both are 0, GELU by erf
    float steep, cubic;
};

// The input of a Linear, as that one reads it.
struct Rows {
    uint8_t* bytes;
    float* floats;
};

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

// What attention's products multiply where they are in INT8: each is (byte - zero) * scale, keys and values of signed bytes
// without a zero. A scale of 0: they are in float32.
struct Factors {
    float query, key, share, value;
    float query_zero, share_zero;
};

struct Layer {
    Norm before, after;
    Linear qkv, output, fc1, fc2;
    Factors factors;
    Linear gate;  // where it has one, of outputs: what goes through the curve, and is multiplied with fc1's
};

// The convolution that cuts an image in patches, as a product: weights packed as (outputs / columns, inputs, columns).
struct Patches {
    int channels, side_y, side_x, down, across;  // pixels of a patch's edges, patches in a column and in a row
    int first;                                   // tokens in front of the patches': the class token's, or none
    const float *weights, *positions;            // positions (first + patches, line) have them, and biases, in them
    Norm norm;                                   // of all tokens, in front of the layers; its weight is null where none is
};

// Of the first token. Where it has no classes, what is asked for is what the layers make.
struct Classifier {
    int classes;
    const float *weights, *bias;  // (classes, line)
};

struct Attention {
    int tokens, heads, head, part;  // head: floats of one, whole vectors; part: floats of all heads, padded
    int padded;                     // tokens as whole vectors
};

struct Scratch {
    float *keys, *values, *scores;  // (head, padded keys), (keys, head), (queries of a tile, padded keys)
    // for INT8: keys (head / 4, padded keys, 4), values (keys / 4, head, 4), a tile of shares and one of queries; and of
    // each key's and each value's bytes the sum
    uint8_t* bytes;
    int32_t* sums;
};

// Rows of a buffer: so many, each `apart` rows from the one before.
struct Choice {
    int rows, apart;
};

// Pieces of a step, from `first` up to `last`.
struct Pieces {
    int first, last;
};

// After a product. Those in pairs are for the input of the next one, which is in INT8, or in float32: GELU of it, its curve,
// or the curve of what `out` has there times it.
enum class Then { kStore, kAdd, kGelu, kGeluExact, kCurve, kCurveExact, kGate, kGateExact };

// The steps, compiled for one instruction set. Two functions in a pair: for a Linear in INT8, and for one in float32.
struct Steps {
    // Lines (images, patches, inputs) W + positions -> x (images, first + patches, line). A piece is a tile.
    void (*embed)(const float* lines, const Patches& patches, int images, int line, float* x, Pieces pieces);
    // LayerNorm of x (rows, width), rows `line` values long, for `next`; `out` may be x. A piece is a row.
    void (*normalise[2])(const float* x, int width, int line, const Norm& norm, const Linear& next, const Rows& out,
                         int apart, Pieces pieces);
    // By Then: columns of x W from `first` on, x (rows, inputs). A piece is a tile.
    void (*product[8])(const Rows& x, Choice rows, const Linear& w, int first, float* out, const Rows& made,
                       const Linear* next, Pieces pieces);
    // Of qkv (images, tokens, 3, part) the first `queries` tokens' queries -> out (images, tokens, part), for `next`. A
    // piece is a tile of queries of a head of an image.
    void (*attend[2])(const float* qkv, const Attention& attention, int queries, const Linear& next, const Rows& out,
                      const Scratch& scratch, Pieces pieces);
    // The same with its products in INT8.
    void (*attend_bytes[2])(const float* qkv, const Attention& attention, int queries, const Factors& factors,
                            const Linear& next, const Rows& out, const Scratch& scratch, Pieces pieces);
    // Rows (rows, line) -> logits (rows, classes). A piece is a class.
    void (*classify)(const float* x, Choice rows, const Classifier& classifier, int line, float* logits, Pieces pieces);
};

struct InstructionSet {
    const char* name;
    const char* missing;  // what the processor or its operating system lacks of what it needs, or null
    int on_request;       // whether it runs only where it is asked for by name
    Tile tile;
    const Steps* steps;
};

}  // namespace kernels

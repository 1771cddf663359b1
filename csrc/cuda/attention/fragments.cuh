// The products of the attention block, as fragments that a warp holds in registers.
//
// A warp works on a group of 16 pairs and walks through the columns in steps of 16. In each step a
// lane holds z[2][4]: the pairs `row` = lane / 4 and `row` + 8, and the columns 4 `quad` to
// 4 `quad` + 3, with `quad` = lane % 4. That is the layout of two accumulators of mma.m16n8k16, if
// column j of half h of the step is column column_of(h, j). So
//   - one epilogue serves tensor cores (factors in bfloat16 or tf32, sums in float) and plain loops
//     (float, double),
//   - a 16-byte load reaches the four columns of a lane,
//   - a step of dz is again the left factor of a product over columns.
//
// Each group of columns (hidden | attention | interaction) is padded to whole steps, with zero
// weights.
#pragma once

#include "known_shapes.cuh"

namespace sitenet::cuda {

constexpr int kGroup = 16;     // pairs that a warp holds at a time
constexpr int kStep = 16;      // columns of one step
constexpr int kHeads = 4;      // heads whose sums are in registers at a time
constexpr int kTiles = 8;      // accumulators of 8 columns each, for products of width 64
constexpr int kBlockWarps = 4; // warps per block; they do not wait for each other
// Blocks per multiprocessor: allows 168 registers per thread, in double 255.
template <class T> constexpr int kMinBlocks = sizeof(T) == 8 ? 2 : 3;

#ifndef SITENET_FEW_PAIRS
#define SITENET_FEW_PAIRS 100000 // fewer in the tests on the CPU
#endif
/// Below so many pairs, warps that take 64 each leave an H100 idle: it holds 3 blocks of 4 warps on
/// each of 132 multiprocessors. A mini-batch of 64 crystals has some 28,000.
constexpr int64_t kFewPairs = SITENET_FEW_PAIRS;

/// The place of this thread in its warp.
struct LaneOf {
    int lane, row, quad;
    __device__ LaneOf() : lane(threadIdx.x % kWarp), row(lane / 4), quad(lane % 4) {}
};

/// Column within its step of column j of half h.
constexpr SITENET_HD int column_of(int h, int j) { return 4 * (j / 2) + 2 * h + j % 2; }

// ------------------------------------------------------------------------------------------------
// Instructions of the tensor cores.

/// c (16 x 8) += a (16 x 16) b (16 x 8)
__device__ inline void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef __CUDACC__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emu::mma_bf16(c, a, b);
#endif
}

/// c (16 x 8) = a (16 x 16) b (16 x 8)
__device__ inline void set_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef __CUDACC__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %10, %10, %10};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
#else
    c[0] = c[1] = c[2] = c[3] = 0;
    emu::mma_bf16(c, a, b);
#endif
}

/// Rounds to the nearest tf32; the bits of a float.
__device__ inline uint32_t to_tf32(float x) {
#ifdef __CUDACC__
    uint32_t word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
    return word;
#else
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    return x != x ? word : (word + 0x1000) & ~0x1fffu;
#endif
}

/// c (16 x 8) += a (16 x 8) b (8 x 8), factors as bits of tf32
__device__ inline void mma_tf32(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emu::mma_tf32(c, a, b);
#endif
}

/// Transposes 8 x 8 numbers in bfloat16: a lane holds columns 2 quad and 2 quad + 1 of its row.
__device__ inline uint32_t transpose_8x8(uint32_t x) {
#ifdef __CUDACC__
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
#else
    return emu::transpose_8x8(x);
#endif
}

// ------------------------------------------------------------------------------------------------
// z += W e for the two pairs of a lane, with the weight packed by packing.cuh.

/// In plain loops, for float and double.
template <class T, class E> struct PlainProducts {
    const T *weight;
    const E *e[2];
    int width;
    bool whole;

    __device__ PlainProducts(const void *packed, const E *rows, int64_t first, int64_t second,
                             int width)
        : weight(static_cast<const T *>(packed) + 4 * LaneOf().quad),
          e{rows + first * width, rows + second * width}, width(width),
          whole(whole_fours(rows, width)) {}
    __device__ void add(int step, T z[2][4]) const {
        const T *w = weight + int64_t(step) * kStep * ((width + 3) / 4 * 4);
#pragma unroll 2
        for (int k = 0; k < width; k += 4, w += 4 * kStep) {
            const Four<T> x[2] = {four_of_row(e[0], k, width, whole),
                                  four_of_row(e[1], k, width, whole)};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const Four<T> wk = load4(w + i * kStep);
#pragma unroll
                for (int r = 0; r < 2; ++r)
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        z[r][j] += x[r].v[i] * wk.v[j];
            }
        }
    }
};

/// Two products with the same left factor: one per half of a step, or of 16 columns of e.
__device__ inline void multiply_halves(float c[2][4], const uint32_t left[4], const uint4 &b) {
    const uint32_t low[2] = {b.x, b.y}, high[2] = {b.z, b.w};
    mma_bf16(c[0], left, low);
    mma_bf16(c[1], left, high);
}

/// Products of 16 columns of e that cover the width.
constexpr SITENET_HD int products_of(int width) { return (width + 15) / 16; }

/// On tensor cores in bfloat16. The first 64 columns of e stay in registers; the rest is loaded
/// again in every step. Known: the number of products, if known when compiled, or 0.
template <int Known> struct TensorProducts {
    static constexpr int kHeld = Known ? Known : 4;
    static_assert(Known <= 4, "more do not fit the registers");
    const uint4 *weight;
    const uint16_t *e[2];
    int width, products;
    bool whole;
    uint32_t a[kHeld][4];

    __device__ TensorProducts(const void *packed, const uint16_t *rows, int64_t first,
                              int64_t second, int width)
        : weight(static_cast<const uint4 *>(packed) + LaneOf().lane),
          e{rows + first * width, rows + second * width}, width(width),
          products(Known ? Known : products_of(width)), whole(whole_words(rows, width)) {
#pragma unroll
        for (int t = 0; t < kHeld; ++t)
            load(t, a[t]); // zeros beyond the width
    }
    __device__ void load(int t, uint32_t to[4]) const {
        const int k = 16 * t + 2 * LaneOf().quad;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            to[i] = two_of_row(e[i % 2], k + 8 * (i / 2), width, whole);
    }
    /// Stores the group's e as the right factor of products over pairs: per 16 columns of e, 16
    /// bytes per lane for two times 8 columns.
    __device__ void store_transposed(uint4 *fragments, int64_t group) const {
        uint4 *to = fragments + group * products * kWarp + LaneOf().lane;
        auto store = [&](int t, const uint32_t *x) {
            to[t * kWarp] = {transpose_8x8(x[0]), transpose_8x8(x[1]), transpose_8x8(x[2]),
                             transpose_8x8(x[3])};
        };
#pragma unroll
        for (int t = 0; t < kHeld; ++t)
            if (t < products)
                store(t, a[t]);
        for (int t = kHeld; t < products; ++t) {
            uint32_t x[4];
            load(t, x);
            store(t, x);
        }
    }
    template <int Count> __device__ void multiply_held(float c[2][4], const uint4 *w) const {
        uint4 b[Count];
#pragma unroll
        for (int t = 0; t < Count; ++t)
            b[t] = w[t * kWarp];
#pragma unroll
        for (int t = 0; t < Count; ++t)
            multiply_halves(c, a[t], b[t]);
    }
    __device__ void multiply_any(float c[2][4], const uint4 *w) const {
        switch (products) { // straight-line code per count, instead of a test per product
        case 1:
            multiply_held<1>(c, w);
            break;
        case 2:
            multiply_held<2>(c, w);
            break;
        case 3:
            multiply_held<3>(c, w);
            break;
        default:
            multiply_held<4>(c, w);
            for (int t = kHeld; t < products; ++t) {
                uint32_t left[4];
                load(t, left);
                multiply_halves(c, left, w[t * kWarp]);
            }
        }
    }
    __device__ void add(int step, float z[2][4]) const {
        float c[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i)
            c[i % 4 / 2][2 * (i / 4) + i % 2] = z[i / 4][i % 4];
        const uint4 *w = weight + uint32_t(step) * uint32_t(products * kWarp);
        if constexpr (Known)
            multiply_held<Known>(c, w);
        else
            multiply_any(c, w);
#pragma unroll
        for (int i = 0; i < 8; ++i)
            z[i / 4][i % 4] = c[i % 4 / 2][2 * (i / 4) + i % 2];
    }
};

/// On tensor cores in tf32, in products of 8 columns of e: 2 quad is the first factor of a lane and
/// 2 quad + 1 the second. e is loaded from cache again in every step, since it would take twice the
/// registers of bfloat16.
struct Tf32Products {
    const uint4 *weight;
    const float *e[2];
    int width;

    __device__ Tf32Products(const void *packed, const Tf32 *rows, int64_t first, int64_t second,
                            int width)
        : weight(static_cast<const uint4 *>(packed) + LaneOf().lane),
          e{&rows[first * width].value, &rows[second * width].value}, width(width) {}
    __device__ void add(int step, float z[2][4]) const {
        float c[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i)
            c[i % 4 / 2][2 * (i / 4) + i % 2] = z[i / 4][i % 4];
        const uint4 *w = weight + step * ((width + 7) / 8 * kWarp);
#pragma unroll 2
        for (int k = 2 * LaneOf().quad; k < width + 2 * LaneOf().quad; k += 8, w += kWarp) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                a[i] = to_tf32(k + i / 2 < width ? e[i % 2][k + i / 2] : 0.0f);
            const uint4 b = *w;
            const uint32_t low[2] = {b.x, b.y}, high[2] = {b.z, b.w};
            mma_tf32(c[0], a, low);
            mma_tf32(c[1], a, high);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
            z[i / 4][i % 4] = c[i % 4 / 2][2 * (i / 4) + i % 2];
    }
};

template <class T, class E, class S>
using Products =
    std::conditional_t<kBfloat16<E>, TensorProducts<S::kProducts>,
                       std::conditional_t<kTf32<E>, Tf32Products, PlainProducts<T, E>>>;

} // namespace sitenet::cuda

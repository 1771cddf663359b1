// What the kernels of the attention block's backward leave for each other (backward.cu).
#pragma once

#include "../kernels.h"
#include "packing.cuh"

namespace sitenet::cuda {
namespace {

#ifndef SITENET_SLAB
#define SITENET_SLAB 65536 // less in the tests on the CPU
#endif
constexpr int64_t kSlab = SITENET_SLAB; // pairs
constexpr int kSplit = 512;             // pairs whose dz^T e one warp sums
constexpr int kWeightSteps = 2;         // steps of columns it sums them for
constexpr int kTileWidth = 8 * kTiles;
constexpr int kRangeThreads = 256;          // that look for the sites of a slab
constexpr int kSumBlocks = int(kSlab / 64); // at most, that share the rows or sites of a slab
constexpr int kSumThreads = 8 * kWarp;      // that add up partial sums
constexpr int kLogitParts = 8;              // of the sum of what a slab's blocks leave
static_assert(kSlab % kSplit == 0 && kSplit % kGroup == 0, "slabs are whole groups");

SITENET_HD int64_t slabs_of(const AttentionShape &s) {
    return s.pairs > kSlab ? divide_up(s.pairs, kSlab) : 1;
}

template <class T, class E> struct BackwardScratch {
    Packed<T, E> packed;
    void *back_weight;      // W for dz W: fragments, or (padded columns, padded width)
    T *grad_y;              // (rows, heads, padded attention)
    T *y_dot, *grad_y_sums; // (rows, heads): y . grad_y, sum of grad_y
    E *dz;                  // (pairs of a slab, padded columns), zero beyond the last pair
    uint4 *e_fragments;     // tensor cores: e as right factor over pairs (store_transposed)
    T *weight_partials;     // (splits, padded columns, padded width)
    T *logit_partials;      // (blocks, heads, padded hidden)
    T *logit_parts;         // (slabs, kLogitParts, heads, padded hidden)
    int32_t *site_ranges;   // (slabs, 2): the lowest site of a slab's pairs, and behind the highest
    int padded_width;
    int64_t slab; // pairs of the largest slab, rounded up to whole groups

    BackwardScratch(const AttentionShape &s, Scratch &scratch) : packed(s, scratch) {
        const int64_t columns = packed.columns.padded();
        padded_width = int(round_up(s.width, 8));
        slab = round_up(s.pairs < kSlab ? s.pairs : kSlab, kGroup);
        back_weight = scratch.take<T>(columns * padded_width);
        grad_y = scratch.take<T>(int64_t(s.rows) * s.heads * round_up(s.attention, kStep));
        y_dot = scratch.take<T>(int64_t(s.rows) * s.heads);
        grad_y_sums = scratch.take<T>(int64_t(s.rows) * s.heads);
        dz = scratch.take<E>(slab * columns);
        e_fragments =
            scratch.take<uint4>(kBfloat16<E> ? slab / kGroup * products_of(s.width) * kWarp : 0);
        weight_partials = scratch.take<T>(divide_up(slab, kSplit) * columns * padded_width);
        logit_partials =
            scratch.take<T>(divide_up(slab, kGroup) * s.heads * packed.padded_hidden());
        logit_parts = scratch.take<T>(slabs_of(s) * kLogitParts * s.heads * packed.padded_hidden());
        site_ranges = scratch.take<int32_t>(2 * slabs_of(s));
    }
};

// Of one row and head: grad_y as (rows, heads, padded attention), its sum, its product with y.
template <class T>
__global__ void pack_grad_y_kernel(const T *__restrict__ y, const T *__restrict__ grad_y, int rows,
                                   int attention, int heads, T *__restrict__ packed,
                                   T *__restrict__ y_dot, T *__restrict__ sums) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= int64_t(rows) * heads)
        return;
    const int64_t begin = i / heads * attention * heads + i % heads;
    const int padded = int(round_up(attention, kStep));
    T dot = 0, sum = 0;
    for (int a = 0; a < padded; ++a) {
        const T g = a < attention ? grad_y[begin + int64_t(a) * heads] : T(0);
        packed[i * padded + a] = g;
        dot += a < attention ? g * y[begin + int64_t(a) * heads] : T(0);
        sum += g;
    }
    y_dot[i] = dot;
    sums[i] = sum;
}

template <class T>
__global__ void pack_back_weight_kernel(const T *__restrict__ weight, int width, int padded_width,
                                        Columns columns, T *__restrict__ packed) {
    const int dense = columns.dense_of(blockIdx.x);
    for (int k = threadIdx.x; k < padded_width; k += blockDim.x)
        packed[int64_t(blockIdx.x) * padded_width + k] =
            dense < 0 || k >= width ? T(0) : weight[dense * width + k];
}

} // namespace
} // namespace sitenet::cuda

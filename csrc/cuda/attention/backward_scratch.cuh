// What the kernels of the backward pass leave for each other in scratch memory (backward.cu).
#pragma once

#include "../kernels.h"
#include "walk.cuh"

namespace sitenet::cuda {
namespace {

#ifndef SITENET_SLAB
// Two full waves of gradient_kernel on an H100: 3 blocks of 64 pairs on each of 132 multiprocessors,
// twice. Smaller in the tests on the CPU.
#define SITENET_SLAB 50688
#endif
constexpr int64_t kSlab = SITENET_SLAB;     // pairs per slab
constexpr int kSplit = 512;                 // pairs per warp of grad_weight_kernel
constexpr int kWeightSteps = 2;             // steps of columns per warp of grad_weight_kernel
constexpr int kTileWidth = 8 * kTiles;      // columns of e per warp of grad_weight_kernel
constexpr int kSumBlocks = int(kSlab / 64); // most blocks of sum_sites_kernel
constexpr int kSumThreads = 8 * kWarp; // threads per block of the kernels that add partial sums
constexpr int kLogitParts = 8;         // blocks that share one long sum for grad_logit_weight
static_assert(kSlab % kSplit == 0 && kSplit % kGroup == 0, "a slab is whole groups");

SITENET_HD int64_t slabs_of(const AttentionShape &s) {
    return s.pairs > kSlab ? divide_up(s.pairs, kSlab) : 1;
}

template <class T, class E> struct BackwardScratch {
    Packed<T, E> packed;
    void *back_weight;    ///< W for dz W: fragments, or (padded columns, padded width)
    T *grad_y;            ///< (rows, padded attention / 4, heads, 4)
    T *y_dot;             ///< (rows, heads), product of y and grad_y
    T *grad_y_sums;       ///< (rows, heads), sum of grad_y
    E *dz;                ///< (pairs of a slab, padded columns), zero beyond the last pair
    uint4 *e_fragments;   ///< in bfloat16: e as right factor over pairs (store_transposed)
    T *weight_partials;   ///< (splits, padded columns, padded width)
    T *logit_partials;    ///< (blocks, heads, padded hidden)
    T *logit_parts;       ///< (slabs, kLogitParts, heads, padded hidden)
    int32_t *site_ranges; ///< (slabs, 2), lowest site of a slab's pairs and highest + 1
    int padded_width;     ///< width, rounded up to 16
    int64_t slab;         ///< pairs of the largest slab, rounded up to whole groups

    BackwardScratch(const AttentionShape &s, Scratch &scratch) : packed(s, scratch) {
        const int64_t columns = packed.columns.padded();
        padded_width = int(round_up(s.width, 16));
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

} // namespace
} // namespace sitenet::cuda

// The products of the backward pass with dz: grad_e = dz W, and partial sums of grad_weight = dz^T
// e (backward.cu).
#pragma once

#include "backward_scratch.cuh"

namespace sitenet::cuda {
namespace {

/// c += dz W for 16 pairs. A lane holds two pairs and four of every 16 columns of e, as of a step.
template <class T, class E>
__device__ void multiply_back(const BackwardScratch<T, E> &scratch, const E *const dz[2], int tile,
                              int tiles, T c[kTiles][4]) {
    const LaneOf at;
    const int steps = scratch.packed.columns.steps, width = scratch.padded_width;
    if constexpr (kBfloat16<E>) {
        const uint4 *w =
            static_cast<const uint4 *>(scratch.back_weight) + tile / 2 * kWarp + at.lane;
        for (int step = 0; step < steps; ++step, w += width / 16 * kWarp) {
            const int column = kStep * step + 4 * at.quad;
            const uint2 x0 = *reinterpret_cast<const uint2 *>(dz[0] + column);
            const uint2 x1 = *reinterpret_cast<const uint2 *>(dz[1] + column);
            const uint32_t a[4] = {x0.x, x1.x, x0.y, x1.y};
#pragma unroll
            for (int n = 0; n < kTiles; n += 2)
                if (n < tiles)
                    multiply_halves(c + n, a, w[n / 2 * kWarp]);
        }
    } else if constexpr (kTf32<E>) {
        const uint4 *w = static_cast<const uint4 *>(scratch.back_weight) + tile * kWarp + at.lane;
        for (int step = 0; step < steps; ++step, w += width / 8 * kWarp) {
            const int column = kStep * step + 4 * at.quad;
            const Four<E> x0 = load4(dz[0] + column), x1 = load4(dz[1] + column);
            uint32_t a[2][4]; // columns 4 quad and + 1, then + 2 and + 3
#pragma unroll
            for (int i = 0; i < 8; ++i)
                a[i / 4][i % 4] = to_tf32((i % 2 ? x1 : x0).v[i / 2].value);
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                if (n < tiles) {
                    const uint4 b = w[n * kWarp];
                    const uint32_t low[2] = {b.x, b.y}, high[2] = {b.z, b.w};
                    mma_tf32(c[n], a[0], low);
                    mma_tf32(c[n], a[1], high);
                }
        }
    } else {
        const T *w = static_cast<const T *>(scratch.back_weight) + 8 * tile + 4 * at.quad;
        for (int column = 0; column < kStep * steps; ++column, w += width) {
            const T x0 = dz[0][column], x1 = dz[1][column];
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                if (n < tiles)
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const T x = w[16 * (n / 2) + 2 * (n % 2) + j];
                        c[n][j] += x0 * x;
                        c[n][2 + j] += x1 * x;
                    }
        }
    }
}

/// Writes grad_e of the two pairs of a lane, from column 8 `tile` of e on.
template <class T, class E>
__device__ void write_grad_e(const AttentionBackwardKept<T, E> &p, int64_t first, int64_t end,
                             int tile, int tiles, const T c[][4]) {
    const LaneOf at;
    const int width = p.shape.width;
    const bool whole = whole_fours(p.grad_e, width);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int64_t pair = first + at.row + 8 * r;
            if (n >= tiles || pair >= end)
                continue;
            const T x[4] = {c[n][2 * r], c[n][2 * r + 1], c[n + 1][2 * r], c[n + 1][2 * r + 1]};
            store_four_of_row(x, p.grad_e + pair * width, 8 * (tile + n) + 4 * at.quad, width,
                              whole);
        }
}

/// A warp per 16 pairs.
template <class T, class E>
__global__ void __launch_bounds__(kBlockWarps *kWarp, kMinBlocks<T>)
    grad_e_kernel(AttentionBackwardKept<T, E> p, BackwardScratch<T, E> scratch, int64_t begin,
                  int64_t end) {
    const LaneOf at;
    const int width = p.shape.width, padded = scratch.packed.columns.padded();
    const int64_t first = (int64_t(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp) * kGroup;
    if (begin + first >= end)
        return;
    const E *const dz[2] = {scratch.dz + (first + at.row) * padded,
                            scratch.dz + (first + at.row + 8) * padded};
    for (int tile = 0; 8 * tile < width; tile += kTiles) {
        T c[kTiles][4] = {};
        const int left = scratch.padded_width / 8 - tile, tiles = left < kTiles ? left : kTiles;
        multiply_back(scratch, dz, tile, tiles, c);
        write_grad_e(p, begin + first, end, tile, tiles, c);
    }
}

/// c += dz^T e over the pairs first to last - 1 of the slab that begins at pair `begin`, for the
/// columns from `column` on and the columns of e from 8 `tile` on. A lane holds the columns
/// column_of(0, row) and column_of(1, row) of each step, and two of every 8 columns of e.
template <class T, class E>
__device__ void multiply_pairs(const AttentionBackwardKept<T, E> &p,
                               const BackwardScratch<T, E> &scratch, int64_t begin, int64_t first,
                               int64_t last, int column, int steps, int tile, int tiles,
                               T c[kWeightSteps][kTiles][4]) {
    const LaneOf at;
    const int width = p.shape.width, padded = scratch.packed.columns.padded();
    const E *dz = scratch.dz + first * padded + column;
    if constexpr (kBfloat16<E>) {
        const int products = products_of(width);
        const uint4 *e =
            scratch.e_fragments + (first / kGroup * products + tile / 2) * kWarp + at.lane;
        dz += at.row * padded + 4 * at.quad;
        for (; first < last; first += kGroup, dz += kGroup * padded, e += products * kWarp) {
            uint32_t a[kWeightSteps][4] = {};
#pragma unroll
            for (int step = 0; step < kWeightSteps; ++step)
                if (step < steps)
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const uint2 x =
                            *reinterpret_cast<const uint2 *>(dz + 8 * r * padded + kStep * step);
                        a[step][2 * r] = transpose_8x8(x.x);
                        a[step][2 * r + 1] = transpose_8x8(x.y);
                    }
#pragma unroll
            for (int n = 0; n < kTiles; n += 2)
                if (n < tiles) {
                    const uint4 b = e[n / 2 * kWarp];
                    const uint32_t low[2] = {b.x, b.y}, high[2] = {b.z, b.w};
#pragma unroll
                    for (int step = 0; step < kWeightSteps; ++step) {
                        mma_bf16(c[step][n], a[step], low);
                        mma_bf16(c[step][n + 1], a[step], high);
                    }
                }
        }
    } else if constexpr (kTf32<E>) {
        // Eight pairs at a time; dz of a slab is zero beyond its last pair.
        const int64_t end = p.shape.pairs - begin - 1;
        dz += at.quad * padded;
        for (; first < last; first += 8, dz += 8 * padded) {
            const E *e[2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int64_t pair = first + at.quad + 4 * r;
                e[r] = p.e + (begin + (pair < end ? pair : end)) * width;
            }
            uint32_t a[kWeightSteps][4] = {};
#pragma unroll
            for (int step = 0; step < kWeightSteps; ++step)
                if (step < steps)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        a[step][i] = to_tf32(
                            dz[4 * (i / 2) * padded + kStep * step + column_of(i % 2, at.row)]
                                .value);
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                if (n < tiles) {
                    const int k = 8 * (tile + n) + at.row;
                    uint32_t b[2];
#pragma unroll
                    for (int r = 0; r < 2; ++r)
                        b[r] = to_tf32(k < width ? e[r][k].value : 0.0f);
#pragma unroll
                    for (int step = 0; step < kWeightSteps; ++step)
                        mma_tf32(c[step][n], a[step], b);
                }
        }
    } else {
        for (; first < last; ++first, dz += padded) {
            const E *e = p.e + (begin + first) * width;
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                if (n < tiles)
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const int k = 8 * (tile + n) + 2 * at.quad + j;
                        const T x = k < width ? e[k] : T(0);
#pragma unroll
                        for (int step = 0; step < kWeightSteps; ++step)
#pragma unroll
                            for (int half = 0; half < 2; ++half)
                                if (step < steps)
                                    c[step][n][2 * half + j] +=
                                        dz[kStep * step + column_of(half, at.row)] * x;
                    }
        }
    }
}

/// A warp per kSplit pairs, kWeightSteps steps and kTileWidth columns of e. Grid: splits of the
/// slab, blocks of columns, tiles of the width.
template <class T, class E>
__global__ void __launch_bounds__(kBlockWarps *kWarp, kMinBlocks<T>)
    grad_weight_kernel(AttentionBackwardKept<T, E> p, BackwardScratch<T, E> scratch, int64_t begin,
                       int64_t end) {
    const LaneOf at;
    const Columns &columns = scratch.packed.columns;
    const int padded = columns.padded(), width = scratch.padded_width;
    const int step = (blockIdx.y * kBlockWarps + threadIdx.x / kWarp) * kWeightSteps;
    if (step >= columns.steps)
        return;
    const int64_t first = int64_t(blockIdx.x) * kSplit;
    const int64_t last = first + kSplit < end - begin ? first + kSplit : end - begin;
    const int tile = blockIdx.z * kTiles, left = width / 8 - tile;
    const int steps = columns.steps - step < kWeightSteps ? columns.steps - step : kWeightSteps;
    const int tiles = left < kTiles ? left : kTiles;
    T c[kWeightSteps][kTiles][4] = {};
    multiply_pairs(p, scratch, begin, first, last, kStep * step, steps, tile, tiles, c);
    T *to = scratch.weight_partials + (int64_t(blockIdx.x) * padded + kStep * step) * width;
#pragma unroll
    for (int t = 0; t < kWeightSteps; ++t)
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (t < steps && n < tiles)
                    to[(kStep * t + column_of(i / 2, at.row)) * width + 8 * (tile + n) +
                       2 * at.quad + i % 2] = c[t][n][i];
}

} // namespace
} // namespace sitenet::cuda

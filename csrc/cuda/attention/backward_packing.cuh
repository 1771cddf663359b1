// What the backward pass packs beside the inputs (packing.cuh): W for dz W, grad_y, and the range of
// sites of each slab. One kernel packs everything: its blocks divide among the arrays.
#pragma once

#include "backward_scratch.cuh"

namespace sitenet::cuda {
namespace {

/// A block packs one padded column of the weight for plain products.
template <class T>
__device__ void pack_back_column(const T *__restrict__ weight, int width, int padded_width,
                                 const Columns &columns, int column, T *__restrict__ packed) {
    const int dense = columns.dense_of(column);
    for (int k = threadIdx.x; k < padded_width; k += blockDim.x)
        packed[int64_t(column) * padded_width + k] =
            dense < 0 || k >= width ? T(0) : weight[dense * width + k];
}

/// A block packs one step for dz W in tf32: per 8 columns of e, 16 bytes per lane. The two times 8
/// of 16 columns lie as the halves of a step do.
__device__ void pack_tf32_back_fragments(const float *__restrict__ weight, int width,
                                         int padded_width, const Columns &columns, int step,
                                         uint32_t *__restrict__ packed) {
    const int words = padded_width / 8 * kWarp * 4;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        const int lane = i / 4 % kWarp, tile = i / (4 * kWarp);
        packed[int64_t(step) * words + i] =
            tf32_weight(weight, columns, width, kStep * step + 4 * (lane % 4) + i % 4,
                        16 * (tile / 2) + column_of(tile % 2, lane / 4));
    }
}

/// A block packs one step for dz W in bfloat16: per 16 columns of e, 16 bytes per lane for two
/// times 8 columns, which lie as the halves of a step do.
__device__ void pack_back_fragments(const float *__restrict__ weight, int width, int padded_width,
                                    const Columns &columns, int step,
                                    uint32_t *__restrict__ packed) {
    const int words = padded_width / 16 * kWarp * 4;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        const int word = i % 4, lane = i / 4 % kWarp;
        const int n = 16 * (i / (4 * kWarp)) + column_of(word / 2, lane / 4);
        const int column = kStep * step + 4 * (lane % 4) + 2 * (word % 2);
        packed[int64_t(step) * words + i] =
            two_weights(weight, columns, width, column, column + 1, n, n);
    }
}

/// A thread packs grad_y of one row and head, sums it and multiplies it with y.
template <class T, class E>
__device__ void pack_grad_y(const AttentionBackwardKept<T, E> &p,
                            const BackwardScratch<T, E> &scratch, int64_t i) {
    const int heads = p.shape.heads, attention = p.shape.attention;
    if (i >= int64_t(p.shape.rows) * heads)
        return;
    const int64_t begin = i / heads * attention * heads + i % heads;
    const int padded = int(round_up(attention, kStep));
    T *to = scratch.grad_y + (i / heads * padded * heads + i % heads * 4);
    T dot = 0, sum = 0;
    for (int a = 0; a < padded; ++a) {
        const int64_t from = begin + int64_t(a) * heads;
        const T g = a < attention ? p.grad_y[from] : T(0);
        to[a / 4 * heads * 4 + a % 4] = g;
        dot += a < attention ? g * p.y[from] : T(0);
        sum += g;
    }
    scratch.y_dot[i] = dot;
    scratch.grad_y_sums[i] = sum;
}

/// A block writes [min, max + 1) of one slab's site indices, so that later slabs skip all other
/// sites.
__device__ inline void write_site_range(const int32_t *__restrict__ sites_of_pair, int64_t pairs,
                                        int64_t slab, int32_t *__restrict__ ranges,
                                        int32_t *shared) {
    const int64_t begin = slab * kSlab;
    const int64_t end = begin + kSlab < pairs ? begin + kSlab : pairs;
    int32_t low = sites_of_pair[begin], high = low;
    for (int64_t pair = begin + threadIdx.x; pair < end; pair += kPackThreads) {
        const int32_t site = sites_of_pair[pair];
        low = site < low ? site : low;
        high = site > high ? site : high;
    }
    int32_t *lows = shared, *highs = shared + kPackThreads;
    lows[threadIdx.x] = low;
    highs[threadIdx.x] = high;
    for (int half = kPackThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (int(threadIdx.x) >= half)
            continue;
        const int i = threadIdx.x, other = i + half;
        lows[i] = lows[other] < lows[i] ? lows[other] : lows[i];
        highs[i] = highs[other] > highs[i] ? highs[other] : highs[i];
    }
    if (threadIdx.x > 0)
        return;
    ranges[2 * slab] = lows[0];
    ranges[2 * slab + 1] = highs[0] + 1;
}

/// Blocks of pack_backward_kernel for each array.
template <class T, class E> struct PackBlocks {
    int64_t inputs, weight, grad_y, ranges;

    PackBlocks(const AttentionShape &s, const Packed<T, E> &packed)
        : inputs(packed.blocks(s)),
          weight(kBfloat16<E> || kTf32<E> ? packed.columns.steps : packed.columns.padded()),
          grad_y(divide_up(int64_t(s.rows) * s.heads, kPackThreads)),
          ranges(slabs_of(s) > 1 ? slabs_of(s) : 0) {} // a single slab reads no range
    int64_t total() const { return inputs + weight + grad_y + ranges; }
};

constexpr int kPackShared = 2 * kPackThreads * int(sizeof(int32_t)); // bytes

template <class T, class E>
__global__ void __launch_bounds__(kPackThreads)
    pack_backward_kernel(AttentionBackwardKept<T, E> p, BackwardScratch<T, E> scratch,
                         PackBlocks<T, E> blocks) {
    DYNAMIC_SHARED(int32_t, shared); // lowest, then highest site of each thread
    const AttentionShape &s = p.shape;
    const Columns &columns = scratch.packed.columns;
    int64_t block = blockIdx.x;
    if (block < blocks.inputs)
        return scratch.packed.fill(p, block);
    if ((block -= blocks.inputs) < blocks.weight) {
        if constexpr (kBfloat16<E>)
            pack_back_fragments(p.weight, s.width, scratch.padded_width, columns, int(block),
                                static_cast<uint32_t *>(scratch.back_weight));
        else if constexpr (kTf32<E>)
            pack_tf32_back_fragments(p.weight, s.width, scratch.padded_width, columns, int(block),
                                     static_cast<uint32_t *>(scratch.back_weight));
        else
            pack_back_column(p.weight, s.width, scratch.padded_width, columns, int(block),
                             static_cast<T *>(scratch.back_weight));
        return;
    }
    if ((block -= blocks.weight) < blocks.grad_y)
        return pack_grad_y(p, scratch, block * kPackThreads + threadIdx.x);
    write_site_range(p.sites_of_pair, s.pairs, block - blocks.grad_y, scratch.site_ranges, shared);
}

} // namespace
} // namespace sitenet::cuda

// The sums of the backward pass, each in one fixed order (backward.cu).
#pragma once

#include "backward_scratch.cuh"

namespace sitenet::cuda {
namespace {

/// Index of the first entry of the ascending list[begin, end) that is not below `value`, or end.
__device__ inline int64_t lower_bound(const int64_t *list, int64_t begin, int64_t end,
                                      int64_t value) {
    while (begin < end) {
        const int64_t middle = begin + (end - begin) / 2;
        if (list[middle] < value)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

/// Adds dz to the rows of grad_site_i, or of grad_site_j, that have pairs in the slab. The first
/// slab visits all rows, so that those without pairs become 0. Blocks share the rows; the warps of
/// a block share the pairs of a row.
template <bool kOfJ, class T, class E>
__device__ void sum_rows(const AttentionBackwardKept<T, E> &p, const BackwardScratch<T, E> &scratch,
                         int64_t begin, int64_t end, T *shared) {
    const Columns &columns = scratch.packed.columns;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, padded = columns.padded();
    const int column = 4 * (blockIdx.y * kWarp + lane);
    int first = 0, last = kOfJ ? p.shape.sites : p.shape.rows;
    if (begin > 0) {
        const int32_t *sites = scratch.site_ranges + begin / kSlab * 2;
        first = kOfJ ? sites[0] : scratch.packed.row_of_pair[begin];
        last = kOfJ ? sites[1] : scratch.packed.row_of_pair[end - 1] + 1;
    }
    const int64_t *list = p.pairs_of_site;
    const int64_t *offsets = kOfJ ? p.offsets_of_site : p.offsets;
    for (int row = first + blockIdx.x; row < last; row += gridDim.x) {
        int64_t from = offsets[row], to = offsets[row + 1];
        if (!kOfJ) {
            from = from > begin ? from : begin;
            to = to < end ? to : end;
        } else if (from < to) {
            from = list[from] < begin ? lower_bound(list, from, to, begin) : from;
            to = list[to - 1] >= end ? lower_bound(list, from, to, end) : to;
        }
        if (from >= to && begin > 0)
            continue;
        T sum[4] = {};
        if (column < padded)
            for (int64_t i = from + warp; i < to; i += kBlockWarps) {
                const int64_t pair = (kOfJ ? list[i] : i) - begin;
                const Four<E> x = load4(scratch.dz + pair * padded + column);
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    sum[j] += number(x.v[j]);
            }
        store4(shared + 4 * threadIdx.x, sum);
        __syncthreads();
        T *out = (kOfJ ? p.grad_site_j : p.grad_site_i) + int64_t(row) * columns.num_dense;
        for (int i = threadIdx.x; i < 4 * kWarp; i += blockDim.x) {
            const int c = 4 * kWarp * blockIdx.y + i, dense = c < padded ? columns.dense_of(c) : -1;
            if (dense < 0)
                continue;
            T total = begin > 0 ? out[dense] : T(0);
            for (int w = 0; w < kBlockWarps; ++w)
                total += shared[4 * kWarp * w + i];
            out[dense] = total;
        }
        __syncthreads(); // before the next row's sums
    }
}

/// Grid: blocks that share the rows; 128 columns; grad_site_i and grad_site_j. 8 blocks per
/// multiprocessor is the most that does not spill.
template <class T, class E>
__global__ void __launch_bounds__(kBlockWarps *kWarp, 8)
    sum_sites_kernel(AttentionBackwardKept<T, E> p, BackwardScratch<T, E> scratch, int64_t begin,
                     int64_t end) {
    DYNAMIC_SHARED(T, shared); // (warps, lanes, 4)
    if (blockIdx.z == 0)
        sum_rows<false>(p, scratch, begin, end, shared);
    else
        sum_rows<true>(p, scratch, begin, end, shared);
}

/// to[out_of(i)] = sum over `count` parts of from[part * size + i], added to the old value if
/// `accumulate`. A block takes 32 values of i, and its warps share the parts. out_of(i) is -1 for
/// padding.
template <class T, class F>
__device__ void sum_partials(const T *from, int64_t count, int64_t size, bool accumulate, T *shared,
                             T *to, F out_of) {
    const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
    const int64_t i = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
    T sum = 0;
    for (int64_t part = warp; i < size && part < count; part += warps)
        sum += from[part * size + i];
    shared[threadIdx.x] = sum;
    __syncthreads();
    const int64_t out = warp == 0 && i < size ? out_of(i) : -1;
    if (out < 0)
        return;
    sum = accumulate ? to[out] : T(0);
    for (int w = 0; w < warps; ++w)
        sum += shared[w * kWarp + threadIdx.x];
    to[out] = sum;
}

/// Adds the partial sums of one slab to grad_weight.
template <class T>
__global__ void sum_weight_kernel(const T *__restrict__ partials, int64_t count, Columns columns,
                                  int width, int padded_width, bool accumulate,
                                  T *__restrict__ grad_weight) {
    DYNAMIC_SHARED(T, shared);
    const int64_t size = int64_t(columns.padded()) * padded_width;
    sum_partials(partials, count, size, accumulate, shared, grad_weight, [&](int64_t i) -> int64_t {
        const int dense = columns.dense_of(int(i / padded_width)), k = int(i % padded_width);
        return dense < 0 || k >= width ? -1 : int64_t(dense) * width + k;
    });
}

/// Adds the partial sums of one slab for grad_logit_weight, in kLogitParts parts: the sum is long
/// and narrow, and parts let more blocks share it. Grid: 32 entries; parts.
template <class T>
__global__ void sum_logit_parts_kernel(const T *__restrict__ partials, int64_t count, int64_t size,
                                       T *__restrict__ parts) {
    DYNAMIC_SHARED(T, shared);
    const int64_t first = blockIdx.y * count / kLogitParts;
    const int64_t last = (blockIdx.y + 1) * count / kLogitParts;
    sum_partials(partials + first * size, last - first, size, false, shared,
                 parts + blockIdx.y * size, [](int64_t i) { return i; });
}

/// Adds those parts over all slabs.
template <class T>
__global__ void sum_logit_weight_kernel(const T *__restrict__ parts, int64_t count, int heads,
                                        int hidden, int padded, T *__restrict__ grad_logit_weight) {
    DYNAMIC_SHARED(T, shared);
    sum_partials(parts, count, int64_t(heads) * padded, false, shared, grad_logit_weight,
                 [&](int64_t i) -> int64_t {
                     return i % padded < hidden ? i / padded * hidden + i % padded : -1;
                 });
}

} // namespace
} // namespace sitenet::cuda

// The inputs of the attention block as its kernels read them: columns padded to whole steps,
// weights in the order of fragments, and the row of each pair. Packing takes a few microseconds of
// launches and 8 bytes per column and site, which is little beside the work per pair.
#pragma once

#include "fragments.cuh"

namespace sitenet::cuda {

/// The three groups of columns, dense in the tensors and padded to whole steps in the kernels.
struct Columns {
    int size[3];   ///< columns per group
    int dense[3];  ///< first column of each group in the tensors
    int first[3];  ///< first step of each group
    int num_dense; ///< columns of the tensors
    int steps;

    explicit Columns(const AttentionShape &s)
        : size{s.hidden, s.attention, s.interaction}, dense{}, first{}, num_dense(0), steps(0) {
        for (int g = 0; g < 3; ++g) {
            dense[g] = num_dense;
            first[g] = steps;
            num_dense += size[g];
            steps += int(divide_up(size[g], kStep));
        }
    }
    SITENET_HD int padded() const { return kStep * steps; }
    SITENET_HD int steps_of(int g) const { return (size[g] + kStep - 1) / kStep; }
    /// Column of the tensors for a padded column, or -1 for padding.
    SITENET_HD int dense_of(int c) const {
        const int g = c < kStep * first[1] ? 0 : c < kStep * first[2] ? 1 : 2;
        const int within = c - kStep * first[g];
        return within < size[g] ? dense[g] + within : -1;
    }
};

namespace {

/// A block packs one row of site_i or site_j.
template <class T>
__global__ void pack_rows_kernel(const T *__restrict__ from, Columns columns, T *__restrict__ to) {
    const int padded = columns.padded();
    for (int c = threadIdx.x; c < padded; c += blockDim.x) {
        const int dense = columns.dense_of(c);
        to[int64_t(blockIdx.x) * padded + c] =
            dense < 0 ? T(0) : from[int64_t(blockIdx.x) * columns.num_dense + dense];
    }
}

/// A block packs one step of the weight for plain products: (padded width, 16), with the width
/// padded to fours.
template <class T>
__global__ void pack_weight_kernel(const T *__restrict__ weight, int width, Columns columns,
                                   T *__restrict__ packed) {
    const int size = (width + 3) / 4 * 4 * kStep, step = blockIdx.x;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const int k = i / kStep, dense = columns.dense_of(kStep * step + i % kStep);
        packed[int64_t(step) * size + i] =
            dense < 0 || k >= width ? T(0) : weight[dense * width + k];
    }
}

/// Two entries of the weight, rounded to bfloat16; 0 in the padding.
__device__ inline uint32_t two_weights(const float *weight, const Columns &columns, int width,
                                       int column_low, int column_high, int k_low, int k_high) {
    const int low = columns.dense_of(column_low), high = columns.dense_of(column_high);
    return to_bf16x2(low < 0 || k_low >= width ? 0 : weight[low * width + k_low],
                     high < 0 || k_high >= width ? 0 : weight[high * width + k_high]);
}

/// A block packs one step for W e in bfloat16: per 16 columns of e, 16 bytes per lane for the two
/// halves of the step.
__global__ void pack_fragments_kernel(const float *__restrict__ weight, int width, Columns columns,
                                      uint32_t *__restrict__ packed) {
    const int words = products_of(width) * kWarp * 4, step = blockIdx.x;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        const int word = i % 4, lane = i / 4 % kWarp, t = i / (4 * kWarp);
        const int column = kStep * step + column_of(word / 2, lane / 4);
        const int k = 16 * t + 2 * (lane % 4) + 8 * (word % 2);
        packed[int64_t(step) * words + i] =
            two_weights(weight, columns, width, column, column, k, k + 1);
    }
}

/// One entry of the weight, rounded to tf32; 0 in the padding.
__device__ inline uint32_t tf32_weight(const float *weight, const Columns &columns, int width,
                                       int column, int k) {
    const int dense = columns.dense_of(column);
    return to_tf32(dense < 0 || k >= width ? 0 : weight[dense * width + k]);
}
/// A block packs one step for W e in tf32: per 8 columns of e, 16 bytes per lane.
__global__ void pack_tf32_fragments_kernel(const float *__restrict__ weight, int width,
                                           Columns columns, uint32_t *__restrict__ packed) {
    const int words = (width + 7) / 8 * kWarp * 4, step = blockIdx.x;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        const int word = i % 4, lane = i / 4 % kWarp, t = i / (4 * kWarp);
        packed[int64_t(step) * words + i] =
            tf32_weight(weight, columns, width, kStep * step + column_of(word / 2, lane / 4),
                        8 * t + 2 * (lane % 4) + word % 2);
    }
}
/// A block packs one step for dz W in tf32: per 8 columns of e, 16 bytes per lane.
__global__ void pack_tf32_back_fragments_kernel(const float *__restrict__ weight, int width,
                                                Columns columns, uint32_t *__restrict__ packed) {
    const int words = (width + 7) / 8 * kWarp * 4, step = blockIdx.x;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        const int lane = i / 4 % kWarp, n = 8 * (i / (4 * kWarp)) + lane / 4;
        packed[int64_t(step) * words + i] =
            tf32_weight(weight, columns, width, kStep * step + 4 * (lane % 4) + i % 4, n);
    }
}

/// A block packs one step for dz W in bfloat16: per 8 columns of e, 8 bytes per lane.
__global__ void pack_back_fragments_kernel(const float *__restrict__ weight, int width,
                                           Columns columns, uint32_t *__restrict__ packed) {
    const int words = (width + 7) / 8 * kWarp * 2, step = blockIdx.x;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        const int word = i % 2, lane = i / 2 % kWarp, n = 8 * (i / (2 * kWarp)) + lane / 4;
        const int column = kStep * step + 4 * (lane % 4) + 2 * word;
        packed[int64_t(step) * words + i] =
            two_weights(weight, columns, width, column, column + 1, n, n);
    }
}

/// A warp packs one head of logit_weight as (padded hidden / 4, heads, 4), and sums it.
template <class T>
__global__ void pack_logit_weight_kernel(const T *__restrict__ weight, int hidden, int padded,
                                         T *__restrict__ packed, T *__restrict__ sums) {
    T sum = 0;
    for (int c = threadIdx.x; c < padded; c += kWarp) {
        const T w = c < hidden ? weight[int64_t(blockIdx.x) * hidden + c] : T(0);
        packed[(int64_t(c / 4) * gridDim.x + blockIdx.x) * 4 + c % 4] = w;
        sum += w;
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

/// A warp writes the row of each pair of one row.
__global__ void row_of_pair_kernel(const int64_t *__restrict__ offsets, int num_rows,
                                   int32_t *__restrict__ row_of_pair) {
    const int row = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (row < num_rows)
        for (int64_t p = offsets[row] + threadIdx.x % kWarp; p < offsets[row + 1]; p += kWarp)
            row_of_pair[p] = row;
}

} // namespace

/// The packed inputs, in scratch memory.
template <class T, class E> struct Packed {
    Columns columns;
    T *site_i;            ///< (rows, padded columns)
    T *site_j;            ///< (sites, padded columns)
    void *weight;         ///< for W e, in the order of fragments
    T *logit_weight;      ///< (padded hidden / 4, heads, 4)
    T *logit_sums;        ///< (heads), sums of logit_weight
    int32_t *row_of_pair; ///< (pairs)

    int64_t weight_bytes(int width) const {
        const int64_t k = round_up(width, kBfloat16<E> ? 16 : 8);
        return k * columns.padded() * int64_t(kBfloat16<E> ? 2 : sizeof(T));
    }
    SITENET_HD int padded_hidden() const { return kStep * columns.first[1]; }

    Packed(const AttentionShape &s, Scratch &scratch) : columns(s) {
        site_i = scratch.take<T>(int64_t(s.rows) * columns.padded());
        site_j = scratch.take<T>(int64_t(s.sites) * columns.padded());
        weight = scratch.take<unsigned char>(weight_bytes(s.width));
        logit_weight = scratch.take<T>(int64_t(s.heads) * padded_hidden());
        logit_sums = scratch.take<T>(s.heads);
        row_of_pair = scratch.take<int32_t>(s.pairs);
    }

    /// Launches the kernels that fill it.
    void fill(const char *op, const AttentionInputs<T, E> &p, cudaStream_t stream) const {
        const AttentionShape &s = p.shape;
        const int threads = 128;
        if (int64_t(s.rows > s.sites ? s.rows : s.sites) * columns.padded() > UINT32_MAX)
            throw std::runtime_error(std::string(op) + ": more sites than a call takes");
        LAUNCH(op, pack_rows_kernel<T>, grid_of(s.rows), threads, 0, stream, p.site_i, columns,
               site_i);
        LAUNCH(op, pack_rows_kernel<T>, grid_of(s.sites), threads, 0, stream, p.site_j, columns,
               site_j);
        if constexpr (kBfloat16<E>)
            LAUNCH(op, pack_fragments_kernel, grid_of(columns.steps), threads, 0, stream, p.weight,
                   s.width, columns, static_cast<uint32_t *>(weight));
        else if constexpr (kTf32<E>)
            LAUNCH(op, pack_tf32_fragments_kernel, grid_of(columns.steps), threads, 0, stream,
                   p.weight, s.width, columns, static_cast<uint32_t *>(weight));
        else
            LAUNCH(op, pack_weight_kernel<T>, grid_of(columns.steps), threads, 0, stream, p.weight,
                   s.width, columns, static_cast<T *>(weight));
        LAUNCH(op, pack_logit_weight_kernel<T>, grid_of(s.heads), kWarp, 0, stream, p.logit_weight,
               s.hidden, padded_hidden(), logit_weight, logit_sums);
        LAUNCH(op, row_of_pair_kernel, grid_of(divide_up(s.rows, threads / kWarp)), threads, 0,
               stream, p.offsets, s.rows, row_of_pair);
    }
};

} // namespace sitenet::cuda

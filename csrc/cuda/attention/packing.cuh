// The inputs of the attention block as its kernels read them: columns padded to whole steps,
// weights in the order of fragments, and the row of each pair. One kernel packs everything: its
// blocks divide among the arrays. It moves 8 bytes per column and site, which is little beside the
// work per pair.
#pragma once

#include "fragments.cuh"

namespace sitenet::cuda {

constexpr int kPackThreads = 128; // per block of the kernels that pack

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
__device__ void pack_row(const T *__restrict__ from, const Columns &columns, int64_t row,
                         T *__restrict__ to) {
    const int padded = columns.padded();
    for (int c = threadIdx.x; c < padded; c += blockDim.x) {
        const int dense = columns.dense_of(c);
        to[row * padded + c] = dense < 0 ? T(0) : from[row * columns.num_dense + dense];
    }
}

/// A block packs one step of the weight for plain products: (padded width, 16), with the width
/// padded to fours.
template <class T>
__device__ void pack_weight(const T *__restrict__ weight, int width, const Columns &columns,
                            int step, T *__restrict__ packed) {
    const int size = (width + 3) / 4 * 4 * kStep;
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
__device__ void pack_fragments(const float *__restrict__ weight, int width, const Columns &columns,
                               int step, uint32_t *__restrict__ packed) {
    const int words = products_of(width) * kWarp * 4;
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
__device__ void pack_tf32_fragments(const float *__restrict__ weight, int width,
                                    const Columns &columns, int step,
                                    uint32_t *__restrict__ packed) {
    const int words = (width + 7) / 8 * kWarp * 4;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        const int word = i % 4, lane = i / 4 % kWarp, t = i / (4 * kWarp);
        packed[int64_t(step) * words + i] =
            tf32_weight(weight, columns, width, kStep * step + column_of(word / 2, lane / 4),
                        8 * t + 2 * (lane % 4) + word % 2);
    }
}

/// The first warp of a block packs one head of logit_weight as (padded hidden / 4, heads, 4), and
/// sums it.
template <class T>
__device__ void pack_head(const T *__restrict__ weight, int hidden, int padded, int heads, int head,
                          T *__restrict__ packed, T *__restrict__ sums) {
    if (threadIdx.x >= kWarp)
        return;
    T sum = 0;
    for (int c = threadIdx.x; c < padded; c += kWarp) {
        const T w = c < hidden ? weight[int64_t(head) * hidden + c] : T(0);
        packed[(int64_t(c / 4) * heads + head) * 4 + c % 4] = w;
        sum += w;
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        sums[head] = sum;
}

/// A warp writes the row of each pair of one row.
__device__ inline void write_row_of_pair(const int64_t *__restrict__ offsets, int64_t row,
                                         int32_t *__restrict__ row_of_pair) {
    for (int64_t p = offsets[row] + threadIdx.x % kWarp; p < offsets[row + 1]; p += kWarp)
        row_of_pair[p] = int32_t(row);
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

    /// Blocks that fill it.
    SITENET_HD int64_t blocks(const AttentionShape &s) const {
        return int64_t(s.rows) + s.sites + columns.steps + s.heads +
               divide_up(s.rows, kPackThreads / kWarp);
    }

    /// The work of one of those blocks.
    __device__ void fill(const AttentionInputs<T, E> &p, int64_t block) const {
        const AttentionShape &s = p.shape;
        if (block < s.rows)
            return pack_row(p.site_i, columns, block, site_i);
        if ((block -= s.rows) < s.sites)
            return pack_row(p.site_j, columns, block, site_j);
        if ((block -= s.sites) < columns.steps) {
            if constexpr (kBfloat16<E>)
                pack_fragments(p.weight, s.width, columns, int(block),
                               static_cast<uint32_t *>(weight));
            else if constexpr (kTf32<E>)
                pack_tf32_fragments(p.weight, s.width, columns, int(block),
                                    static_cast<uint32_t *>(weight));
            else
                pack_weight(p.weight, s.width, columns, int(block), static_cast<T *>(weight));
            return;
        }
        if ((block -= columns.steps) < s.heads)
            return pack_head(p.logit_weight, s.hidden, padded_hidden(), s.heads, int(block),
                             logit_weight, logit_sums);
        const int64_t row = (block - s.heads) * (kPackThreads / kWarp) + threadIdx.x / kWarp;
        if (row < s.rows)
            write_row_of_pair(p.offsets, row, row_of_pair);
    }

    /// Throws std::runtime_error where the kernels' indices would overflow.
    void check_size(const char *op, const AttentionShape &s) const {
        const int64_t most = s.rows > s.sites ? s.rows : s.sites;
        const int64_t grad_y = int64_t(s.rows) * s.heads * round_up(s.attention, kStep);
        if (most * columns.padded() > UINT32_MAX || grad_y > UINT32_MAX)
            throw std::runtime_error(std::string(op) + ": more sites than a call takes");
    }
};

} // namespace sitenet::cuda

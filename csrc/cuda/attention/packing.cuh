// What the kernels of the attention block read instead of their inputs: columns padded to whole
// steps, weights in the order of fragments, the row of each pair. A few microseconds of launches
// and 8 bytes a column and site; the pairs' work is far above that.
#pragma once

#include "fragments.cuh"

namespace sitenet::cuda {

// Groups of columns, dense as in the tensors and padded to whole steps.
struct Columns {
    int size[3], dense[3], first[3]; // first: step where the group begins
    int num_dense, steps;

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
    // Column of the tensors, or -1 for padding.
    SITENET_HD int dense_of(int c) const {
        const int g = c < kStep * first[1] ? 0 : c < kStep * first[2] ? 1 : 2;
        const int within = c - kStep * first[g];
        return within < size[g] ? dense[g] + within : -1;
    }
};

namespace {

template <class T>
__global__ void pack_rows_kernel(const T *__restrict__ from, Columns columns, T *__restrict__ to) {
    const int padded = columns.padded();
    for (int c = threadIdx.x; c < padded; c += blockDim.x) {
        const int dense = columns.dense_of(c);
        to[int64_t(blockIdx.x) * padded + c] =
            dense < 0 ? T(0) : from[int64_t(blockIdx.x) * columns.num_dense + dense];
    }
}

// Plain: per step (padded width, 16), the width padded to fours. Tensor cores: per step and 16 of
// the width, 16 bytes a lane for the two halves of the step. A block packs one step.
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

// Two rounded entries of weight (columns, width), 0 beyond it.
__device__ inline uint32_t two_weights(const float *weight, const Columns &columns, int width,
                                       int column_low, int column_high, int k_low, int k_high) {
    const int low = columns.dense_of(column_low), high = columns.dense_of(column_high);
    return to_bf16x2(low < 0 || k_low >= width ? 0 : weight[low * width + k_low],
                     high < 0 || k_high >= width ? 0 : weight[high * width + k_high]);
}

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

// In tf32 likewise: per step and 8 of the width, 16 bytes a lane.
__device__ inline uint32_t tf32_weight(const float *weight, const Columns &columns, int width,
                                       int column, int k) {
    const int dense = columns.dense_of(column);
    return to_tf32(dense < 0 || k >= width ? 0 : weight[dense * width + k]);
}
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
__global__ void pack_tf32_back_fragments_kernel(const float *__restrict__ weight, int width,
                                                Columns columns, uint32_t *__restrict__ packed) {
    const int words = (width + 7) / 8 * kWarp * 4, step = blockIdx.x;
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
        const int lane = i / 4 % kWarp, n = 8 * (i / (4 * kWarp)) + lane / 4;
        packed[int64_t(step) * words + i] =
            tf32_weight(weight, columns, width, kStep * step + 4 * (lane % 4) + i % 4, n);
    }
}

// For the product with the columns of dz: per step and 8 of the width, 8 bytes a lane.
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

// One warp a head: its row as (padded hidden / 4, heads, 4), and its sum.
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

// One warp a row.
__global__ void row_of_pair_kernel(const int64_t *__restrict__ offsets, int num_rows,
                                   int32_t *__restrict__ row_of_pair) {
    const int row = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (row < num_rows)
        for (int64_t p = offsets[row] + threadIdx.x % kWarp; p < offsets[row + 1]; p += kWarp)
            row_of_pair[p] = row;
}

} // namespace

template <class T, class E> struct Packed {
    Columns columns;
    T *site_i, *site_j; // (rows or sites, padded columns)
    void *weight;
    T *logit_weight, *logit_sums; // (padded hidden / 4, heads, 4), (heads)
    int32_t *row_of_pair;

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

    // p: AttentionForward or AttentionBackward.
    template <class P> void fill(const char *op, const P &p, cudaStream_t stream) const {
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

// ------------------------------------------------------------------------------------------------
// A warp's walk through the columns of its group of pairs.

// Two pairs of each lane; those past the end are the last one again.
struct PairsOfLane {
    int64_t pair[2];
    int row[2], site[2], count; // count: pairs of the group

    __device__ PairsOfLane(int64_t first, int64_t end, const int32_t *row_of_pair,
                           const int32_t *sites)
        : count(int(end - first < kGroup ? end - first : kGroup)) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int64_t p = first + LaneOf().row + 8 * r;
            pair[r] = p < end ? p : end - 1;
            row[r] = row_of_pair[pair[r]];
            site[r] = sites[pair[r]];
        }
    }
    __device__ bool valid(int r) const { return LaneOf().row + 8 * r < count; }
};

template <class T, class E> struct Walk {
    const Packed<T, E> &packed;
    uint32_t base_i[2], base_j[2]; // of the lane's columns of the first step
    Products<T, E> products;

    __device__ Walk(const Packed<T, E> &packed, const E *e, int width, const PairsOfLane &pairs)
        : packed(packed), products(packed.weight, e, pairs.pair[0], pairs.pair[1], width) {
        const uint32_t padded = packed.columns.padded(), first = 4 * LaneOf().quad;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            base_i[r] = pairs.row[r] * padded + first;
            base_j[r] = pairs.site[r] * padded + first;
        }
    }
    __device__ void z_of(int step, T z[2][4]) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const Four<T> i = load4(packed.site_i + (base_i[r] + uint32_t(kStep * step)));
            const Four<T> j = load4(packed.site_j + (base_j[r] + uint32_t(kStep * step)));
#pragma unroll
            for (int k = 0; k < 4; ++k)
                z[r][k] = i.v[k] + j.v[k];
        }
        products.add(step, z);
    }
};

// Of one group of columns of a lane's two pairs, less the pair's first column: the sum, the sum of
// squares, and dot products. Sums of squares alone would lose a small variance beside a large mean.
template <class T, int Dots> struct GroupSums {
    T first[2], sum[2], squares[2], dots[2][Dots];

    __device__ GroupSums() : first{}, sum{}, squares{}, dots{} {}
    // Columns of m from `column` of the group on, which has `size`; factors(r, d): what dot d
    // multiplies pair r's four columns with.
    template <class F>
    __device__ void add(const T m[2][4], int column, int size, int num_dots, F factors) {
        if (column == 0) {
#pragma unroll
            for (int r = 0; r < 2; ++r)
                first[r] = __shfl_sync(kAllLanes, m[r][0], LaneOf().lane & ~3);
        }
        T x[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i)
            x[i / 4][i % 4] = m[i / 4][i % 4] - first[i / 4];
        if (column + kStep > size) {
            const int mine = column + 4 * LaneOf().quad;
#pragma unroll
            for (int i = 0; i < 8; ++i)
                x[i / 4][i % 4] = mine + i % 4 < size ? x[i / 4][i % 4] : T(0);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            sum[i / 4] += x[i / 4][i % 4];
            squares[i / 4] += x[i / 4][i % 4] * x[i / 4][i % 4];
        }
#pragma unroll
        for (int d = 0; d < Dots; ++d)
            if (d < num_dots) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const Four<T> by = factors(r, d);
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        dots[r][d] += x[r][j] * by.v[j];
                }
            }
    }
    __device__ void finish() {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            sum[r] = quad_sum(sum[r]);
            squares[r] = quad_sum(squares[r]);
#pragma unroll
            for (int d = 0; d < Dots; ++d)
                dots[r][d] = quad_sum(dots[r][d]);
        }
    }
    // Mean less the first column; 0 where nothing is normalised and first is kept apart.
    __device__ T offset(int r, int size) const { return sum[r] / size; }
    __device__ Normaliser<T> normaliser(int r, int size, bool norm, T eps) const {
        if (!norm)
            return {T(0), T(1)};
        const T shift = offset(r, size), variance = (squares[r] - sum[r] * shift) / size;
        return {first[r] + shift, reciprocal_root((variance < 0 ? T(0) : variance) + eps)};
    }
    // Dot product of the normalised columns, given the sum of its factors.
    __device__ T normal_dot(int r, int d, T factors, const Normaliser<T> &n) const {
        return n.rstd * (dots[r][d] - (n.mean - first[r]) * factors);
    }
};

// Of the hidden columns, with one dot product for each of the heads from `head` on.
template <class T, class E>
__device__ inline GroupSums<T, kHeads> hidden_sums(const Walk<T, E> &walk, const AttentionShape &s,
                                                   int head) {
    const int num_heads = s.heads - head < kHeads ? s.heads - head : kHeads;
    const T *weight = walk.packed.logit_weight + 4 * (head + LaneOf().quad * s.heads);
    GroupSums<T, kHeads> sums;
#pragma unroll 1
    for (int step = 0; step < walk.packed.columns.first[1]; ++step) {
        T m[2][4];
        walk.z_of(step, m);
        activate(m, s.activation);
        sums.add(m, kStep * step, s.hidden, num_heads,
                 [&](int, int h) { return load4(weight + (kStep * step * s.heads + 4 * h)); });
    }
    sums.finish();
    return sums;
}

} // namespace sitenet::cuda

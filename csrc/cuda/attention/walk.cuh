// A warp's walk through the columns of its group of 16 pairs: z step by step, and the sums from
// which norms and logits follow.
#pragma once

#include "packing.cuh"

namespace sitenet::cuda {

/// The two pairs of a lane. Pairs past the end repeat the last one.
struct PairsOfLane {
    int64_t pair[2];
    int row[2];
    int site[2];
    int count; ///< pairs of the group

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

/// z of the two pairs of a lane. S: what is known of the shape (known_shapes.cuh).
template <class T, class E, class S> struct Walk {
    const Packed<T, E> &packed;
    uint32_t base_i[2]; ///< offset in site_i of the lane's columns in the first step
    uint32_t base_j[2]; ///< likewise in site_j
    Products<T, E, S> products;

    __device__ Walk(const Packed<T, E> &packed, const E *e, int width, const PairsOfLane &pairs)
        : packed(packed), products(packed.weight, e, pairs.pair[0], pairs.pair[1], width) {
        const uint32_t padded = packed.columns.padded(), first = 4 * LaneOf().quad;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            base_i[r] = pairs.row[r] * padded + first;
            base_j[r] = pairs.site[r] * padded + first;
        }
    }
    /// Computes z of one step.
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

/// Sum, sum of squares and dot products over one group of columns, for the two pairs of a lane.
/// They run over the differences to the pair's first column, because sums of squares alone would
/// lose a small variance beside a large mean.
template <class T, int Dots> struct GroupSums {
    T first[2], sum[2], squares[2], dots[2][Dots];

    __device__ GroupSums() : first{}, sum{}, squares{}, dots{} {}
    /// Adds the 16 columns from `column` on of a group of `size`. factors(r, d) returns the factors
    /// of dot product d for the four columns of pair r.
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
    /// Adds up the four lanes of each pair.
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
    /// Mean - first column.
    __device__ T offset(int r, int size) const { return sum[r] / size; }
    __device__ Normaliser<T> normaliser(int r, int size, bool norm, T eps) const {
        if (!norm)
            return {T(0), T(1)};
        const T shift = offset(r, size), variance = (squares[r] - sum[r] * shift) / size;
        return {first[r] + shift, reciprocal_root((variance < 0 ? T(0) : variance) + eps)};
    }
    /// Dot product d of the normalised columns; `factors` is the sum of its factors.
    __device__ T normal_dot(int r, int d, T factors, const Normaliser<T> &n) const {
        return n.rstd * (dots[r][d] - (n.mean - first[r]) * factors);
    }
};

/// Sums over the hidden columns, with one dot product per head from `head` on.
template <class T, class E, class S, class Shape>
__device__ inline GroupSums<T, kHeads> hidden_sums(const Walk<T, E, S> &walk, const Shape &s,
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

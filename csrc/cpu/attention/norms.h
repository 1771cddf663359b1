// Mean and variance of each group of columns, and the logits, for the pairs of a tile.
//
// Variances are computed from the differences to the first column of a group, because sums of
// squares alone would lose a small variance beside a large mean. Sums over columns are reduced for
// kLanes pairs at a time, which leaves one number per pair in the lanes of a vector.
#pragma once

#include "../../attention.h"
#include "packing.h"

namespace sitenet::SITENET_LEVEL {
namespace {

/// Sums over the columns of a group, for kLanes pairs, of x = m - m[0] (partial[0]), of x^2
/// (partial[1]) and of x w_h (partial[2 + h]). Each is left as one vector per pair, whose lanes are
/// still to be added.
template <class T, int NH>
inline void partial_sums(const T *m, int stride, int vectors, Vec<T> last_lanes, const T *w,
                         Vec<T> (&partial)[2 + NH][kLanes<T>]) {
    constexpr int at_once = 2;
    for (int t = 0; t < kLanes<T>; t += at_once) {
        Vec<T> sum[at_once] = {}, squares[at_once] = {}, dots[at_once][NH + 1] = {};
        const T *x[at_once];
        Vec<T> first[at_once];
        for (int r = 0; r < at_once; ++r) {
            x[r] = m + size_t(t + r) * stride;
            first[r] = splat(x[r][0]);
        }
        auto add = [&](int v, bool last) {
            Vec<T> wv[NH + 1];
#pragma GCC unroll 4
            for (int h = 0; h < NH; ++h)
                wv[h] = load(w + (h * vectors + v) * kLanes<T>);
#pragma GCC unroll 2
            for (int r = 0; r < at_once; ++r) {
                Vec<T> y = load(x[r] + v * kLanes<T>) - first[r];
                if (last)
                    y *= last_lanes;
                sum[r] += y;
                squares[r] += y * y;
#pragma GCC unroll 4
                for (int h = 0; h < NH; ++h)
                    dots[r][h] += y * wv[h];
            }
        };
        for (int v = 0; v < vectors - 1; ++v)
            add(v, false);
        add(vectors - 1, true);
        for (int r = 0; r < at_once; ++r) {
            partial[0][t + r] = sum[r];
            partial[1][t + r] = squares[r];
#pragma GCC unroll 4
            for (int h = 0; h < NH; ++h)
                partial[2 + h][t + r] = dots[r][h];
        }
    }
}

/// Writes mean and rstd of kLanes pairs from their partial sums and their first columns. Returns
/// mean - first. A NaN stays a NaN.
template <class T>
inline Vec<T> normalise(Vec<T> (*partial)[kLanes<T>], Vec<T> first, int n, double eps, T *mean,
                        T *rstd) {
    const Vec<T> total = add_lanes<T>(partial[0]), squares = add_lanes<T>(partial[1]);
    const Vec<T> offset = total / T(n);
    const Vec<T> variance = at_least((squares - total * offset) / T(n), T(0));
    store(rstd, 1 / square_root(variance + T(eps)));
    store(mean, first + offset);
    return offset;
}

/// The first column of kLanes rows.
template <class T> inline Vec<T> first_column(const T *x, int stride) {
    T first[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i)
        first[i] = x[size_t(i) * stride];
    return load(first);
}

/// The norms and logits of a tile.
template <class T> class TileNorms {
  public:
    alignas(64) T mean[3][kTile]; ///< per group; 0 without a norm
    alignas(64) T rstd[3][kTile]; ///< per group; 1 without a norm
    Buffer<T> logits;             ///< (heads, kTile), without log_multiplicity

    TileNorms(const AttentionShape &shape, const Columns<T> &columns, const LogitWeights<T> &w)
        : logits(size_t(shape.heads) * kTile), shape(shape), columns(columns), weights(w) {
        for (int g = 0; g < 3; ++g) {
            std::fill_n(mean[g], kTile, T(0));
            std::fill_n(rstd[g], kTile, T(1));
        }
    }

    void compute(const T *m, int count) {
        for (int t = 0; t < count; t += kLanes<T>) {
            const T *tile = m + size_t(t) * columns.padded;
            attend(tile, t);
            for (int g = 1; shape.norm && g < 3; ++g)
                if (columns.vectors[g]) {
                    Vec<T> partial[2][kLanes<T>];
                    const T *x = tile + columns.first[g];
                    partial_sums<T, 0>(x, columns.padded, columns.vectors[g], columns.last[g],
                                       nullptr, partial);
                    normalise(partial, first_column(x, columns.padded), columns.size[g], shape.eps,
                              mean[g] + t, rstd[g] + t);
                }
        }
    }

  private:
    const AttentionShape &shape;
    const Columns<T> &columns;
    const LogitWeights<T> &weights;

    void attend(const T *m, int t) {
        const Vec<T> first = first_column(m, columns.padded);
        Vec<T> offset = -first;
        for (int h0 = 0; h0 < weights.heads; h0 += kMaxHeadsAtOnce)
            with_constant<kMaxHeadsAtOnce>(weights.heads - h0, [&](auto nh) {
                Vec<T> partial[2 + nh][kLanes<T>];
                partial_sums<T, nh>(m, columns.padded, columns.vectors[0], columns.last[0],
                                    weights.row(h0), partial);
                if (shape.norm && h0 == 0)
                    offset = normalise(partial, first, columns.size[0], shape.eps, mean[0] + t,
                                       rstd[0] + t);
                for (int h = 0; h < nh; ++h) {
                    const Vec<T> dot = add_lanes<T>(partial[2 + h]) - offset * weights.sums[h0 + h];
                    store(logits.get() + (h0 + h) * kTile + t, load(rstd[0] + t) * dot);
                }
            });
    }
};

} // namespace
} // namespace sitenet::SITENET_LEVEL

// The forward pass of the attention block, from the products and norms of a tile (products.h,
// norms.h): the online softmax over rows, the weighted sums, and e_out.
#pragma once

#include "norms.h"
#include "products.h"

namespace sitenet::SITENET_LEVEL {
namespace {

/// The largest of n >= 1 numbers.
template <class T> inline T largest_of(const T *x, int n) {
    T largest = x[0];
    int i = 1;
    if (n >= kLanes<T>) {
        Vec<T> v = load(x);
        for (i = kLanes<T>; i + kLanes<T> <= n; i += kLanes<T>) {
            const Vec<T> y = load(x + i);
            v = y > v ? y : v;
        }
        for (int k = 0; k < kLanes<T>; ++k)
            largest = std::max(largest, v[k]);
    }
    for (; i < n; ++i)
        largest = std::max(largest, x[i]);
    return largest;
}

/// The running softmax of one row.
template <class T> struct RowSoftmax {
    int heads;
    int padded;             ///< attention columns, rounded up to whole vectors
    std::vector<T> largest; ///< (heads), largest logit so far
    std::vector<T> sum;     ///< (heads), sum of exp(logit - largest)
    Buffer<T> weighted;     ///< (heads, padded), sums of the columns weighted likewise

    RowSoftmax(int heads, int padded)
        : heads(heads), padded(padded), largest(heads), sum(heads),
          weighted(size_t(heads) * padded) {
        reset();
    }
    void reset() {
        std::fill(largest.begin(), largest.end(), -std::numeric_limits<T>::infinity());
        std::fill(sum.begin(), sum.end(), T(0));
        std::fill_n(weighted.get(), size_t(heads) * padded, T(0));
    }
    /// Raises the maximum of a head to at least `value`. Returns what to subtract from logits
    /// before the exponential: that maximum, or 0 while it is -inf.
    T raise(int h, T value) {
        if (value > largest[h]) {
            const T scale = std::exp(largest[h] - value);
            sum[h] *= scale;
            for (int a = 0; a < padded; ++a)
                weighted.get()[size_t(h) * padded + a] *= scale;
            largest[h] = value;
        }
        return largest[h] == -std::numeric_limits<T>::infinity() ? T(0) : largest[h];
    }
    /// Writes the results of the row, and starts another.
    void finish(int attention, T *y, T *logsum) {
        for (int h = 0; h < heads; ++h) {
            const T scale =
                sum[h] > 0 ? 1 / sum[h] : sum[h]; // 0 for an empty row; a NaN stays a NaN
            for (int a = 0; a < attention; ++a)
                y[a * heads + h] = weighted.get()[size_t(h) * padded + a] * scale;
            logsum[h] = largest[h] + std::log(sum[h]);
        }
        reset();
    }
};

/// The forward pass over consecutive rows, one part.
template <class T, class E> class ForwardRows {
  public:
    ForwardRows(const AttentionForward<T, E> &p, const Columns<T> &columns,
                const Weights<T, E> &weights, const LogitWeights<T> &logit_weights, const T *site_i,
                const T *site_j)
        : p(p), s(p.shape), columns(columns), weights(weights), site_i(site_i), site_j(site_j),
          packed(columns.padded), heads(s.heads), norms(s, columns, logit_weights),
          m(columns.tile_size()), attended(size_t(heads) * kRow),
          softmax(heads, columns.vectors[1] * kLanes<T>) {}

    void run(int first_row, int last_row) {
        Walk<T, E> walk(s, p.e, p.offsets, p.sites_of_pair, site_i, site_j, packed, first_row);
        current = first_row;
        const int64_t end = p.offsets[last_row];
        for (int64_t first = p.offsets[first_row]; first < end; first += kTile) {
            walk.fill(first, end);
            products<T, E, false>(walk.tile, weights, s.activation, m.get(), nullptr);
            norms.compute(m.get(), walk.tile.count);
            add_multiplicity(walk.tile.count, first);
            if (s.interaction)
                write_interaction(walk.tile.count, first);
            for (int a = 0; a < walk.tile.count;) {
                const int b = walk.tile.row_end(a);
                finish_until(walk.tile.row[a]);
                attend(a, b);
                a = b;
            }
        }
        finish_until(last_row);
    }

  private:
    static constexpr int kRow = kTile + kLanes<T>; // a vector may reach beyond the end of a tile
    const AttentionForward<T, E> &p;
    const AttentionShape &s;
    const Columns<T> &columns;
    const Weights<T, E> &weights;
    const T *site_i, *site_j;
    const int packed, heads;
    TileNorms<T> norms;
    Buffer<T> m;        // (kTile, packed): the activation
    Buffer<T> attended; // (heads, kRow): exponential of the logit, times rstd
    RowSoftmax<T> softmax;
    int current = 0; // row of the softmax

    // Writes the results of the rows before `row`, which are complete.
    void finish_until(int row) {
        for (; current < row; ++current)
            softmax.finish(s.attention, p.y + size_t(current) * heads * s.attention,
                           p.logsum + size_t(current) * heads);
    }

    void add_multiplicity(int count, int64_t first) {
        for (int h = 0; h < heads; ++h) {
            T *logits = norms.logits.get() + h * kTile;
            for (int t = 0; t < count; ++t)
                logits[t] += p.log_multiplicity[first + t];
            for (int t = 0; p.logits && t < count; ++t)
                p.logits[(first + t) * heads + h] = logits[t];
        }
    }

    void write_interaction(int count, int64_t first) {
        const int whole = s.interaction / kLanes<T> * kLanes<T>;
        for (int t = 0; t < count; ++t) {
            const T *x = m.get() + size_t(t) * packed + columns.first[2];
            E *to = p.e_out + (first + t) * s.interaction;
            const T mean = norms.mean[2][t], rstd = norms.rstd[2][t];
            for (int c = 0; c < whole; c += kLanes<T>)
                store_as(to + c, (load(x + c) - mean) * rstd);
            for (int c = whole; c < s.interaction; ++c)
                store_as(to + c, (x[c] - mean) * rstd);
        }
    }

    // Adds the pairs a to b - 1 of the tile to the current row.
    void attend(int a, int b) {
        for (int h = 0; h < heads; ++h) {
            const T *logits = norms.logits.get() + h * kTile;
            T *w = attended.get() + h * kRow;
            const T shift = softmax.raise(h, largest_of(logits + a, b - a));
            Vec<T> sum{};
            int t = a;
            for (; t + kLanes<T> <= b; t += kLanes<T>) {
                const Vec<T> x = exp_of_negative<T>(load(logits + t) - shift);
                sum += x;
                store(w + t, x * load(norms.rstd[1] + t));
            }
            T total = sum_lanes<T>(sum);
            if (t < b) {
                T x[kLanes<T>] = {};
                std::copy_n(logits + t, b - t, x);
                store(x, exp_of_negative<T>(load(x) - shift));
                for (int i = t; i < b; ++i) {
                    total += x[i - t];
                    w[i] = x[i - t] * norms.rstd[1][i];
                }
            }
            softmax.sum[h] += total;
        }
        for (int h0 = 0; h0 < heads; h0 += kMaxHeadsAtOnce)
            with_constant<kMaxHeadsAtOnce>(heads - h0, [&](auto nh) {
                for (int v = 0; v < columns.vectors[1]; v += 2)
                    if (v + 1 < columns.vectors[1])
                        add_weighted<nh, 2>(a, b, h0, v);
                    else
                        add_weighted<nh, 1>(a, b, h0, v);
            });
    }

    template <int NH, int NV> void add_weighted(int a, int b, int h0, int v0) {
        T *to = softmax.weighted.get() + (h0 * columns.vectors[1] + v0) * kLanes<T>;
        const T *x = m.get() + columns.first[1] + v0 * kLanes<T>, *w = attended.get() + h0 * kRow;
        const size_t stride = columns.vectors[1] * kLanes<T>;
        Vec<T> sum[NH][NV];
        for (int h = 0; h < NH; ++h)
            for (int v = 0; v < NV; ++v)
                sum[h][v] = load(to + h * stride + v * kLanes<T>);
        for (int t = a; t < b; ++t)
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) {
                const Vec<T> y = load(x + size_t(t) * packed + v * kLanes<T>) - norms.mean[1][t];
#pragma GCC unroll 4
                for (int h = 0; h < NH; ++h)
                    sum[h][v] += w[h * kRow + t] * y;
            }
        for (int h = 0; h < NH; ++h)
            for (int v = 0; v < NV; ++v)
                store(to + h * stride + v * kLanes<T>, sum[h][v]);
    }
};

} // namespace
} // namespace sitenet::SITENET_LEVEL

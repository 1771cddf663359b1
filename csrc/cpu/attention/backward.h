// The backward pass of the attention block. It computes the activations again, with their
// derivatives d.
//
// Let c_h u_h be the contribution of head h to the gradient of a group's normalised columns
// n = (m - mean) rstd, and <x> the mean of x over the group. Then
//
//   dz = rstd (sum_h c_h u_h - <sum_h c_h u_h> - <sum_h c_h u_h n> n) d
//      = (sum_h (rstd c_h) u_h + shift + slope (m - mean)) d
//
//   columns       c_h                      u_h
//   hidden        gradient of logit h      row h of logit_weight
//   attention     softmax weight of h      grad_y of head h
//   interaction   1                        grad_e_out (one term)
#pragma once

#include "backward_sums.h"
#include "norms.h"
#include "products.h"

namespace sitenet::SITENET_LEVEL {
namespace {

/// The backward pass over consecutive rows, one part.
template <class T, class E> class BackwardRows {
  public:
    BackwardRows(const AttentionBackward<T, E> &p, const Columns<T> &columns,
                 const Weights<T, E> &weights, const LogitWeights<T> &logit_weights,
                 const RowGradients<T> &rows, const T *site_i, const T *site_j)
        : p(p), s(p.shape), columns(columns), weights(weights), logit_weights(logit_weights),
          rows(rows), site_i(site_i), site_j(site_j), packed(columns.padded), heads(s.heads),
          norms(s, columns, logit_weights), m(columns.tile_size()), d(columns.tile_size()),
          attended(size_t(heads) * kTile), row_sum(size_t(heads) * kTile),
          row_dot(size_t(heads) * kTile), along(size_t(heads) * kTile * kLanes<T>),
          grad_out(size_t(kTile) * columns.vectors[2] * kLanes<T>),
          out_sum(s.interaction ? size_t(kTile) * kLanes<T> : 0), out_along(out_sum.size()),
          site_i_sum(packed), scratch(size_t(kGradRows) * weights.padded_width),
          tile_gradient(packed, s.width) {
        factor[0].resize(size_t(heads) * kTile);
        factor[1].resize(size_t(heads) * kTile);
    }

    void run(int first_row, int last_row, Sums<T> &sums) {
        Walk<T, E> walk(s, p.e, p.offsets, p.sites_of_pair, site_i, site_j, packed, first_row);
        const int64_t begin = p.offsets[first_row], end = p.offsets[last_row];
        int32_t low = 0, high = -1;
        if (begin < end) {
            const auto range = std::minmax_element(p.sites_of_pair + begin, p.sites_of_pair + end);
            low = *range.first, high = *range.second;
        }
        sums.first_site = low;
        sums.num_sites = high - low + 1;
        sums.site_j.resize(size_t(sums.num_sites) * packed);
        sums.weight.resize(size_t(round_up(s.width, kTileRows)) * packed);
        sums.logit.resize(size_t(heads) * columns.vectors[0] * kLanes<T>);
        current = first_row;
        for (int64_t first = begin; first < end; first += kTile) {
            walk.fill(first, end);
            const Tile<T, E> &tile = walk.tile;
            products<T, E, true>(tile, weights, s.activation, m.get(), d.get());
            norms.compute(m.get(), tile.count);
            weigh(tile, first);
            sum_attention(tile);
            if (s.interaction)
                sum_interaction(tile, first);
            for (int t = 0; t < tile.count; t += kLanes<T>)
                find_factors(t);
            differentiate(tile);
            add_sites(tile, sums);
            add_logit_weights(tile.count, sums.logit.get());
            tile_gradient.set(tile, d.get(), packed, s.width);
            tile_products(tile_gradient, tile, weights, sums.weight.get(), scratch.get(),
                          p.grad_e + first * s.width);
        }
        finish_until(last_row);
    }

  private:
    const AttentionBackward<T, E> &p;
    const AttentionShape &s;
    const Columns<T> &columns;
    const Weights<T, E> &weights;
    const LogitWeights<T> &logit_weights;
    const RowGradients<T> &rows;
    const T *site_i, *site_j;
    const int packed, heads;
    TileNorms<T> norms;
    Buffer<T> m, d;      // (kTile, packed): activation; its derivative, then dz
    Buffer<T> attended;  // (heads, kTile): softmax weight
    Buffer<T> row_sum;   // (heads, kTile): RowGradients::sum of each pair's row
    Buffer<T> row_dot;   // (heads, kTile): RowGradients::dot of each pair's row
    Buffer<T> along;     // (heads, kTile, lanes): grad_y n, lanes still to be added
    Buffer<T> grad_out;  // (kTile, padded interaction): grad_e_out
    Buffer<T> out_sum;   // (kTile, lanes): its sum, lanes still to be added
    Buffer<T> out_along; // (kTile, lanes): its product with m - mean, lanes still to be added
    Buffer<T> factor[2]; // (heads, kTile): rstd c_h of hidden and attention columns
    alignas(64) T shift[3][kTile]; // per group; of interaction columns divided by rstd
    alignas(64) T slope[3][kTile]; // per group
    Buffer<T> site_i_sum;          // (packed): grad_site_i of the current row
    Buffer<T> scratch;             // (kGradRows, padded width): grad_e before it is converted
    TileGradient<T, E> tile_gradient;
    int current = 0; // row of site_i_sum

    const T *column(const Buffer<T> &x, int g, int t) const {
        return x.get() + size_t(t) * packed + columns.first[g];
    }
    const T *grad_y_of(int row) const { return rows.grad_y.get() + size_t(row) * rows.stride; }

    // Fills attended, row_sum and row_dot.
    void weigh(const Tile<T, E> &tile, int64_t first) {
        const T none = -std::numeric_limits<T>::infinity();
        for (int t = 0; t < tile.count; ++t) {
            const size_t row = size_t(tile.row[t]) * heads;
            const T extra = p.log_multiplicity[first + t];
            for (int h = 0; h < heads; ++h) {
                const int at = h * kTile + t;
                attended.get()[at] =
                    extra == none ? none : norms.logits.get()[at] + extra - p.logsum[row + h];
                row_sum.get()[at] = rows.sum.get()[row + h];
                row_dot.get()[at] = rows.dot.get()[row + h];
            }
        }
        for (int i = 0; i < heads * kTile; i += kLanes<T>)
            store(attended.get() + i, exp_of_negative<T>(load(attended.get() + i)));
    }

    void sum_attention(const Tile<T, E> &tile) {
        const int av = columns.vectors[1];
        for (int t = 0; t < tile.count; ++t) {
            const T *x = column(m, 1, t), *u = grad_y_of(tile.row[t]);
            const T mean = norms.mean[1][t], rstd = norms.rstd[1][t];
            for (int h = 0; h < heads; ++h) {
                Vec<T> sum{};
                for (int v = 0; v < av; ++v)
                    sum += load(u + (h * av + v) * kLanes<T>) *
                           ((load(x + v * kLanes<T>) - mean) * rstd);
                store(along.get() + (h * kTile + t) * kLanes<T>, sum);
            }
        }
    }

    void sum_interaction(const Tile<T, E> &tile, int64_t first) {
        const int iv = columns.vectors[2];
        for (int t = 0; t < tile.count; ++t) {
            T *g = grad_out.get() + size_t(t) * iv * kLanes<T>;
            if (p.grad_e_out)
                convert(p.grad_e_out + (first + t) * s.interaction, g, s.interaction);
            const T *x = column(m, 2, t);
            const T mean = norms.mean[2][t];
            Vec<T> sum{}, product{};
            for (int v = 0; v < iv; ++v) {
                const Vec<T> y = load(g + v * kLanes<T>);
                sum += y;
                product += y * (load(x + v * kLanes<T>) - mean);
            }
            store(out_sum.get() + t * kLanes<T>, sum);
            store(out_along.get() + t * kLanes<T>, product);
        }
    }

    static Vec<T> added_up(const Buffer<T> &x, int t) {
        Vec<T> v[kLanes<T>];
        for (int i = 0; i < kLanes<T>; ++i)
            v[i] = load(x.get() + size_t(t + i) * kLanes<T>);
        return add_lanes<T>(v);
    }

    // Computes rstd c_h, shift and slope of kLanes pairs.
    void find_factors(int t) {
        const Vec<T> rstd[3] = {load(norms.rstd[0] + t), load(norms.rstd[1] + t),
                                load(norms.rstd[2] + t)};
        Vec<T> mean[3] = {}, dot[3] = {}; // sums over the columns of c_h u_h, and of that times n
        for (int h = 0; h < heads; ++h) {
            const int at = h * kTile + t;
            const Vec<T> weight = load(attended.get() + at);
            const Vec<T> y = added_up(along, at);
            mean[1] += weight * load(row_sum.get() + at);
            dot[1] += weight * y;
            const Vec<T> grad = weight * (y - load(row_dot.get() + at));
            mean[0] += grad * logit_weights.sums[h];
            dot[0] += grad * load(norms.logits.get() + at);
            store(factor[0].get() + at, grad * rstd[0]);
            store(factor[1].get() + at, weight * rstd[1]);
        }
        if (s.interaction) {
            mean[2] = added_up(out_sum, t);
            dot[2] = added_up(out_along, t) * rstd[2];
        }
        for (int g = 0; g < 3; ++g) {
            const T over = s.norm && columns.size[g] ? -1 / T(columns.size[g]) : T(0);
            store(shift[g] + t, g == 2 ? over * mean[g] : over * mean[g] * rstd[g]);
            store(slope[g] + t, over * dot[g] * rstd[g] * rstd[g]);
        }
    }

    // z *= y in the columns of group g; `last` protects the other lanes of its last vector.
    void multiply_columns(T *z, Vec<T> y, int g, bool last) const {
        if (last)
            y = y * columns.last[g] + (1 - columns.last[g]);
        store(z, y * load(z));
    }

    // Computes dz of NP pairs in group g, with rstd c_h at c + h * kTile and u_h at u + h * stride.
    template <int NH, int NP>
    void differentiate_group(int g, int t, const T *c, const T *u, int stride) {
        Vec<T> factors[NP][NH], mean[NP], up[NP], along_m[NP];
#pragma GCC unroll 2
        for (int r = 0; r < NP; ++r) {
            mean[r] = splat(norms.mean[g][t + r]);
            up[r] = splat(shift[g][t + r]);
            along_m[r] = splat(slope[g][t + r]);
#pragma GCC unroll 4
            for (int h = 0; h < NH; ++h)
                factors[r][h] = splat(c[h * kTile + t + r]);
        }
        const T *x = column(m, g, t);
        T *z = d.get() + size_t(t) * packed + columns.first[g];
        auto multiply = [&](int v, bool last) {
            Vec<T> uv[NH];
#pragma GCC unroll 4
            for (int h = 0; h < NH; ++h)
                uv[h] = load(u + h * stride + v * kLanes<T>);
#pragma GCC unroll 2
            for (int r = 0; r < NP; ++r) {
                const size_t at = size_t(r) * packed + v * kLanes<T>;
                Vec<T> y = up[r] + along_m[r] * (load(x + at) - mean[r]);
#pragma GCC unroll 4
                for (int h = 0; h < NH; ++h)
                    y += factors[r][h] * uv[h];
                multiply_columns(z + at, y, g, last);
            }
        };
        for (int v = 0; v < columns.vectors[g] - 1; ++v)
            multiply(v, false);
        multiply(columns.vectors[g] - 1, true);
    }

    // The same for one pair and any number of heads.
    void differentiate_heads(int g, int t, const T *u, int stride) {
        const T *x = column(m, g, t), *c = factor[g].get() + t;
        T *z = d.get() + size_t(t) * packed + columns.first[g];
        const int last = (columns.vectors[g] - 1) * kLanes<T>;
        for (int v = 0; v <= last; v += kLanes<T>) {
            Vec<T> y = shift[g][t] + slope[g][t] * (load(x + v) - norms.mean[g][t]);
            for (int h = 0; h < heads; ++h)
                y += c[h * kTile] * load(u + h * stride + v);
            multiply_columns(z + v, y, g, v == last);
        }
    }

    void differentiate(const Tile<T, E> &tile) {
        const int hidden = columns.vectors[0] * kLanes<T>,
                  attention = columns.vectors[1] * kLanes<T>;
        const T *w = logit_weights.row(0);
        if (heads <= kMaxHeadsAtOnce)
            with_constant<kMaxHeadsAtOnce>(heads, [&](auto nh) {
                for (int t = 0; t < tile.count; t += 2)
                    differentiate_group<nh, 2>(0, t, factor[0].get(), w, hidden);
                for (int t = 0; t < tile.count; ++t)
                    differentiate_group<nh, 1>(1, t, factor[1].get(), grad_y_of(tile.row[t]),
                                               attention);
            });
        else
            for (int t = 0; t < tile.count; ++t) {
                differentiate_heads(0, t, w, hidden);
                differentiate_heads(1, t, grad_y_of(tile.row[t]), attention);
            }
        for (int t = 0; s.interaction && t < tile.count; ++t)
            differentiate_interaction(t);
    }

    // Subtracts the mean from grad_e_out first, so that a single column leaves exactly 0.
    void differentiate_interaction(int t) {
        const T *x = column(m, 2, t);
        const T *g = grad_out.get() + size_t(t) * columns.vectors[2] * kLanes<T>;
        T *z = d.get() + size_t(t) * packed + columns.first[2];
        const Vec<T> mean = splat(norms.mean[2][t]), rstd = splat(norms.rstd[2][t]);
        const Vec<T> up = splat(shift[2][t]), along_m = splat(slope[2][t]);
        const int last = (columns.vectors[2] - 1) * kLanes<T>;
        for (int v = 0; v <= last; v += kLanes<T>) {
            const Vec<T> y = rstd * (load(g + v) + up) + along_m * (load(x + v) - mean);
            multiply_columns(z + v, y, 2, v == last);
        }
    }

    // Adds the gradients of the site terms. Pairs of one row and site are neighbours.
    void add_sites(const Tile<T, E> &tile, const Sums<T> &sums) {
        for (int a = 0; a < tile.count;) {
            const int b = tile.row_end(a);
            finish_until(tile.row[a]);
            for (int v = 0; v < columns.num_vectors(); v += kTileVectors)
                with_constant<kTileVectors>(columns.num_vectors() - v, [&](auto nv) {
                    add_sites_columns<nv>(tile, a, b, v * kLanes<T>, sums);
                });
            a = b;
        }
    }
    template <int NV>
    void add_sites_columns(const Tile<T, E> &tile, int a, int b, int column, const Sums<T> &sums) {
        Vec<T> row[NV] = {};
        for (int t = a; t < b;) {
            const int site = tile.site[t];
            Vec<T> sum[NV] = {};
            for (; t < b && tile.site[t] == site; ++t)
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v)
                    sum[v] += load(d.get() + size_t(t) * packed + column + v * kLanes<T>);
            T *to = sums.site_j.get() + size_t(site - sums.first_site) * packed + column;
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                row[v] += sum[v];
                store(to + v * kLanes<T>, load(to + v * kLanes<T>) + sum[v]);
            }
        }
        T *to = site_i_sum.get() + column;
        for (int v = 0; v < NV; ++v)
            store(to + v * kLanes<T>, load(to + v * kLanes<T>) + row[v]);
    }

    // Writes grad_site_i of the rows before `row`, which are complete.
    void finish_until(int row) {
        for (; current < row; ++current) {
            std::copy_n(site_i_sum.get(), columns.count,
                        p.grad_site_i + size_t(current) * columns.count);
            std::fill_n(site_i_sum.get(), packed, T(0));
        }
    }

    // Adds to grad_logit_weight the sums over pairs of rstd c_h (m - mean).
    void add_logit_weights(int count, T *sums) {
        for (int h0 = 0; h0 < heads; h0 += kMaxHeadsAtOnce)
            with_constant<kMaxHeadsAtOnce>(heads - h0, [&](auto nh) {
                for (int v = 0; v < columns.vectors[0]; v += kTileVectors)
                    with_constant<kTileVectors>(columns.vectors[0] - v, [&](auto nv) {
                        add_logit_weights_columns<nh, nv>(count, h0, v, sums);
                    });
            });
    }
    template <int NH, int NV>
    void add_logit_weights_columns(int count, int h0, int v0, T *sums) const {
        Vec<T> sum[NH][NV] = {};
        const T *c = factor[0].get() + h0 * kTile, *x = m.get() + v0 * kLanes<T>;
        for (int t = 0; t < count; ++t)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                const Vec<T> y = load(x + size_t(t) * packed + v * kLanes<T>) - norms.mean[0][t];
#pragma GCC unroll 4
                for (int h = 0; h < NH; ++h)
                    sum[h][v] += c[h * kTile + t] * y;
            }
        for (int h = 0; h < NH; ++h)
            for (int v = 0; v < NV; ++v) {
                T *to = sums + (size_t(h0 + h) * columns.vectors[0] + v0 + v) * kLanes<T>;
                store(to, load(to) + sum[h][v]);
            }
    }
};

} // namespace
} // namespace sitenet::SITENET_LEVEL

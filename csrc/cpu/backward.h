// The attention block backward. It recomputes the activations, with their derivatives d.
//
// With c_h u_h the gradient of a group's normalised columns n = (m - mean) rstd, summed over h, and
// <x> the mean of x over the group,
//   dz = rstd (sum_h c_h u_h - <sum_h c_h u_h> - <sum_h c_h u_h n> n) d
//      = (sum_h (rstd c_h) u_h + shift + slope (m - mean)) d.
// For the hidden columns c_h is the gradient of logit h and u_h its row of logit_weight; for the
// attention columns the softmax weight and grad_y of head h; for the interaction columns 1 and
// grad_e_out.
#pragma once

#include "norms.h"
#include "products.h"

namespace sitenet::SITENET_LEVEL {
namespace {

// The sums over the pairs of one part.
template <class T> struct Sums {
    int first_site, num_sites;
    Buffer<T> site_j; // (num_sites, packed columns)
    Buffer<T> weight; // (padded width, packed columns)
    Buffer<T> logit;  // (heads, padded hidden)
};

// grad_y by row, head and (padded) attention feature, and per row and head its sum and its product
// with y. The product adds up in the order of a pair's with n: where a row has one pair alone they
// are equal to the bit, and the gradient of its logit is 0.
template <class T> struct RowGradients {
    int stride; // of a row of grad_y
    Buffer<T> grad_y, sum, dot;

    RowGradients(const AttentionShape &s, int vectors, const T *y, const T *grad, int threads)
        : stride(s.heads * vectors * kLanes<T>), grad_y(size_t(s.rows) * stride),
          sum(size_t(s.rows) * s.heads), dot(size_t(s.rows) * s.heads) {
        const int heads = s.heads, padded = vectors * kLanes<T>;
        threads = useful_threads(threads, grad_y.size(), kThreadNumbers);
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            Buffer<T> of_head(padded);
            T *values = of_head.get();
#pragma omp for schedule(static)
            for (int r = 0; r < s.rows; ++r)
                for (int h = 0; h < heads; ++h) {
                    T *to = grad_y.get() + size_t(r) * stride + h * padded;
                    T total = 0;
                    for (int a = 0; a < s.attention; ++a) {
                        const size_t at = (size_t(r) * s.attention + a) * heads + h;
                        to[a] = grad[at];
                        values[a] = y[at];
                        total += grad[at];
                    }
                    Vec<T> product{};
                    for (int a = 0; a < padded; a += kLanes<T>)
                        product += load(to + a) * load(values + a);
                    sum.get()[size_t(r) * heads + h] = total;
                    dot.get()[size_t(r) * heads + h] = sum_lanes<T>(product);
                }
        }
    }
};

template <class T, class E> class BackwardRows {
  public:
    BackwardRows(const AttentionBackward<T, E> &p, const Columns<T> &columns,
                 const Weights<T, E> &weights, const LogitWeights<T> &logit_weights,
                 const RowGradients<T> &rows, const T *site_i, const T *site_j)
        : p(p), s(p.shape), columns(columns), weights(weights), logit_weights(logit_weights),
          rows(rows), site_i(site_i), site_j(site_j), packed(columns.padded), heads(s.heads),
          norms(s, columns, logit_weights), m(columns.tile_size()), d(columns.tile_size()),
          attended(size_t(heads) * kTile), row_sum(size_t(heads) * kTile),
          row_dot(size_t(heads) * kTile), along(size_t(heads) * kTile * lanes),
          grad_out(size_t(kTile) * columns.vectors[2] * lanes),
          out_sum(s.interaction ? size_t(kTile) * lanes : 0), out_along(out_sum.size()),
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
        sums.logit.resize(size_t(heads) * columns.vectors[0] * lanes);
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
            for (int t = 0; t < tile.count; t += lanes)
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
    static constexpr int lanes = kLanes<T>;
    const AttentionBackward<T, E> &p;
    const AttentionShape &s;
    const Columns<T> &columns;
    const Weights<T, E> &weights;
    const LogitWeights<T> &logit_weights;
    const RowGradients<T> &rows;
    const T *site_i, *site_j;
    const int packed, heads;
    TileNorms<T> norms;
    Buffer<T> m, d;                       // (kTile, packed): activation; its derivative, then dz
    Buffer<T> attended, row_sum, row_dot; // (heads, kTile): softmax; sum and dot of RowGradients
    Buffer<T> along;                      // (heads, kTile, lanes): grad_y n, still to be added up
    Buffer<T> grad_out;                   // (kTile, padded interaction): grad_e_out
    Buffer<T> out_sum, out_along; // (kTile, lanes): its sum, and with m - mean, to be added up
    Buffer<T> factor[2];          // (heads, kTile): rstd c_h of hidden and attention columns
    alignas(64) T shift[3][kTile], slope[3][kTile]; // of interaction columns shift / rstd
    Buffer<T> site_i_sum;                           // (packed): grad_site_i of the current row
    Buffer<T> scratch;
    TileGradient<T, E> tile_gradient;
    int current = 0;

    const T *column(const Buffer<T> &x, int g, int t) const {
        return x.get() + size_t(t) * packed + columns.first[g];
    }
    const T *grad_y_of(int row) const { return rows.grad_y.get() + size_t(row) * rows.stride; }

    // The softmax of the tile's pairs, and what its rows have.
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
        for (int i = 0; i < heads * kTile; i += lanes)
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
                    sum += load(u + (h * av + v) * lanes) * ((load(x + v * lanes) - mean) * rstd);
                store(along.get() + (h * kTile + t) * lanes, sum);
            }
        }
    }

    void sum_interaction(const Tile<T, E> &tile, int64_t first) {
        const int iv = columns.vectors[2];
        for (int t = 0; t < tile.count; ++t) {
            T *g = grad_out.get() + size_t(t) * iv * lanes;
            if (p.grad_e_out)
                convert(p.grad_e_out + (first + t) * s.interaction, g, s.interaction);
            const T *x = column(m, 2, t);
            const T mean = norms.mean[2][t];
            Vec<T> sum{}, product{};
            for (int v = 0; v < iv; ++v) {
                const Vec<T> y = load(g + v * lanes);
                sum += y;
                product += y * (load(x + v * lanes) - mean);
            }
            store(out_sum.get() + t * lanes, sum);
            store(out_along.get() + t * lanes, product);
        }
    }

    static Vec<T> added_up(const Buffer<T> &x, int t) {
        Vec<T> v[lanes];
        for (int i = 0; i < lanes; ++i)
            v[i] = load(x.get() + size_t(t + i) * lanes);
        return add_lanes<T>(v);
    }

    // rstd c_h, shift and slope of kLanes pairs.
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

    // Multiplies columns of a group, leaving others alone.
    void multiply_columns(T *z, Vec<T> y, int g, bool last) const {
        if (last)
            y = y * columns.last[g] + (1 - columns.last[g]);
        store(z, y * load(z));
    }

    // dz of NP pairs and a group, where factors of head h stand at c + h * kTile and u_h at
    // u + h * stride.
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
                uv[h] = load(u + h * stride + v * lanes);
#pragma GCC unroll 2
            for (int r = 0; r < NP; ++r) {
                const size_t at = size_t(r) * packed + v * lanes;
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

    // The same for any number of heads.
    void differentiate_heads(int g, int t, const T *u, int stride) {
        const T *x = column(m, g, t), *c = factor[g].get() + t;
        T *z = d.get() + size_t(t) * packed + columns.first[g];
        const int last = (columns.vectors[g] - 1) * lanes;
        for (int v = 0; v <= last; v += lanes) {
            Vec<T> y = shift[g][t] + slope[g][t] * (load(x + v) - norms.mean[g][t]);
            for (int h = 0; h < heads; ++h)
                y += c[h * kTile] * load(u + h * stride + v);
            multiply_columns(z + v, y, g, v == last);
        }
    }

    void differentiate(const Tile<T, E> &tile) {
        const int hidden = columns.vectors[0] * lanes, attention = columns.vectors[1] * lanes;
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

    // Here grad_e_out less its mean comes first: of a single column nothing must be left.
    void differentiate_interaction(int t) {
        const T *x = column(m, 2, t);
        const T *g = grad_out.get() + size_t(t) * columns.vectors[2] * lanes;
        T *z = d.get() + size_t(t) * packed + columns.first[2];
        const Vec<T> mean = splat(norms.mean[2][t]), rstd = splat(norms.rstd[2][t]);
        const Vec<T> up = splat(shift[2][t]), along_m = splat(slope[2][t]);
        const int last = (columns.vectors[2] - 1) * lanes;
        for (int v = 0; v <= last; v += lanes) {
            const Vec<T> y = rstd * (load(g + v) + up) + along_m * (load(x + v) - mean);
            multiply_columns(z + v, y, 2, v == last);
        }
    }

    // Gradients of the site terms. Pairs with one site stand side by side.
    void add_sites(const Tile<T, E> &tile, const Sums<T> &sums) {
        for (int a = 0; a < tile.count;) {
            const int b = tile.row_end(a);
            finish_until(tile.row[a]);
            for (int v = 0; v < columns.num_vectors(); v += kTileVectors)
                with_constant<kTileVectors>(columns.num_vectors() - v, [&](auto nv) {
                    add_sites_columns<nv>(tile, a, b, v * lanes, sums);
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
                    sum[v] += load(d.get() + size_t(t) * packed + column + v * lanes);
            T *to = sums.site_j.get() + size_t(site - sums.first_site) * packed + column;
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                row[v] += sum[v];
                store(to + v * lanes, load(to + v * lanes) + sum[v]);
            }
        }
        T *to = site_i_sum.get() + column;
        for (int v = 0; v < NV; ++v)
            store(to + v * lanes, load(to + v * lanes) + row[v]);
    }

    void finish_until(int row) { // rows before `row` are complete
        for (; current < row; ++current) {
            std::copy_n(site_i_sum.get(), columns.count,
                        p.grad_site_i + size_t(current) * columns.count);
            std::fill_n(site_i_sum.get(), packed, T(0));
        }
    }

    // grad_logit_weight: sums over pairs of rstd c_h (m - mean).
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
        const T *c = factor[0].get() + h0 * kTile, *x = m.get() + v0 * lanes;
        for (int t = 0; t < count; ++t)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                const Vec<T> y = load(x + size_t(t) * packed + v * lanes) - norms.mean[0][t];
#pragma GCC unroll 4
                for (int h = 0; h < NH; ++h)
                    sum[h][v] += c[h * kTile + t] * y;
            }
        for (int h = 0; h < NH; ++h)
            for (int v = 0; v < NV; ++v) {
                T *to = sums + (size_t(h0 + h) * columns.vectors[0] + v0 + v) * lanes;
                store(to, load(to) + sum[h][v]);
            }
    }
};

// The parts' sums, in order, as gradients of the site terms and the weights.
template <class T, class E>
void add_up(const std::vector<Sums<T>> &sums, const AttentionBackward<T, E> &p,
            const Columns<T> &columns, int threads) {
    const AttentionShape &s = p.shape;
    const int packed = columns.padded;
    threads = useful_threads(threads, int64_t(s.sites) * packed, kThreadNumbers);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> row(packed);
#pragma omp for schedule(static)
        for (int j = 0; j < s.sites; ++j) {
            std::fill(row.begin(), row.end(), T(0));
            for (const Sums<T> &sum : sums)
                if (j >= sum.first_site && j < sum.first_site + sum.num_sites) {
                    const T *from = sum.site_j.get() + size_t(j - sum.first_site) * packed;
                    for (int c = 0; c < packed; ++c)
                        row[c] += from[c];
                }
            std::copy_n(row.data(), columns.count, p.grad_site_j + size_t(j) * columns.count);
        }
    }
    for (int c = 0; c < columns.count; ++c)
        for (int k = 0; k < s.width; ++k) {
            T total = 0;
            for (const Sums<T> &sum : sums)
                total += sum.weight.get()[size_t(k) * packed + c];
            p.grad_weight[size_t(c) * s.width + k] = total;
        }
    for (int h = 0; h < s.heads; ++h)
        for (int c = 0; c < s.hidden; ++c) {
            T total = 0;
            for (const Sums<T> &sum : sums)
                total += sum.logit.get()[size_t(h) * columns.vectors[0] * kLanes<T> + c];
            p.grad_logit_weight[size_t(h) * s.hidden + c] = total;
        }
}

} // namespace
} // namespace sitenet::SITENET_LEVEL

// The three products of a tile: z = site terms + W e with its activation, dz W, and dz^T e.
//
// Each is an outer-product micro-kernel: sums stay in registers, one factor is a vector and the
// other a number broadcast to all lanes.
#pragma once

#include "activation.h"
#include "tile.h"

namespace sitenet::SITENET_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kGradRows = 8, kGradVectors = 3; // of grad_e: 48 columns take 3 vectors
#else
constexpr int kGradRows = kTileRows, kGradVectors = kTileVectors;
#endif
static_assert(kTile % kGradRows == 0, "a tile is whole micro-kernels");

/// sum += a * b; in bfloat16 two products per lane.
template <class T, class F> inline void product_step(Vec<T> &sum, F a, const Vec<F> &b) {
    if constexpr (std::is_same_v<F, uint32_t>)
        sum = add_bf16_products(sum, splat(a), b);
    else
        sum += splat(a) * b;
}

template <class F> inline F factor_at(const F *p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// Whether the activation of one block alternates with the products of the next. The rough
// activation of bfloat16 leaves the multipliers mostly idle; the exact one does not.
template <class E> constexpr bool kAlternate = kUseBf16<E>;

/// Computes m, and its derivative d if Backward, of a tile; NV vectors of columns at a time.
///
/// A block is kTileRows pairs of those columns. With kAlternate, each step of a block's products is
/// followed by the activation of one vector of the block before it. Otherwise the activation
/// follows the block's own products. Site terms are added together with the activation.
///
/// with_function(use) calls use(f), where f takes the activation of a vector.
template <class T, class E, int NV, bool Backward, class WithFunction> class Products {
  public:
    Products(const Tile<T, E> &tile, const Weights<T, E> &weights, WithFunction with_function, T *m,
             T *d)
        : tile(tile), weights(weights), with_function(with_function), m(m), d(d) {}

    /// Computes the columns from `begin` to `end`, which must be whole blocks.
    void run(int begin, int end) {
        Place before = {0, begin}; // a harmless first target, overwritten by the real block
        for (int column = begin; column < end; column += NV * kLanes<T>)
            for (int pair = 0; pair < tile.padded(); pair += kTileRows) {
                block({pair, column}, before);
                before = {pair, column};
            }
        for (int r = 0; kAlternate<E> && r < kTileRows; ++r)
            finish(z[r], before, r, [] {});
    }

  private:
    using F = Factor<T, E>;
    struct Place {
        int pair, column;
    };
    const Tile<T, E> &tile;
    const Weights<T, E> &weights;
    const WithFunction with_function;
    T *m, *d;
    Vec<T> z[kTileRows][NV] = {}; // W e of the last block

    void block(Place place, Place before) {
        Vec<T> sum[kTileRows][NV] = {};
        const F *e[kTileRows], *w = weights.columns_of_k.get() + place.column * weights.steps;
        const int steps = weights.steps;
#pragma GCC unroll 8
        for (int r = 0; r < kTileRows; ++r)
            e[r] = tile.e[place.pair + r];
        int k = 0;
        auto step = [&]() __attribute__((always_inline)) {
            Vec<F> wk[NV];
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v)
                wk[v] = load(w + (k * NV + v) * kLanes<T>);
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) {
                const F x = factor_at(e[r] + k);
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v)
                    product_step<T, F>(sum[r][v], x, wk[v]);
            }
            ++k;
        };
        for (int r = 0; kAlternate<E> && r < kTileRows; ++r)
            if (k + NV <= steps)
                finish(z[r], before, r, step);
            else
                finish(z[r], before, r, [] {});
        while (k < steps)
            step();
#pragma GCC unroll 8
        for (int r = 0; r < kTileRows; ++r)
            if constexpr (kAlternate<E>)
                std::copy_n(sum[r], NV, z[r]);
            else
                finish(sum[r], place, r, [] {});
    }

    // Takes the activations of a block's r-th pair from its W e. Calls `also` after each vector.
    template <class Also>
    [[gnu::always_inline]] void finish(const Vec<T> (&sum)[NV], Place place, int r, Also also) {
        const int pair = place.pair + r;
        const T *site_i = tile.base_i[pair] + place.column;
        const T *site_j = tile.base_j[pair] + place.column;
        const size_t to = size_t(pair) * weights.num_columns + place.column;
        with_function([&](auto function) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                const int at = v * kLanes<T>;
                const auto a = function(sum[v] + (load(site_i + at) + load(site_j + at)));
                if constexpr (Backward) {
                    store(m + to + at, a.value);
                    store(d + to + at, a.derivative);
                } else {
                    store(m + to + at, a);
                }
                also();
            }
        });
    }
};

template <bool Backward, class T, class E, class WithFunction>
void products_with(const Tile<T, E> &tile, const Weights<T, E> &weights, WithFunction with_function,
                   T *m, T *d) {
    constexpr int block = kTileVectors * kLanes<T>;
    const int end = weights.num_columns, whole = end / block * block;
    if (whole)
        Products<T, E, kTileVectors, Backward, WithFunction>(tile, weights, with_function, m, d)
            .run(0, whole);
    if (whole < end)
        with_constant<kTileVectors - 1>((end - whole) / kLanes<T>, [&](auto nv) {
            Products<T, E, nv, Backward, WithFunction>(tile, weights, with_function, m, d)
                .run(whole, end);
        });
}

template <class T, class E, bool Backward>
void products(const Tile<T, E> &tile, const Weights<T, E> &weights, int activation, T *m, T *d) {
    auto choose = [activation](auto use) __attribute__((always_inline)) {
        if constexpr (Backward)
            with_activation_parts<T, E>(activation, use);
        else
            with_activation<T, E>(activation, use);
    };
    // Choose the activation outside the loops only where they alternate: elsewhere the constants of
    // an activation known early would take registers from the sums.
    if constexpr (kAlternate<E>)
        choose([&](auto function) {
            auto known = [function](auto use) __attribute__((always_inline)) { use(function); };
            products_with<Backward>(tile, weights, known, m, d);
        });
    else
        products_with<Backward>(tile, weights, choose, m, d);
}

/// The dz of a tile in the two forms that its products read.
template <class T, class E> struct TileGradient {
    using F = Factor<T, E>;
    Buffer<uint16_t> rows;     ///< bfloat16: (kTile, packed)
    Buffer<uint32_t> pairs;    ///< bfloat16: (kTile / 2, packed), two pairs per lane
    Buffer<uint32_t> e_pairs;  ///< bfloat16: (kTile / 2, width), two pairs per lane
    const F *row[kTile];       ///< for dz W: the columns of each pair
    const F *of_step[kTile];   ///< for dz^T e: the columns of each step, one pair or two
    const F *e_of_step[kTile]; ///< for dz^T e: the e of each step
    int steps;                 ///< of dz^T e

    TileGradient(int packed, int width) {
        if constexpr (kUseBf16<E>) {
            rows.resize(size_t(kTile) * packed);
            pairs.resize(size_t(kTile) / 2 * packed);
            e_pairs.resize(size_t(kTile) / 2 * width);
        }
        (void)packed, (void)width;
    }

    void set(const Tile<T, E> &tile, T *d, int packed, int width) {
        if constexpr (kUseBf16<E>) {
            if (tile.count % 2)
                std::fill_n(d + size_t(tile.count) * packed, packed, T(0));
            steps = (tile.count + 1) / 2;
            for (int s = 0; s < steps; ++s) {
                const float *d0 = d + size_t(2 * s) * packed, *d1 = d0 + packed;
                uint16_t *to = rows.get() + size_t(2 * s) * packed;
                for (int c = 0; c < packed; c += kLanes<T>)
                    store_bf16_pair(to + c, to + packed + c, pairs.get() + size_t(s) * packed + c,
                                    load(d0 + c), load(d1 + c));
                const auto *e0 = reinterpret_cast<const uint16_t *>(tile.e[2 * s]);
                const auto *e1 = reinterpret_cast<const uint16_t *>(tile.e[2 * s + 1]);
                uint32_t *e = e_pairs.get() + size_t(s) * width;
                for (int k = 0; k < width; ++k)
                    e[k] = uint32_t(e0[k]) | uint32_t(e1[k]) << 16;
                of_step[s] = pairs.get() + size_t(s) * packed;
                e_of_step[s] = e;
            }
            for (int t = 0; t < kTile; ++t)
                row[t] = reinterpret_cast<const uint32_t *>(rows.get() + size_t(t) * packed);
        } else {
            steps = tile.count;
            for (int t = 0; t < kTile; ++t) {
                row[t] = of_step[t] = d + size_t(t) * packed;
                e_of_step[t] = tile.e[t];
            }
        }
        (void)packed, (void)width;
    }
};

/// grad_weight: adds the sums of a tile to `out` (k, packed), for kTileRows k from k0 on and NV
/// vectors of columns.
template <class T, class F, int NV>
void weight_block(const F *const *z, const F *const *e, int steps, int k0, int width, int column,
                  int packed, T *out) {
    Vec<T> sum[kTileRows][NV];
    int k[kTileRows];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
        k[r] = std::min(k0 + r, width - 1); // k past the width are padding
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            sum[r][v] = load(out + size_t(k0 + r) * packed + column + v * kLanes<T>);
    }
    for (int t = 0; t < steps; ++t) {
        Vec<F> zt[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            zt[v] = load(z[t] + column + v * kLanes<T>);
#pragma GCC unroll 8
        for (int r = 0; r < kTileRows; ++r) {
            const F x = e[t][k[r]];
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v)
                product_step<T, F>(sum[r][v], x, zt[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            store(out + size_t(k0 + r) * packed + column + v * kLanes<T>, sum[r][v]);
}

/// grad_e: kGradRows pairs by NV vectors of k, summed over all columns, in `steps` columns or pairs
/// of columns.
template <class T, class F, int NV>
void e_block(const F *const *z, int t0, const F *w, int steps, int k, int padded_width, T *out) {
    Vec<T> sum[kGradRows][NV] = {};
    const F *zr[kGradRows];
    for (int r = 0; r < kGradRows; ++r)
        zr[r] = z[t0 + r];
    for (int c = 0; c < steps; ++c) {
        Vec<F> wc[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            wc[v] = load(w + size_t(c) * padded_width + k + v * kLanes<T>);
#pragma GCC unroll 8
        for (int r = 0; r < kGradRows; ++r) {
            const F x = factor_at(zr[r] + c);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v)
                product_step<T, F>(sum[r][v], x, wc[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kGradRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            store(out + size_t(r) * padded_width + k + v * kLanes<T>, sum[r][v]);
}

/// Adds dz^T e to weight_sums, and writes grad_e = dz W of the tile's pairs.
template <class T, class E>
void tile_products(const TileGradient<T, E> &z, const Tile<T, E> &tile,
                   const Weights<T, E> &weights, T *weight_sums, T *scratch, E *grad_e) {
    using F = Factor<T, E>;
    const int packed = weights.num_columns, width = weights.width;
    for (int v0 = 0; v0 < weights.num_vectors; v0 += kTileVectors)
        with_constant<kTileVectors>(weights.num_vectors - v0, [&](auto nv) {
            for (int k0 = 0; k0 < width; k0 += kTileRows)
                weight_block<T, F, nv>(z.of_step, z.e_of_step, z.steps, k0, width, v0 * kLanes<T>,
                                       packed, weight_sums);
        });
    const F *w = weights.k_of_column.get();
    const int steps = kUseBf16<E> ? packed / 2 : packed;
    const int kv = weights.padded_width / kLanes<T>;
    for (int t0 = 0; t0 < tile.count; t0 += kGradRows) {
        for (int v0 = 0; v0 < kv; v0 += kGradVectors)
            with_constant<kGradVectors>(kv - v0, [&](auto nv) {
                e_block<T, F, nv>(z.row, t0, w, steps, v0 * kLanes<T>, weights.padded_width,
                                  scratch);
            });
        for (int r = 0; r < kGradRows && t0 + r < tile.count; ++r)
            write_row(scratch + size_t(r) * weights.padded_width, grad_e + size_t(t0 + r) * width,
                      width);
    }
}

} // namespace
} // namespace sitenet::SITENET_LEVEL

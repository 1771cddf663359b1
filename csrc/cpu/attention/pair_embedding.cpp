// The embedding of pair features on the CPU (formula and layout: ../../attention.h).
//
// Free threads take the next range of consecutive pairs and work through it in tiles. The backward
// pass computes the activations again; gradients of the weights are summed per part and then over
// parts in order, so results are bitwise reproducible for a given number of threads.
//
// Memory traffic per pair at the published size (2 -> 48) in float: 8 bytes in and 192 out forward,
// which bounds it; 200 in and 8 out backward, where the activation is the bound.
#include "pair_embedding.h"

#include "../small_product.h"
#include "norms.h"
#include "products.h"

namespace sitenet::SITENET_LEVEL {
namespace {

/// Packs the weight as (num_features, padded width), followed by the bias.
template <class T>
Buffer<T> pack_embedding(const T *weight, const T *bias, const PairEmbeddingShape &s) {
    const int padded = round_up(s.width, kLanes<T>);
    Buffer<T> packed(size_t(s.num_features + 1) * padded);
    for (int f = 0; f < s.num_features; ++f)
        for (int k = 0; k < s.width; ++k)
            packed.get()[size_t(f) * padded + k] = weight[size_t(k) * s.num_features + f];
    std::copy_n(bias, s.width, packed.get() + size_t(s.num_features) * padded);
    return packed;
}

/// The activations of a tile, and their norm.
template <class T, class E> struct EmbeddingTile {
    const PairEmbeddingShape &s;
    const T *w;
    const int padded, vectors;
    const Vec<T> last_lanes;
    Buffer<T> m, d; ///< (kTile, padded): activation; its derivative, then dz
    alignas(64) T mean[kTile], rstd[kTile];

    EmbeddingTile(const PairEmbeddingShape &s, const T *w)
        : s(s), w(w), padded(round_up(s.width, kLanes<T>)), vectors(padded / kLanes<T>),
          last_lanes(first_lanes<T>(s.width - (vectors - 1) * kLanes<T>)),
          m(size_t(kTile) * padded), d(size_t(kTile) * padded) {
        std::fill_n(mean, kTile, T(0));
        std::fill_n(rstd, kTile, T(1));
    }

    /// Calls f(place in the tile, z) for each vector of z = weight features + bias.
    template <class F> void linear(const T *features, int count, F f) const {
        const T *bias = w + size_t(s.num_features) * padded;
        for (int t = 0; t < count; ++t)
            std::copy_n(bias, padded, m.get() + t * padded);
        product<T>({features, s.num_features, w, padded, s.num_features}, count, padded,
                   EvenRows<T>{m.get(), padded}, true);
        for (int at = 0; at < count * padded; at += kLanes<T>)
            f(at, load(m.get() + at));
    }

    void normalise_tile(int count) {
        for (int t = 0; s.norm && t < count; t += kLanes<T>) {
            Vec<T> partial[2][kLanes<T>];
            const T *x = m.get() + t * padded;
            partial_sums<T, 0>(x, padded, vectors, last_lanes, nullptr, partial);
            normalise(partial, first_column(x, padded), s.width, s.eps, mean + t, rstd + t);
        }
    }
    Vec<T> normal(int t, int k) const {
        return (load(m.get() + t * padded + k) - mean[t]) * rstd[t];
    }
};

/// The backward pass of the pairs begin to end - 1, one part. Adds to `sums`
/// (num_features + 1, padded), whose last row is the bias.
template <class T, class E>
void backward_range(const PairEmbeddingBackward<T, E> &p, const T *w, int64_t begin, int64_t end,
                    T *sums) {
    const PairEmbeddingShape &s = p.shape;
    EmbeddingTile<T, E> tile(s, w);
    const int padded = tile.padded, nf = s.num_features;
    T *m = tile.m.get(), *d = tile.d.get();
    Buffer<T> gradient(padded);
    T *g = gradient.get();
    for (int64_t first = begin; first < end; first += kTile) {
        const int count = int(std::min<int64_t>(kTile, end - first));
        const T *features = p.features + first * nf;
        with_activation_parts<T, E>(s.activation, [&](auto function) {
            tile.linear(features, count, [&](int at, Vec<T> z) {
                const auto a = function(z);
                store(m + at, a.value);
                store(d + at, a.derivative);
            });
        });
        tile.normalise_tile(count);
        for (int t = 0; t < count; ++t) {
            convert(p.grad_e + (first + t) * s.width, g, s.width);
            Vec<T> total{}, along{};
            for (int k = 0; k < padded; k += kLanes<T>) {
                total += load(g + k);
                along += load(g + k) * tile.normal(t, k);
            }
            const T mean = s.norm ? sum_lanes<T>(total) / s.width : 0;
            const T dot = s.norm ? sum_lanes<T>(along) / s.width : 0;
            for (int k = 0; k < padded; k += kLanes<T>) {
                T *dz = d + t * padded + k;
                store(dz, tile.rstd[t] * (load(g + k) - mean - dot * tile.normal(t, k)) * load(dz));
            }
        }
        product<T, true>({features, nf, d, padded, count}, nf, padded, EvenRows<T>{sums, padded},
                         true);
        for (int k = 0; k < padded; k += kLanes<T>) {
            T *to = sums + size_t(nf) * padded + k;
            Vec<T> sum = load(to);
            for (int t = 0; t < count; ++t)
                sum += load(d + t * padded + k);
            store(to, sum);
        }
        for (int t = 0; p.grad_features && t < count; ++t)
            for (int j = 0; j < nf; ++j) {
                Vec<T> to{};
                for (int k = 0; k < padded; k += kLanes<T>)
                    to += load(d + t * padded + k) * load(w + j * padded + k);
                p.grad_features[(first + t) * nf + j] = sum_lanes<T>(to);
            }
    }
}

} // namespace

template <class T, class E>
void pair_embedding_forward(const PairEmbeddingForward<T, E> &p, int threads) {
    const PairEmbeddingShape &s = p.shape;
    threads = useful_threads(threads, s.pairs * s.width, kThreadNumbers);
    const Buffer<T> w = pack_embedding(p.weight, p.bias, s);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        EmbeddingTile<T, E> tile(s, w.get());
        T *m = tile.m.get();
#pragma omp for schedule(guided)
        for (int64_t first = 0; first < s.pairs; first += kTile) {
            const int count = int(std::min<int64_t>(kTile, s.pairs - first));
            with_activation<T, E>(s.activation, [&](auto function) {
                tile.linear(p.features + first * s.num_features, count,
                            [&](int at, Vec<T> z) { store(m + at, function(z)); });
            });
            tile.normalise_tile(count);
            for (int t = 0; t < count; ++t) {
                for (int k = 0; k < tile.padded; k += kLanes<T>)
                    store(m + t * tile.padded + k, tile.normal(t, k));
                write_row(m + t * tile.padded, p.e + (first + t) * s.width, s.width);
            }
        }
    }
}

template <class T, class E>
void pair_embedding_backward(const PairEmbeddingBackward<T, E> &p, int threads) {
    const PairEmbeddingShape &s = p.shape;
    threads = useful_threads(threads, s.pairs * s.width, kThreadNumbers);
    const int parts = num_parts(threads);
    const int padded = round_up(s.width, kLanes<T>), nf = s.num_features;
    const Buffer<T> w = pack_embedding(p.weight, p.bias, s);
    std::vector<Buffer<T>> sums(parts);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int i = 0; i < parts; ++i) {
        sums[i].resize(size_t(nf + 1) * padded);
        backward_range(p, w.get(), s.pairs * i / parts, s.pairs * (i + 1) / parts, sums[i].get());
    }
    for (int k = 0; k < s.width; ++k)
        for (int j = 0; j <= nf; ++j) {
            T total = 0;
            for (const Buffer<T> &sum : sums)
                total += sum.get()[j * padded + k];
            (j < nf ? p.grad_weight[k * nf + j] : p.grad_bias[k]) = total;
        }
}

#define INSTANTIATE(T, E)                                                                          \
    template void pair_embedding_forward(const PairEmbeddingForward<T, E> &, int);                 \
    template void pair_embedding_backward(const PairEmbeddingBackward<T, E> &, int);
#ifndef SITENET_BF16_ONLY
INSTANTIATE(float, float)
INSTANTIATE(double, double)
#endif
INSTANTIATE(float, uint16_t)
#undef INSTANTIATE

} // namespace sitenet::SITENET_LEVEL

// The embedding of pair features on the CPU (see ../attention.h for the formula and layout).
//
// Threads take contiguous ranges of pairs as they become free, and work through them in tiles.
// Backward recomputes the activations; gradients of the weights are summed per part and then over
// parts in order, so results are bitwise reproducible for a given number of threads. Bound by
// writing e forward, by the activation backward.
#include "embedding.h"

#include "norms.h"
#include "products.h"

namespace sitenet::SITENET_LEVEL {
namespace {

// weight as (num_features, padded width), then bias.
template <class T>
Buffer<T> pack_embedding(const T *weight, const T *bias, const EmbeddingShape &s) {
    const int padded = round_up(s.width, kLanes<T>);
    Buffer<T> packed(size_t(s.num_features + 1) * padded);
    for (int f = 0; f < s.num_features; ++f)
        for (int k = 0; k < s.width; ++k)
            packed.get()[f * padded + k] = weight[k * s.num_features + f];
    std::copy_n(bias, s.width, packed.get() + s.num_features * padded);
    return packed;
}

// The activations of a tile, and the numbers of their norm.
template <class T, class E> struct EmbeddingTile {
    static constexpr int lanes = kLanes<T>;
    const EmbeddingShape &s;
    const T *w;
    const int padded, vectors;
    const Vec<T> last_lanes;
    Buffer<T> m, d; // (kTile, padded): activation, derivative
    alignas(64) T mean[kTile], rstd[kTile];

    EmbeddingTile(const EmbeddingShape &s, const T *w)
        : s(s), w(w), padded(round_up(s.width, lanes)), vectors(padded / lanes),
          last_lanes(first_lanes<T>(s.width - (vectors - 1) * lanes)), m(size_t(kTile) * padded),
          d(size_t(kTile) * padded) {
        std::fill_n(mean, kTile, T(0));
        std::fill_n(rstd, kTile, T(1));
    }

    // f(place in the tile, z) for all z = weight features + bias.
    template <class F> void linear(const T *features, int count, F f) const {
        for (int t = 0; t < count; ++t, features += s.num_features)
            for (int k = 0; k < padded; k += lanes) {
                Vec<T> z = load(w + s.num_features * padded + k);
                for (int i = 0; i < s.num_features; ++i)
                    z += features[i] * load(w + i * padded + k);
                f(t * padded + k, z);
            }
    }

    void normalise_tile(int count) {
        for (int t = 0; s.norm && t < count; t += lanes) {
            Vec<T> partial[2][lanes];
            const T *x = m.get() + t * padded;
            partial_sums<T, 0>(x, padded, vectors, last_lanes, nullptr, partial);
            normalise(partial, first_column(x, padded), s.width, s.eps, mean + t, rstd + t);
        }
    }
    Vec<T> normal(int t, int k) const {
        return (load(m.get() + t * padded + k) - mean[t]) * rstd[t];
    }
};

// The pairs of one part, going backward.
template <class T, class E>
void backward_range(const EmbeddingBackward<T, E> &p, const T *w, int64_t begin, int64_t end,
                    T *sums) {
    const EmbeddingShape &s = p.shape;
    constexpr int lanes = kLanes<T>;
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
            for (int k = 0; k < padded; k += lanes) {
                total += load(g + k);
                along += load(g + k) * tile.normal(t, k);
            }
            const T mean = s.norm ? sum_lanes<T>(total) / s.width : 0;
            const T dot = s.norm ? sum_lanes<T>(along) / s.width : 0;
            for (int k = 0; k < padded; k += lanes) {
                T *dz = d + t * padded + k;
                store(dz, tile.rstd[t] * (load(g + k) - mean - dot * tile.normal(t, k)) * load(dz));
            }
        }
        for (int j = 0; j <= nf; ++j)
            for (int k = 0; k < padded; k += lanes) {
                Vec<T> sum = load(sums + j * padded + k);
                for (int t = 0; t < count; ++t)
                    sum += (j < nf ? features[t * nf + j] : T(1)) * load(d + t * padded + k);
                store(sums + j * padded + k, sum);
            }
        for (int t = 0; p.grad_features && t < count; ++t)
            for (int j = 0; j < nf; ++j) {
                Vec<T> to{};
                for (int k = 0; k < padded; k += lanes)
                    to += load(d + t * padded + k) * load(w + j * padded + k);
                p.grad_features[(first + t) * nf + j] = sum_lanes<T>(to);
            }
    }
}

} // namespace

template <class T, class E> void embedding_forward(const EmbeddingForward<T, E> &p, int threads) {
    const EmbeddingShape &s = p.shape;
    constexpr int lanes = kLanes<T>;
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
                for (int k = 0; k < tile.padded; k += lanes)
                    store(m + t * tile.padded + k, tile.normal(t, k));
                write_row(m + t * tile.padded, p.e + (first + t) * s.width, s.width);
            }
        }
    }
}

template <class T, class E> void embedding_backward(const EmbeddingBackward<T, E> &p, int threads) {
    const EmbeddingShape &s = p.shape;
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

template void embedding_forward(const EmbeddingForward<float, float> &, int);
template void embedding_forward(const EmbeddingForward<double, double> &, int);
template void embedding_forward(const EmbeddingForward<float, uint16_t> &, int);
template void embedding_backward(const EmbeddingBackward<float, float> &, int);
template void embedding_backward(const EmbeddingBackward<double, double> &, int);
template void embedding_backward(const EmbeddingBackward<float, uint16_t> &, int);

} // namespace sitenet::SITENET_LEVEL

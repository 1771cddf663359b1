// The attention block on the CPU (see ../attention.h for the formulas and layouts).
//
// Each thread owns a contiguous range of rows holding its share of the pairs and walks through
// their pairs in tiles of kTile, across row boundaries. Per tile:
//   1. products: z = site_i + site_j + W e as an outer-product micro-kernel over kTileRows pairs
//   and
//      kTileVectors vectors of columns, the site terms being its initial value; the activation (and
//      its derivative, going backward) is taken while z is in registers, so z is never stored;
//   2. the sums of each group of columns (mean, variance) and the logits;
//   3. forward: the online softmax of the tile's segments of rows, the weighted sums, e_out;
//      backward: dz in place of the derivative, then grad_e = dz W, grad_W += dz^T e, and the
//      gradients of the site terms as running sums.
// Memory traffic per pair: e in, e_out out (backward: both gradients too); everything of width
// `columns` stays in a tile of some 60 KB in the second-level cache. Work per pair at the published
// size: 2 * 48 * 303 FLOP forward, three times that backward, and 303 activations each way.
//
// Columns are padded to whole vectors per group. Padding lanes of m are activation(0) = 0 and their
// weights are 0, so sums need no masks.
//
// grad_site_j, grad_weight and grad_logit_weight are summed per thread and then over threads in
// order: results are bitwise reproducible for a given number of threads.
#include "../attention.h"
#include "simd.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace sitenet::SITENET_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVectors = 4; // 24 of 32 registers are sums
#else
constexpr int kTileRows = 4, kTileVectors = 2; // 8 of 16
#endif
constexpr int kTile = 48;
static_assert(kTile % kTileRows == 0, "a tile is whole micro-kernels");
constexpr int kMaxHeadsAtOnce = 4;
constexpr int64_t kParallelWork = 256; // pairs: below this a second thread costs more than it saves

#if defined(__AVX512BF16__)
constexpr bool kBf16Products = true;
#else
constexpr bool kBf16Products = false;
#endif
template <class E> constexpr bool kUseBf16 = kBf16Products && std::is_same_v<E, uint16_t>;

template <class T> class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t n) { resize(n); }
    void resize(size_t n) {
        data_.reset(static_cast<T *>(::operator new(std::max<size_t>(n, 1) * sizeof(T), kAlign)));
        size_ = n;
        std::memset(static_cast<void *>(data_.get()), 0, n * sizeof(T));
    }
    T *get() const { return data_.get(); }
    size_t size() const { return size_; }

  private:
    static constexpr std::align_val_t kAlign{64};
    struct Free {
        void operator()(T *p) const { ::operator delete(p, kAlign); }
    };
    std::unique_ptr<T, Free> data_;
    size_t size_ = 0;
};

// The three groups of columns, dense (as in the tensors) and packed (padded to whole vectors).
template <class T> struct Columns {
    static constexpr int kLane = kLanes<T>;
    int size[3], dense[3], packed[3], vectors[3];
    int num_dense, num_packed;

    Columns(int hidden, int attention, int interaction) : size{hidden, attention, interaction} {
        num_dense = num_packed = 0;
        for (int g = 0; g < 3; ++g) {
            dense[g] = num_dense;
            packed[g] = num_packed;
            vectors[g] = round_up(size[g], kLane) / kLane;
            num_dense += size[g];
            num_packed += vectors[g] * kLane;
        }
    }
    int num_vectors() const { return num_packed / kLane; }
    void pack(const T *from, T *to) const {
        for (int g = 0; g < 3; ++g)
            std::copy_n(from + dense[g], size[g], to + packed[g]);
    }
    void unpack(const T *from, T *to) const {
        for (int g = 0; g < 3; ++g)
            std::copy_n(from + packed[g], size[g], to + dense[g]);
    }
    int packed_of(int c) const {
        const int g = c < dense[1] ? 0 : c < dense[2] ? 1 : 2;
        return packed[g] + c - dense[g];
    }
};

template <class T>
Buffer<T> pack_rows(const T *x, int rows, const Columns<T> &columns, int threads) {
    Buffer<T> packed(size_t(rows) * columns.num_packed);
    T *to = packed.get();
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < rows; ++r)
        columns.pack(x + size_t(r) * columns.num_dense, to + size_t(r) * columns.num_packed);
    return packed;
}

// Activation of a vector, and its derivative.
template <class T> inline Vec<T> exp_for_mish(Vec<T> z) {
    return exp_in_range(at_least(at_most(z, T(20)), T(-87)));
}
template <class T> inline Vec<T> activate(Vec<T> z, int activation) {
    if (activation == kMish)
        return mish_value(z, exp_for_mish<T>(z));
    if (activation == kRelu)
        return z > Vec<T>{} ? z : z != z ? z : Vec<T>{};
    return z;
}
template <class T> inline MishParts<Vec<T>> activate_parts(Vec<T> z, int activation) {
    if (activation == kMish)
        return mish_parts(z, exp_for_mish<T>(z));
    if (activation == kRelu)
        return {activate<T>(z, kRelu), z > Vec<T>{} ? splat(T(1)) : Vec<T>{}};
    return {z, splat(T(1))};
}

// ------------------------------------------------------------------------------------------------
// Products. `Weights` holds W packed for the three products of a tile.
//   columns_of_k: per block of kTileVectors vectors of columns, (k, columns of the block): for W e
//   k_of_column:  (packed columns, padded width): for dz W
// In bfloat16 two consecutive k (or columns) stand side by side in each 32-bit lane.

template <class T, class E> struct Weights {
    int width, padded_width, num_vectors, num_packed;
    Buffer<T> columns_of_k, k_of_column;
    Buffer<uint32_t> columns_of_k_pairs, k_of_column_pairs;

    Weights(const T *w, int width, const Columns<T> &columns, bool backward)
        : width(width), padded_width(round_up(width, kLanes<T>)),
          num_vectors(columns.num_vectors()), num_packed(columns.num_packed) {
        auto at = [&](int c, int k) {
            const T x = k < width ? w[size_t(c) * width + k] : T(0);
            if constexpr (std::is_same_v<E, uint16_t>)
                return T(from_bf16(to_bf16(x)));
            return x;
        };
        constexpr int lanes = kLanes<T>;
        auto block_at = [&](int pc, int k, int steps) { // index of packed column pc, step k
            const int v = pc / lanes, b = v / kTileVectors;
            const int in_block = std::min(kTileVectors, num_vectors - b * kTileVectors);
            return (size_t(b) * kTileVectors * steps + size_t(k) * in_block + v % kTileVectors) *
                       lanes +
                   pc % lanes;
        };
        if constexpr (kUseBf16<E>) {
            const int steps = (width + 1) / 2;
            auto pair = [](T low, T high) {
                return uint32_t(to_bf16(low)) | uint32_t(to_bf16(high)) << 16;
            };
            columns_of_k_pairs.resize(size_t(num_packed) * steps);
            for (int c = 0; c < columns.num_dense; ++c)
                for (int k = 0; k < steps; ++k)
                    columns_of_k_pairs.get()[block_at(columns.packed_of(c), k, steps)] =
                        pair(at(c, 2 * k), at(c, 2 * k + 1));
            if (!backward)
                return;
            Buffer<T> rows(size_t(num_packed) * padded_width);
            for (int c = 0; c < columns.num_dense; ++c)
                for (int k = 0; k < width; ++k)
                    rows.get()[size_t(columns.packed_of(c)) * padded_width + k] = at(c, k);
            k_of_column_pairs.resize(size_t(num_packed) / 2 * padded_width);
            for (int c = 0; c < num_packed; c += 2)
                for (int k = 0; k < padded_width; ++k)
                    k_of_column_pairs.get()[size_t(c) / 2 * padded_width + k] =
                        pair(rows.get()[size_t(c) * padded_width + k],
                             rows.get()[size_t(c + 1) * padded_width + k]);
        } else {
            columns_of_k.resize(size_t(num_packed) * width);
            for (int c = 0; c < columns.num_dense; ++c)
                for (int k = 0; k < width; ++k)
                    columns_of_k.get()[block_at(columns.packed_of(c), k, width)] = at(c, k);
            if (!backward)
                return;
            k_of_column.resize(size_t(num_packed) * padded_width);
            for (int c = 0; c < columns.num_dense; ++c)
                for (int k = 0; k < width; ++k)
                    k_of_column.get()[size_t(columns.packed_of(c)) * padded_width + k] = at(c, k);
        }
    }
};

// A factor of a product as one step takes it: a number, or (bfloat16) two numbers in a 32-bit lane.
template <class T, class E> using Factor = std::conditional_t<kUseBf16<E>, uint32_t, T>;

template <class T, class F> inline void product_step(Vec<T> &sum, F a, const Vec<F> &b) {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<F, uint32_t>)
        sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)splat(a), (__m512bh)b);
    else
#endif
        sum += splat(a) * b;
}

template <class F> inline F factor_at(const F *p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// Pairs of a tile: kTile entries each, the tail repeating the last pair.
template <class T, class E> struct Tile {
    using F = Factor<T, E>;
    int count;
    int row[kTile], site[kTile];
    const F *e[kTile];
    const T *base_i[kTile], *base_j[kTile];
    int padded() const { return round_up(count, kTileRows); }
};

// m (and its derivative d, if Backward) for kTileRows pairs and NV vectors of columns from
// `column`.
template <class T, class E, int NV, bool Backward>
inline void products_block(const Tile<T, E> &tile, int t0, const Factor<T, E> *w, int steps,
                           int column, int stride, int activation, T *m, T *d) {
    using F = Factor<T, E>;
    constexpr int lanes = kLanes<T>;
    Vec<T> sum[kTileRows][NV];
    const F *e[kTileRows];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
        e[r] = tile.e[t0 + r];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            sum[r][v] = load(tile.base_i[t0 + r] + column + v * lanes) +
                        load(tile.base_j[t0 + r] + column + v * lanes);
    }
    for (int k = 0; k < steps; ++k) {
        Vec<F> wk[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            wk[v] = load(w + (k * NV + v) * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < kTileRows; ++r) {
            const F x = factor_at(e[r] + k);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v)
                product_step<T, F>(sum[r][v], x, wk[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
        const size_t at = size_t(t0 + r) * stride + column;
        if constexpr (Backward) {
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                const auto a = activate_parts<T>(sum[r][v], activation);
                store(m + at + v * lanes, a.value);
                store(d + at + v * lanes, a.derivative);
            }
        } else {
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v)
                store(m + at + v * lanes, activate<T>(sum[r][v], activation));
        }
    }
}

template <class T, class E, int NV, bool Backward>
void products_column(const Tile<T, E> &tile, const Factor<T, E> *w, int steps, int column,
                     int stride, int activation, T *m, T *d) {
    for (int t0 = 0; t0 < tile.padded(); t0 += kTileRows)
        products_block<T, E, NV, Backward>(tile, t0, w, steps, column, stride, activation, m, d);
}

template <class T, class E, bool Backward>
void products(const Tile<T, E> &tile, const Weights<T, E> &weights, int activation, T *m, T *d) {
    constexpr int lanes = kLanes<T>;
    const Factor<T, E> *w;
    int steps = weights.width;
    if constexpr (kUseBf16<E>) {
        steps = (steps + 1) / 2;
        w = weights.columns_of_k_pairs.get();
    } else {
        w = weights.columns_of_k.get();
    }
    for (int v0 = 0; v0 < weights.num_vectors; v0 += kTileVectors) {
        const int nv = std::min(kTileVectors, weights.num_vectors - v0);
        auto run = nv == 1   ? products_column<T, E, 1, Backward>
                   : nv == 2 ? products_column<T, E, 2, Backward>
                   : nv == 3 ? products_column<T, E, 3, Backward>
                             : products_column<T, E, 4, Backward>;
        run(tile, w + size_t(v0) * steps * lanes, steps, v0 * lanes, weights.num_packed, activation,
            m, d);
    }
}

// ------------------------------------------------------------------------------------------------
// Sums over the columns of a group.

// Variances are of values less their mean, or less a value near it: sums of squares alone would
// lose a small variance beside a large mean.

template <class T> inline T rstd_of(T squares, int n, double eps) {
    const T variance = squares / n;
    return 1 / std::sqrt((variance < 0 ? T(0) : variance) + T(eps)); // a NaN stays one
}

// Lanes at and after `n`, of a group's last vector, set to 0.
template <class T> inline Vec<T> keep_lanes(Vec<T> x, int n) {
    for (int i = 0; i < kLanes<T>; ++i)
        x[i] = i < n ? x[i] : T(0);
    return x;
}

template <class T>
inline Normaliser<T> group_normaliser(const T *m, int vectors, int n, bool norm, double eps) {
    if (!norm || !vectors)
        return {T(0), T(1)};
    constexpr int lanes = kLanes<T>;
    Vec<T> s{}, q{};
    for (int v = 0; v < vectors; ++v)
        s += load(m + v * lanes);
    const T mean = sum_lanes<T>(s) / n;
    for (int v = 0; v < vectors - 1; ++v) {
        const Vec<T> x = load(m + v * lanes) - mean;
        q += x * x;
    }
    const int last = (vectors - 1) * lanes;
    const Vec<T> x = keep_lanes<T>(load(m + last) - mean, n - last);
    return {mean, rstd_of(sum_lanes<T>(q + x * x), n, eps)};
}

// Of one pair's n hidden columns less the first one, x = m - m[0]: the sum, the sum of squares and
// NH dot products with rows of w.
template <class T, int NH>
inline void hidden_sums(const T *m, const T *w, int vectors, int n, T *sum, T *squares, T *dots) {
    constexpr int lanes = kLanes<T>;
    const T first = m[0];
    Vec<T> s{}, q{}, d[NH] = {};
    auto add = [&](Vec<T> x, int v) {
        s += x;
        q += x * x;
#pragma GCC unroll 8
        for (int h = 0; h < NH; ++h)
            d[h] += x * load(w + (size_t(h) * vectors + v) * lanes);
    };
    for (int v = 0; v < vectors - 1; ++v)
        add(load(m + v * lanes) - first, v);
    const int last = vectors - 1;
    add(keep_lanes<T>(load(m + last * lanes) - first, n - last * lanes), last);
    *sum = sum_lanes<T>(s);
    *squares = sum_lanes<T>(q);
#pragma GCC unroll 8
    for (int h = 0; h < NH; ++h)
        dots[h] = sum_lanes<T>(d[h]);
}

template <class T> struct LogitWeights {
    int heads, vectors;
    Buffer<T> packed; // (heads, padded hidden)
    std::vector<T> sums;

    LogitWeights(const T *w, int heads, int hidden)
        : heads(heads), vectors(round_up(hidden, kLanes<T>) / kLanes<T>),
          packed(size_t(heads) * vectors * kLanes<T>), sums(heads) {
        for (int h = 0; h < heads; ++h) {
            T *to = packed.get() + size_t(h) * vectors * kLanes<T>;
            std::copy_n(w + size_t(h) * hidden, hidden, to);
            for (int c = 0; c < hidden; ++c)
                sums[h] += w[size_t(h) * hidden + c];
        }
    }
    const T *row(int h) const { return packed.get() + size_t(h) * vectors * kLanes<T>; }
};

// Logits of one pair without log_multiplicity, logits[h * kTile], and the hidden group's numbers.
template <class T>
inline Normaliser<T> pair_logits(const T *m, const LogitWeights<T> &w, int hidden, bool norm,
                                 double eps, T *logits) {
    T sum = 0, squares = 0, dots[kMaxHeadsAtOnce];
    Normaliser<T> n{T(0), T(1)};
    T offset = -m[0]; // mean less m[0]
    for (int h0 = 0; h0 < w.heads; h0 += kMaxHeadsAtOnce) {
        const int nh = std::min(kMaxHeadsAtOnce, w.heads - h0);
        auto run = nh == 1   ? hidden_sums<T, 1>
                   : nh == 2 ? hidden_sums<T, 2>
                   : nh == 3 ? hidden_sums<T, 3>
                             : hidden_sums<T, 4>;
        run(m, w.row(h0), w.vectors, hidden, &sum, &squares, dots);
        if (norm && h0 == 0) {
            offset = sum / hidden;
            n = {m[0] + offset, rstd_of(squares - sum * offset, hidden, eps)};
        }
        for (int h = 0; h < nh; ++h)
            logits[(h0 + h) * kTile] = n.rstd * (dots[h] - offset * w.sums[h0 + h]);
    }
    return n;
}

// ------------------------------------------------------------------------------------------------
// What both directions share: the walk of one thread through its tiles.

template <class T, class E> struct Walk {
    using F = Factor<T, E>;
    const AttentionShape &shape;
    const E *e;
    const int64_t *offsets;
    const int32_t *sites;
    const T *site_i, *site_j; // packed
    int num_packed;
    Buffer<T> converted;       // e in T, for bfloat16 without instructions for it
    Buffer<uint16_t> extended; // e with an even width
    Tile<T, E> tile;
    int row;

    Walk(const AttentionShape &shape, const E *e, const int64_t *offsets, const int32_t *sites,
         const T *site_i, const T *site_j, int num_packed, int first_row)
        : shape(shape), e(e), offsets(offsets), sites(sites), site_i(site_i), site_j(site_j),
          num_packed(num_packed), row(first_row) {
        if constexpr (kUseBf16<E>)
            extended.resize(shape.width % 2 ? size_t(kTile) * (shape.width + 1) : 0);
        else if constexpr (!std::is_same_v<T, E>)
            converted.resize(size_t(kTile) * shape.width);
    }

    void fill(int64_t first, int64_t end) {
        tile.count = int(std::min<int64_t>(kTile, end - first));
        for (int t = 0; t < tile.count; ++t) {
            const int64_t p = first + t;
            while (p >= offsets[row + 1])
                ++row;
            tile.row[t] = row;
            tile.site[t] = sites[p];
            tile.base_i[t] = site_i + size_t(row) * num_packed;
            tile.base_j[t] = site_j + size_t(sites[p]) * num_packed;
            const E *from = e + p * shape.width;
            if constexpr (kUseBf16<E>) {
                if (shape.width % 2) {
                    uint16_t *to = extended.get() + t * (shape.width + 1);
                    std::copy_n(from, shape.width, to);
                    from = to;
                }
                tile.e[t] = reinterpret_cast<const uint32_t *>(from);
            } else if constexpr (!std::is_same_v<T, E>) {
                convert(from, converted.get() + t * shape.width, shape.width);
                tile.e[t] = converted.get() + t * shape.width;
            } else {
                tile.e[t] = from;
            }
        }
        for (int t = tile.count; t < kTile; ++t) {
            tile.e[t] = tile.e[tile.count - 1];
            tile.base_i[t] = tile.base_i[tile.count - 1];
            tile.base_j[t] = tile.base_j[tile.count - 1];
        }
    }
};

// First row of each thread's share, threads + 1 entries: rows in order, pairs divided evenly.
std::vector<int> shares(const int64_t *offsets, int rows, int threads) {
    std::vector<int> first(threads + 1, rows);
    for (int i = 0; i < threads; ++i)
        first[i] =
            int(std::lower_bound(offsets, offsets + rows, offsets[rows] * i / threads) - offsets);
    first[0] = 0;
    return first;
}

int useful_threads(int threads, int64_t pairs) {
    return pairs > kParallelWork ? std::max(threads, 1) : 1;
}

// e_out or grad_e of one pair from a padded row.
template <class T> inline void write_row(const T *from, T *to, int n) { std::copy_n(from, n, to); }
inline void write_row(const float *from, uint16_t *to, int n) {
    constexpr int lanes = kLanes<float>;
    int c = 0;
    for (; c + lanes <= n; c += lanes) {
#if defined(__AVX512BF16__)
        const __m256bh h = _mm512_cvtneps_pbh((__m512)load(from + c));
        std::memcpy(to + c, &h, sizeof h);
#else
        const VecWord w = bf16_words(load(from + c)) >> 16;
        for (int i = 0; i < lanes; ++i)
            to[c + i] = uint16_t(w[i]);
#endif
    }
    for (; c < n; ++c)
        to[c] = to_bf16(from[c]);
}

// ------------------------------------------------------------------------------------------------
// Forward.

// Running softmax of one row.
template <class T> struct RowSoftmax {
    int heads, padded; // padded: attention columns
    std::vector<T> largest, sum;
    Buffer<T> weighted; // (heads, padded)

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
    // Raise a head's maximum to at least `value`; returns the shift for exponentials.
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
    void finish(int attention, T *y, T *logsum) {
        for (int h = 0; h < heads; ++h) {
            const T scale = sum[h] > 0 ? 1 / sum[h] : sum[h]; // 0 for an empty row, NaN stays
            for (int a = 0; a < attention; ++a)
                y[a * heads + h] = weighted.get()[size_t(h) * padded + a] * scale;
            logsum[h] = largest[h] + std::log(sum[h]);
        }
        reset();
    }
};

template <class T, class E>
void forward_rows(const AttentionForward<T, E> &p, const Columns<T> &columns,
                  const Weights<T, E> &weights, const LogitWeights<T> &logit_weights,
                  const T *site_i, const T *site_j, int first_row, int last_row) {
    const AttentionShape &s = p.shape;
    constexpr int lanes = kLanes<T>;
    const int packed = columns.num_packed, heads = s.heads;
    const int av = columns.vectors[1], iv = columns.vectors[2];
    Walk<T, E> walk(s, p.e, p.offsets, p.sites_of_pair, site_i, site_j, packed, first_row);
    Buffer<T> m(size_t(kTile) * packed), logits(size_t(heads) * kTile),
        shift(size_t(heads) * kTile);
    RowSoftmax<T> softmax(heads, av * lanes);
    int current = first_row;
    auto finish_until = [&](int row) { // rows before `row` are complete
        for (; current < row; ++current)
            softmax.finish(s.attention, p.y + size_t(current) * heads * s.attention,
                           p.logsum + size_t(current) * heads);
    };

    const int64_t end = p.offsets[last_row];
    for (int64_t first = p.offsets[first_row]; first < end; first += kTile) {
        walk.fill(first, end);
        const Tile<T, E> &tile = walk.tile;
        products<T, E, false>(tile, weights, s.activation, m.get(), nullptr);

        for (int t = 0; t < tile.count; ++t) {
            T *row = m.get() + size_t(t) * packed;
            pair_logits(row, logit_weights, s.hidden, s.norm, s.eps, logits.get() + t);
            for (int h = 0; h < heads; ++h) {
                logits.get()[h * kTile + t] += p.log_multiplicity[first + t];
                if (p.logits)
                    p.logits[(first + t) * heads + h] = logits.get()[h * kTile + t];
            }
            for (int g = 1; g < 3; ++g) {
                T *x = row + columns.packed[g];
                const auto n =
                    group_normaliser(x, columns.vectors[g], columns.size[g], s.norm, s.eps);
                for (int v = 0; v < columns.vectors[g]; ++v)
                    store(x + v * lanes, (load(x + v * lanes) - n.mean) * n.rstd);
            }
            if (iv)
                write_row(row + columns.packed[2], p.e_out + (first + t) * s.interaction,
                          s.interaction);
        }

        for (int a = 0, b; a < tile.count; a = b) { // [a, b): a segment of one row
            for (b = a + 1; b < tile.count && tile.row[b] == tile.row[a];)
                ++b;
            finish_until(tile.row[a]);
            for (int h = 0; h < heads; ++h) {
                T *l = logits.get() + h * kTile;
                T largest = l[a];
                for (int t = a + 1; t < b; ++t)
                    largest = std::max(largest, l[t]);
                const T by = softmax.raise(h, largest);
                for (int t = a; t < b; ++t)
                    l[t] -= by;
                for (int t = a; t < b; t += lanes) {
                    T part[lanes] = {};
                    const int n = std::min(lanes, b - t);
                    std::copy_n(l + t, n, part);
                    store(part, exp_of_negative<T>(load(part)));
                    std::copy_n(part, n, l + t);
                }
                T sum = 0;
                for (int t = a; t < b; ++t)
                    sum += l[t];
                softmax.sum[h] += sum;
                for (int v = 0; v < av; ++v) {
                    T *to = softmax.weighted.get() + (h * av + v) * lanes;
                    Vec<T> acc = load(to);
                    const T *x = m.get() + columns.packed[1] + v * lanes;
                    for (int t = a; t < b; ++t)
                        acc += l[t] * load(x + size_t(t) * packed);
                    store(to, acc);
                }
            }
        }
    }
    finish_until(last_row);
}

template <class T, class E> void forward(const AttentionForward<T, E> &p, int threads) {
    const AttentionShape &s = p.shape;
    threads = useful_threads(threads, s.pairs);
    const Columns<T> columns(s.hidden, s.attention, s.interaction);
    const Weights<T, E> weights(p.weight, s.width, columns, false);
    const LogitWeights<T> logit_weights(p.logit_weight, s.heads, s.hidden);
    const Buffer<T> site_i = pack_rows(p.site_i, s.rows, columns, threads);
    const Buffer<T> site_j = pack_rows(p.site_j, s.sites, columns, threads);
    const std::vector<int> first = shares(p.offsets, s.rows, threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int i = 0; i < threads; ++i)
        forward_rows(p, columns, weights, logit_weights, site_i.get(), site_j.get(), first[i],
                     first[i + 1]);
}

// ------------------------------------------------------------------------------------------------
// Backward.

// One thread's sums over its pairs.
template <class T> struct Sums {
    int first_site, num_sites;
    Buffer<T> site_j; // (num_sites, packed columns)
    Buffer<T> weight; // (padded width, packed columns)
    Buffer<T> logit;  // (heads, padded hidden)
};

// A tile's dz in the forms that its two products take.
template <class T, class E> struct TileGradient {
    using F = Factor<T, E>;
    Buffer<uint16_t> rows;    // bfloat16: (kTile, packed)
    Buffer<uint32_t> pairs;   // bfloat16: (kTile / 2, packed), two pairs in a lane
    Buffer<uint32_t> e_pairs; // bfloat16: (kTile / 2, width), two pairs in a lane
    const F *row[kTile];      // factors of dz W: along a pair's columns
    const F *of_step[kTile];  // factors of dz^T e: columns of one step (a pair, or two)
    const F *e_of_step[kTile];
    int steps;

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
#if defined(__AVX512BF16__)
            constexpr int lanes = kLanes<T>;
            if (tile.count % 2)
                std::fill_n(d + size_t(tile.count) * packed, packed, T(0));
            steps = (tile.count + 1) / 2;
            for (int s = 0; s < steps; ++s) {
                const float *d0 = d + size_t(2 * s) * packed, *d1 = d0 + packed;
                uint16_t *to = rows.get() + size_t(2 * s) * packed;
                for (int c = 0; c < packed; c += lanes) {
                    typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
                    const auto low = (Halves)_mm512_cvtneps_pbh((__m512)load(d0 + c));
                    const auto high = (Halves)_mm512_cvtneps_pbh((__m512)load(d1 + c));
                    std::memcpy(to + c, &low, sizeof low);
                    std::memcpy(to + packed + c, &high, sizeof high);
                    const VecWord both = __builtin_convertvector(low, VecWord) |
                                         __builtin_convertvector(high, VecWord) << 16;
                    std::memcpy(pairs.get() + size_t(s) * packed + c, &both, sizeof both);
                }
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
#endif
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

// grad_weight: sums (k, columns) of kTileRows k and NV vectors of columns over a tile.
template <class T, class F, int NV>
void weight_block(const F *const *z, const F *const *e, int steps, int k0, int width, int column,
                  int packed, T *out) {
    constexpr int lanes = kLanes<T>;
    Vec<T> sum[kTileRows][NV];
    int k[kTileRows];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
        k[r] = std::min(k0 + r, width - 1); // rows past the width are padding
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            sum[r][v] = load(out + size_t(k0 + r) * packed + column + v * lanes);
    }
    for (int t = 0; t < steps; ++t) {
        Vec<F> zt[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            zt[v] = load(z[t] + column + v * lanes);
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
            store(out + size_t(k0 + r) * packed + column + v * lanes, sum[r][v]);
}

// grad_e: kTileRows pairs by NV vectors of k, over all columns (steps: columns, or pairs of them).
template <class T, class F, int NV>
void e_block(const F *const *z, int t0, const F *w, int steps, int k, int padded_width, T *out) {
    constexpr int lanes = kLanes<T>;
    Vec<T> sum[kTileRows][NV] = {};
    const F *zr[kTileRows];
    for (int r = 0; r < kTileRows; ++r)
        zr[r] = z[t0 + r];
    for (int c = 0; c < steps; ++c) {
        Vec<F> wc[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            wc[v] = load(w + size_t(c) * padded_width + k + v * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < kTileRows; ++r) {
            const F x = factor_at(zr[r] + c);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v)
                product_step<T, F>(sum[r][v], x, wc[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            store(out + size_t(r) * padded_width + k + v * lanes, sum[r][v]);
}

template <class T, class E>
void tile_products(const TileGradient<T, E> &z, const Tile<T, E> &tile,
                   const Weights<T, E> &weights, T *weight_sums, T *scratch, E *grad_e) {
    using F = Factor<T, E>;
    constexpr int lanes = kLanes<T>;
    const int packed = weights.num_packed, width = weights.width;
    for (int v0 = 0; v0 < weights.num_vectors; v0 += kTileVectors) {
        const int nv = std::min(kTileVectors, weights.num_vectors - v0);
        auto run = nv == 1   ? weight_block<T, F, 1>
                   : nv == 2 ? weight_block<T, F, 2>
                   : nv == 3 ? weight_block<T, F, 3>
                             : weight_block<T, F, 4>;
        for (int k0 = 0; k0 < width; k0 += kTileRows)
            run(z.of_step, z.e_of_step, z.steps, k0, width, v0 * lanes, packed, weight_sums);
    }
    const F *w;
    int steps = packed;
    if constexpr (kUseBf16<E>) {
        w = weights.k_of_column_pairs.get();
        steps /= 2;
    } else {
        w = weights.k_of_column.get();
    }
    const int kv = weights.padded_width / lanes;
    for (int t0 = 0; t0 < tile.count; t0 += kTileRows) {
        for (int v0 = 0; v0 < kv; v0 += kTileVectors) {
            const int nv = std::min(kTileVectors, kv - v0);
            auto run = nv == 1   ? e_block<T, F, 1>
                       : nv == 2 ? e_block<T, F, 2>
                       : nv == 3 ? e_block<T, F, 3>
                                 : e_block<T, F, 4>;
            run(z.row, t0, w, steps, v0 * lanes, weights.padded_width, scratch);
        }
        for (int r = 0; r < kTileRows && t0 + r < tile.count; ++r)
            write_row(scratch + size_t(r) * weights.padded_width, grad_e + size_t(t0 + r) * width,
                      width);
    }
}

template <class T, class E> class BackwardRows {
  public:
    BackwardRows(const AttentionBackward<T, E> &p, const Columns<T> &columns,
                 const Weights<T, E> &weights, const LogitWeights<T> &logit_weights,
                 const T *site_i, const T *site_j)
        : p(p), s(p.shape), columns(columns), weights(weights), logit_weights(logit_weights),
          site_i(site_i), site_j(site_j), packed(columns.num_packed), heads(s.heads),
          m(size_t(kTile) * packed), d(size_t(kTile) * packed), logits(size_t(heads) * kTile),
          attended(size_t(heads) * kTile), gradient(size_t(heads) * kTile),
          grad_y(size_t(heads) * columns.vectors[1] * lanes), row_sum(packed),
          normal(columns.vectors[1] * lanes), grad_out(columns.vectors[2] * lanes),
          scratch(size_t(kTileRows) * weights.padded_width), tile_gradient(packed, s.width),
          y_dot(heads), grad_y_sum(heads) {}

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
        if (first_row < last_row)
            start_row();
        for (int64_t first = begin; first < end; first += kTile) {
            walk.fill(first, end);
            const Tile<T, E> &tile = walk.tile;
            products<T, E, true>(tile, weights, s.activation, m.get(), d.get());
            attend(tile, first);
            for (int t = 0; t < tile.count; ++t) {
                while (current < tile.row[t])
                    finish_row(), ++current, start_row();
                attention_gradient(t);
                hidden_gradient(t);
                if (s.interaction)
                    interaction_gradient(t, first + t);
                add_row(d.get() + size_t(t) * packed,
                        sums.site_j.get() + size_t(tile.site[t] - low) * packed);
            }
            logit_weight_gradient(tile.count, sums.logit.get());
            tile_gradient.set(tile, d.get(), packed, s.width);
            tile_products(tile_gradient, tile, weights, sums.weight.get(), scratch.get(),
                          p.grad_e + first * s.width);
        }
        while (current < last_row) {
            finish_row();
            if (++current < last_row)
                start_row();
        }
    }

  private:
    static constexpr int lanes = kLanes<T>;
    const AttentionBackward<T, E> &p;
    const AttentionShape &s;
    const Columns<T> &columns;
    const Weights<T, E> &weights;
    const LogitWeights<T> &logit_weights;
    const T *site_i, *site_j;
    const int packed, heads;
    Buffer<T> m, d;                       // (kTile, packed): activation; its derivative, then dz
    Buffer<T> logits, attended, gradient; // (heads, kTile): logit, softmax, grad_logit * rstd
    Buffer<T> grad_y;                     // (heads, padded attention) of the current row
    Buffer<T> row_sum;                    // (packed): grad_site_i of the current row
    Buffer<T> normal, grad_out, scratch;
    TileGradient<T, E> tile_gradient;
    std::vector<T> y_dot, grad_y_sum; // (heads): y . grad_y, sum of grad_y, of the current row
    Normaliser<T> normaliser_of[3][kTile];
    int current = 0;

    void start_row() {
        const T *g = p.grad_y + size_t(current) * heads * s.attention;
        const T *y = p.y + size_t(current) * heads * s.attention;
        for (int h = 0; h < heads; ++h) {
            T *to = grad_y.get() + size_t(h) * columns.vectors[1] * lanes;
            y_dot[h] = grad_y_sum[h] = 0;
            for (int a = 0; a < s.attention; ++a) {
                to[a] = g[a * heads + h];
                y_dot[h] += to[a] * y[a * heads + h];
                grad_y_sum[h] += to[a];
            }
        }
        std::fill_n(row_sum.get(), packed, T(0));
    }
    void finish_row() {
        columns.unpack(row_sum.get(), p.grad_site_i + size_t(current) * columns.num_dense);
    }

    // Logits, the numbers of the norms and the softmax of a tile.
    void attend(const Tile<T, E> &tile, int64_t first) {
        const T none = -std::numeric_limits<T>::infinity();
        for (int t = 0; t < tile.count; ++t) {
            const T *row = m.get() + size_t(t) * packed;
            normaliser_of[0][t] =
                pair_logits(row, logit_weights, s.hidden, s.norm, s.eps, logits.get() + t);
            for (int g = 1; g < 3; ++g)
                normaliser_of[g][t] = group_normaliser(row + columns.packed[g], columns.vectors[g],
                                                       columns.size[g], s.norm, s.eps);
            const T *logsum = p.logsum + size_t(tile.row[t]) * heads;
            const T lm = p.log_multiplicity[first + t];
            for (int h = 0; h < heads; ++h)
                attended.get()[h * kTile + t] =
                    lm == none ? none : logits.get()[h * kTile + t] + lm - logsum[h];
        }
        for (int i = 0; i < heads * kTile; i += lanes)
            store(attended.get() + i, exp_of_negative<T>(load(attended.get() + i)));
    }

    // dz of the attention columns, and the gradient of the logits.
    void attention_gradient(int t) {
        const int av = columns.vectors[1];
        const Normaliser<T> n = normaliser_of[1][t];
        const T *x = m.get() + size_t(t) * packed + columns.packed[1];
        T *z = d.get() + size_t(t) * packed + columns.packed[1];
        for (int v = 0; v < av; ++v)
            store(normal.get() + v * lanes, (load(x + v * lanes) - n.mean) * n.rstd);
        T mean = 0, dot = 0; // of the gradient g of n, and of g * n
        for (int h = 0; h < heads; ++h) {
            Vec<T> sum{};
            for (int v = 0; v < av; ++v)
                sum += load(grad_y.get() + (h * av + v) * lanes) * load(normal.get() + v * lanes);
            const T along = sum_lanes<T>(sum), w = attended.get()[h * kTile + t];
            mean += w * grad_y_sum[h];
            dot += w * along;
            gradient.get()[h * kTile + t] = w * (along - y_dot[h]);
        }
        mean = s.norm ? mean / s.attention : 0;
        dot = s.norm ? dot / s.attention : 0;
        for (int v = 0; v < av; ++v) {
            Vec<T> g{};
            for (int h = 0; h < heads; ++h)
                g += attended.get()[h * kTile + t] * load(grad_y.get() + (h * av + v) * lanes);
            const Vec<T> back = n.rstd * (g - mean - dot * load(normal.get() + v * lanes));
            store(z + v * lanes, back * load(z + v * lanes));
        }
    }

    // dz of the hidden columns. With g_h the gradient of logit h: the gradient of n is
    // sum_h g_h w_h, its mean sum_h g_h sum(w_h) / hidden, its mean product with n
    // sum_h g_h logit_h / hidden; so dm = sum_h (rstd g_h) w_h + shift + slope (m - mean).
    void hidden_gradient(int t) {
        const Normaliser<T> n = normaliser_of[0][t];
        T mean = 0, dot = 0;
        for (int h = 0; h < heads; ++h) {
            T &g = gradient.get()[h * kTile + t];
            mean += g * logit_weights.sums[h];
            dot += g * logits.get()[h * kTile + t];
            g *= n.rstd;
        }
        mean /= s.hidden;
        dot /= s.hidden;
        const T slope = s.norm ? -dot * n.rstd * n.rstd : 0;
        const T shift = s.norm ? -mean * n.rstd : 0;
        const T *x = m.get() + size_t(t) * packed;
        T *z = d.get() + size_t(t) * packed;
        switch (heads) {
        case 1:
            return hidden_columns<1>(t, x, z, n.mean, shift, slope);
        case 2:
            return hidden_columns<2>(t, x, z, n.mean, shift, slope);
        case 3:
            return hidden_columns<3>(t, x, z, n.mean, shift, slope);
        case 4:
            return hidden_columns<4>(t, x, z, n.mean, shift, slope);
        default:
            return hidden_columns<0>(t, x, z, n.mean, shift, slope);
        }
    }
    template <int NH> void hidden_columns(int t, const T *x, T *z, T mean, T shift, T slope) {
        const int nh = NH ? NH : heads;
        for (int v = 0; v < columns.vectors[0]; ++v) {
            Vec<T> dm = shift + slope * (load(x + v * lanes) - mean);
#pragma GCC unroll 4
            for (int h = 0; h < nh; ++h)
                dm += gradient.get()[h * kTile + t] * load(logit_weights.row(h) + v * lanes);
            store(z + v * lanes, dm * load(z + v * lanes));
        }
    }

    void interaction_gradient(int t, int64_t pair) {
        T *z = d.get() + size_t(t) * packed + columns.packed[2];
        if (!p.grad_e_out) {
            std::fill_n(z, columns.vectors[2] * lanes, T(0));
            return;
        }
        const Normaliser<T> n = normaliser_of[2][t];
        const T *x = m.get() + size_t(t) * packed + columns.packed[2];
        convert(p.grad_e_out + pair * s.interaction, grad_out.get(), s.interaction);
        Vec<T> sum{}, along{};
        for (int v = 0; v < columns.vectors[2]; ++v) {
            const Vec<T> g = load(grad_out.get() + v * lanes);
            sum += g;
            along += g * (load(x + v * lanes) - n.mean) * n.rstd;
        }
        const T mean = s.norm ? sum_lanes<T>(sum) / s.interaction : 0;
        const T dot = s.norm ? sum_lanes<T>(along) / s.interaction : 0;
        for (int v = 0; v < columns.vectors[2]; ++v) {
            const Vec<T> normal = (load(x + v * lanes) - n.mean) * n.rstd;
            const Vec<T> back = n.rstd * (load(grad_out.get() + v * lanes) - mean - dot * normal);
            store(z + v * lanes, back * load(z + v * lanes));
        }
    }

    void add_row(const T *z, T *site) {
        T *row = row_sum.get();
        for (int c = 0; c < packed; c += lanes) {
            const Vec<T> x = load(z + c);
            store(row + c, load(row + c) + x);
            store(site + c, load(site + c) + x);
        }
    }

    // sum over pairs of g_h n, with n = (m - mean) rstd and rstd already in `gradient`.
    void logit_weight_gradient(int count, T *sums) {
        for (int h0 = 0; h0 < heads; h0 += kMaxHeadsAtOnce) {
            switch (std::min(kMaxHeadsAtOnce, heads - h0)) {
            case 1:
                logit_weight_columns<1>(count, h0, sums);
                break;
            case 2:
                logit_weight_columns<2>(count, h0, sums);
                break;
            case 3:
                logit_weight_columns<3>(count, h0, sums);
                break;
            default:
                logit_weight_columns<4>(count, h0, sums);
            }
        }
    }
    template <int NH> void logit_weight_columns(int count, int h0, T *sums) {
        const T *g = gradient.get() + h0 * kTile;
        for (int v = 0; v < columns.vectors[0]; ++v) {
            Vec<T> sum[NH] = {};
            const T *x = m.get() + v * lanes;
            for (int t = 0; t < count; ++t) {
                const Vec<T> centred = load(x + size_t(t) * packed) - normaliser_of[0][t].mean;
#pragma GCC unroll 4
                for (int h = 0; h < NH; ++h)
                    sum[h] += g[h * kTile + t] * centred;
            }
            for (int h = 0; h < NH; ++h) {
                T *to = sums + (size_t(h0 + h) * columns.vectors[0] + v) * lanes;
                store(to, load(to) + sum[h]);
            }
        }
    }
};

template <class T, class E> void backward(const AttentionBackward<T, E> &p, int threads) {
    const AttentionShape &s = p.shape;
    threads = useful_threads(threads, s.pairs);
    const Columns<T> columns(s.hidden, s.attention, s.interaction);
    const Weights<T, E> weights(p.weight, s.width, columns, true);
    const LogitWeights<T> logit_weights(p.logit_weight, s.heads, s.hidden);
    const Buffer<T> site_i = pack_rows(p.site_i, s.rows, columns, threads);
    const Buffer<T> site_j = pack_rows(p.site_j, s.sites, columns, threads);
    const std::vector<int> first = shares(p.offsets, s.rows, threads);
    std::vector<Sums<T>> sums(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int i = 0; i < threads; ++i)
        BackwardRows<T, E>(p, columns, weights, logit_weights, site_i.get(), site_j.get())
            .run(first[i], first[i + 1], sums[i]);

    const int packed = columns.num_packed;
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
            columns.unpack(row.data(), p.grad_site_j + size_t(j) * columns.num_dense);
        }
    }
    for (int c = 0; c < columns.num_dense; ++c)
        for (int k = 0; k < s.width; ++k) {
            T total = 0;
            for (const Sums<T> &sum : sums)
                total += sum.weight.get()[size_t(k) * packed + columns.packed_of(c)];
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

// ------------------------------------------------------------------------------------------------
// Embedding of pair features.

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

template <class T>
inline Vec<T> embedding_column(const T *f, const T *w, int num_features, int padded, int k) {
    Vec<T> z = load(w + num_features * padded + k);
    for (int i = 0; i < num_features; ++i)
        z += f[i] * load(w + i * padded + k);
    return z;
}

template <class T, class E> void embedding_forward(const EmbeddingForward<T, E> &p, int threads) {
    const EmbeddingShape &s = p.shape;
    constexpr int lanes = kLanes<T>;
    threads = useful_threads(threads, s.pairs);
    const int padded = round_up(s.width, lanes), vectors = padded / lanes;
    const Buffer<T> w = pack_embedding(p.weight, p.bias, s);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Buffer<T> row(padded);
        T *m = row.get();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s.pairs; ++i) {
            for (int k = 0; k < padded; k += lanes)
                store(m + k, activate<T>(embedding_column(p.features + i * s.num_features, w.get(),
                                                          s.num_features, padded, k),
                                         s.activation));
            const auto n = group_normaliser(m, vectors, s.width, s.norm, s.eps);
            for (int k = 0; k < padded; k += lanes)
                store(m + k, (load(m + k) - n.mean) * n.rstd);
            write_row(m, p.e + i * s.width, s.width);
        }
    }
}

template <class T, class E> void embedding_backward(const EmbeddingBackward<T, E> &p, int threads) {
    const EmbeddingShape &s = p.shape;
    constexpr int lanes = kLanes<T>;
    threads = useful_threads(threads, s.pairs);
    const int padded = round_up(s.width, lanes), vectors = padded / lanes, nf = s.num_features;
    const Buffer<T> w = pack_embedding(p.weight, p.bias, s);
    std::vector<Buffer<T>> sums(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int thread = 0; thread < threads; ++thread) {
        sums[thread].resize(size_t(nf + 1) * padded);
        T *sum = sums[thread].get();
        Buffer<T> values(padded), derivatives(padded), gradients(padded);
        T *m = values.get(), *d = derivatives.get(), *g = gradients.get();
        for (int64_t i = s.pairs * thread / threads; i < s.pairs * (thread + 1) / threads; ++i) {
            const T *f = p.features + i * nf;
            for (int k = 0; k < padded; k += lanes) {
                const auto a =
                    activate_parts<T>(embedding_column(f, w.get(), nf, padded, k), s.activation);
                store(m + k, a.value);
                store(d + k, a.derivative);
            }
            const auto n = group_normaliser(m, vectors, s.width, s.norm, s.eps);
            convert(p.grad_e + i * s.width, g, s.width);
            Vec<T> total{}, along{};
            for (int k = 0; k < padded; k += lanes) {
                total += load(g + k);
                along += load(g + k) * (load(m + k) - n.mean) * n.rstd;
            }
            const T mean = s.norm ? sum_lanes<T>(total) / s.width : 0;
            const T dot = s.norm ? sum_lanes<T>(along) / s.width : 0;
            for (int k = 0; k < padded; k += lanes) {
                const Vec<T> normal = (load(m + k) - n.mean) * n.rstd;
                const Vec<T> dz = n.rstd * (load(g + k) - mean - dot * normal) * load(d + k);
                store(d + k, dz);
                for (int j = 0; j < nf; ++j)
                    store(sum + j * padded + k, load(sum + j * padded + k) + f[j] * dz);
                store(sum + nf * padded + k, load(sum + nf * padded + k) + dz);
            }
            for (int j = 0; p.grad_features && j < nf; ++j) {
                Vec<T> to{};
                for (int k = 0; k < padded; k += lanes)
                    to += load(d + k) * load(w.get() + j * padded + k);
                p.grad_features[i * nf + j] = sum_lanes<T>(to);
            }
        }
    }
    for (int k = 0; k < s.width; ++k)
        for (int j = 0; j <= nf; ++j) {
            T total = 0;
            for (const Buffer<T> &sum : sums)
                total += sum.get()[j * padded + k];
            (j < nf ? p.grad_weight[k * nf + j] : p.grad_bias[k]) = total;
        }
}

} // namespace

extern const AttentionKernels attention = {
    forward<float, float>,
    forward<double, double>,
    forward<float, uint16_t>,
    backward<float, float>,
    backward<double, double>,
    backward<float, uint16_t>,
    embedding_forward<float, float>,
    embedding_forward<double, double>,
    embedding_forward<float, uint16_t>,
    embedding_backward<float, float>,
    embedding_backward<double, double>,
    embedding_backward<float, uint16_t>,
};

} // namespace sitenet::SITENET_LEVEL

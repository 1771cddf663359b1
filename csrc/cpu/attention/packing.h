// Operands of the attention kernels in memory, padded to whole vectors; sizes of tiles and blocks.
#pragma once

#include "../buffer.h"
#include "../simd.h"

#include <algorithm>
#include <vector>

namespace sitenet::SITENET_LEVEL {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 4, kTileVectors = 5; // 20 of 32 registers are sums
#else
constexpr int kTileRows = 4, kTileVectors = 2; // 8 of 16
#endif
constexpr int kTile = 48; // pairs per tile: some 60 KB, which fit the second-level cache
static_assert(kTile % kTileRows == 0, "a tile is whole micro-kernels");
constexpr int kMaxHeadsAtOnce = 4;
// Waking a thread and waiting for it takes some 10 us, more beside other busy processes. The work
// below takes some 50 us on one core; for less, another thread costs more than it saves.
constexpr int64_t kThreadProducts = 1 << 20; // multiplications
constexpr int64_t kThreadNumbers = 1 << 18;  // numbers copied or added
// Parts of the work per thread. A thread that another process keeps from its core delays one part
// only; the other threads take the rest.
constexpr int kPartsPerThread = 4;

template <class E> constexpr bool kUseBf16 = kBf16Products && std::is_same_v<E, uint16_t>;

/// A factor of one step of a product: a number, or in bfloat16 two numbers in a 32-bit lane.
template <class T, class E> using Factor = std::conditional_t<kUseBf16<E>, uint32_t, T>;

/// Number of threads that this much work keeps busy, at `per_thread` each.
inline int useful_threads(int threads, int64_t work, int64_t per_thread) {
    return int(std::clamp<int64_t>(work / per_thread, 1, std::max(threads, 1)));
}

/// Parts for this many threads. Equal numbers of threads give equal parts, so that sums over parts
/// are reproducible.
inline int num_parts(int threads) { return threads > 1 ? kPartsPerThread * threads : 1; }

/// Calls f with n, between 1 and `most`, as a compile-time constant.
template <int most, class F> inline void with_constant(int n, F f) {
    if constexpr (most > 1)
        if (n < most)
            return with_constant<most - 1>(n, f);
    f(std::integral_constant<int, most>());
}

/// 1 in the first n lanes, 0 in the others.
template <class T> inline Vec<T> first_lanes(int n) {
    T x[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i)
        x[i] = i < n;
    return load(x);
}

/// The three groups of columns, side by side in a row. Only the end of a row is padded, so the last
/// vector of a group may reach into the next group or the next row.
template <class T> struct Columns {
    int size[3];    ///< columns per group
    int first[3];   ///< first column of each group
    int vectors[3]; ///< vectors that cover each group
    Vec<T> last[3]; ///< 1 in the lanes of a group's last vector that belong to it, 0 in the others
    int count;      ///< columns in all
    int padded;     ///< count, rounded up to whole vectors

    Columns(int hidden, int attention, int interaction)
        : size{hidden, attention, interaction}, first{0, hidden, hidden + attention},
          count(hidden + attention + interaction), padded(round_up(count, kLanes<T>)) {
        for (int g = 0; g < 3; ++g) {
            vectors[g] = round_up(size[g], kLanes<T>) / kLanes<T>;
            last[g] = first_lanes<T>(size[g] - (vectors[g] - 1) * kLanes<T>);
        }
    }
    int num_vectors() const { return padded / kLanes<T>; }
    /// Size of a tile; the last vector of a group may reach beyond its end.
    size_t tile_size() const { return size_t(kTile) * padded + kLanes<T>; }
};

/// Copies rows of columns.count numbers to rows of columns.padded.
template <class T>
Buffer<T> pack_rows(const T *x, int rows, const Columns<T> &columns, int threads) {
    Buffer<T> packed(size_t(rows) * columns.padded);
    T *to = packed.get();
    threads = useful_threads(threads, packed.size(), kThreadNumbers);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int r = 0; r < rows; ++r)
        std::copy_n(x + size_t(r) * columns.count, columns.count, to + size_t(r) * columns.padded);
    return packed;
}

/// W in the orders that the products of a tile read. In bfloat16, two consecutive k (or columns)
/// share a 32-bit lane.
template <class T, class E> struct Weights {
    int width;        ///< columns of e, indexed by k
    int padded_width; ///< width, rounded up to whole vectors
    int num_vectors;  ///< of columns
    int num_columns;  ///< padded
    int steps;        ///< of the product W e: k, or pairs of k
    /// For W e: blocks of kTileVectors vectors of columns, each (steps, columns of the block).
    Buffer<Factor<T, E>> columns_of_k;
    /// For dz W: (columns, padded_width). Empty in the forward pass.
    Buffer<Factor<T, E>> k_of_column;

    Weights(const T *w, int width, const Columns<T> &columns, bool backward)
        : width(width), padded_width(round_up(width, kLanes<T>)),
          num_vectors(columns.num_vectors()), num_columns(columns.padded),
          steps(kUseBf16<E> ? (width + 1) / 2 : width), columns_of_k(size_t(num_columns) * steps),
          k_of_column(backward ? size_t(num_columns) * padded_width / kPerLane : 0) {
        Buffer<T> padded(size_t(num_columns) * padded_width);
        for (int c = 0; c < columns.count; ++c)
            std::copy_n(w + size_t(c) * width, width, padded.get() + size_t(c) * padded_width);
        if constexpr (std::is_same_v<E, uint16_t>)
            for (size_t i = 0; i < padded.size(); ++i)
                padded.get()[i] = from_bf16(to_bf16(padded.get()[i]));

        constexpr int block = kTileVectors * kLanes<T>;
        const T *x = padded.get();
        Factor<T, E> *to = columns_of_k.get();
        for (int c0 = 0; c0 < num_columns; c0 += block)
            for (int k = 0; k < steps; ++k)
                for (int c = c0; c < std::min(c0 + block, num_columns); ++c)
                    *to++ = factor(x + size_t(c) * padded_width + k * kPerLane, 1);
        to = k_of_column.get();
        for (int c = 0; backward && c < num_columns; c += kPerLane)
            for (int k = 0; k < padded_width; ++k)
                *to++ = factor(x + size_t(c) * padded_width + k, padded_width);
    }

  private:
    static constexpr int kPerLane = kUseBf16<E> ? 2 : 1;
    // The number at x; in bfloat16 joined by the number at x + next.
    static Factor<T, E> factor(const T *x, int next) {
        if constexpr (kUseBf16<E>)
            return uint32_t(to_bf16(x[0])) | uint32_t(to_bf16(x[next])) << 16;
        else
            return *x;
    }
};

/// The weights of the logits, and their sums over the hidden columns.
template <class T> struct LogitWeights {
    int heads;
    int vectors;         ///< that cover the hidden columns
    Buffer<T> packed;    ///< (heads, padded hidden)
    std::vector<T> sums; ///< (heads)

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

} // namespace
} // namespace sitenet::SITENET_LEVEL

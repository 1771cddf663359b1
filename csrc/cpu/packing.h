// How the operands of the attention kernels lie in memory: padded to whole vectors.
#pragma once

#include "simd.h"

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

namespace sitenet::SITENET_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 4, kTileVectors = 5; // 20 of 32 registers are sums
#else
constexpr int kTileRows = 4, kTileVectors = 2; // 8 of 16
#endif
constexpr int kTile = 48; // pairs worked on at a time
static_assert(kTile % kTileRows == 0, "a tile is whole micro-kernels");
constexpr int kMaxHeadsAtOnce = 4;
// Waking a thread and waiting for it takes some 10 us, more beside other busy processes. These take
// some 50 us on one core: a thread more for less costs more than it saves.
constexpr int64_t kThreadProducts = 1 << 20; // multiplications
constexpr int64_t kThreadNumbers = 1 << 18;  // numbers copied or added up
// Parts that work is cut into per thread. A thread that another process keeps from its core holds
// up one part only; the others take the rest.
constexpr int kPartsPerThread = 4;

#if defined(__AVX512BF16__)
constexpr bool kBf16Products = true;
#else
constexpr bool kBf16Products = false;
#endif
template <class E> constexpr bool kUseBf16 = kBf16Products && std::is_same_v<E, uint16_t>;

// A factor of a product as one step takes it: a number, or (bfloat16) two numbers in a 32-bit lane.
template <class T, class E> using Factor = std::conditional_t<kUseBf16<E>, uint32_t, T>;

// Threads worth having for this much work, where one deserves `per_thread` of it.
inline int useful_threads(int threads, int64_t work, int64_t per_thread) {
    return int(std::clamp<int64_t>(work / per_thread, 1, std::max(threads, 1)));
}

// Parts for this many threads: equal for equal sizes, so that sums over parts are reproducible.
inline int num_parts(int threads) { return threads > 1 ? kPartsPerThread * threads : 1; }

// f(n) with n, from 1 to `most`, as a constant.
template <int most, class F> inline void with_constant(int n, F f) {
    if constexpr (most > 1)
        if (n < most)
            return with_constant<most - 1>(n, f);
    f(std::integral_constant<int, most>());
}

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

// 1 in the lanes before n, 0 in the others.
template <class T> inline Vec<T> first_lanes(int n) {
    T x[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i)
        x[i] = i < n;
    return load(x);
}

// The three groups of columns, side by side; only the last one is padded to whole vectors. So a
// group's last vector may reach into the next group, or the next row: `last` is 1 in the lanes that
// belong to it and 0 in the others.
template <class T> struct Columns {
    static constexpr int lanes = kLanes<T>;
    int size[3], first[3], vectors[3];
    Vec<T> last[3];
    int count, padded;

    Columns(int hidden, int attention, int interaction)
        : size{hidden, attention, interaction}, first{0, hidden, hidden + attention},
          count(hidden + attention + interaction), padded(round_up(count, lanes)) {
        for (int g = 0; g < 3; ++g) {
            vectors[g] = round_up(size[g], lanes) / lanes;
            last[g] = first_lanes<T>(size[g] - (vectors[g] - 1) * lanes);
        }
    }
    int num_vectors() const { return padded / lanes; }
    // Numbers of a tile, whose last vector may reach beyond it.
    size_t tile_size() const { return size_t(kTile) * padded + lanes; }
};

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

// W packed for the products of a tile.
//   columns_of_k: per block of kTileVectors vectors of columns, (k, columns of the block): for W e
//   k_of_column:  (columns, padded width): for dz W, only if backward
// In bfloat16 two consecutive k (or columns) stand side by side in each 32-bit lane.
template <class T, class E> struct Weights {
    int width, padded_width, num_vectors, num_columns;
    int steps; // of W e
    Buffer<Factor<T, E>> columns_of_k, k_of_column;

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
    // What stands at x, in bfloat16 together with the number `next` further.
    static Factor<T, E> factor(const T *x, int next) {
        if constexpr (kUseBf16<E>)
            return uint32_t(to_bf16(x[0])) | uint32_t(to_bf16(x[next])) << 16;
        else
            return *x;
    }
};

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

} // namespace
} // namespace sitenet::SITENET_LEVEL

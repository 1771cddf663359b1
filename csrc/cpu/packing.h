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
constexpr int kTileRows = 6, kTileVectors = 4; // 24 of 32 registers are sums
#else
constexpr int kTileRows = 4, kTileVectors = 2; // 8 of 16
#endif
constexpr int kTile = 48; // pairs worked on at a time
static_assert(kTile % kTileRows == 0, "a tile is whole micro-kernels");
constexpr int kMaxHeadsAtOnce = 4;
constexpr int64_t kParallelWork = 256; // pairs: below this a second thread costs more than it saves

#if defined(__AVX512BF16__)
constexpr bool kBf16Products = true;
#else
constexpr bool kBf16Products = false;
#endif
template <class E> constexpr bool kUseBf16 = kBf16Products && std::is_same_v<E, uint16_t>;

inline int useful_threads(int threads, int64_t pairs) {
    return pairs > kParallelWork ? std::max(threads, 1) : 1;
}

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

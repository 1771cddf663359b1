// The pairs that a thread works on at a time, and the walk of a thread through its pairs.
#pragma once

#include "../../attention.h"
#include "packing.h"

#include <limits>

namespace sitenet::SITENET_LEVEL {
namespace {

// Pairs of a tile: kTile entries each, the tail repeating the last pair.
template <class T, class E> struct Tile {
    using F = Factor<T, E>;
    int count;
    int row[kTile], site[kTile];
    const F *e[kTile];
    const T *base_i[kTile], *base_j[kTile];
    int padded() const { return round_up(count, kTileRows); }
    // The pair after the last one of t's row, or the tile's end.
    int row_end(int t) const {
        int end = t + 1;
        while (end < count && row[end] == row[t])
            ++end;
        return end;
    }
};

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
inline std::vector<int> shares(const int64_t *offsets, int rows, int threads) {
    std::vector<int> first(threads + 1, rows);
    for (int i = 0; i < threads; ++i)
        first[i] =
            int(std::lower_bound(offsets, offsets + rows, offsets[rows] * i / threads) - offsets);
    first[0] = 0;
    return first;
}

// grad_e of one pair from a padded row.
template <class T, class E> inline void write_row(const T *from, E *to, int n) {
    int c = 0;
    for (; c + kLanes<T> <= n; c += kLanes<T>)
        store_as(to + c, load(from + c));
    for (; c < n; ++c)
        store_as(to + c, from[c]);
}

} // namespace
} // namespace sitenet::SITENET_LEVEL

// A tile: the pairs that a thread works on at a time, and its walk through all its pairs.
#pragma once

#include "../../attention.h"
#include "packing.h"

#include <limits>

namespace sitenet::SITENET_LEVEL {
namespace {

/// The pairs of a tile. The entries past `count` repeat the last pair.
template <class T, class E> struct Tile {
    using F = Factor<T, E>;
    int count;              ///< pairs, at most kTile
    int row[kTile];         ///< row of each pair
    int site[kTile];        ///< row of site_j of each pair
    const F *e[kTile];      ///< e of each pair
    const T *base_i[kTile]; ///< packed site_i of each pair's row
    const T *base_j[kTile]; ///< packed site_j of each pair's site
    /// count, rounded up to whole micro-kernels
    int padded() const { return round_up(count, kTileRows); }
    /// Returns the end, within the tile, of the row of pair t.
    int row_end(int t) const {
        int end = t + 1;
        while (end < count && row[end] == row[t])
            ++end;
        return end;
    }
};

/// Fills one tile after another.
template <class T, class E> struct Walk {
    using F = Factor<T, E>;
    const AttentionShape &shape;
    const E *e;
    const int64_t *offsets;
    const int32_t *sites;
    const T *site_i, *site_j;  ///< packed
    int num_packed;            ///< packed columns
    Buffer<T> converted;       ///< e in T, for bfloat16 without instructions for it
    Buffer<uint16_t> extended; ///< e with an even width, for products of two numbers at a time
    Tile<T, E> tile;
    int row; ///< row of the last pair so far

    Walk(const AttentionShape &shape, const E *e, const int64_t *offsets, const int32_t *sites,
         const T *site_i, const T *site_j, int num_packed, int first_row)
        : shape(shape), e(e), offsets(offsets), sites(sites), site_i(site_i), site_j(site_j),
          num_packed(num_packed), row(first_row) {
        if constexpr (kUseBf16<E>)
            extended.resize(shape.width % 2 ? size_t(kTile) * (shape.width + 1) : 0);
        else if constexpr (!std::is_same_v<T, E>)
            converted.resize(size_t(kTile) * shape.width);
    }

    /// Fills the tile with the pairs from `first` on, which must follow those of the last call.
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

/// Divides the rows into consecutive shares with equal numbers of pairs. Returns the first row of
/// each share, and the number of rows at the end.
inline std::vector<int> shares(const int64_t *offsets, int rows, int threads) {
    std::vector<int> first(threads + 1, rows);
    for (int i = 0; i < threads; ++i)
        first[i] =
            int(std::lower_bound(offsets, offsets + rows, offsets[rows] * i / threads) - offsets);
    first[0] = 0;
    return first;
}

/// Writes the first n numbers of a padded row in the type of e.
template <class T, class E> inline void write_row(const T *from, E *to, int n) {
    int c = 0;
    for (; c + kLanes<T> <= n; c += kLanes<T>)
        store_as(to + c, load(from + c));
    for (; c < n; ++c)
        store_as(to + c, from[c]);
}

} // namespace
} // namespace sitenet::SITENET_LEVEL

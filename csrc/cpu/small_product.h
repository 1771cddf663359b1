// Products of small matrices, whose sums stay in registers.
#pragma once

#include "attention/packing.h"

namespace sitenet::SITENET_LEVEL {
namespace {

// Sums per tile: enough to hide the latency of each, and few enough to stay in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kProductRows = 8, kProductVectors = 3, // 24 of 32 registers
    kTurnedRows = 16;
#elif defined(__AVX__)
constexpr int kProductRows = 6, kProductVectors = 2, kTurnedRows = 8; // 12 of 16
#else
constexpr int kProductRows = 4, kProductVectors = 2, kTurnedRows = 8; // 8 of 16
#endif

/// The factors of c (rows, columns) = a (rows, depth) b (depth, columns). Columns fill whole
/// vectors. The rows of b may lie in blocks with gaps between them.
template <class T> struct Factors {
    const T *a;
    int a_step; ///< from one row of a to the next; from one column to the next if `turned`
    const T *b;
    int b_step;     ///< from one row of b to the next
    int depth;      ///< rows of b per block
    int blocks = 1; ///< of rows of b, and of columns of a
    int a_block = 0, b_block = 0;
};

/// The rows of c, `step` apart.
template <class T> struct EvenRows {
    T *data;
    ptrdiff_t step;
    T *operator()(int r) const { return data + r * step; }
};

/// One tile of `product`: rows * vectors sums, for the rows from `row` on.
template <class T, bool turned, int rows, int vectors, class Rows>
void product_tile(const Factors<T> &f, int row, int column, const Rows &c, bool add) {
    Vec<T> sum[rows][vectors] = {};
    if (add)
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v)
                sum[r][v] = load(c(row + r) + column + v * kLanes<T>);
    const ptrdiff_t a_step = f.a_step, b_step = f.b_step;
    const T *a = f.a + row * (turned ? 1 : a_step), *b = f.b + column;
    for (int block = 0; block < f.blocks; ++block, a += f.a_block, b += f.b_block) {
        const T *left = a, *right = b;
        for (int d = 0; d < f.depth; ++d, left += turned ? a_step : 1, right += b_step) {
            Vec<T> y[vectors];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v)
                y[v] = load(right + v * kLanes<T>);
#pragma GCC unroll 16
            for (int r = 0; r < rows; ++r) {
                const T x = turned ? left[r] : left[r * a_step];
#pragma GCC unroll 8
                for (int v = 0; v < vectors; ++v)
                    sum[r][v] += x * y[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v)
            store(c(row + r) + column + v * kLanes<T>, sum[r][v]);
}

template <class T, bool turned, int most_rows, int most_vectors, class Rows>
void tiled_product(const Factors<T> &f, int rows, int columns, const Rows &c, bool add) {
    constexpr int width = most_vectors * kLanes<T>;
    for (int tiles = (rows + most_rows - 1) / most_rows, row = 0; tiles; --tiles) {
        const int left = (rows - row + tiles - 1) / tiles; // tiles of equal height
        with_constant<most_rows>(left, [&](auto height) {
            for (int k = 0; k < columns; k += width)
                with_constant<most_vectors>((columns - k) / kLanes<T>, [&](auto vectors) {
                    product_tile<T, turned, height, vectors>(f, row, k, c, add);
                });
        });
        row += left;
    }
}

/// c (rows, columns) = a b, or c += a b if `add`. With `turned`, a lies in memory by columns. c(r)
/// is where row r begins.
template <class T, bool turned = false, class Rows>
void product(const Factors<T> &f, int rows, int columns, const Rows &c, bool add = false) {
    if (columns == kLanes<T>)
        tiled_product<T, turned, turned ? kTurnedRows : 8, 1>(f, rows, columns, c, add);
    else
        tiled_product<T, turned, kProductRows, kProductVectors>(f, rows, columns, c, add);
}

} // namespace
} // namespace sitenet::SITENET_LEVEL

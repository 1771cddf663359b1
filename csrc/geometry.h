// Periodic minimum-image distances: the formulas that the CPU and the CUDA kernels share.
//
//   d(i, j) = min over integer rows n of |(f_j - f_i + n) A|
//
//   f  (sites, 3)  fractional coordinates
//   A  (3, 3)      cell, lattice vectors as rows, angstrom
//
// Obtuse superbase. Every lattice has four vectors b_0 + b_1 + b_2 + b_3 = 0 with b_i . b_j <= 0
// for i != j (Selling). Take b_1, b_2, b_3 as the basis, write the displacement as sum x_i b_i and
// wrap each x_i into [-1/2, 1/2]. Then the nearest lattice point is one of the fifteen
//
//   0, +-b_1, +-b_2, +-b_3, +-(b_1 + b_2), +-(b_1 + b_3), +-(b_2 + b_3), +-(b_1 + b_2 + b_3)
//
// so seven absolute values are enough:
//
//   d^2 = |x|^2 + min(0, min over the seven s of |s|^2 - |2 x . s|)
//
// Proof. With x_0 = n_0 = 0 and w_ij = -b_i . b_j >= 0,
//
//   |x - n|^2 = sum over i < j of w_ij ((x_i - x_j) - (n_i - n_j))^2
//
// depends on n only up to a common shift of (n_0, n_1, n_2, n_3). Lower n by one on a set S of
// indices, and consider a term with i in S and j outside. It does not grow if
//   - n_i - n_j >= 2, because x_i - x_j <= 1 (0, x_1, x_2 and x_3 all lie in [-1/2, 1/2]), or
//   - n_i - n_j = 1 and x_i - x_j <= 1/2.
// Suppose max n - min n >= 2, and take S = {n >= t} for each level t > min n.
//   - If every term across some level is of these two kinds, lower n on that S: the distance does
//     not grow, and the sum of |n_i - n_j| falls. Repeat.
//   - Otherwise no two neighbouring levels are more than 1 apart, and each S has a term from level
//     t to level t - 1 with x_i - x_j > 1/2. Two such terms of adjacent levels cannot share their
//     middle index, since x would then fall by more than 1. So the levels are {a}, {b, c}, {d} with
//     x_a - x_b > 1/2 and x_c - x_d > 1/2. But one of the four indices is 0, and |x_i - x_0| <= 1/2
//     for all i: a contradiction.
// Hence some nearest n has max n - min n <= 1, and with n_0 = 0 those are the fifteen above.
//
// Where an image is much nearer than the wrapped point itself, |x|^2 + min(...) cancels and loses
// digits; the distance is then computed again from the components of the nearest image.
#pragma once

#include "host_device.h"

#include <cmath>
#include <cstdint>

namespace sitenet {

/// Crystals one after another: crystal c owns the sites offsets_i[c] to offsets_i[c + 1] of frac_i
/// and likewise of frac_j. Its distances are a row-major (n_i, n_j) block; blocks follow each
/// other.
template <class T> struct DistanceInput {
    const T *cells;           ///< (crystals, 3, 3), lattice vectors as rows
    const T *frac_i;          ///< (sites_i, 3)
    const T *frac_j;          ///< (sites_j, 3)
    const int64_t *offsets_i; ///< (crystals + 1); null if there is one crystal
    const int64_t *offsets_j; ///< (crystals + 1); null if there is one crystal
    int64_t crystals;
    int64_t sites_i;
    int64_t sites_j;
};

/// Gradients of sum(distance * grad_distance).
template <class T> struct DistanceGradient {
    const T *grad_distance; ///< as the distances
    T *grad_cells;          ///< (crystals, 3, 3)
    T *grad_frac_i;         ///< (sites_i, 3)
    T *grad_frac_j;         ///< (sites_j, 3)
};

/// The CPU kernels of one SIMD level. Both functions return -1, or the index of the first crystal
/// whose cell has no volume or is not finite.
struct GeometryKernels {
    int64_t (*forward_f32)(const DistanceInput<float> &, float *distance, int threads);
    int64_t (*forward_f64)(const DistanceInput<double> &, double *distance, int threads);
    int64_t (*backward_f32)(const DistanceInput<float> &, const DistanceGradient<float> &,
                            int threads);
    int64_t (*backward_f64)(const DistanceInput<double> &, const DistanceGradient<double> &,
                            int threads);
    /// Whether two sites of a cell (3, 3), with frac (sites, 3), are nearer than `near`, taking the
    /// image whose fractional coordinates are nearest: the shortest distance, if that is short.
    bool (*any_near)(const double *cell, const double *frac, int64_t sites, double near);
};

namespace { // one copy per level, see cpu/simd_level.h

SITENET_HD double dot3(const double *a, const double *b) {
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

SITENET_HD double determinant(const double *a) {
    return a[0] * (a[4] * a[8] - a[5] * a[7]) - a[1] * (a[3] * a[8] - a[5] * a[6]) +
           a[2] * (a[3] * a[7] - a[4] * a[6]);
}

/// inverse = adjugate(a) / determinant(a)
SITENET_HD void invert(const double *a, double *inverse) {
    const double scale = 1 / determinant(a);
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
            const int r = (j + 1) % 3, s = (j + 2) % 3, u = (i + 1) % 3, v = (i + 2) % 3;
            inverse[3 * i + j] =
                (a[3 * r + u] * a[3 * s + v] - a[3 * r + v] * a[3 * s + u]) * scale;
        }
}

/// y = x a: row vector times matrix.
SITENET_HD void transform(const double *x, const double *a, double *y) {
    for (int k = 0; k < 3; ++k)
        y[k] = x[0] * a[k] + x[1] * a[3 + k] + x[2] * a[6 + k];
}

// -------------------------------------------------------------------------------------------------
// Reduction of a cell.

constexpr int kMostSteps = 1000; // a reduction that needs more steps has failed

/// A volume below this share of the product of the edges is rounding error of the cell itself.
template <class T> constexpr double kSmallestVolume = sizeof(T) == 4 ? 1e-7 : 1e-14;

/// Four vectors that add up to zero.
struct Superbase {
    double b[4][3];    ///< the vectors, angstrom
    double n[4][3];    ///< their integer coordinates: b = n cell
    double gram[3][3]; ///< b_i . b_j of the first three, before the obtuse steps
};

/// The three shortest vectors of an obtuse superbase.
struct Reduced {
    double basis[9];   ///< rows, angstrom
    double integer[9]; ///< basis = integer cell, unimodular
};

/// Rounds the first three vectors against each other: Selling's steps subtract one vector at a
/// time, which would take long on a very skewed cell. Returns false if that does not end.
SITENET_HD bool round_pairwise(Superbase &base) {
    auto &b = base.b, &n = base.n;
    auto &gram = base.gram;
    for (int sweep = 0, changed = 1; changed; ++sweep) {
        if (sweep == kMostSteps)
            return false;
        changed = 0;
        for (int i = 0; i < 3; ++i)
            for (int j = 0; j < 3; ++j) {
                if (i == j)
                    continue;
                if (!(std::fabs(gram[i][j]) > (0.5 + 1e-9) * gram[j][j]))
                    continue;
                const double m = std::rint(gram[i][j] / gram[j][j]);
                for (int k = 0; k < 3; ++k) {
                    b[i][k] -= m * b[j][k];
                    n[i][k] -= m * n[j][k];
                }
                for (int k = 0; k < 3; ++k)
                    gram[i][k] = gram[k][i] = dot3(b[i], b[k]);
                changed = 1;
            }
    }
    return true;
}

/// Selling's reduction: for the largest b_i . b_j > 0 set b_i = -b_i and add the old b_i to the two
/// other vectors, which lowers the sum of squared lengths by 2 b_i . b_j. A product below 1e-13 of
/// that sum changes no d^2 by more than that and stays. Returns false if the steps do not end.
SITENET_HD bool make_obtuse(Superbase &base) {
    auto &b = base.b, &n = base.n;
    const auto &gram = base.gram;
    const double tiny = 1e-13 * (gram[0][0] + gram[1][1] + gram[2][2]);
    for (int step = 0;; ++step) {
        int worst_i = 0, worst_j = 0;
        double worst = tiny;
        for (int i = 0; i < 3; ++i)
            for (int j = i + 1; j < 4; ++j) {
                const double p = j < 3 && !step ? gram[i][j] : dot3(b[i], b[j]);
                if (p > worst)
                    worst = p, worst_i = i, worst_j = j;
            }
        if (worst_j == 0)
            return true;
        if (step == kMostSteps)
            return false;
        for (int other = 0; other < 4; ++other) {
            if (other == worst_i || other == worst_j)
                continue;
            for (int k = 0; k < 3; ++k) {
                b[other][k] += b[worst_i][k];
                n[other][k] += n[worst_i][k];
            }
        }
        for (int k = 0; k < 3; ++k) {
            b[worst_i][k] = -b[worst_i][k];
            n[worst_i][k] = -n[worst_i][k];
        }
    }
}

/// Copies all vectors but the longest.
SITENET_HD void keep_shortest(const Superbase &base, Reduced &reduced) {
    int longest = 0;
    double most = dot3(base.b[0], base.b[0]);
    for (int i = 1; i < 4; ++i) {
        const double square = dot3(base.b[i], base.b[i]);
        if (square > most)
            longest = i, most = square;
    }
    for (int i = 0, row = 0; i < 4; ++i) {
        if (i == longest)
            continue;
        for (int k = 0; k < 3; ++k) {
            reduced.basis[3 * row + k] = base.b[i][k];
            reduced.integer[3 * row + k] = base.n[i][k];
        }
        ++row;
    }
}

/// Reduces a cell. Returns false if its volume is below `smallest` of the product of its edges, if
/// it is not finite, or if it does not reduce. Takes some 100 ns for a cell that is nearly reduced.
SITENET_HD bool reduce(const double *cell, double smallest, Reduced &reduced) {
    const double edges = std::sqrt(dot3(cell, cell)) * std::sqrt(dot3(cell + 3, cell + 3)) *
                         std::sqrt(dot3(cell + 6, cell + 6));
    if (!(std::fabs(determinant(cell)) > smallest * edges && edges < 1e300))
        return false;
    Superbase base;
    auto &b = base.b, &n = base.n;
    for (int i = 0; i < 3; ++i)
        for (int k = 0; k < 3; ++k) {
            b[i][k] = cell[3 * i + k];
            n[i][k] = i == k;
        }
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j <= i; ++j)
            base.gram[i][j] = base.gram[j][i] = dot3(b[i], b[j]);
    if (!round_pairwise(base))
        return false;
    for (int k = 0; k < 3; ++k) {
        b[3][k] = -(b[0][k] + b[1][k] + b[2][k]);
        n[3][k] = -(n[0][k] + n[1][k] + n[2][k]);
    }
    if (!make_obtuse(base))
        return false;
    keep_shortest(base, reduced);
    return true;
}

// -------------------------------------------------------------------------------------------------
// Distances in a reduced cell.

constexpr int kNumImages = 7;

/// The numbers of a reduced basis from which distances follow.
template <class T> struct Metric {
    T basis[9];            ///< rows, angstrom
    T twice[6];            ///< 2 b_i . b_j: 11, 22, 33, 12, 13, 23
    T squares[kNumImages]; ///< |s|^2 of b_1, b_2, b_3, b_1+b_2, b_1+b_3, b_2+b_3, b_1+b_2+b_3
};

template <class T> SITENET_HD Metric<T> make_metric(const double *basis) {
    Metric<T> metric;
    for (int k = 0; k < 9; ++k)
        metric.basis[k] = T(basis[k]);
    const int rows[6][2] = {{0, 0}, {1, 1}, {2, 2}, {0, 1}, {0, 2}, {1, 2}};
    for (int k = 0; k < 6; ++k)
        metric.twice[k] = T(2 * dot3(basis + 3 * rows[k][0], basis + 3 * rows[k][1]));
    // The seven vectors in coordinates of the basis.
    const int image_vectors[kNumImages][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {1, 1, 0},
                                              {1, 0, 1}, {0, 1, 1}, {1, 1, 1}};
    for (int s = 0; s < kNumImages; ++s) {
        double v[3];
        for (int k = 0; k < 3; ++k)
            v[k] = image_vectors[s][0] * basis[k] + image_vectors[s][1] * basis[3 + k] +
                   image_vectors[s][2] * basis[6 + k];
        metric.squares[s] = T(dot3(v, v));
    }
    return metric;
}

template <class T> SITENET_HD T smaller(T a, T b) { return b < a ? b : a; }

/// Wraps a coordinate into [-1/2, 1/2].
template <class T> SITENET_HD T wrap(T x) { return x - std::rint(x); }

/// Returns d^2 of the wrapped coordinates (x, y, z), and sets `plain` to their |x|^2.
template <class T> SITENET_HD T shortest_squared(const Metric<T> &metric, T x, T y, T z, T &plain) {
    const T *g = metric.twice, *s = metric.squares;
    const T p = g[0] * x + g[3] * y + g[4] * z;
    const T q = g[3] * x + g[1] * y + g[5] * z;
    const T r = g[4] * x + g[5] * y + g[2] * z;
    plain = T(0.5) * (x * p + y * q + z * r);
    T best = smaller(smaller(s[0] - std::fabs(p), s[1] - std::fabs(q)), s[2] - std::fabs(r));
    best = smaller(best, smaller(s[3] - std::fabs(p + q), s[4] - std::fabs(p + r)));
    best = smaller(best, smaller(s[5] - std::fabs(q + r), s[6] - std::fabs(p + q + r)));
    return plain + smaller(T(0), best);
}

/// Moves (dx, dy, dz) to -(A, B, C) or +(A, B, C), whichever lowers d^2, if no shift so far lowers
/// it more. Free of branches, so that it vectorises.
template <int A, int B, int C, class T>
SITENET_HD void consider(T square, T along, T &best, T &dx, T &dy, T &dz) {
    const T change = square - std::fabs(along);
    const T step = along > 0 ? T(-1) : T(1);
    const bool nearer = change < best;
    best = nearer ? change : best;
    dx = nearer ? (A ? step : T(0)) : dx;
    dy = nearer ? (B ? step : T(0)) : dy;
    dz = nearer ? (C ? step : T(0)) : dz;
}

/// Moves the wrapped (x, y, z) to the nearest image.
template <class T> SITENET_HD void to_nearest(const Metric<T> &metric, T &x, T &y, T &z) {
    const T *g = metric.twice, *s = metric.squares;
    const T p = g[0] * x + g[3] * y + g[4] * z;
    const T q = g[3] * x + g[1] * y + g[5] * z;
    const T r = g[4] * x + g[5] * y + g[2] * z;
    T best = 0, dx = 0, dy = 0, dz = 0;
    consider<1, 0, 0>(s[0], p, best, dx, dy, dz);
    consider<0, 1, 0>(s[1], q, best, dx, dy, dz);
    consider<0, 0, 1>(s[2], r, best, dx, dy, dz);
    consider<1, 1, 0>(s[3], p + q, best, dx, dy, dz);
    consider<1, 0, 1>(s[4], p + r, best, dx, dy, dz);
    consider<0, 1, 1>(s[5], q + r, best, dx, dy, dz);
    consider<1, 1, 1>(s[6], p + q + r, best, dx, dy, dz);
    x += dx, y += dy, z += dz;
}

/// |x| of the coordinates (x, y, z).
template <class T> SITENET_HD T length(const Metric<T> &metric, T x, T y, T z) {
    const T *b = metric.basis;
    const T u = x * b[0] + y * b[3] + z * b[6];
    const T v = x * b[1] + y * b[4] + z * b[7];
    const T w = x * b[2] + y * b[5] + z * b[8];
    return std::sqrt(u * u + v * v + w * w);
}

// A d^2 below this share of |x|^2 is computed again. Above it, cancellation costs a relative error
// of at most 1 / (2 * share) roundings. So few sites of a crystal come that near to each other's
// images that the CPU computes a whole chunk again.
constexpr double kCancellationShare = 1.0 / 16;

// -------------------------------------------------------------------------------------------------
// Rows of distances on the CPU.

constexpr int kPointGroup = 16;              // points per step of the inner loop
constexpr int kPointChunk = 8 * kPointGroup; // points per call of distance_chunk

/// Stride of `points` points. They are stored as (3, stride) coordinates of the reduced basis.
SITENET_HD int64_t padded(int64_t points) {
    return (points + kPointGroup - 1) / kPointGroup * kPointGroup;
}

/// Distances from the point (x, y, z) to n points, a multiple of kPointGroup up to kPointChunk.
template <class T>
inline void distance_chunk(const Metric<T> &shared, T x, T y, T z, const T *xs, const T *ys,
                           const T *zs, int n, T *distance) {
    const Metric<T> metric = shared; // a copy that no store can alias stays in registers
    T margin[kPointGroup] = {};
    for (int j = 0; j < n; j += kPointGroup)
        for (int l = j; l < j + kPointGroup; ++l) {
            T plain;
            const T square =
                shortest_squared(metric, wrap(xs[l] - x), wrap(ys[l] - y), wrap(zs[l] - z), plain);
            margin[l - j] = smaller(margin[l - j], square - T(kCancellationShare) * plain);
            distance[l] = std::sqrt(square < 0 ? T(0) : square);
        }
    int cancelled = 0;
    for (int l = 0; l < kPointGroup; ++l)
        cancelled |= margin[l] < 0;
    if (!cancelled)
        return;
    for (int l = 0; l < n; ++l) {
        T u = wrap(xs[l] - x), v = wrap(ys[l] - y), w = wrap(zs[l] - z);
        to_nearest(metric, u, v, w);
        distance[l] = length(metric, u, v, w);
    }
}

/// Distances from the point (x, y, z) to n points. Writes exactly n numbers.
template <class T>
inline void distance_row(const Metric<T> &metric, T x, T y, T z, const T *points, int64_t stride,
                         int64_t n, T *distance) {
    const T *xs = points, *ys = xs + stride, *zs = ys + stride;
    int64_t j = 0;
    for (; j + kPointChunk <= n; j += kPointChunk)
        distance_chunk(metric, x, y, z, xs + j, ys + j, zs + j, kPointChunk, distance + j);
    if (j < n) {
        T last[kPointChunk];
        distance_chunk(metric, x, y, z, xs + j, ys + j, zs + j, int(padded(n - j)), last);
        for (int64_t l = j; l < n; ++l)
            distance[l] = last[l - j];
    }
}

} // namespace
} // namespace sitenet

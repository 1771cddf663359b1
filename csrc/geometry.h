// Periodic minimum-image distances: the numerics shared by the CPU and the CUDA kernels.
//
//   d(i, j) = min over integer n of |(f_j - f_i + n) A|        f fractional, A (3, 3): rows =
//   vectors
//
// Obtuse superbase. Every lattice has four vectors b_0 + b_1 + b_2 + b_3 = 0 with b_i . b_j <= 0
// for i != j (Selling). Take b_1, b_2, b_3 as the basis, write the displacement as sum x_i b_i and
// wrap each x_i into [-1/2, 1/2]. Then the nearest lattice point is one of the fifteen
//   0, +-b_1, +-b_2, +-b_3, +-(b_1+b_2), +-(b_1+b_3), +-(b_2+b_3), +-(b_1+b_2+b_3),
// so with p_k = 2 x . b_k seven absolute values are enough:
//   d^2 = |x|^2 + min(0, min over the seven s of |s|^2 - |2 x . s|).
//
// Proof. With x_0 = n_0 = 0 and w_ij = -b_i . b_j >= 0,
//   |x - n|^2 = sum over i < j of w_ij ((x_i - x_j) - (n_i - n_j))^2,
// which depends on n only up to a common shift of (n_0, n_1, n_2, n_3). Lowering n by one on a set
// S of indices raises no term that crosses from i in S to j outside, if n_i - n_j >= 2 (because x_i
// - x_j <= 1: all of 0, x_1, x_2, x_3 lie within [-1/2, 1/2]), or if n_i - n_j = 1 and x_i - x_j <=
// 1/2. Suppose max n - min n >= 2 and take S = {n >= t} for each level t > min n. If one of them
// has only such crossings, lower it: the distance does not grow and the sum of |n_i - n_j| falls.
// Otherwise no two neighbouring levels are more than 1 apart and each S has a crossing from level t
// to level t - 1 with x_i - x_j > 1/2. If two crossings one above the other share their middle
// index, x falls by more than 1: impossible. So the levels are {a}, {b, c}, {d} with x_a - x_b >
// 1/2 and x_c - x_d > 1/2; but index 0 is one of the four and |x_i - x_0| <= 1/2: impossible. Hence
// some nearest n has max n - min n <= 1, which with n_0 = 0 are the fifteen above.
//
// A wrapped point whose image is much nearer than itself would lose digits in |x|^2 + min(...);
// there the distance is computed again from the components of the nearest image.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SITENET_HD __host__ __device__ __forceinline__
#else
#define SITENET_HD inline
#endif

namespace sitenet {

// Crystals one after another: crystal c has sites offsets_i[c] to offsets_i[c + 1] of frac_i, and
// so for j; its distances are a row-major (n_i, n_j) block, the blocks one after another. Offsets
// may be null where there is one crystal.
template <class T> struct DistanceInput {
    const T *cells;  // (crystals, 3, 3) rows = vectors
    const T *frac_i; // (sites_i, 3)
    const T *frac_j; // (sites_j, 3)
    const int64_t *offsets_i, *offsets_j;
    int64_t crystals, sites_i, sites_j;
};

// Gradients of sum(distance * grad_distance).
template <class T> struct DistanceGradient {
    const T *grad_distance;
    T *grad_cells, *grad_frac_i, *grad_frac_j;
};

// Both return -1, or the first crystal whose cell has no volume or is not finite.
struct GeometryKernels {
    int64_t (*forward_f32)(const DistanceInput<float> &, float *distance, int threads);
    int64_t (*forward_f64)(const DistanceInput<double> &, double *distance, int threads);
    int64_t (*backward_f32)(const DistanceInput<float> &, const DistanceGradient<float> &,
                            int threads);
    int64_t (*backward_f64)(const DistanceInput<double> &, const DistanceGradient<double> &,
                            int threads);
};

namespace { // one copy a level: see cpu/simd_level.h

SITENET_HD double dot3(const double *a, const double *b) {
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

SITENET_HD double determinant(const double *a) {
    return a[0] * (a[4] * a[8] - a[5] * a[7]) - a[1] * (a[3] * a[8] - a[5] * a[6]) +
           a[2] * (a[3] * a[7] - a[4] * a[6]);
}

// inverse = adjugate(a) / determinant
SITENET_HD void invert(const double *a, double *inverse) {
    const double scale = 1 / determinant(a);
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
            const int r = (j + 1) % 3, s = (j + 2) % 3, u = (i + 1) % 3, v = (i + 2) % 3;
            inverse[3 * i + j] =
                (a[3 * r + u] * a[3 * s + v] - a[3 * r + v] * a[3 * s + u]) * scale;
        }
}

// Row vector times matrix.
SITENET_HD void transform(const double *x, const double *a, double *y) {
    for (int k = 0; k < 3; ++k)
        y[k] = x[0] * a[k] + x[1] * a[3 + k] + x[2] * a[6 + k];
}

// The three shortest vectors of an obtuse superbase of the lattice.
struct Reduced {
    double basis[9];   // rows, angstrom
    double integer[9]; // basis = integer @ cell, unimodular
};

// Returns false if the cell has no volume (beyond `smallest` of the product of its edges), is not
// finite, or does not reduce. Costs about 100 ns for a cell that is nearly reduced.
SITENET_HD bool reduce(const double *cell, double smallest, Reduced &reduced) {
    const double edges = std::sqrt(dot3(cell, cell)) * std::sqrt(dot3(cell + 3, cell + 3)) *
                         std::sqrt(dot3(cell + 6, cell + 6));
    if (!(std::fabs(determinant(cell)) > smallest * edges && edges < 1e300))
        return false;
    double b[4][3], n[4][3]; // superbase and its integer coordinates
    for (int i = 0; i < 3; ++i)
        for (int k = 0; k < 3; ++k) {
            b[i][k] = cell[3 * i + k];
            n[i][k] = i == k;
        }
    double gram[3][3]; // b_i . b_j
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j <= i; ++j)
            gram[i][j] = gram[j][i] = dot3(b[i], b[j]);
    // Pairwise rounding first: Selling's steps subtract one vector at a time.
    for (int sweep = 0, changed = 1; changed; ++sweep) {
        if (sweep == 1000)
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
    for (int k = 0; k < 3; ++k) {
        b[3][k] = -(b[0][k] + b[1][k] + b[2][k]);
        n[3][k] = -(n[0][k] + n[1][k] + n[2][k]);
    }
    // Selling: a positive b_i . b_j goes by b_i -> -b_i, b_k += b_i, b_l += b_i, which lowers the
    // sum of squared lengths by 2 b_i . b_j. What is left below 1e-13 moves no d^2 by more than
    // that.
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
            break;
        if (step == 1000)
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
    int longest = 0;
    double most = dot3(b[0], b[0]);
    for (int i = 1; i < 4; ++i) {
        const double square = dot3(b[i], b[i]);
        if (square > most)
            longest = i, most = square;
    }
    for (int i = 0, row = 0; i < 4; ++i) {
        if (i == longest)
            continue;
        for (int k = 0; k < 3; ++k) {
            reduced.basis[3 * row + k] = b[i][k];
            reduced.integer[3 * row + k] = n[i][k];
        }
        ++row;
    }
    return true;
}

constexpr int num_images = 7;

// What a distance needs of the reduced cell.
template <class T> struct Metric {
    T basis[9];
    T twice[6];            // 2 b_i . b_j: 11, 22, 33, 12, 13, 23
    T squares[num_images]; // |s|^2
};

template <class T> SITENET_HD Metric<T> make_metric(const double *basis) {
    Metric<T> metric;
    for (int k = 0; k < 9; ++k)
        metric.basis[k] = T(basis[k]);
    const int rows[6][2] = {{0, 0}, {1, 1}, {2, 2}, {0, 1}, {0, 2}, {1, 2}};
    for (int k = 0; k < 6; ++k)
        metric.twice[k] = T(2 * dot3(basis + 3 * rows[k][0], basis + 3 * rows[k][1]));
    // The seven vectors as coordinates in the basis.
    const int image_vectors[num_images][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {1, 1, 0},
                                              {1, 0, 1}, {0, 1, 1}, {1, 1, 1}};
    for (int s = 0; s < num_images; ++s) {
        double v[3];
        for (int k = 0; k < 3; ++k)
            v[k] = image_vectors[s][0] * basis[k] + image_vectors[s][1] * basis[3 + k] +
                   image_vectors[s][2] * basis[6 + k];
        metric.squares[s] = T(dot3(v, v));
    }
    return metric;
}

template <class T> SITENET_HD T smaller(T a, T b) { return b < a ? b : a; }

// Wrapped coordinate: into [-1/2, 1/2].
template <class T> SITENET_HD T wrap(T x) { return x - std::rint(x); }

// d^2 of the wrapped coordinates (x, y, z), and |x|^2 as `plain`.
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

// Takes the image A b_1 + B b_2 + C b_3, or its opposite, if it is the nearest yet. Free of
// branches, so that lanes stay together.
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

// Moves the wrapped (x, y, z) to the nearest image.
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

template <class T> SITENET_HD T length(const Metric<T> &metric, T x, T y, T z) {
    const T *b = metric.basis;
    const T u = x * b[0] + y * b[3] + z * b[6];
    const T v = x * b[1] + y * b[4] + z * b[7];
    const T w = x * b[2] + y * b[5] + z * b[8];
    return std::sqrt(u * u + v * v + w * w);
}

// Below this share of |x|^2 a distance is computed again: above it, the digits that cancel cost a
// relative error of at most 1 / (2 * share) roundings. Sites of a crystal come that near to each
// other's images so seldom that a whole chunk is computed again.
constexpr double cancellation_share = 1.0 / 16;
constexpr int lanes = 16;
constexpr int chunk = 8 * lanes;

// Points are stored as (3, stride) coordinates of the reduced basis, with a stride padded to whole
// lanes.
SITENET_HD int64_t padded(int64_t points) { return (points + lanes - 1) / lanes * lanes; }

// Distances from the point (x, y, z) to n points: n is a multiple of `lanes`, at most `chunk`.
template <class T>
inline void distance_chunk(const Metric<T> &shared, T x, T y, T z, const T *xs, const T *ys,
                           const T *zs, int n, T *distance) {
    const Metric<T> metric = shared; // no store below can change it: it stays in registers
    T margin[lanes] = {};
    for (int j = 0; j < n; j += lanes)
        for (int l = j; l < j + lanes; ++l) {
            T plain;
            const T square =
                shortest_squared(metric, wrap(xs[l] - x), wrap(ys[l] - y), wrap(zs[l] - z), plain);
            margin[l - j] = smaller(margin[l - j], square - T(cancellation_share) * plain);
            distance[l] = std::sqrt(square < 0 ? T(0) : square);
        }
    int cancelled = 0;
    for (int l = 0; l < lanes; ++l)
        cancelled |= margin[l] < 0;
    if (!cancelled)
        return;
    for (int l = 0; l < n; ++l) {
        T u = wrap(xs[l] - x), v = wrap(ys[l] - y), w = wrap(zs[l] - z);
        to_nearest(metric, u, v, w);
        distance[l] = length(metric, u, v, w);
    }
}

// Distances to n points; exactly n are written.
template <class T>
inline void distance_row(const Metric<T> &metric, T x, T y, T z, const T *points, int64_t stride,
                         int64_t n, T *distance) {
    const T *xs = points, *ys = xs + stride, *zs = ys + stride;
    int64_t j = 0;
    for (; j + chunk <= n; j += chunk)
        distance_chunk(metric, x, y, z, xs + j, ys + j, zs + j, chunk, distance + j);
    if (j < n) {
        T last[chunk];
        distance_chunk(metric, x, y, z, xs + j, ys + j, zs + j, int(padded(n - j)), last);
        for (int64_t l = j; l < n; ++l)
            distance[l] = last[l - j];
    }
}

} // namespace
} // namespace sitenet

// Minimum-image distances of a batch of crystals, and their gradients (formulas: ../geometry.h).
//
// Forward. Each crystal's cell is reduced and its sites are written as wrapped coordinates of the
// reduced basis, both in double. Then every site i runs over the sites j of its crystal, 16 at a
// time. Per pair: some 60 flops, one square root, the points j from cache, sizeof(T) bytes written.
// Threads share the crystals; the rows, if there is only one crystal.
//
// Backward. The nearest image u, in coordinates of the reduced basis R, is computed again. With
// w = grad_distance / distance (0 at distance 0) and R = N A, the gradients are sums over pairs:
//
//   grad_frac_j =  w u R A^T
//   grad_frac_i = -w u R A^T
//   grad_cell   =  (u N)^T (w u R)
//
// Threads share the crystals. A crystal's sums run in a fixed order, so results do not depend on
// the number of threads.
#include "../geometry.h"
#include "buffer.h"

#include <cstring>

namespace sitenet::SITENET_LEVEL {
namespace {

// Below this number of pairs, threads cost more than they save.
constexpr int64_t parallel_pairs = 1 << 14;

/// The sites of one crystal in the two lists, and its first pair.
struct Range {
    int64_t begin_i, end_i, begin_j, end_j, pairs;
    int64_t size_i() const { return end_i - begin_i; }
    int64_t size_j() const { return end_j - begin_j; }
};

/// The ranges of all crystals.
template <class T> struct Ranges {
    const DistanceInput<T> &in;
    Buffer<int64_t> begins; ///< (crystals + 1), first pair of each crystal

    explicit Ranges(const DistanceInput<T> &in) : in(in), begins(in.crystals + 1) {
        for (int64_t c = 0; c < in.crystals; ++c) {
            const Range range = (*this)[c];
            begins[c + 1] = begins[c] + range.size_i() * range.size_j();
        }
    }
    Range operator[](int64_t c) const {
        if (!in.offsets_i)
            return {0, in.sites_i, 0, in.sites_j, 0};
        return {in.offsets_i[c], in.offsets_i[c + 1], in.offsets_j[c], in.offsets_j[c + 1],
                begins[c]};
    }
    int64_t pairs() const { return begins[in.crystals]; }
};

/// Writes wrapped coordinates in the reduced basis as (3, stride), padded with zeros.
template <class T>
void to_reduced(const T *frac, int64_t n, const double *inverse, T *points, int64_t stride) {
    for (int64_t k = 0; k < n; ++k) {
        const double f[3] = {double(frac[3 * k]), double(frac[3 * k + 1]), double(frac[3 * k + 2])};
        double g[3];
        transform(f, inverse, g);
        for (int d = 0; d < 3; ++d)
            points[d * stride + k] = T(wrap(g[d]));
    }
    for (int d = 0; d < 3; ++d)
        for (int64_t k = n; k < stride; ++k)
            points[d * stride + k] = 0;
}

/// Reduces a cell, and copies it to `vectors`.
template <class T> bool reduce_cell(const T *cell, double *vectors, Reduced &reduced) {
    for (int k = 0; k < 9; ++k)
        vectors[k] = double(cell[k]);
    return reduce(vectors, kSmallestVolume<T>, reduced);
}

/// Distances of the rows first to last - 1 of one crystal. Short rows are laid end to end, as
/// differences, so that they fill the lanes.
template <class T>
void distance_rows(const Metric<T> &metric, const T *points_i, int64_t stride_i, int64_t first,
                   int64_t last, const T *points_j, int64_t size_j, T *distance) {
    constexpr int64_t room = 1024, stride = room + kPointChunk;
    const int64_t stride_j = padded(size_j);
    if (size_j >= kPointChunk) {
        for (int64_t i = first; i < last; ++i)
            distance_row(metric, points_i[i], points_i[stride_i + i], points_i[2 * stride_i + i],
                         points_j, stride_j, size_j, distance + i * size_j);
        return;
    }
    T differences[3 * stride];
    const int64_t rows = size_j ? room / size_j : last;
    for (int64_t begin = first; begin < last; begin += rows) {
        const int64_t end = begin + rows < last ? begin + rows : last;
        for (int d = 0; d < 3; ++d) {
            const T *to = points_j + d * stride_j;
            for (int64_t i = begin; i < end; ++i) {
                const T from = points_i[d * stride_i + i];
                T *row = differences + d * stride + (i - begin) * size_j;
                for (int64_t j = 0; j < stride_j;
                     j += kPointGroup) // the next row overwrites the surplus
                    for (int l = 0; l < kPointGroup; ++l)
                        row[j + l] = to[j + l] - from;
            }
        }
        distance_row(metric, T(0), T(0), T(0), differences, stride, (end - begin) * size_j,
                     distance + begin * size_j);
    }
}

/// Distances of one crystal; threads share its rows. Returns whether its cell can be used.
template <class T>
bool forward_one(const DistanceInput<T> &in, const Range &range, const T *cell, T *distance,
                 int threads) {
    double vectors[9], inverse[9];
    Reduced reduced;
    if (!reduce_cell(cell, vectors, reduced))
        return false;
    invert(reduced.integer, inverse);
    const Metric<T> metric = make_metric<T>(reduced.basis);
    const int64_t n_i = range.size_i(), n_j = range.size_j();
    const int64_t stride_i = padded(n_i), stride_j = padded(n_j);
    const T *frac_i = in.frac_i + 3 * range.begin_i, *frac_j = in.frac_j + 3 * range.begin_j;
    const bool same = frac_i == frac_j && n_i == n_j;
    T few[6 * kPointChunk]; // spares small crystals, which come in thousands, an allocation
    const int64_t room = 3 * (same ? stride_i : stride_i + stride_j);
    Buffer<T> many;
    if (room > 6 * kPointChunk)
        many.resize(room);
    T *points_i = many.size() ? many.get() : few;
    T *points_j = same ? points_i : points_i + 3 * stride_i;
    to_reduced(frac_i, n_i, inverse, points_i, stride_i);
    if (!same)
        to_reduced(frac_j, n_j, inverse, points_j, stride_j);
    T *out = distance + range.pairs;
    if (threads == 1 || n_i * n_j < parallel_pairs) {
        distance_rows(metric, points_i, stride_i, 0, n_i, points_j, n_j, out);
        return true;
    }
#pragma omp parallel for num_threads(threads) schedule(guided)
    for (int64_t i = 0; i < n_i; ++i)
        distance_rows(metric, points_i, stride_i, i, i + 1, points_j, n_j, out);
    return true;
}

template <class T> int64_t forward(const DistanceInput<T> &in, T *distance, int threads) {
    const Ranges<T> ranges(in);
    if (in.crystals == 1)
        return forward_one(in, ranges[0], in.cells, distance, threads) ? -1 : 0;
    int64_t bad = in.crystals;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)                                \
    reduction(min : bad) if (threads > 1 && ranges.pairs() >= parallel_pairs)
    for (int64_t c = 0; c < in.crystals; ++c)
        if (!forward_one(in, ranges[c], in.cells + 9 * c, distance, 1))
            bad = c < bad ? c : bad;
    return bad < in.crystals ? bad : -1;
}

/// Adds the sums over one row of pairs: w u to `sum` and, per site j, to `sums_j`; w u^T u to
/// `outer`, in the order 11, 22, 33, 12, 13, 23.
template <class T>
void backward_row(const Metric<T> &metric, T x, T y, T z, const T *points, int64_t stride,
                  int64_t n, const T *grad, double *sum, double *outer, double *sums_j) {
    T part[9][kPointGroup] = {};
    for (int64_t j = 0; j < n; j += kPointGroup) {
        T weighted[3][kPointGroup], g[kPointGroup] = {};
        const int64_t here = n - j < kPointGroup ? n - j : kPointGroup;
        std::memcpy(g, grad + j, sizeof(T) * here);
        for (int l = 0; l < kPointGroup; ++l) {
            T u = wrap(points[j + l] - x), v = wrap(points[stride + j + l] - y),
              w = wrap(points[2 * stride + j + l] - z);
            to_nearest(metric, u, v, w);
            const T distance = length(metric, u, v, w);
            const T weight = distance > 0 ? g[l] / distance : T(0);
            const T a = weight * u, b = weight * v, c = weight * w;
            weighted[0][l] = a, weighted[1][l] = b, weighted[2][l] = c;
            part[0][l] += a, part[1][l] += b, part[2][l] += c;
            part[3][l] += a * u, part[4][l] += b * v, part[5][l] += c * w;
            part[6][l] += a * v, part[7][l] += a * w, part[8][l] += b * w;
        }
        for (int d = 0; d < 3; ++d)
            for (int l = 0; l < kPointGroup; ++l)
                sums_j[d * stride + j + l] += double(weighted[d][l]);
    }
    for (int k = 0; k < 9; ++k) {
        double total = 0;
        for (int l = 0; l < kPointGroup; ++l)
            total += double(part[k][l]);
        (k < 3 ? sum[k] : outer[k - 3]) += total;
    }
}

/// Gradients of one crystal. Returns whether its cell can be used.
template <class T>
bool backward_one(const DistanceInput<T> &in, const DistanceGradient<T> &out, const Range &range,
                  int64_t crystal) {
    double vectors[9], inverse[9];
    Reduced reduced;
    if (!reduce_cell(in.cells + 9 * crystal, vectors, reduced))
        return false;
    invert(reduced.integer, inverse);
    const Metric<T> metric = make_metric<T>(reduced.basis);
    const int64_t n_i = range.size_i(), n_j = range.size_j();
    const int64_t stride_i = padded(n_i), stride_j = padded(n_j);
    Buffer<T> points(3 * (stride_i + stride_j));
    Buffer<double> sums_j(3 * stride_j);
    T *points_i = points.get(), *points_j = points_i + 3 * stride_i;
    to_reduced(in.frac_i + 3 * range.begin_i, n_i, inverse, points_i, stride_i);
    to_reduced(in.frac_j + 3 * range.begin_j, n_j, inverse, points_j, stride_j);
    // w u R A^T = (w u) (R A^T)
    double product[9];
    for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b)
            product[3 * a + b] = dot3(reduced.basis + 3 * a, vectors + 3 * b);
    double outer[6] = {};
    for (int64_t i = 0; i < n_i; ++i) {
        double sum[3] = {}, gradient[3];
        backward_row(metric, points_i[i], points_i[stride_i + i], points_i[2 * stride_i + i],
                     points_j, stride_j, n_j, out.grad_distance + range.pairs + i * n_j, sum, outer,
                     sums_j.get());
        transform(sum, product, gradient);
        for (int d = 0; d < 3; ++d)
            out.grad_frac_i[3 * (range.begin_i + i) + d] = T(-gradient[d]);
    }
    for (int64_t j = 0; j < n_j; ++j) {
        const double sum[3] = {sums_j[j], sums_j[stride_j + j], sums_j[2 * stride_j + j]};
        double gradient[3];
        transform(sum, product, gradient);
        for (int d = 0; d < 3; ++d)
            out.grad_frac_j[3 * (range.begin_j + j) + d] = T(gradient[d]);
    }
    // N^T (sum of w u^T u) R
    const double moment[9] = {outer[0], outer[3], outer[4], outer[3], outer[1],
                              outer[5], outer[4], outer[5], outer[2]};
    for (int a = 0; a < 3; ++a) {
        const double *n = reduced.integer;
        const double column[3] = {n[a], n[3 + a], n[6 + a]};
        double mixed[3], gradient[3];
        transform(column, moment, mixed);
        transform(mixed, reduced.basis, gradient);
        for (int b = 0; b < 3; ++b)
            out.grad_cells[9 * crystal + 3 * a + b] = T(gradient[b]);
    }
    return true;
}

template <class T>
int64_t backward(const DistanceInput<T> &in, const DistanceGradient<T> &out, int threads) {
    const Ranges<T> ranges(in);
    int64_t bad = in.crystals;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)                                \
    reduction(min : bad) if (threads > 1 && in.crystals > 1 && ranges.pairs() >= parallel_pairs)
    for (int64_t c = 0; c < in.crystals; ++c)
        if (!backward_one(in, out, ranges[c], c))
            bad = c < bad ? c : bad;
    return bad < in.crystals ? bad : -1;
}

bool any_near(const double *cell, const double *frac, int64_t sites, double near) {
    for (int64_t i = 0; i < sites; ++i)
        for (int64_t j = 0; j < i; ++j) {
            double x[3], v[3];
            for (int k = 0; k < 3; ++k) {
                x[k] = frac[3 * i + k] - frac[3 * j + k];
                x[k] -= std::nearbyint(x[k]);
            }
            transform(x, cell, v);
            if (dot3(v, v) < near * near)
                return true;
        }
    return false;
}

} // namespace

extern const GeometryKernels geometry = {forward<float>, forward<double>, backward<float>,
                                         backward<double>, any_near};

} // namespace sitenet::SITENET_LEVEL

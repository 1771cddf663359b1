// Minimum-image distances of a batch of crystals on the GPU, and their gradients (formulas:
// ../geometry.h).
//
// Forward. A thread per crystal reduces its cell, in double. A thread per site writes its wrapped
// coordinates in the reduced basis. Then a thread computes four consecutive distances, whichever
// crystals they belong to, so crystals of 8 and of 500 sites load the machine alike: one search for
// the crystal, one division for (i, j), and steps from there.
//
// Memory traffic per pair: sizeof(T) bytes out; coordinates and cells come from cache. Operations
// per pair: some 55 for the distance, one square root, and some 20 to locate it, 0.6 clocks of a
// multiprocessor. Predicted floor on an H100 or H200 (132 multiprocessors, 1.75 GHz, 3 TB/s), not
// measured: 380 G pairs/s by arithmetic, 750 by memory.
//
// Backward. The nearest image is computed again, in one warp per site i, whose sums over pairs give
// grad_frac_i and the row's share of grad_cells, and in one warp per site j. A warp per crystal
// adds the shares of the rows in order. Lanes sum in T, everything else in double. No atomics;
// results are bitwise reproducible.
#include "kernels.h"
#include "launch.cuh"

namespace sitenet::cuda {
namespace {

constexpr int kThreads = 128;   // per block
constexpr int kThreadPairs = 4; // distances per thread

/// A reduced cell.
template <class T> struct PreparedCell {
    Metric<T> metric;
    double basis[9];   ///< R
    double integer[9]; ///< N, with R = N A
    double inverse[9]; ///< of N
    double cell[9];    ///< A
};

/// Scratch memory.
template <class T> struct DistanceScratch {
    PreparedCell<T> *cells; ///< (crystals)
    T *points_i;            ///< (sites_i, 3), wrapped coordinates
    T *points_j;            ///< (sites_j, 3)
    int32_t *crystal_i;     ///< (sites_i), crystal of each site
    int32_t *crystal_j;     ///< (sites_j)
    double *outer;          ///< (sites_i, 6), sums of w u^T u: 11, 22, 33, 12, 13, 23

    DistanceScratch(int64_t crystals, int64_t sites_i, int64_t sites_j, Scratch &scratch) {
        cells = scratch.take<PreparedCell<T>>(crystals);
        points_i = scratch.take<T>(3 * sites_i);
        points_j = scratch.take<T>(3 * sites_j);
        crystal_i = scratch.take<int32_t>(sites_i);
        crystal_j = scratch.take<int32_t>(sites_j);
        outer = scratch.take<double>(6 * sites_i);
    }
};

/// The last crystal c with offsets[c] <= at, which skips empty ones.
__device__ inline int64_t crystal_of(const int64_t *offsets, int64_t crystals, int64_t at) {
    if (!offsets)
        return 0;
    int64_t low = 0, high = crystals; // offsets[low] <= at < offsets[high]
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (offsets[middle] <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/// The sites of one crystal.
struct SiteRange {
    int64_t begin, end;
    __device__ SiteRange(const int64_t *offsets, int64_t crystal, int64_t sites)
        : begin(offsets ? offsets[crystal] : 0), end(offsets ? offsets[crystal + 1] : sites) {}
    __device__ int64_t size() const { return end - begin; }
};

/// A thread per crystal.
template <class T>
__global__ void prepare_cells_kernel(const T *__restrict__ cells, int64_t crystals,
                                     PreparedCell<T> *__restrict__ prepared,
                                     int32_t *__restrict__ usable) {
    const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= crystals)
        return;
    PreparedCell<T> &out = prepared[c];
    double cell[9], inverse[9];
    for (int k = 0; k < 9; ++k)
        cell[k] = double(cells[9 * c + k]);
    Reduced reduced;
    usable[c] = reduce(cell, kSmallestVolume<T>, reduced);
    if (!usable[c])
        for (int k = 0; k < 9; ++k)
            reduced.basis[k] = reduced.integer[k] = double(NAN);
    invert(reduced.integer, inverse);
    out.metric = make_metric<T>(reduced.basis);
    for (int k = 0; k < 9; ++k) {
        out.basis[k] = reduced.basis[k];
        out.integer[k] = reduced.integer[k];
        out.inverse[k] = inverse[k];
        out.cell[k] = cell[k];
    }
}

/// A thread per site.
template <class T>
__global__ void wrap_sites_kernel(const T *__restrict__ frac, const int64_t *__restrict__ offsets,
                                  int64_t crystals, int64_t sites,
                                  const PreparedCell<T> *__restrict__ cells, T *__restrict__ points,
                                  int32_t *__restrict__ crystal) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= sites)
        return;
    const int64_t c = crystal_of(offsets, crystals, i);
    const double f[3] = {double(frac[3 * i]), double(frac[3 * i + 1]), double(frac[3 * i + 2])};
    double g[3];
    transform(f, cells[c].inverse, g);
    for (int d = 0; d < 3; ++d)
        points[3 * i + d] = T(wrap(g[d]));
    crystal[i] = int32_t(c);
}

template <class T>
__device__ inline T distance_of(const Metric<T> &metric, const T *from, const T *to) {
    T x = wrap(to[0] - from[0]), y = wrap(to[1] - from[1]), z = wrap(to[2] - from[2]), plain;
    const T square = shortest_squared(metric, x, y, z, plain);
    if (square < T(kCancellationShare) * plain) {
        to_nearest(metric, x, y, z);
        return length(metric, x, y, z);
    }
    return sqrt(square);
}

/// A thread per kThreadPairs distances.
template <class T>
__global__ void __launch_bounds__(kThreads)
    distances_kernel(DistanceInput<T> in, const int64_t *__restrict__ pair_offsets, int64_t pairs,
                     DistanceScratch<T> scratch, T *__restrict__ distance) {
    int64_t p = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kThreadPairs;
    const int64_t end = p + kThreadPairs < pairs ? p + kThreadPairs : pairs;
    while (p < end) {
        const int64_t crystal = crystal_of(pair_offsets, in.crystals, p);
        const SiteRange range_i(in.offsets_i, crystal, in.sites_i);
        const SiteRange range_j(in.offsets_j, crystal, in.sites_j);
        const Metric<T> metric = scratch.cells[crystal].metric;
        const int64_t within = p - (pair_offsets ? pair_offsets[crystal] : 0), n_j = range_j.size();
        const int64_t left = range_i.size() * n_j - within;
        const int64_t last = end - p < left ? end : p + left;
        int64_t i = within < INT32_MAX ? int32_t(within) / int32_t(n_j) : within / n_j;
        int64_t j = within - i * n_j;
        for (; p < last; ++p) {
            distance[p] = distance_of(metric, scratch.points_i + 3 * (range_i.begin + i),
                                      scratch.points_j + 3 * (range_j.begin + j));
            if (++j == n_j)
                j = 0, ++i;
        }
    }
}

/// A warp per site: sums over the sites of the other list. `sign` is 1 for sites j and -1 for i.
/// With u the nearest image, from i to j, in the reduced basis R and w = grad_distance / distance,
/// the gradient of the site is sign * sum of w u R A^T.
template <class T>
__global__ void __launch_bounds__(kThreads)
    site_gradient_kernel(DistanceInput<T> in, const int64_t *__restrict__ pair_offsets,
                         DistanceScratch<T> scratch, const T *__restrict__ grad_distance, int sign,
                         T *__restrict__ gradient) {
    const int lane = threadIdx.x % kWarp;
    const int64_t site = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    const bool of_j = sign > 0;
    if (site >= (of_j ? in.sites_j : in.sites_i))
        return;
    const int64_t crystal = (of_j ? scratch.crystal_j : scratch.crystal_i)[site];
    const PreparedCell<T> &cell = scratch.cells[crystal];
    const Metric<T> metric = cell.metric;
    const SiteRange mine = of_j ? SiteRange(in.offsets_j, crystal, in.sites_j)
                                : SiteRange(in.offsets_i, crystal, in.sites_i);
    const SiteRange others = of_j ? SiteRange(in.offsets_i, crystal, in.sites_i)
                                  : SiteRange(in.offsets_j, crystal, in.sites_j);
    const T *own = (of_j ? scratch.points_j : scratch.points_i) + 3 * site;
    const T *points = (of_j ? scratch.points_i : scratch.points_j) + 3 * others.begin;
    const int64_t stride = of_j ? mine.size() : 1;
    const T *grad = grad_distance + (pair_offsets ? pair_offsets[crystal] : 0) +
                    (site - mine.begin) * (of_j ? 1 : others.size());
    T sums[9] = {};
    for (int64_t k = lane; k < others.size(); k += kWarp) {
        const T *other = points + 3 * k;
        // The difference j - i, as in the forward pass, so that both use the same image.
        const T *from = of_j ? other : own, *to = of_j ? own : other;
        T x = wrap(to[0] - from[0]), y = wrap(to[1] - from[1]), z = wrap(to[2] - from[2]);
        to_nearest(metric, x, y, z);
        const T distance = length(metric, x, y, z);
        const T weight = distance > 0 ? grad[k * stride] / distance : T(0);
        const T a = weight * x, b = weight * y, c = weight * z;
        sums[0] += a, sums[1] += b, sums[2] += c;
        sums[3] += a * x, sums[4] += b * y, sums[5] += c * z;
        sums[6] += a * y, sums[7] += a * z, sums[8] += b * z;
    }
    double total[9];
    for (int k = 0; k < 9; ++k)
        total[k] = warp_sum(double(sums[k]));
    if (lane)
        return;
    for (int a = 0; a < 3; ++a) { // (w u) (R A^T)
        double g = 0;
        for (int b = 0; b < 3; ++b)
            g += total[b] * dot3(cell.basis + 3 * b, cell.cell + 3 * a);
        gradient[3 * site + a] = T(sign * g);
    }
    if (!of_j)
        for (int k = 0; k < 6; ++k)
            scratch.outer[6 * site + k] = total[3 + k];
}

/// A warp per crystal: N^T (sum of w u^T u) R, where R = N A.
template <class T>
__global__ void cell_gradient_kernel(DistanceInput<T> in, DistanceScratch<T> scratch,
                                     T *__restrict__ grad_cells) {
    const int64_t crystal = blockIdx.x;
    const SiteRange range(in.offsets_i, crystal, in.sites_i);
    double outer[6] = {};
    for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kWarp)
        for (int k = 0; k < 6; ++k)
            outer[k] += scratch.outer[6 * i + k];
    for (int k = 0; k < 6; ++k)
        outer[k] = warp_sum(outer[k]);
    if (threadIdx.x >= 3)
        return;
    const PreparedCell<T> &cell = scratch.cells[crystal];
    const double moment[9] = {outer[0], outer[3], outer[4], outer[3], outer[1],
                              outer[5], outer[4], outer[5], outer[2]};
    const int a = threadIdx.x;
    const double column[3] = {cell.integer[a], cell.integer[3 + a], cell.integer[6 + a]};
    double mixed[3], gradient[3];
    transform(column, moment, mixed);
    transform(mixed, cell.basis, gradient);
    for (int b = 0; b < 3; ++b)
        grad_cells[9 * crystal + 3 * a + b] = T(gradient[b]);
}

/// Launches the kernels that both passes begin with.
template <class T>
void prepare(const char *op, const DistanceInput<T> &in, const DistanceScratch<T> &scratch,
             int32_t *usable, cudaStream_t stream) {
    LAUNCH(op, prepare_cells_kernel<T>, grid_of(divide_up(in.crystals, kWarp)), kWarp, 0, stream,
           in.cells, in.crystals, scratch.cells, usable);
    LAUNCH(op, wrap_sites_kernel<T>, grid_of(divide_up(in.sites_i, kThreads)), kThreads, 0, stream,
           in.frac_i, in.offsets_i, in.crystals, in.sites_i, scratch.cells, scratch.points_i,
           scratch.crystal_i);
    LAUNCH(op, wrap_sites_kernel<T>, grid_of(divide_up(in.sites_j, kThreads)), kThreads, 0, stream,
           in.frac_j, in.offsets_j, in.crystals, in.sites_j, scratch.cells, scratch.points_j,
           scratch.crystal_j);
}

} // namespace

template <class T> int64_t distances_scratch(int64_t crystals, int64_t sites_i, int64_t sites_j) {
    Scratch scratch(nullptr);
    DistanceScratch<T>(crystals, sites_i, sites_j, scratch);
    return scratch.bytes();
}

template <class T>
void distances_forward(const DistanceInput<T> &in, const int64_t *pair_offsets, int64_t pairs,
                       T *distance, int32_t *usable, void *memory, void *handle) {
    const char *op = "minimum_image_distances_forward";
    const auto stream = static_cast<cudaStream_t>(handle);
    Scratch carved(memory);
    const DistanceScratch<T> scratch(in.crystals, in.sites_i, in.sites_j, carved);
    prepare(op, in, scratch, usable, stream);
    LAUNCH(op, distances_kernel<T>, grid_of(divide_up(pairs, kThreadPairs * kThreads)), kThreads, 0,
           stream, in, pair_offsets, pairs, scratch, distance);
}

template <class T>
void distances_backward(const DistanceInput<T> &in, const int64_t *pair_offsets,
                        const DistanceGradient<T> &out, int32_t *usable, void *memory,
                        void *handle) {
    const char *op = "minimum_image_distances_backward";
    const auto stream = static_cast<cudaStream_t>(handle);
    Scratch carved(memory);
    const DistanceScratch<T> scratch(in.crystals, in.sites_i, in.sites_j, carved);
    prepare(op, in, scratch, usable, stream);
    const int warps = kThreads / kWarp;
    LAUNCH(op, site_gradient_kernel<T>, grid_of(divide_up(in.sites_i, warps)), kThreads, 0, stream,
           in, pair_offsets, scratch, out.grad_distance, -1, out.grad_frac_i);
    LAUNCH(op, site_gradient_kernel<T>, grid_of(divide_up(in.sites_j, warps)), kThreads, 0, stream,
           in, pair_offsets, scratch, out.grad_distance, 1, out.grad_frac_j);
    LAUNCH(op, cell_gradient_kernel<T>, grid_of(in.crystals), kWarp, 0, stream, in, scratch,
           out.grad_cells);
}

#define INSTANTIATE(T)                                                                             \
    template int64_t distances_scratch<T>(int64_t, int64_t, int64_t);                              \
    template void distances_forward<T>(const DistanceInput<T> &, const int64_t *, int64_t, T *,    \
                                       int32_t *, void *, void *);                                 \
    template void distances_backward<T>(const DistanceInput<T> &, const int64_t *,                 \
                                        const DistanceGradient<T> &, int32_t *, void *, void *);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

} // namespace sitenet::cuda

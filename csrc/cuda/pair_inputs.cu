// The features of pairs and the logarithms of their multiplicities on the GPU (formulas and
// layouts: ../pair_inputs.h): two kernels in place of some forty operations, which a training step
// would start one after another.
//
// A thread computes one entry of the features, neighbouring threads neighbouring entries; those of
// a Coulomb feature find their row by binary search. Memory traffic per pair: 12 bytes in and 4 per
// column out, then 12 in and 4 out.
#include "../pair_inputs.h"
#include "kernels.h"
#include "launch.cuh"

namespace sitenet::cuda {
namespace {

constexpr int kPairThreads = 256;

/// The row of a pair: offsets[row] <= pair < offsets[row + 1].
__device__ inline int row_of(const int64_t *offsets, int rows, int64_t pair) {
    int low = 0, high = rows;
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        (offsets[middle] <= pair ? low : high) = middle;
    }
    return low;
}

template <class T, class D> __global__ void features_kernel(PairInputs<T, D> p) {
    const PairInputsShape &s = p.shape;
    const int columns = s.given + s.basis;
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, pair = i / columns;
    if (pair >= s.pairs)
        return;
    const int column = int(i - pair * columns);
    const D distance = p.distance[pair];
    if (column >= s.given) {
        p.out[i] = gaussian(T(distance), column - s.given, T(s.reach / (s.basis - 1)));
        return;
    }
    const PairFeature &feature = s.features[column];
    D charge_i = 0, charge_j = 0;
    if (feature.kind == kCoulomb || feature.kind == kSineCoulomb) {
        charge_i = p.charges[s.first_row + row_of(p.offsets, s.rows, pair)];
        charge_j = p.charges[p.sites[pair]];
    }
    const D sine = feature.kind == kSineCoulomb ? p.sine_distance[pair] : D(0);
    p.out[i] = T(pair_feature(feature, distance, sine, charge_i, charge_j));
}

template <class T, class D> __global__ void log_multiplicity_kernel(LogMultiplicity<T, D> p) {
    const LogMultiplicityShape &s = p.shape;
    const int64_t pair = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (pair >= s.pairs)
        return;
    T log = std::log(T(p.multiplicity[pair]));
    if (p.features[pair * s.columns] > T(s.cutoff))
        log = T(-INFINITY);
    if (s.reach > 0)
        log += log_envelope(T(p.distance[pair]) / T(s.reach));
    p.out[pair] = log;
}

} // namespace

template <class T, class D> int64_t pair_inputs_scratch(const PairInputsShape &) { return 0; }

template <class T, class D> void pair_inputs(const PairInputs<T, D> &p, void *, void *handle) {
    const int64_t threads = p.shape.pairs * (p.shape.given + p.shape.basis);
    LAUNCH("pair_inputs", (features_kernel<T, D>), grid_of(divide_up(threads, kPairThreads)),
           kPairThreads, 0, static_cast<cudaStream_t>(handle), p);
}

template <class T, class D> int64_t log_multiplicity_scratch(const LogMultiplicityShape &) {
    return 0;
}

template <class T, class D>
void log_multiplicity(const LogMultiplicity<T, D> &p, void *, void *handle) {
    LAUNCH("log_multiplicity", (log_multiplicity_kernel<T, D>),
           grid_of(divide_up(p.shape.pairs, kPairThreads)), kPairThreads, 0,
           static_cast<cudaStream_t>(handle), p);
}

#define SITENET_INSTANTIATE(T, D)                                                                  \
    template void pair_inputs(const PairInputs<T, D> &, void *, void *);                           \
    template int64_t pair_inputs_scratch<T, D>(const PairInputsShape &);                           \
    template void log_multiplicity(const LogMultiplicity<T, D> &, void *, void *);                 \
    template int64_t log_multiplicity_scratch<T, D>(const LogMultiplicityShape &)
SITENET_INSTANTIATE(float, float);
SITENET_INSTANTIATE(double, float);
SITENET_INSTANTIATE(double, double);
#undef SITENET_INSTANTIATE

} // namespace sitenet::cuda

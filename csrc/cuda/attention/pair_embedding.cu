// The embedding of pair features on the GPU (formula and layouts: ../../attention.h).
//
// Four lanes share a pair, and each takes four of every 16 columns. So a warp holds 8 pairs, and
// one reduction over four lanes gives the norm. The columns are computed twice, once for the norm
// and once for the output: with two features that is cheaper than storing them. A block keeps the
// weights in shared memory.
//
// Memory traffic per pair at the published size (2 -> 48) in bfloat16: 8 bytes in and 96 out;
// backward 8 and 96 in, and 8 out if the features want a gradient. Operations per pair: 2 * 48 Mish
// with 2 operations on the special-function units (12 clocks of a multiprocessor) and some 20
// others (15 clocks). Predicted floor on an H100 (3 TB/s), not measured: 15 G pairs/s by
// arithmetic, 29 by memory.
//
// In the backward pass a block sums grad_weight and grad_bias over its pairs in shared memory, and
// one kernel adds the blocks in order. No atomics; results are bitwise reproducible.
#include "../kernels.h"
#include "fragments.cuh"

namespace sitenet::cuda {
namespace {

constexpr int kWarpPairs = 8; // pairs per warp at a time

/// Pairs per block in the backward pass: 8 rounds of all its warps, or 2 of few pairs. More rounds
/// leave fewer partial sums.
SITENET_HD int block_pairs(int64_t pairs) {
    return (pairs < kFewPairs ? 2 : 8) * kBlockWarps * kWarpPairs;
}

/// Numbers of weight and bias that a block keeps in shared memory, of which its warps take `bytes`:
/// all, or none if they are too many.
template <class T> int staged_size(const PairEmbeddingShape &s, int64_t bytes) {
    const int64_t size = int64_t(s.width) * (s.num_features + 1);
    const int64_t left = kSharedBytes - bytes,
                  room = left < kSharedBytes / 4 ? left : kSharedBytes / 4;
    return size * int64_t(sizeof(T)) <= room ? int(size) : 0;
}

/// Copies weight and bias to shared memory, unless `size` is 0.
template <class T>
__device__ PairEmbeddingInputs<T> staged(PairEmbeddingInputs<T> p, int size, T *shared) {
    if (size == 0)
        return p;
    const int weights = p.shape.width * p.shape.num_features;
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        shared[i] = i < weights ? p.weight[i] : p.bias[i - weights];
    __syncthreads();
    p.weight = shared;
    p.bias = shared + weights;
    return p;
}

/// One pair, shared by four lanes.
template <class T> class EmbeddingPair {
  public:
    __device__ EmbeddingPair(const PairEmbeddingInputs<T> &p, int64_t pair)
        : p(p), features(p.features + pair * p.shape.num_features) {
        T first = 0, sum = 0, squares = 0;
        for (int c = 0; c < p.shape.width; c += kStep) {
            T m[4], d[4];
            columns(c, m, d);
            if (c == 0)
                first = __shfl_sync(kAllLanes, m[0], LaneOf().lane & ~3);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const T x = inside(c, j) ? m[j] - first : T(0);
                sum += x;
                squares += x * x;
            }
        }
        const T shift = quad_sum(sum) / p.shape.width;
        const T variance = quad_sum(squares) / p.shape.width - shift * shift;
        norm = {T(0), T(1)};
        if (p.shape.norm)
            norm = {first + shift,
                    reciprocal_root((variance < 0 ? T(0) : variance) + T(p.shape.eps))};
    }
    /// Activation and derivative of this lane's four columns of the 16 from c on.
    __device__ void columns(int c, T m[4], T d[4]) const {
        T z[2][4] = {}, derivative[2][4];
        const int count = p.shape.num_features;
        const T *weight[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) { // columns past the last one repeat it
            const int k = inside(c, j) ? c + 4 * LaneOf().quad + j : p.shape.width - 1;
            z[0][j] = p.bias[k];
            weight[j] = p.weight + k * count;
        }
        for (int f = 0; f < count; ++f) {
            const T x = features[f];
#pragma unroll
            for (int j = 0; j < 4; ++j)
                z[0][j] += x * weight[j][f];
        }
        activate(z, derivative, p.shape.activation);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            m[j] = z[0][j];
            d[j] = derivative[0][j];
        }
    }
    __device__ bool inside(int c, int j) const { return c + 4 * LaneOf().quad + j < p.shape.width; }
    __device__ T normal(T m) const { return (m - norm.mean) * norm.rstd; }

    const PairEmbeddingInputs<T> &p;
    const T *features;
    Normaliser<T> norm;
};

/// A warp per kWarpPairs pairs.
template <class T, class E>
__global__ void pair_embedding_forward_kernel(PairEmbeddingInputs<T> layer, int stage,
                                              E *__restrict__ e) {
    DYNAMIC_SHARED(T, shared);
    const PairEmbeddingInputs<T> p = staged(layer, stage, shared);
    const LaneOf at;
    const int width = p.shape.width;
    const int64_t warp = int64_t(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp;
    const int64_t mine = warp * kWarpPairs + at.row, last = p.shape.pairs - 1;
    const EmbeddingPair<T> pair(p, mine < last ? mine : last);
    for (int c = 0; c < width; c += kStep) {
        T m[4], d[4];
        pair.columns(c, m, d);
#pragma unroll
        for (int j = 0; j < 4; ++j)
            m[j] = pair.normal(m[j]);
        E *to = e + mine * width + c + 4 * at.quad;
        if (mine > last)
            continue;
        if (width % 4 == 0) {
            if (pair.inside(c, 0))
                store4(to, m);
        } else {
            for (int j = 0; j < 4; ++j)
                if (pair.inside(c, j))
                    assign(m[j], to + j);
        }
    }
}

/// Shared memory of one warp, in numbers of T: dz of its pairs, (kWarpPairs, width), then its sums,
/// (width, num_features + 1), whose last column is the bias.
SITENET_HD int pair_embedding_room(const PairEmbeddingShape &s) {
    return s.width * (kWarpPairs + s.num_features + 1);
}

/// Writes dz of a warp's pairs to shared memory, zero for pairs past the end.
template <class T, class E>
__device__ void pair_embedding_dz(const PairEmbeddingBackward<T, E> &p,
                                  const EmbeddingPair<T> &pair, const E *grad, bool valid, T *dz) {
    const PairEmbeddingShape &s = p.shape;
    const LaneOf at;
    T mean = 0, dot = 0;
    for (int c = 0; c < s.width; c += kStep) {
        T m[4], d[4];
        pair.columns(c, m, d);
        for (int j = 0; j < 4; ++j)
            if (pair.inside(c, j)) {
                const T g = number(grad[c + 4 * at.quad + j]);
                mean += g;
                dot += g * pair.normal(m[j]);
            }
    }
    mean = s.norm ? quad_sum(mean) / s.width : T(0);
    dot = s.norm ? quad_sum(dot) / s.width : T(0);
    for (int c = 0; c < s.width; c += kStep) {
        T m[4], d[4];
        pair.columns(c, m, d);
        for (int j = 0; j < 4; ++j)
            if (pair.inside(c, j)) {
                const int k = c + 4 * at.quad + j;
                const T back = pair.norm.rstd * (number(grad[k]) - mean - dot * pair.normal(m[j]));
                dz[at.row * s.width + k] = valid ? back * d[j] : T(0);
            }
    }
}

/// A block per block_pairs pairs.
template <class T, class E>
__global__ void pair_embedding_backward_kernel(PairEmbeddingBackward<T, E> p, int stage,
                                               T *__restrict__ partials) {
    DYNAMIC_SHARED(T, memory);
    T *shared = memory + stage;
    const PairEmbeddingShape &s = p.shape;
    const PairEmbeddingInputs<T> forward = staged<T>(p, stage, memory);
    const LaneOf at;
    const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, outputs = s.num_features + 1;
    T *dz = shared + warp * pair_embedding_room(s), *sums = dz + kWarpPairs * s.width;
    for (int i = at.lane; i < s.width * outputs; i += kWarp)
        sums[i] = 0;
    const int64_t per_block = block_pairs(s.pairs), begin = blockIdx.x * per_block;
    const int64_t end = begin + per_block < s.pairs ? begin + per_block : s.pairs;
    for (int64_t first = begin + warp * kWarpPairs; first < end; first += warps * kWarpPairs) {
        const int64_t mine = first + at.row < end ? first + at.row : end - 1;
        const EmbeddingPair<T> pair(forward, mine);
        pair_embedding_dz(p, pair, p.grad_e + mine * s.width, first + at.row < end, dz);
        __syncwarp();
        const int count = int(end - first < kWarpPairs ? end - first : kWarpPairs);
        for (int i = at.lane; i < s.width * outputs; i += kWarp) {
            const int k = i / outputs, f = i % outputs;
            T sum = sums[i];
            for (int t = 0; t < count; ++t)
                sum += dz[t * s.width + k] *
                       (f < s.num_features ? p.features[(first + t) * s.num_features + f] : T(1));
            sums[i] = sum;
        }
        if (p.grad_features)
            for (int i = at.lane; i < count * s.num_features; i += kWarp) {
                const int t = i / s.num_features, f = i % s.num_features;
                T sum = 0;
                for (int k = 0; k < s.width; ++k)
                    sum += dz[t * s.width + k] * forward.weight[k * s.num_features + f];
                p.grad_features[(first + t) * s.num_features + f] = sum;
            }
        __syncwarp();
    }
    __syncthreads();
    for (int i = threadIdx.x; i < s.width * outputs; i += blockDim.x) {
        T sum = 0;
        for (int w = 0; w < warps; ++w)
            sum += shared[w * pair_embedding_room(s) + kWarpPairs * s.width + i];
        partials[int64_t(blockIdx.x) * s.width * outputs + i] = sum;
    }
}

/// Adds the sums of the blocks. A warp per entry of (width, num_features + 1).
template <class T, class E>
__global__ void sum_pair_embedding_kernel(PairEmbeddingBackward<T, E> p,
                                          const T *__restrict__ partials, int64_t blocks) {
    const int f = blockIdx.x % (p.shape.num_features + 1),
              k = blockIdx.x / (p.shape.num_features + 1);
    T sum = 0;
    for (int64_t b = threadIdx.x; b < blocks; b += kWarp)
        sum += partials[b * gridDim.x + blockIdx.x];
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        (f < p.shape.num_features ? p.grad_weight[k * p.shape.num_features + f] : p.grad_bias[k]) =
            sum;
}

} // namespace

template <class T, class E> int64_t pair_embedding_forward_scratch(const PairEmbeddingShape &) {
    return 0;
}

template <class T, class E>
void pair_embedding_forward(const PairEmbeddingForward<T, E> &p, void *, void *handle) {
    const int stage = staged_size<T>(p.shape, 0);
    LAUNCH("pair_embedding_forward", (pair_embedding_forward_kernel<T, E>),
           grid_of(divide_up(p.shape.pairs, kBlockWarps * kWarpPairs)), kBlockWarps * kWarp,
           stage * int(sizeof(T)), static_cast<cudaStream_t>(handle), p, stage, p.e);
}

template <class T, class E> int64_t pair_embedding_backward_scratch(const PairEmbeddingShape &s) {
    return divide_up(s.pairs, block_pairs(s.pairs)) * s.width * (s.num_features + 1) *
           int64_t(sizeof(T));
}

template <class T, class E>
void pair_embedding_backward(const PairEmbeddingBackward<T, E> &p, void *scratch, void *handle) {
    const char *op = "pair_embedding_backward";
    const auto stream = static_cast<cudaStream_t>(handle);
    const int64_t bytes = pair_embedding_room(p.shape) * int64_t(sizeof(T));
    const int stage = staged_size<T>(p.shape, bytes);
    const int warps = warps_in_shared(op, bytes, stage * int64_t(sizeof(T)), kBlockWarps,
                                      std::to_string(p.shape.width) + " outputs x " +
                                          std::to_string(p.shape.num_features) + " pair features");
    const int64_t blocks = divide_up(p.shape.pairs, block_pairs(p.shape.pairs));
    T *partials = static_cast<T *>(scratch);
    LAUNCH(op, (pair_embedding_backward_kernel<T, E>), grid_of(blocks), warps * kWarp,
           stage * int(sizeof(T)) + warps * bytes, stream, p, stage, partials);
    LAUNCH(op, (sum_pair_embedding_kernel<T, E>),
           grid_of(int64_t(p.shape.width) * (p.shape.num_features + 1)), kWarp, 0, stream, p,
           partials, blocks);
}

#define INSTANTIATE(T, E)                                                                          \
    template int64_t pair_embedding_forward_scratch<T, E>(const PairEmbeddingShape &);             \
    template void pair_embedding_forward<T, E>(const PairEmbeddingForward<T, E> &, void *,         \
                                               void *);                                            \
    template int64_t pair_embedding_backward_scratch<T, E>(const PairEmbeddingShape &);            \
    template void pair_embedding_backward<T, E>(const PairEmbeddingBackward<T, E> &, void *,       \
                                                void *);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, uint16_t)
#undef INSTANTIATE

} // namespace sitenet::cuda

// The weights of a block on the GPU (formulas and layouts: ../block_weights.h): one kernel per pass
// in place of some thirteen and twenty operations on matrices so small that starting an operation
// takes longer than running it.
//
// Forward: a warp takes one row of W, or one head. Backward: a warp takes one row of W, or one
// column of the norm's gain and shift, over which it adds up the rows; the first block takes the
// logits, and first the mean of each head. Every sum has one order; no atomics.
//
// Memory traffic: W and its gradient once each way, and W[:, 2D:] once more.
#include "../block_weights.h"
#include "attention/numbers.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace sitenet::cuda {
namespace {

constexpr int kWarps = 4; // per block

template <class T, class S> __global__ void weights_kernel(BlockWeightsForward<T, S> p) {
    const BlockWeightsShape &s = p.shape;
    const int columns = columns_of(s), length = 2 * s.sites + s.width, lane = threadIdx.x % kWarp;
    int c = blockIdx.x * kWarps + threadIdx.x / kWarp;
    if (c < columns) {
        const T *row = row_of_groups(s, p.hidden, p.attention, p.interaction, c, length);
        for (int k = lane; k < 2 * s.sites; k += kWarp) {
            const int which = k >= s.sites;
            assign(row[k],
                   p.sites + (int64_t(which) * columns + c) * s.sites + k - which * s.sites);
        }
        T sum = 0;
        for (int k = lane; k < s.width; k += kWarp) {
            const T w = row[2 * s.sites + k];
            p.pairs[int64_t(c) * s.width + k] = p.gain ? w * p.gain[k] : w;
            sum += p.shift ? w * p.shift[k] : T(0);
        }
        sum = warp_sum(sum);
        if (lane == 0)
            p.bias[c] =
                sum + *row_of_groups(s, p.hidden_bias, p.attention_bias, p.interaction_bias, c, 1);
        return;
    }
    const int head = c - columns;
    if (head >= s.heads)
        return;
    const T *logit = p.logit + int64_t(head) * s.hidden;
    T sum = 0;
    if (p.hidden_gain)
        for (int k = lane; k < s.hidden; k += kWarp)
            sum += logit[k] * p.hidden_gain[k];
    const T mean = warp_sum(sum) / T(s.hidden);
    for (int k = lane; k < s.hidden; k += kWarp)
        p.logits[int64_t(head) * s.hidden + k] =
            p.hidden_gain ? logit[k] * p.hidden_gain[k] - mean : logit[k];
}

/// The gradients of the logits' weights and of the hidden layer's gain, by one block.
template <class T, class S> __device__ void grad_logits(const BlockWeightsBackward<T, S> &p) {
    DYNAMIC_SHARED(T, means); // (heads)
    const BlockWeightsShape &s = p.shape;
    const int lane = threadIdx.x % kWarp;
    for (int head = threadIdx.x / kWarp; head < s.heads; head += kWarps) {
        T sum = 0;
        if (p.hidden_gain)
            for (int k = lane; k < s.hidden; k += kWarp)
                sum += p.grad_logits[int64_t(head) * s.hidden + k];
        sum = warp_sum(sum);
        if (lane == 0)
            means[head] = sum / T(s.hidden);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < s.hidden; k += kWarps * kWarp) {
        T sum = 0;
        for (int head = 0; head < s.heads; ++head) {
            const int64_t at = int64_t(head) * s.hidden + k;
            const T grad = p.grad_logits[at] - means[head];
            p.grad_logit[at] = p.hidden_gain ? grad * p.hidden_gain[k] : grad;
            sum += grad * p.logit[at];
        }
        if (p.hidden_gain)
            p.grad_hidden_gain[k] = sum;
    }
}

template <class T, class S> __global__ void grad_weights_kernel(BlockWeightsBackward<T, S> p) {
    if (blockIdx.x == 0)
        return grad_logits(p);
    const BlockWeightsShape &s = p.shape;
    const int columns = columns_of(s), length = 2 * s.sites + s.width, lane = threadIdx.x % kWarp;
    const int c = (blockIdx.x - 1) * kWarps + threadIdx.x / kWarp;
    if (c < columns) {
        T *row = row_of_groups(s, p.grad_hidden, p.grad_attention, p.grad_interaction, c, length);
        for (int k = lane; k < 2 * s.sites; k += kWarp) {
            const int which = k >= s.sites;
            row[k] = T(number(
                p.grad_sites[(int64_t(which) * columns + c) * s.sites + k - which * s.sites]));
        }
        const T grad = p.grad_bias[c];
        for (int k = lane; k < s.width; k += kWarp) {
            const T of_pair = p.grad_pairs[int64_t(c) * s.width + k];
            row[2 * s.sites + k] =
                (p.gain ? of_pair * p.gain[k] : of_pair) + (p.shift ? grad * p.shift[k] : T(0));
        }
        if (lane == 0)
            *row_of_groups(s, p.grad_hidden_bias, p.grad_attention_bias, p.grad_interaction_bias, c,
                           1) = grad;
        return;
    }
    const int k = c - columns;
    if (k >= s.width || !p.gain)
        return;
    T of_gain = 0, of_shift = 0;
    for (int row = lane; row < columns; row += kWarp) {
        const T w =
            row_of_groups(s, p.hidden, p.attention, p.interaction, row, length)[2 * s.sites + k];
        of_gain += p.grad_pairs[int64_t(row) * s.width + k] * w;
        of_shift += p.grad_bias[row] * w;
    }
    of_gain = warp_sum(of_gain);
    of_shift = warp_sum(of_shift);
    if (lane == 0) {
        p.grad_gain[k] = of_gain;
        p.grad_shift[k] = of_shift;
    }
}

} // namespace

template <class T, class S> int64_t block_weights_forward_scratch(const BlockWeightsShape &) {
    return 0;
}

template <class T, class S>
void block_weights_forward(const BlockWeightsForward<T, S> &p, void *, void *handle) {
    const int warps = columns_of(p.shape) + p.shape.heads;
    LAUNCH("block_weights_forward", (weights_kernel<T, S>), grid_of(divide_up(warps, kWarps)),
           kWarps * kWarp, 0, static_cast<cudaStream_t>(handle), p);
}

template <class T, class S> int64_t block_weights_backward_scratch(const BlockWeightsShape &) {
    return 0;
}

template <class T, class S>
void block_weights_backward(const BlockWeightsBackward<T, S> &p, void *, void *handle) {
    const int warps = columns_of(p.shape) + p.shape.width;
    LAUNCH("block_weights_backward", (grad_weights_kernel<T, S>),
           grid_of(1 + divide_up(warps, kWarps)), kWarps * kWarp, p.shape.heads * int(sizeof(T)),
           static_cast<cudaStream_t>(handle), p);
}

#define INSTANTIATE(T, S)                                                                          \
    template int64_t block_weights_forward_scratch<T, S>(const BlockWeightsShape &);               \
    template void block_weights_forward<T, S>(const BlockWeightsForward<T, S> &, void *, void *);  \
    template int64_t block_weights_backward_scratch<T, S>(const BlockWeightsShape &);              \
    template void block_weights_backward<T, S>(const BlockWeightsBackward<T, S> &, void *, void *);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, uint16_t)
#undef INSTANTIATE

} // namespace sitenet::cuda

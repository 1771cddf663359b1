// The CUDA kernels compiled for the CPU through cuda_emu.h, under the names that Python calls.
#include "../../csrc/cuda/attention/backward.cu"
#include "../../csrc/cuda/attention/forward.cu"
#include "../../csrc/cuda/attention/pair_embedding.cu"
#include "../../csrc/cuda/block_weights.cu"
#include "../../csrc/cuda/geometry.cu"
#include "../../csrc/cuda/padded_batch.cu"
#include "../../csrc/cuda/pair_inputs.cu"
#include "../../csrc/cuda/power_spectrum.cu"

#include "../../csrc/cuda/bindings.h"

namespace {

// Races that the thread sanitizer must report: each thread reads what its neighbour in the warp,
// the block or the grid wrote, with or without waiting for it.
enum Hand { kInWarp, kInBlock, kInGrid };
__global__ void hand_on(int *numbers, Hand hand, bool wait) {
    const int me = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
    const int group = hand == kInWarp ? sitenet::kWarp : hand == kInBlock ? int(blockDim.x) : all;
    numbers[me] = me;
    if (wait && hand == kInWarp)
        __syncwarp();
    if (wait && hand == kInBlock)
        __syncthreads();
    numbers[all + me] = numbers[me / group * group + (me + group - 1) % group];
}

void race(int hand, bool wait) {
    std::vector<int> numbers(2 * 2 * 2 * sitenet::kWarp);
    LAUNCH("race", hand_on, 2, 2 * sitenet::kWarp, 0, nullptr, numbers.data(), Hand(hand), wait);
}

/// Products of 16 columns of e that the kernels of this shape are compiled for; 0: any number.
int known_products(const sitenet::AttentionShape &shape) {
    int products = 0;
    sitenet::cuda::with_known_shape<uint16_t>(
        shape, [&](auto known) { products = decltype(known)::kProducts; });
    return products;
}

// One instruction of a tensor core, with the registers of each lane side by side in memory.
__global__ void mma_kernel(bool tf32, const uint32_t *a, const uint32_t *b, float *c) {
    const int lane = threadIdx.x;
    (tf32 ? sitenet::cuda::mma_tf32 : sitenet::cuda::mma_bf16)(c + 4 * lane, a + 4 * lane,
                                                               b + 2 * lane);
}
__global__ void transpose_kernel(const uint32_t *x, uint32_t *y) {
    y[threadIdx.x] = sitenet::cuda::transpose_8x8(x[threadIdx.x]);
}

void mma(bool tf32, uintptr_t a, uintptr_t b, uintptr_t c) {
    LAUNCH("mma", mma_kernel, 1, sitenet::kWarp, 0, nullptr, tf32, sitenet::Address{a},
           sitenet::Address{b}, sitenet::Address{c});
}
void transpose(uintptr_t x, uintptr_t y) {
    LAUNCH("transpose", transpose_kernel, 1, sitenet::kWarp, 0, nullptr, sitenet::Address{x},
           sitenet::Address{y});
}

} // namespace

PYBIND11_MODULE(emulated, m) {
    sitenet::cuda::bind(m);
    m.def("known_products", known_products);
    m.def("mma", mma);
    m.def("transpose", transpose);
    m.def("race", race);
}

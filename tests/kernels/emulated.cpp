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

} // namespace

PYBIND11_MODULE(emulated, m) {
    sitenet::cuda::bind(m);
    m.def("race", race);
}

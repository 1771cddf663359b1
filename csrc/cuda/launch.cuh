// Launching kernels, scratch memory, and reductions within a warp. Without nvcc, the same sources
// run on the CPU through the emulator of tests/kernels.
//
// LAUNCH(op, kernel, grid, block, shared, stream, arguments...) launches a kernel on the given
// stream and throws std::runtime_error if that fails. An empty grid launches nothing. A kernel with
// several template arguments must stand in parentheses.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define SITENET_START(kernel, grid, block, shared, stream, ...)                                    \
    kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define DYNAMIC_SHARED(T, name)                                                                    \
    extern __shared__ __align__(16) unsigned char sitenet_shared[];                                \
    T *name = reinterpret_cast<T *>(sitenet_shared)
#else
#include "cuda_emu.h"
#define SITENET_START(kernel, grid, block, shared, stream, ...)                                    \
    emu::launch(kernel, grid, block, shared, stream, __VA_ARGS__)
#define DYNAMIC_SHARED(T, name) T *name = reinterpret_cast<T *>(emu::shared())
#endif

#define LAUNCH(op, kernel, grid, block, shared, stream, ...)                                       \
    do {                                                                                           \
        const dim3 blocks_of_grid = grid;                                                          \
        if (blocks_of_grid.x && blocks_of_grid.y && blocks_of_grid.z) {                            \
            SITENET_START(kernel, blocks_of_grid, block, shared, stream, __VA_ARGS__);             \
            sitenet::throw_if_failed(op);                                                          \
        }                                                                                          \
    } while (0)

namespace sitenet {

/// Throws std::runtime_error if the last launch failed.
inline void throw_if_failed(const char *op) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kSharedBytes = 48 << 10; // per block, without opting in to more

__host__ __device__ constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
__host__ __device__ constexpr int64_t round_up(int64_t n, int64_t to) {
    return divide_up(n, to) * to;
}
inline dim3 grid_of(int64_t blocks, int y = 1, int z = 1) { return dim3(unsigned(blocks), y, z); }

/// Divides one allocation into parts, each aligned to 256 bytes. Without memory it only measures.
class Scratch {
  public:
    explicit Scratch(void *memory) : base(reinterpret_cast<uintptr_t>(memory)) {}
    template <class T> T *take(int64_t count) {
        T *part = reinterpret_cast<T *>(base + used);
        used += round_up(count * int64_t(sizeof(T)), 256);
        return part;
    }
    int64_t bytes() const { return int64_t(used); }

  private:
    uintptr_t base, used = 0;
};

/// Sum over the warp.
template <class T> __device__ inline T warp_sum(T x) {
    for (int m = kWarp / 2; m; m >>= 1)
        x += __shfl_xor_sync(kAllLanes, x, m);
    return x;
}

/// Maximum over the warp. A NaN stays in its own lane; the others get the maximum of the rest.
template <class T> __device__ inline T warp_max(T x) {
    for (int m = kWarp / 2; m; m >>= 1) {
        const T other = __shfl_xor_sync(kAllLanes, x, m);
        x = other > x ? other : x;
    }
    return x;
}

/// Sum over four neighbouring lanes.
template <class T> __device__ inline T quad_sum(T x) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    return x + __shfl_xor_sync(kAllLanes, x, 2);
}

} // namespace sitenet

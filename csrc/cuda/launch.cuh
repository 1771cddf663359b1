// Launching kernels, scratch memory, and reductions within a warp. Without nvcc, the same sources
// run on the CPU through the emulator of tests/kernels.
//
// LAUNCH(op, kernel, grid, block, shared, stream, arguments...) launches a kernel on the given
// stream and throws std::runtime_error if that fails. An empty grid launches nothing. A kernel with
// several template arguments must stand in parentheses. A block may have more than 48 KiB of shared
// memory: 227 KiB on H100 and H200, 163 KiB on A100.
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
            sitenet::allow_shared(op, kernel, shared);                                             \
            SITENET_START(kernel, blocks_of_grid, block, shared, stream, __VA_ARGS__);             \
            sitenet::throw_if_failed(op);                                                          \
        }                                                                                          \
    } while (0)

namespace sitenet {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kSharedBytes = 48 << 10; // per block, unless the kernel is allowed more

inline void throw_if(cudaError_t error, const char *op) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}

/// Throws std::runtime_error if the last launch failed.
inline void throw_if_failed(const char *op) { throw_if(cudaGetLastError(), op); }

/// Lets the blocks of a kernel have that much shared memory on the current device. Nothing is
/// queued on a stream, so this may happen while a CUDA graph is captured.
template <class... P> void allow_shared(const char *op, void (*kernel)(P...), int64_t bytes) {
    if (bytes > kSharedBytes)
        throw_if(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
                 op);
}

/// The warps of a block, at most `most`, if each takes that much shared memory beside the block's
/// own. Stays within 48 KiB, so that several blocks fit a multiprocessor, unless one warp alone
/// needs more.
///
/// Throws std::runtime_error if the current device does not have that much; `needs` names what the
/// memory is for.
inline int warps_in_shared(const char *op, int64_t bytes_of_warp, int64_t bytes_of_block, int most,
                           const std::string &needs) {
    const int64_t fitting = (kSharedBytes - bytes_of_block) / bytes_of_warp;
    if (fitting >= 1)
        return fitting < most ? int(fitting) : most;
    int device = 0, available = 0;
    throw_if(cudaGetDevice(&device), op);
    throw_if(cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             op);
    const int64_t bytes = bytes_of_block + bytes_of_warp;
    if (bytes > available)
        throw std::runtime_error(
            std::string(op) + ": " + needs + " take " + std::to_string((bytes + 1023) >> 10) +
            " KiB of shared memory, and a block of this GPU has " +
            std::to_string(available >> 10) + " KiB: choose a smaller model, or device cpu");
    return 1;
}

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

// Emulates a GPU on one CPU thread: runs the blocks of a kernel one after another, with each CUDA
// thread as a fiber.
//
// It covers indexing, masks, tails, shared memory, shuffles and the fragment layouts of tensor-core
// instructions (as in the PTX manual), and allows gcc's sanitizers and gdb inside a kernel. With
// -fsanitize=thread, each CUDA thread is a thread to the sanitizer, and only barriers and the ends
// of launches order memory. So a race between lanes, warps or blocks is reported although they run
// in turn. Of the limits of a launch it knows only that of shared memory. Speed needs a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;
using cudaStream_t = void *;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
inline const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "invalid argument";
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };

namespace emu {
// Shared memory per block, as on an H100: what a kernel may have, and what it may be allowed.
constexpr int kSharedBytes = 48 << 10, kMostSharedBytes = 227 << 10;
inline std::map<const void *, int> allowed; // by kernel
inline cudaError_t last_error = cudaSuccess;
} // namespace emu

inline cudaError_t cudaGetLastError() {
    const cudaError_t error = emu::last_error;
    emu::last_error = cudaSuccess;
    return error;
}
inline cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int bytes) {
    if (bytes > emu::kMostSharedBytes)
        return cudaErrorInvalidValue;
    emu::allowed[kernel] = bytes;
    return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) {
    *value = emu::kMostSharedBytes;
    return cudaSuccess;
}

struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
// Marks the emulator's own steps, which no CUDA thread takes.
#define EMU_OWN __attribute__((no_sanitize("thread")))
#endif
#ifndef EMU_OWN
#define EMU_OWN
#endif

namespace emu {

constexpr unsigned kWarpLanes = 32, kMostWarps = 32;
constexpr size_t kStackBytes = 128 << 10, kMailboxBytes = 32;

struct Fiber {
    ucontext_t context;
    jmp_buf point;
    struct Stack *stack;
    bool started, done;
    int waits[2];   // barriers reached: of the warp, and of the block
    unsigned posts; // exchanges begun
    dim3 index;
    alignas(16) unsigned char mailbox[2][kMailboxBytes];
};
// A fiber runs on a stack: memory, and a thread of the thread sanitizer.
struct Stack {
    std::unique_ptr<char[]> bytes{new char[kStackBytes]};
#if defined(__SANITIZE_THREAD__)
    void *thread = __tsan_create_fiber(0);
#endif
};

inline std::deque<Stack> stacks;
inline std::vector<Fiber> all_fibers;
inline Fiber *fibers; // of the block, and how many
inline unsigned num_fibers;
inline ucontext_t scheduler;
inline jmp_buf scheduler_point;
inline unsigned current, live;
inline std::function<void()> body;
inline std::unique_ptr<unsigned char[]> shared_bytes;
inline unsigned char *shared_begin;
inline unsigned char *shared() { return shared_begin; }
// Under the thread sanitizer, blocks share neither stacks nor shared memory, since reuse would look
// like a race. The first kMostStacks threads of a launch have stacks of their own; later ones reuse
// these, and count as the same thread.
constexpr unsigned kMostStacks = 2048;
#if defined(__SANITIZE_THREAD__)
constexpr bool kOwnStacks = true;
inline std::vector<std::unique_ptr<unsigned char[]>> shared_before;
#else
constexpr bool kOwnStacks = false;
#endif

// swapcontext makes system calls for signal masks, so later entries of a fiber use longjmp. The
// sanitizers cannot follow jumps: under them, contexts are swapped and announced.
#if defined(__SANITIZE_ADDRESS__)
inline const void *main_stack;
inline size_t main_bytes;
inline void enter_fiber(Fiber &f) {
    void *fake;
    __sanitizer_start_switch_fiber(&fake, f.stack->bytes.get(), kStackBytes);
    swapcontext(&scheduler, &f.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}
inline void yield() {
    Fiber &f = fibers[current];
    void *fake;
    __sanitizer_start_switch_fiber(&fake, main_stack, main_bytes);
    swapcontext(&f.context, &scheduler);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}
inline void begin_fiber() { __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_bytes); }
inline void end_fiber() { __sanitizer_start_switch_fiber(nullptr, main_stack, main_bytes); }
#elif defined(__SANITIZE_THREAD__)
inline void *main_thread;
EMU_OWN inline void enter_fiber(Fiber &f) {
    __tsan_switch_to_fiber(f.stack->thread, __tsan_switch_to_fiber_no_sync);
    swapcontext(&scheduler, &f.context);
}
EMU_OWN inline void yield() {
    Fiber &f = fibers[current];
    __tsan_switch_to_fiber(main_thread, __tsan_switch_to_fiber_no_sync);
    swapcontext(&f.context, &scheduler);
}
inline void begin_fiber() {}
EMU_OWN inline void end_fiber() {
    __tsan_switch_to_fiber(main_thread, __tsan_switch_to_fiber_no_sync);
}
#else
inline void enter_fiber(Fiber &f) {
    if (_setjmp(scheduler_point))
        return;
    if (f.started)
        _longjmp(f.point, 1);
    f.started = true;
    setcontext(&f.context);
}
inline void yield() {
    if (!_setjmp(fibers[current].point))
        _longjmp(scheduler_point, 1);
}
inline void begin_fiber() {}
inline void end_fiber() { _longjmp(scheduler_point, 1); }
#endif

// Everything before a release of a token happens before everything after an acquisition of it.
#if defined(__SANITIZE_THREAD__)
inline void release(void *token) { __tsan_release(token); }
inline void acquire(void *token) { __tsan_acquire(token); }
#else
inline void release(void *) {}
inline void acquire(void *) {}
#endif
// The tokens; those of barriers by kind, warp and parity.
inline char block_begin, launch_end, barriers[2][kMostWarps][2];

EMU_OWN inline void run_fiber() {
    begin_fiber();
    acquire(&block_begin);
    body();
    release(&launch_end);
    fibers[current].done = true;
    --live;
    end_fiber();
}

// A fiber at its k-th barrier of a kind waits until every unfinished fiber in [first, last) has
// reached it.
enum Kind { kOfWarp, kOfBlock };
EMU_OWN inline void barrier(Kind kind, unsigned first, unsigned last, bool orders_memory) {
    const int k = ++fibers[current].waits[kind];
    void *const token = &barriers[kind][first / kWarpLanes][k % 2];
    if (orders_memory)
        release(token);
    for (;;) {
        bool arrived = true;
        for (unsigned i = first; arrived && i < last; ++i)
            arrived = fibers[i].done || fibers[i].waits[kind] >= k;
        if (arrived)
            break;
        yield();
    }
    if (orders_memory)
        acquire(token);
}

EMU_OWN inline unsigned warp_begin() { return current / kWarpLanes * kWarpLanes; }
EMU_OWN inline void warp_barrier(bool orders_memory) {
    const unsigned first = warp_begin(), end = first + kWarpLanes;
    barrier(kOfWarp, first, end < num_fibers ? end : num_fibers, orders_memory);
}

// Posts a value to the lanes of the warp, in one of two mailboxes by turns, so that one barrier is
// enough. Like a shuffle, it orders no other memory.
template <class T> EMU_OWN unsigned post(const T &value) {
    static_assert(sizeof(T) <= kMailboxBytes, "a mailbox is small");
    Fiber &f = fibers[current];
    const unsigned turn = f.posts++ % 2;
    std::memcpy(f.mailbox[turn], &value, sizeof(T));
    warp_barrier(false);
    return turn;
}
template <class T> EMU_OWN T posted(unsigned lane, unsigned turn) {
    const unsigned source = warp_begin() + lane;
    T value{};
    if (source < num_fibers)
        std::memcpy(&value, fibers[source].mailbox[turn], sizeof(T));
    return value;
}
template <class T> T exchange(T value, unsigned lane) { return posted<T>(lane, post(value)); }

EMU_OWN inline Stack *stack(unsigned i) {
    while (stacks.size() <= i % kMostStacks)
        stacks.emplace_back();
    return &stacks[i % kMostStacks];
}

EMU_OWN inline void run_block(dim3 block, unsigned number) {
    const unsigned n = block.x * block.y * block.z, first = kOwnStacks ? number * n : 0;
    if (num_fibers != n)
        all_fibers = std::vector<Fiber>(n);
    fibers = all_fibers.data();
    num_fibers = n;
    for (unsigned i = 0; i < n; ++i) {
        Fiber &f = fibers[i];
        f.started = f.done = false;
        f.waits[kOfWarp] = f.waits[kOfBlock] = 0;
        f.posts = 0;
        f.index = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
        f.stack = stack(first + i);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack->bytes.get();
        f.context.uc_stack.ss_size = kStackBytes;
        f.context.uc_link = &scheduler;
        makecontext(&f.context, run_fiber, 0);
    }
    live = n;
    for (unsigned rounds = 0; live; ++rounds) {
        if (rounds > 10'000'000)
            throw std::runtime_error("deadlock: threads wait at different barriers");
        for (unsigned i = 0; i < n; ++i)
            if (!fibers[i].done) {
                current = i;
                threadIdx = fibers[i].index;
                enter_fiber(fibers[i]);
            }
    }
}

template <class... P, class... A>
EMU_OWN void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes, cudaStream_t,
                    A... args) {
    const auto more = allowed.find(reinterpret_cast<const void *>(kernel));
    if (int64_t(bytes) > (more == allowed.end() ? kSharedBytes : more->second)) {
        last_error = cudaErrorInvalidValue;
        return;
    }
    gridDim = grid;
    blockDim = block;
    body = [=] { kernel(args...); };
#if defined(__SANITIZE_THREAD__)
    main_thread = __tsan_get_current_fiber();
#endif
    unsigned number = 0;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
#if defined(__SANITIZE_THREAD__)
                shared_before.push_back(std::move(shared_bytes));
#endif
                shared_bytes.reset(new unsigned char[bytes]);
                shared_begin = shared_bytes.get();
                std::memset(shared_begin, 0xff, bytes); // NaN: shows reads before writes
                release(&block_begin);
                run_block(block, number++);
            }
    acquire(&launch_end);
#if defined(__SANITIZE_THREAD__)
    shared_before.clear();
#endif
}

inline float from_bf16(uint32_t half) {
    const uint32_t word = half << 16;
    float x;
    std::memcpy(&x, &word, sizeof x);
    return x;
}

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: element (r, k) of A is in lane
// 4 (r % 8) + k % 8 / 2, register r / 8 + 2 (k / 8), half k % 2; (k, n) of B in lane
// 4 n + k % 8 / 2, register k / 8, half k % 2; (r, n) of C in lane 4 (r % 8) + n / 2, register
// 2 (r / 8) + n % 2.
inline void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    struct Factors {
        uint32_t a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const unsigned lane = current % kWarpLanes, turn = post(mine);
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned r = lane / 4 + 8 * (i / 2), n = 2 * (lane % 4) + i % 2;
        for (unsigned k = 0; k < 16; ++k) {
            const auto left = posted<Factors>(4 * (r % 8) + k % 8 / 2, turn);
            const auto right = posted<Factors>(4 * n + k % 8 / 2, turn);
            const uint32_t x = left.a[r / 8 + 2 * (k / 8)] >> 16 * (k % 2);
            const uint32_t y = right.b[k / 8] >> 16 * (k % 2);
            c[i] += from_bf16(x & 0xffff) * from_bf16(y & 0xffff);
        }
    }
}

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32: element (r, k) of A is in lane 4 (r % 8) +
// k % 4, register r / 8 + 2 (k / 4); (k, n) of B in lane 4 n + k % 4, register k / 4; C as above.
// The low 13 bits of a factor are ignored.
inline float from_tf32(uint32_t word) {
    word &= ~0x1fffu;
    float x;
    std::memcpy(&x, &word, sizeof x);
    return x;
}
inline void mma_tf32(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    struct Factors {
        uint32_t a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const unsigned lane = current % kWarpLanes, turn = post(mine);
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned r = lane / 4 + 8 * (i / 2), n = 2 * (lane % 4) + i % 2;
        for (unsigned k = 0; k < 8; ++k) {
            const auto left = posted<Factors>(4 * (r % 8) + k % 4, turn);
            const auto right = posted<Factors>(4 * n + k % 4, turn);
            c[i] += from_tf32(left.a[r / 8 + 2 * (k / 4)]) * from_tf32(right.b[k / 4]);
        }
    }
}

// movmatrix.sync.aligned.m8n8.trans.b16: (r, c) is in lane 4 r + c / 2, half c % 2.
inline uint32_t transpose_8x8(uint32_t x) {
    const unsigned lane = current % kWarpLanes, r = lane / 4, c = 2 * (lane % 4), turn = post(x);
    const uint32_t low = posted<uint32_t>(4 * c + r / 2, turn) >> 16 * (r % 2);
    const uint32_t high = posted<uint32_t>(4 * (c + 1) + r / 2, turn) >> 16 * (r % 2);
    return (low & 0xffff) | high << 16;
}

} // namespace emu

inline void __syncthreads() { emu::barrier(emu::kOfBlock, 0, emu::num_fibers, true); }
inline void __syncwarp(unsigned = ~0u) { emu::warp_barrier(true); }
template <class T> T __shfl_xor_sync(unsigned, T v, int mask) {
    return emu::exchange(v, emu::current % emu::kWarpLanes ^ unsigned(mask));
}
template <class T> T __shfl_sync(unsigned, T v, int lane) {
    return emu::exchange(v, unsigned(lane));
}

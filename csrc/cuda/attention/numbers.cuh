// Numbers of a lane: types, loads and stores of four, conversions, exponentials, activations.
#pragma once

#include "../kernels.h"
#include "../launch.cuh"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace sitenet::cuda {

template <class E> constexpr bool kBfloat16 = std::is_same_v<E, uint16_t>;
template <class E> constexpr bool kTf32 = std::is_same_v<E, Tf32>;

/// Four numbers that are loaded together.
template <class T> struct alignas(sizeof(T) >= 4 ? 16 : 4 * sizeof(T)) Four {
    T v[4];
};
/// Four numbers in bfloat16.
struct alignas(8) FourHalves {
    uint32_t words[2];
};
template <class T> __device__ inline Four<T> load4(const T *p) {
    return *reinterpret_cast<const Four<T> *>(p);
}
template <class T> __device__ inline void store4(T *p, const Four<T> &x) {
    *reinterpret_cast<Four<T> *>(p) = x;
}

// The value of a number in a type of e.
__device__ inline float number(float x) { return x; }
__device__ inline double number(double x) { return x; }
__device__ inline float number(Tf32 x) { return x.value; }
__device__ inline float number(uint16_t half) {
    union {
        uint32_t word;
        float x;
    } u = {uint32_t(half) << 16};
    return u.x;
}

/// Rounds two floats to bfloat16, to nearest even; `low` goes to the low half.
__device__ inline uint32_t to_bf16x2(float low, float high) {
#ifdef __CUDACC__
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    const float x[2] = {low, high};
    uint32_t half[2];
    for (int i = 0; i < 2; ++i) {
        uint32_t word;
        std::memcpy(&word, &x[i], sizeof word);
        half[i] = x[i] != x[i] ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16;
    }
    return half[0] | half[1] << 16;
#endif
}

// Stores a number in a type of e.
__device__ inline void assign(float x, float *to) { *to = x; }
__device__ inline void assign(double x, double *to) { *to = x; }
__device__ inline void assign(float x, Tf32 *to) { to->value = x; }
__device__ inline void assign(float x, uint16_t *to) { *to = uint16_t(to_bf16x2(x, 0)); }

template <class T> __device__ inline void store4(T *p, const T x[4]) {
    store4(p, Four<T>{x[0], x[1], x[2], x[3]});
}
__device__ inline void store4(Tf32 *p, const float x[4]) { store4(&p->value, x); }
__device__ inline void store4(uint16_t *p, const float x[4]) {
    const FourHalves words = {to_bf16x2(x[0], x[1]), to_bf16x2(x[2], x[3])};
    *reinterpret_cast<FourHalves *>(p) = words;
}

/// exp for activations and softmax. In float the error is 2 ulp plus |x| roundings of x log2(e),
/// which is below 2e-7 near 0, where the exponential matters.
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float exponential(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
#else
    return std::exp(x);
#endif
}
/// exp(min(x, 20)) for Mish. A NaN may become exp(20): the product with x restores it.
__device__ inline double clamped_exponential(double x) { return exp(fmin(x, 20.0)); }
__device__ inline float clamped_exponential(float x) { return exponential(fminf(x, 20.0f)); }

__device__ inline double reciprocal_root(double x) { return 1 / sqrt(x); }
__device__ inline float reciprocal_root(float x) {
#ifdef __CUDACC__
    return rsqrtf(x);
#else
    return 1 / std::sqrt(x);
#endif
}

template <class T> constexpr T kNone = -std::numeric_limits<T>::infinity();

/// Loads entries k and k + 1 of a row of `width` entries, 0 beyond its end. `whole`: each row is
/// aligned to 4 bytes and has an even width.
__device__ inline uint32_t two_of_row(const uint16_t *row, int k, int width, bool whole) {
    if (whole)
        return k < width ? *reinterpret_cast<const uint32_t *>(row + k) : 0;
    const uint32_t low = k < width ? row[k] : 0, high = k + 1 < width ? row[k + 1] : 0;
    return low | high << 16;
}
__device__ inline bool whole_words(const uint16_t *rows, int width) {
    return width % 2 == 0 && reinterpret_cast<uintptr_t>(rows) % 4 == 0;
}

/// Loads entries k to k + 3 of a row of `width` entries, 0 beyond its end. `whole`: each row
/// consists of aligned fours.
template <class T>
__device__ inline Four<T> four_of_row(const T *row, int k, int width, bool whole) {
    if (whole)
        return load4(row + k);
    Four<T> x;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        x.v[i] = k + i < width ? row[k + i] : T{};
    return x;
}
/// Stores entries k to k + 3 of a row of `width` entries, as far as it has them. `whole` as above.
template <class T, class E>
__device__ inline void store_four_of_row(const T x[4], E *row, int k, int width, bool whole) {
    if (whole) {
        if (k < width)
            store4(row + k, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (k + i < width)
            assign(x[i], row + k + i);
}
/// The values of entries k to k + 3 of a row, as four_of_row loads them.
template <class T, class E>
__device__ inline Four<T> values_of_row(const E *row, int k, int width, bool whole) {
    Four<T> x;
    if constexpr (kBfloat16<E>)
        if (whole) {
            const FourHalves two = *reinterpret_cast<const FourHalves *>(row + k);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t word = two.words[i / 2];
                x.v[i] = number(uint16_t(i % 2 ? word >> 16 : word));
            }
            return x;
        }
    const Four<E> raw = four_of_row(row, k, width, whole);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        x.v[i] = number(raw.v[i]);
    return x;
}
template <class T> __device__ inline bool whole_fours(const T *rows, int width) {
    return width % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % alignof(Four<T>) == 0;
}

// ------------------------------------------------------------------------------------------------
// Activations of a step.

/// Applies the activation in place.
template <class T> __device__ inline void activate(T z[2][4], int activation) {
    if (activation == kMish) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            T &x = z[i / 4][i % 4];
            x = mish_parts(x, clamped_exponential(x)).value;
        }
    } else if (activation == kRelu) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            T &x = z[i / 4][i % 4];
            x = x < 0 ? T(0) : x; // a NaN stays a NaN
        }
    }
}

/// Applies the activation in place, and sets its derivative.
template <class T> __device__ inline void activate(T z[2][4], T derivative[2][4], int activation) {
    if (activation == kMish) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            T &x = z[i / 4][i % 4];
            const MishParts<T> parts = mish_parts(x, clamped_exponential(x));
            x = parts.value;
            derivative[i / 4][i % 4] = parts.derivative;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            T &x = z[i / 4][i % 4];
            derivative[i / 4][i % 4] = activation == kRelu && !(x > 0) ? T(0) : T(1);
            if (activation == kRelu)
                x = x < 0 ? T(0) : x;
        }
    }
}

} // namespace sitenet::cuda

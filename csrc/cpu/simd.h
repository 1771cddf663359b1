// Vectors of the width that the SIMD level has, by the compiler's vector extensions.
//
// This header is compiled into several levels, so everything lives in the level's namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace sitenet::SITENET_LEVEL {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T> struct SimdOf {
    typedef T V __attribute__((vector_size(kVectorBytes)));
    static constexpr int n = kVectorBytes / sizeof(T);
};
template <class T> using Vec = typename SimdOf<T>::V;
template <class T> constexpr int kLanes = SimdOf<T>::n;
typedef int32_t VecInt __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VecWord __attribute__((vector_size(kVectorBytes)));

template <class T> static inline Vec<T> load(const T *p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class T> static inline void store(T *p, Vec<T> v) { std::memcpy(p, &v, sizeof v); }
template <class T> static inline Vec<T> splat(T x) { return x - Vec<T>{}; }

// max(x, low) and min(x, high) that keep a NaN in x.
template <class T> static inline Vec<T> at_least(Vec<T> x, T low) {
    const Vec<T> v = splat(low);
    return x < v ? v : x;
}
template <class T> static inline Vec<T> at_most(Vec<T> x, T high) {
    const Vec<T> v = splat(high);
    return x > v ? v : x;
}

template <class T> static inline T sum_lanes(Vec<T> v) {
    T s[kLanes<T>];
    store(s, v);
    for (int w = kLanes<T> / 2; w; w /= 2)
        for (int i = 0; i < w; ++i)
            s[i] += s[i + w];
    return s[0];
}

// exp(x) for -87 <= x <= 88, relative error 1e-7: x = n ln 2 + r, a polynomial of degree 5 for
// exp(r) fitted here for the least relative error on |r| <= ln 2 / 2, and n added to its exponent.
static inline Vec<float> exp_in_range(Vec<float> x) {
    constexpr float shift = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    const Vec<float> t = x * 1.44269504f + shift;
    const Vec<float> n = t - shift;
    const Vec<float> r = x - n * 0.693145752f - n * 1.42860677e-6f;
    Vec<float> p = r * 8.2902294e-3f + 4.189839e-2f;
    p = p * r + 1.666764e-1f;
    p = p * r + 4.9999146e-1f;
    p = p * r + 9.9999971e-1f;
    p = p * r + 1.0f;
    return (Vec<float>)((VecInt)p + ((VecInt)t << 23));
}
static inline Vec<double> exp_in_range(Vec<double> x) {
    for (int i = 0; i < kLanes<double>; ++i)
        x[i] = std::exp(x[i]);
    return x;
}

// exp(x) for x <= 0; exactly 0 below -87.
template <class T> static inline Vec<T> exp_of_negative(Vec<T> x) {
    const Vec<T> y = exp_in_range(at_least(x, T(-87)));
    return x < splat(T(-87)) ? Vec<T>{} : y;
}

// bfloat16 is kept as uint16_t; rounding is to nearest even, a NaN stays one.
static inline float from_bf16(uint16_t h) {
    const uint32_t w = uint32_t(h) << 16;
    float x;
    std::memcpy(&x, &w, sizeof x);
    return x;
}
static inline uint16_t to_bf16(float x) {
    uint32_t w;
    std::memcpy(&w, &x, sizeof w);
    if (x != x)
        return uint16_t((w >> 16) | 0x40);
    return uint16_t((w + 0x7fff + ((w >> 16) & 1)) >> 16);
}
// The rounded value in the high half of each lane.
static inline VecWord bf16_words(Vec<float> x) {
    const VecWord w = (VecWord)x;
    const VecWord rounded = w + 0x7fff + ((w >> 16) & 1);
    return (VecWord)(x != x ? (VecInt)(w | 0x400000) : (VecInt)rounded) & 0xffff0000;
}

static inline void convert(const float *x, float *y, int n) {
    std::memcpy(y, x, n * sizeof(float));
}
static inline void convert(const double *x, double *y, int n) {
    std::memcpy(y, x, n * sizeof(double));
}
static inline void convert(const uint16_t *x, float *y, int n) {
    for (int i = 0; i < n; ++i)
        y[i] = from_bf16(x[i]);
}
static inline void convert(const float *x, uint16_t *y, int n) {
    for (int i = 0; i < n; ++i)
        y[i] = to_bf16(x[i]);
}

constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

} // namespace sitenet::SITENET_LEVEL

// Vectors as wide as the SIMD level allows, through the compiler's vector extensions.
//
// This header is compiled once per level, so everything lives in the level's namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include <arm_neon.h>
#endif

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

#if defined(__AVX512F__)
// Masked forms of the intrinsics: GCC 12 warns that the others use undefined values.
constexpr __mmask16 kAllLanes = 0xffff;
#endif

/// max(x, low) and min(x, high); a NaN in x stays.
template <class T> static inline Vec<T> at_least(Vec<T> x, T low) {
    const Vec<T> v = splat(low);
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>)
        return (Vec<T>)_mm512_maskz_max_ps(kAllLanes, (__m512)v, (__m512)x);
#endif
    return x < v ? v : x;
}
template <class T> static inline Vec<T> at_most(Vec<T> x, T high) {
    const Vec<T> v = splat(high);
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>)
        return (Vec<T>)_mm512_maskz_min_ps(kAllLanes, (__m512)v, (__m512)x);
#endif
    return x > v ? v : x;
}

static inline Vec<float> square_root(Vec<float> x) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_maskz_sqrt_ps(kAllLanes, (__m512)x);
#else
    for (int i = 0; i < kLanes<float>; ++i)
        x[i] = std::sqrt(x[i]);
    return x;
#endif
}
static inline Vec<double> square_root(Vec<double> x) {
    for (int i = 0; i < kLanes<double>; ++i)
        x[i] = std::sqrt(x[i]);
    return x;
}

template <class T> static inline T sum_lanes(Vec<T> v) {
    T s[kLanes<T>];
    store(s, v);
    for (int w = kLanes<T> / 2; w; w /= 2)
        for (int i = 0; i < w; ++i)
            s[i] += s[i + w];
    return s[0];
}

/// For each group of 2 w lanes: first half plus second half of a, then of b.
template <class T, int w, size_t... i>
static inline Vec<T> add_halves(Vec<T> a, Vec<T> b, std::index_sequence<i...>) {
    constexpr int n = kLanes<T>;
    const Vec<T> low =
        __builtin_shufflevector(a, b, (i / (2 * w) * 2 * w + i % w + (i / w % 2) * n)...);
    const Vec<T> high =
        __builtin_shufflevector(a, b, (i / (2 * w) * 2 * w + i % w + (i / w % 2) * n + w)...);
    return low + high;
}

/// Returns the sums of kLanes vectors, one per lane, in a tree of kLanes - 1 additions. Overwrites
/// the vectors.
template <class T, int w = kLanes<T> / 2> static inline Vec<T> add_lanes(Vec<T> *v) {
    for (int i = 0; i < w; ++i)
        v[i] = add_halves<T, w>(v[i], v[i + w], std::make_index_sequence<kLanes<T>>());
    if constexpr (w == 1)
        return v[0];
    else
        return add_lanes<T, w / 2>(v);
}

// `rough` allows a relative error of 1e-4, which is small beside the rounding of bfloat16 factors.

/// exp(x) for -87 <= x <= 88, with relative error 8e-8 + 2e-8 |x|: as 2^(n + f) with n an integer
/// and |f| <= 1/2, and a minimax polynomial for 2^f (degree 6: 2e-9; rough, degree 3: 7e-5).
template <bool rough = false> static inline Vec<float> exp_in_range(Vec<float> x) {
    constexpr float log2_e = 1.44269504f,
                    shift = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    const Vec<float> t = x * log2_e + shift;
    const Vec<float> f = x * log2_e - (t - shift);
    Vec<float> p;
    if constexpr (rough) {
        p = f * 5.51716675e-2f + 2.42611122e-1f;
        p = p * f + 6.93260986e-1f;
        p = p * f + 9.99928074e-1f;
    } else {
        p = f * 1.53533745e-4f + 1.33988768e-3f;
        p = p * f + 9.61843731e-3f;
        p = p * f + 5.55033246e-2f;
        p = p * f + 2.40226479e-1f;
        p = p * f + 6.93147203e-1f;
        p = p * f + 1.0f;
    }
    return (Vec<float>)((VecInt)p + ((VecInt)t << 23));
}
template <bool rough = false> static inline Vec<double> exp_in_range(Vec<double> x) {
    for (int i = 0; i < kLanes<double>; ++i)
        x[i] = std::exp(x[i]);
    return x;
}

/// 1 / x for a positive x that is neither tiny nor infinite.
template <class T, bool rough = false> static inline Vec<T> reciprocal(Vec<T> x) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float>) {
        const Vec<T> r = (Vec<T>)_mm512_maskz_rcp14_ps(kAllLanes, (__m512)x);
        return rough ? r : r + r * (1.0f - x * r); // a Newton step: 2^-14 -> 2^-24
    }
#endif
    return 1 / x;
}

/// exp(x) for x <= 0; exactly 0 below -87.
template <class T> static inline Vec<T> exp_of_negative(Vec<T> x) {
    const Vec<T> y = exp_in_range(at_least(x, T(-87)));
    return x < splat(T(-87)) ? Vec<T>{} : y;
}

// bfloat16 is stored as uint16_t. Rounding is to nearest even; a NaN stays a NaN.
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
/// Rounds to bfloat16, in the high half of each lane.
static inline VecWord bf16_words(Vec<float> x) {
    const VecWord w = (VecWord)x;
    const VecWord rounded = w + 0x7fff + ((w >> 16) & 1);
    return (VecWord)(x != x ? (VecInt)(w | 0x400000) : (VecInt)rounded) & 0xffff0000;
}

/// Loads kLanes numbers as a vector of T.
template <class T> static inline Vec<T> load_as(const T *p) { return load(p); }
template <class T> static inline Vec<T> load_as(const uint16_t *p) {
    typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
    Halves h;
    std::memcpy(&h, p, sizeof h);
    return (Vec<float>)(__builtin_convertvector(h, VecWord) << 16);
}
/// Stores kLanes numbers, or one, in the type of p.
template <class T> static inline void store_as(T *p, Vec<T> x) { store(p, x); }
template <class T> static inline void store_as(T *p, T x) { *p = x; }
static inline void store_as(uint16_t *p, float x) { *p = to_bf16(x); }
static inline void store_as(uint16_t *p, Vec<float> x) {
#if defined(__AVX512BF16__)
    const __m256bh h = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(p, &h, sizeof h);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    const bfloat16x4_t h = vcvt_bf16_f32((float32x4_t)x);
    std::memcpy(p, &h, sizeof h);
#else
    const VecWord w = bf16_words(x) >> 16;
    for (int i = 0; i < kLanes<float>; ++i)
        p[i] = uint16_t(w[i]);
#endif
}
/// Converts n numbers.
template <class T, class E> static inline void convert(const E *x, T *y, int n) {
    int i = 0;
    for (; i + kLanes<T> <= n; i += kLanes<T>)
        store(y + i, load_as<T>(x + i));
    for (; i < n; ++i)
        if constexpr (std::is_same_v<E, uint16_t>)
            y[i] = from_bf16(x[i]);
        else
            y[i] = x[i];
}

/// Whether this level has instructions for products in bfloat16.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool kBf16Products = true;
#else
constexpr bool kBf16Products = false;
#endif

/// Adds to each lane of sum the product of the low halves of a and b, and that of the high halves.
static inline Vec<float> add_bf16_products(Vec<float> sum, VecWord a, VecWord b) {
#if defined(__AVX512BF16__)
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return (Vec<float>)vbfdotq_f32((float32x4_t)sum, vreinterpretq_bf16_u32((uint32x4_t)a),
                                   vreinterpretq_bf16_u32((uint32x4_t)b));
#else
    sum += (Vec<float>)(a << 16) * (Vec<float>)(b << 16);
    return sum + (Vec<float>)(a & 0xffff0000) * (Vec<float>)(b & 0xffff0000);
#endif
}

/// Rounds x0 and x1. Stores each on its own, and both together: x0 in the low halves of the lanes.
static inline void store_bf16_pair(uint16_t *to0, uint16_t *to1, uint32_t *both, Vec<float> x0,
                                   Vec<float> x1) {
#if defined(__AVX512BF16__)
    alignas(64) static constexpr uint16_t in_turn[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                         21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                         11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)x1, (__m512)x0);
    _mm256_storeu_si256((__m256i *)to0, _mm512_maskz_extracti64x4_epi64(0xf, halves, 0));
    _mm256_storeu_si256((__m256i *)to1, _mm512_maskz_extracti64x4_epi64(0xf, halves, 1));
    _mm512_storeu_si512(both,
                        _mm512_maskz_permutexvar_epi16(~0u, _mm512_load_si512(in_turn), halves));
#else
    store_as(to0, x0);
    store_as(to1, x1);
    const VecWord w = bf16_words(x0) >> 16 | bf16_words(x1);
    std::memcpy(both, &w, sizeof w);
#endif
}

constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

} // namespace sitenet::SITENET_LEVEL

// Activations of vectors, and their derivatives.
//
// E is the type of e. With products in bfloat16, a rough activation is accurate enough.
#pragma once

#include "../../attention.h"
#include "../simd.h"

namespace sitenet::SITENET_LEVEL {
namespace {

template <class E> constexpr bool kRough = std::is_same_v<E, uint16_t>;

#if defined(__AVX512F__)
/// Rough Mish and its derivative: one cubic per interval of z, 16 intervals, with the coefficients
/// looked up in a register. That takes 3 multiplications where the formula takes 9.
///
/// The exponent of min(|z| + 1, 16) and the first bit of its fraction divide |z| into 8 intervals
/// of widths 1/2 to 4. In the last interval Mish is z or 0. Absolute error: 2e-4, of both.
class MishTable {
  public:
    static const MishTable &get() {
        static const MishTable table;
        return table;
    }
    static __m512i interval(Vec<float> z) {
        const Vec<float> y = at_most((Vec<float>)((VecInt)z & 0x7fffffff) + 1, 15.999f);
        const auto low = (__m512i)((VecWord)y >> 22), sign = (__m512i)((VecWord)z >> 28);
        return _mm512_maskz_ternarylogic_epi32(kAllLanes, _mm512_set1_epi32(7), low, sign, 0xca);
    }
    Vec<float> value(Vec<float> z, __m512i interval) const { return at(values, z, interval); }
    Vec<float> derivative(Vec<float> z, __m512i interval) const {
        return at(derivatives, z, interval);
    }

  private:
    using Cubics = float[4][16]; // coefficients of z^0 to z^3, per interval
    alignas(64) Cubics values, derivatives;

    MishTable() {
        for (int k = 0; k < 8; ++k)
            for (const int sign : {1, -1}) {
                const double begin = std::ldexp(1 + k % 2 / 2.0, k / 2) - 1;
                const double end = begin + std::ldexp(0.5, k / 2);
                const int at = (k + 6) % 8 + (sign < 0 ? 8 : 0); // the exponent of 1 is 127
                fit(sign * begin, sign * end, k == 7, at);
            }
    }

    // Interpolates at the Chebyshev nodes, which comes close to the best cubic.
    void fit(double from, double to, bool last, int at) {
        double z[4], f[4], g[4];
        for (int i = 0; i < 4; ++i) {
            z[i] = (from + to) / 2 + (to - from) / 2 * std::cos((2 * i + 1) * std::acos(-1.0) / 8);
            const MishParts<double> parts = mish_parts(z[i], std::exp(z[i]));
            f[i] = last ? std::max(z[i], 0.0) : parts.value;
            g[i] = last ? double(z[i] > 0) : parts.derivative;
        }
        interpolate(z, f, values, at);
        interpolate(z, g, derivatives, at);
    }
    static void interpolate(const double *z, double *f, Cubics &to, int at) {
        for (int n = 1; n < 4; ++n) // divided differences
            for (int i = 3; i >= n; --i)
                f[i] = (f[i] - f[i - 1]) / (z[i] - z[i - n]);
        double c[4] = {f[3]};
        for (int i = 2; i >= 0; --i) { // c = c (z - z_i) + f_i
            for (int n = 3; n > 0; --n)
                c[n] = c[n - 1] - c[n] * z[i];
            c[0] = f[i] - c[0] * z[i];
        }
        for (int n = 0; n < 4; ++n)
            to[n][at] = float(c[n]);
    }

    static Vec<float> at(const Cubics &cubics, Vec<float> z, __m512i interval) {
        Vec<float> c[4];
        for (int n = 0; n < 4; ++n)
            c[n] = (Vec<float>)_mm512_maskz_permutexvar_ps(kAllLanes, interval,
                                                           _mm512_load_ps(cubics[n]));
        return c[0] + z * (c[1] + z * (c[2] + z * c[3]));
    }
};
#endif

template <class T, class E> inline Vec<T> exp_for_mish(Vec<T> z) {
    return exp_in_range<kRough<E>>(at_least(at_most(z, T(20)), T(-87)));
}

/// Calls f(function), where function(z) returns the activation of z.
template <class T, class E, class F>
[[gnu::always_inline]] inline void with_activation(int activation, F f) {
#if defined(__AVX512F__)
    if constexpr (kRough<E>)
        if (activation == kMish)
            return f([&table = MishTable::get()](Vec<T> z) __attribute__((always_inline)) {
                return table.value(z, MishTable::interval(z));
            });
#endif
    if (activation == kMish)
        f([](Vec<T> z) __attribute__((always_inline)) {
            const Vec<T> u = exp_for_mish<T, E>(z);
            return mish_value(z, u, reciprocal<T, kRough<E>>(mish_divisor(u)));
        });
    else if (activation == kRelu)
        f([](Vec<T> z) { return z > Vec<T>{} ? z : z != z ? z : Vec<T>{}; });
    else
        f([](Vec<T> z) { return z; });
}

/// Calls f(function), where function(z) returns the activation of z and its derivative.
template <class T, class E, class F>
[[gnu::always_inline]] inline void with_activation_parts(int activation, F f) {
    using Parts = MishParts<Vec<T>>;
#if defined(__AVX512F__)
    if constexpr (kRough<E>)
        if (activation == kMish)
            return f([&table = MishTable::get()](Vec<T> z) __attribute__((always_inline)) {
                const __m512i interval = MishTable::interval(z);
                return Parts{table.value(z, interval), table.derivative(z, interval)};
            });
#endif
    if (activation == kMish)
        f([](Vec<T> z) __attribute__((always_inline)) {
            const Vec<T> u = exp_for_mish<T, E>(z);
            return mish_parts(z, u, reciprocal<T, kRough<E>>(mish_divisor(u)));
        });
    else if (activation == kRelu)
        f([](Vec<T> z) {
            const auto positive = z > Vec<T>{};
            return Parts{positive ? z : z != z ? z : Vec<T>{}, positive ? splat(T(1)) : Vec<T>{}};
        });
    else
        f([](Vec<T> z) { return Parts{z, splat(T(1))}; });
}

} // namespace
} // namespace sitenet::SITENET_LEVEL

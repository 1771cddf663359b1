// Activations of vectors, and their derivatives.
//
// E is the type of e: beside products in bfloat16 a rough exponential and reciprocal will do.
#pragma once

#include "../attention.h"
#include "simd.h"

namespace sitenet::SITENET_LEVEL {
namespace {

template <class E> constexpr bool kRough = std::is_same_v<E, uint16_t>;

template <class T, class E> inline Vec<T> exp_for_mish(Vec<T> z) {
    return exp_in_range<kRough<E>>(at_least(at_most(z, T(20)), T(-87)));
}

// f(function), where function(z) is the activation's value.
template <class T, class E, class F> inline void with_activation(int activation, F f) {
    if (activation == kMish)
        f([](Vec<T> z) {
            const Vec<T> u = exp_for_mish<T, E>(z);
            return mish_value(z, u, reciprocal<T, kRough<E>>(mish_divisor(u)));
        });
    else if (activation == kRelu)
        f([](Vec<T> z) { return z > Vec<T>{} ? z : z != z ? z : Vec<T>{}; });
    else
        f([](Vec<T> z) { return z; });
}

// The same with MishParts, value and derivative.
template <class T, class E, class F> inline void with_activation_parts(int activation, F f) {
    using Parts = MishParts<Vec<T>>;
    if (activation == kMish)
        f([](Vec<T> z) {
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

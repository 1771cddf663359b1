// SIMD levels. Every kernel file in csrc/cpu is compiled once per level, with SITENET_LEVEL as its
// namespace, and defines tables of function pointers there. simd_level.cpp chooses a level when the
// module is loaded: the highest that this processor has, or the one that SITENET_SIMD names.
//
// Whatever a kernel file includes or instantiates must live in its level's namespace or in an
// unnamed one. The linker merges inline functions that have one name in two levels.
#pragma once

#include "../attention.h"
#include "../geometry.h"
#include "../pairs.h"
#include "../power_spectrum.h"

// X(level, plain): `level` adds kernels with products in bfloat16 to those of the level `plain`,
// which are compiled once. CMakeLists.txt has the same list.
#if defined(SITENET_GENERIC)
#define SITENET_LEVELS(X) X(generic, generic)
#elif defined(__x86_64__)
#define SITENET_LEVELS(X)                                                                          \
    X(x86_64_v2, x86_64_v2)                                                                        \
    X(x86_64_v3, x86_64_v3) X(x86_64_v4, x86_64_v4) X(x86_64_v4_bf16, x86_64_v4)
#elif defined(__aarch64__)
#define SITENET_LEVELS(X) X(armv8, armv8) X(armv8_bf16, armv8)
#else
#define SITENET_LEVELS(X) X(generic, generic)
#endif

namespace sitenet {

// The tables of the chosen level.
const GeometryKernels &geometry();
const PairKernels &pairs();
/// (T, E): (float, float), (double, double) or (float, uint16_t).
template <class T, class E> const AttentionKernels<T, E> &attention();
/// T: float or double.
template <class T> const PowerSpectrumKernels<T> &power_spectrum();

/// Returns the name of the chosen level. Throws std::runtime_error if SITENET_SIMD names a level
/// that does not exist or that this processor lacks.
const char *level_name();

} // namespace sitenet

// SIMD levels. Every file of kernels in csrc/cpu is compiled once per level, with SITENET_LEVEL as
// its namespace, and leaves one table of function pointers there. simd_level.cpp chooses a level
// when the module is loaded: the highest that this processor has, or the one that SITENET_SIMD
// names.
//
// Whatever a kernel file includes or instantiates must live in its level's namespace or in an
// unnamed one: an inline function with one name in two levels would be merged by the linker.
#pragma once

#if defined(__x86_64__)
#define SITENET_LEVELS(X) X(x86_64_v2) X(x86_64_v3) X(x86_64_v4) X(x86_64_v4_bf16)
#else
#define SITENET_LEVELS(X) X(generic)
#endif

namespace sitenet {

struct GeometryKernels;
struct PairKernels;
struct AttentionKernels;

// The tables of the chosen level.
const GeometryKernels &geometry();
const PairKernels &pairs();
const AttentionKernels &attention();

// Name of the chosen level. Throws std::runtime_error if SITENET_SIMD names one that does not exist
// or that this processor lacks.
const char *level_name();

} // namespace sitenet

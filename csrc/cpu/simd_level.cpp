#include "simd_level.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace sitenet {

#define DECLARE(level, plain)                                                                      \
    namespace level {                                                                              \
    extern const GeometryKernels geometry;                                                         \
    extern const PairKernels pairs;                                                                \
    extern const PowerSpectrumKernels<float> power_spectrum_f32;                                   \
    extern const PowerSpectrumKernels<double> power_spectrum_f64;                                  \
    extern const AttentionKernels<float, float> attention_f32;                                     \
    extern const AttentionKernels<double, double> attention_f64;                                   \
    extern const AttentionKernels<float, uint16_t> attention_bf16;                                 \
    }
SITENET_LEVELS(DECLARE)
#undef DECLARE

namespace {

struct Level {
    const char *name;
    const GeometryKernels *geometry;
    const PairKernels *pairs;
    const PowerSpectrumKernels<float> *power_spectrum_f32;
    const PowerSpectrumKernels<double> *power_spectrum_f64;
    const AttentionKernels<float, float> *attention_f32;
    const AttentionKernels<double, double> *attention_f64;
    const AttentionKernels<float, uint16_t> *attention_bf16;
};

const Level kLevels[] = {
#define ENTRY(level, plain)                                                                        \
    {#level,                                                                                       \
     &plain::geometry,                                                                             \
     &plain::pairs,                                                                                \
     &plain::power_spectrum_f32,                                                                   \
     &plain::power_spectrum_f64,                                                                   \
     &plain::attention_f32,                                                                        \
     &plain::attention_f64,                                                                        \
     &level::attention_bf16},
    SITENET_LEVELS(ENTRY)
#undef ENTRY
};
constexpr int kNumLevels = sizeof(kLevels) / sizeof(kLevels[0]);

/// Returns how many of the levels this processor can run.
int supported() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const auto v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const auto v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    const auto bf16 = v4 && __builtin_cpu_supports("avx512bf16");
    return 1 + v3 + v4 + bf16;
#else
    return 1;
#endif
}

const Level &choose() {
    const int usable = supported();
    const char *name = std::getenv("SITENET_SIMD");
    if (!name || !*name)
        return kLevels[usable - 1];
    std::string names;
    for (int i = 0; i < kNumLevels; ++i) {
        if (std::string(name) == kLevels[i].name && i < usable)
            return kLevels[i];
        if (i < usable)
            names += std::string(i ? ", " : "") + kLevels[i].name;
    }
    throw std::runtime_error("SITENET_SIMD=" + std::string(name) +
                             " is not a SIMD level of this machine; it has: " + names);
}

const Level &chosen() {
    static const Level &level = choose();
    return level;
}

} // namespace

const GeometryKernels &geometry() { return *chosen().geometry; }
const PairKernels &pairs() { return *chosen().pairs; }
template <> const AttentionKernels<float, float> &attention() { return *chosen().attention_f32; }
template <> const AttentionKernels<double, double> &attention() { return *chosen().attention_f64; }
template <> const AttentionKernels<float, uint16_t> &attention() {
    return *chosen().attention_bf16;
}
template <> const PowerSpectrumKernels<float> &power_spectrum() {
    return *chosen().power_spectrum_f32;
}
template <> const PowerSpectrumKernels<double> &power_spectrum() {
    return *chosen().power_spectrum_f64;
}
const char *level_name() { return chosen().name; }

} // namespace sitenet

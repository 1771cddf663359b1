#include "simd_level.h"

#include "../attention.h"
#include "../geometry.h"
#include "../pairs.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace sitenet {

#define DECLARE(level)                                                                             \
    namespace level {                                                                              \
    extern const GeometryKernels geometry;                                                         \
    extern const PairKernels pairs;                                                                \
    extern const AttentionKernels attention;                                                       \
    }
SITENET_LEVELS(DECLARE)
#undef DECLARE

namespace {

struct Level {
    const char *name;
    const GeometryKernels *geometry;
    const PairKernels *pairs;
    const AttentionKernels *attention;
};

const Level kLevels[] = {
#define ENTRY(level) {#level, &level::geometry, &level::pairs, &level::attention},
    SITENET_LEVELS(ENTRY)
#undef ENTRY
};
constexpr int kNumLevels = sizeof(kLevels) / sizeof(kLevels[0]);

// How many of the levels this processor can run.
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
    const char *wish = std::getenv("SITENET_SIMD");
    if (!wish || !*wish)
        return kLevels[usable - 1];
    std::string names;
    for (int i = 0; i < kNumLevels; ++i) {
        if (std::string(wish) == kLevels[i].name && i < usable)
            return kLevels[i];
        if (i < usable)
            names += std::string(i ? ", " : "") + kLevels[i].name;
    }
    throw std::runtime_error("SITENET_SIMD=" + std::string(wish) +
                             " is not a SIMD level of this machine; it has: " + names);
}

const Level &chosen() {
    static const Level &level = choose();
    return level;
}

} // namespace

const GeometryKernels &geometry() { return *chosen().geometry; }
const PairKernels &pairs() { return *chosen().pairs; }
const AttentionKernels &attention() { return *chosen().attention; }
const char *level_name() { return chosen().name; }

} // namespace sitenet

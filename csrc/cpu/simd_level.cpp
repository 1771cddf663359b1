#include "simd_level.h"

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

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

#if defined(__x86_64__)
/// The answer of the processor to CPUID.
struct Cpuid {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0; // 0 if the processor has no such leaf
    explicit Cpuid(unsigned leaf, unsigned part = 0) {
        __get_cpuid_count(leaf, part, &eax, &ebx, &ecx, &edx);
    }
};
/// Whether all these bits of a register are set.
bool has(unsigned word, std::initializer_list<int> bits) {
    for (const int bit : bits)
        if (!(word >> bit & 1))
            return false;
    return true;
}

/// Bits of XCR0, the registers that the system saves: 1 and 2 for AVX, 5 to 7 for AVX-512.
unsigned saved_registers() {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}
#elif defined(__aarch64__)
/// Whether this processor has FEAT_BF16: dot products and conversions in bfloat16.
bool has_bf16() {
#if defined(__linux__)
    constexpr unsigned long kBf16 = 1ul << 14; // HWCAP2_BF16, which older headers lack
    return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has;
#else
    return false; // no portable way to ask; the level without it always runs
#endif
}
#endif

/// Returns how many of the levels this processor can run. Asks it directly: the compilers'
/// __builtin_cpu_supports needs a library that clang-cl does not link.
int supported() {
#if defined(__x86_64__)
    const Cpuid basic(1), more(7), most(7, 1), extended(0x80000001);
    const bool osxsave = has(basic.ecx, {27});
    const unsigned saved = osxsave ? saved_registers() : 0;
    // FMA, MOVBE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT
    const bool v3 = has(saved, {1, 2}) && has(basic.ecx, {12, 22, 28, 29}) &&
                    has(more.ebx, {3, 5, 8}) && has(extended.ecx, {5});
    // AVX-512 F, DQ, CD, BW, VL
    const bool v4 = v3 && has(saved, {5, 6, 7}) && has(more.ebx, {16, 17, 28, 30, 31});
    return 1 + v3 + v4 + (v4 && has(most.eax, {5}));
#elif defined(__aarch64__)
    return 1 + has_bf16();
#else
    return 1;
#endif
}

const Level &choose() {
    const int usable = std::min(supported(), kNumLevels); // a generic build has one level
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

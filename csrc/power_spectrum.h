// The power spectrum of the density of neighbours around each site, with learned channels.
//
//   density[r, lm, n c] = sum over the images k of row r of
//                             radial[k, n] Y_lm(direction of vectors[k]) values[sites[k], c]
//   mixed[r, lm, q]     = sum over n c of density[r, lm, n c] mix[l, n c, q]
//   out[r, 0, q]        = mixed[r, 00, q]
//   out[r, l, q]        = sqrt(sum over m of mixed[r, lm, q]^2 + kSoft^2) - kSoft        l > 0
//
// out does not change when the crystal is rotated or reflected. l = 0 counts neighbours at each
// distance, weighted by their values; l > 0 tells the angles between them. Sums over m are power
// spectra of densities (Bartok, Kondor and Csanyi, Phys. Rev. B 87, 184115, 2013), with channels
// that are learned in place of elements.
//
// Arrays are row-major and contiguous:
//
//   values  (sites, channels)                   vectors  (images, 3), angstrom
//   mix     (degrees, radial channels, mixed)   radial   (images, radial)
//   offsets (rows + 1)                          sites    (images), row of values of each image
//   out     (rows, degrees, mixed)
//
// with degrees = 1 + the largest l. The image of a site at the site itself, of length 0, adds to
// l = 0 only. T is float or double, also under autocast.
#pragma once

#include "host_device.h"

#include <cstdint>

namespace sitenet {

constexpr int kMostDegrees = 5;                             ///< l = 0 to 4
constexpr int kMostHarmonics = kMostDegrees * kMostDegrees; ///< functions Y_lm
constexpr double kSoft = 0.01;                              ///< makes the square root smooth at 0
constexpr double kNoDirection = 1e-6; ///< angstrom; a shorter vector has no direction

// -------------------------------------------------------------------------------------------------
// Arguments of the kernels: a shape, then pointers in the order in which
// sitenet/ops/power_spectrum.py passes their addresses (csrc/bindings.h).

struct PowerSpectrumShape {
    int64_t images;
    int rows;
    int sites;
    int channels; ///< columns of values
    int radial;   ///< radial functions
    int degrees;  ///< l = 0 to degrees - 1
    int mixed;    ///< columns of out per degree
};

/// What both passes read.
template <class T> struct PowerSpectrumInputs {
    PowerSpectrumShape shape;
    const T *values;               ///< (sites, channels)
    const T *mix;                  ///< (degrees, radial * channels, mixed)
    const T *radial;               ///< (images, radial)
    const T *vectors;              ///< (images, 3)
    const int64_t *offsets;        ///< (rows + 1), first image of each row
    const int32_t *sites_of_image; ///< (images)
};

template <class T> struct PowerSpectrumForward : PowerSpectrumInputs<T> {
    T *out; ///< (rows, degrees, mixed)
};

/// Gradients of sum(out * grad_out).
template <class T> struct PowerSpectrumBackward : PowerSpectrumInputs<T> {
    const T *grad_out;              ///< as out
    T *grad_values;                 ///< as values
    T *grad_mix;                    ///< as mix
    const int64_t *images_of_site;  ///< CUDA only: (images), sorted by site, ascending within it
    const int64_t *offsets_of_site; ///< CUDA only: (sites + 1), first entry of each site there
};

// -------------------------------------------------------------------------------------------------
// Formulas.

/// Calls put(l^2 + l + m, Y_lm) for the real spherical harmonics of a unit vector, l < degrees. The
/// squares of each l sum to 1. V is T or a vector of T.
template <class T, class V, class Put>
static SITENET_HD void spherical_harmonics(V x, V y, V z, int degrees, const Put &put) {
    const V xx = x * x, yy = y * y, zz = z * z;
    put(0, x - x + T(1));
    if (degrees > 1) {
        put(1, y);
        put(2, z);
        put(3, x);
    }
    if (degrees > 2) {
        const T a = T(1.7320508075688772); // sqrt(3)
        put(4, a * x * y);
        put(5, a * y * z);
        put(6, T(1.5) * zz - T(0.5));
        put(7, a * x * z);
        put(8, T(0.5) * a * (xx - yy));
    }
    if (degrees > 3) {
        const T a = T(0.7905694150420949), b = T(3.8729833462074170), // sqrt(5 / 8), sqrt(15)
            c = T(0.6123724356957945);                                // sqrt(3 / 8)
        put(9, a * y * (T(3) * xx - yy));
        put(10, b * x * y * z);
        put(11, c * y * (T(5) * zz - T(1)));
        put(12, z * (T(2.5) * zz - T(1.5)));
        put(13, c * x * (T(5) * zz - T(1)));
        put(14, T(0.5) * b * z * (xx - yy));
        put(15, a * x * (xx - T(3) * yy));
    }
    if (degrees > 4) {
        const T a = T(2.9580398915498080), b = T(2.0916500663351889), // sqrt(35) / 2, sqrt(70) / 4
            c = T(1.1180339887498949), d = T(0.7905694150420949);     // sqrt(5) / 2, sqrt(10) / 4
        put(16, a * x * y * (xx - yy));
        put(17, b * y * z * (T(3) * xx - yy));
        put(18, c * x * y * (T(7) * zz - T(1)));
        put(19, d * y * z * (T(7) * zz - T(3)));
        put(20, (T(4.375) * zz - T(3.75)) * zz + T(0.375));
        put(21, d * x * z * (T(7) * zz - T(3)));
        put(22, T(0.5) * c * (xx - yy) * (T(7) * zz - T(1)));
        put(23, b * x * z * (xx - T(3) * yy));
        put(24, T(0.25) * a * (xx * (xx - T(3) * yy) - yy * (T(3) * xx - yy)));
    }
}

#ifndef __CUDACC__
/// The CPU kernels of one SIMD level.
template <class T> struct PowerSpectrumKernels {
    void (*forward)(const PowerSpectrumForward<T> &, int threads);
    void (*backward)(const PowerSpectrumBackward<T> &, int threads);
};
#endif

} // namespace sitenet

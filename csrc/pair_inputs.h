// What pairs bring into a model (sitenet/ops/pair_inputs.py): features in closed form, and the
// logarithm of the number of equal pairs that a pair stands for. With d the distance of pair p:
//
//   features[p, f]      = x^power, or ln(x^power + 1e-8) clipped to [-clip, clip]     f < given
//   features[p, g + k]  = exp(-min((d / spacing - k)^2 / 2, 50)), spacing = reach / (basis - 1),
//                         k < basis
//   log_multiplicity[p] = ln(multiplicity[p]) + ln(envelope(d / reach)),
//                         or -inf where features[p, 0] > cutoff
//   envelope(u)         = 1 - u^6 (28 - 48 u + 21 u^2) for u < 1, else 0
//
// with g given features. x is d, d^-2 or Z_i Z_j / d in bohr (0.5 Z_i^2.4 where d = 0), with d or
// the sine distance. features is (pairs, g + basis), row-major.
//
// T is the type of the results, D that of the distances, in which x and its logarithm are computed.
#pragma once

#include "host_device.h"

#include <cmath>
#include <cstdint>

namespace sitenet {

constexpr int kMostFeatures = 32;
constexpr double kBohrPerAngstrom = 1.8897543773133647; // sitenet/ops/pair_inputs.py
constexpr double kLeastExponent = -50; // of Gaussians; smaller ones could be denormal numbers

enum PairFeatureKind { kDistance, kReciprocalSquare, kCoulomb, kSineCoulomb };

struct PairFeature {
    int kind; ///< PairFeatureKind
    double power;
    double clip; ///< 0: no logarithm
};

struct PairInputsShape {
    int64_t pairs;
    int rows;
    int first_row; ///< number of the first row in charges
    int given;     ///< features
    int basis;     ///< Gaussians, 0 or at least 2
    double reach;  ///< angstrom
    PairFeature features[kMostFeatures];
};

template <class T, class D> struct PairInputs {
    PairInputsShape shape;
    const int64_t *offsets; ///< (rows + 1), first pair of each row
    const int32_t *sites;   ///< (pairs), row of the other site in charges
    const D *charges;       ///< mean nuclear charges; null without a Coulomb feature
    const D *distance;      ///< (pairs), angstrom
    const D *sine_distance; ///< (pairs), angstrom, or null
    T *out;                 ///< (pairs, given + basis)
};

struct LogMultiplicityShape {
    int64_t pairs;
    int columns;   ///< of features
    double cutoff; ///< of the first feature; infinite without one
    double reach;  ///< angstrom; 0 without an envelope
};

template <class T, class D> struct LogMultiplicity {
    LogMultiplicityShape shape;
    const int32_t *multiplicity; ///< (pairs)
    const D *distance;           ///< (pairs), angstrom
    const T *features;           ///< (pairs, columns)
    T *out;                      ///< (pairs)
};

template <class D>
static SITENET_HD D pair_feature(const PairFeature &f, D distance, D sine, D charge_i, D charge_j) {
    D x = distance;
    if (f.kind == kReciprocalSquare)
        x = 1 / (distance * distance);
    if (f.kind == kCoulomb || f.kind == kSineCoulomb) {
        const D apart = f.kind == kCoulomb ? distance : sine;
        x = distance == 0 ? D(0.5) * std::pow(charge_i, D(2.4))
                          : charge_i * charge_j / (apart * D(kBohrPerAngstrom));
    }
    if (f.power != 1)
        x = std::pow(x, D(f.power));
    if (f.clip > 0) {
        const D log = std::log(x + D(1e-8)), clip = D(f.clip);
        x = log > clip ? clip : log < -clip ? -clip : log; // NaN stays
    }
    return x;
}

template <class T> static SITENET_HD T gaussian(T distance, int k, T spacing) {
    const T z = distance / spacing - T(k), exponent = T(-0.5) * (z * z);
    return std::exp(exponent < T(kLeastExponent) ? T(kLeastExponent) : exponent); // NaN stays
}

template <class T> static SITENET_HD T log_envelope(T u) {
    const T u2 = u * u, height = u < 1 ? 1 - u2 * u2 * u2 * (28 - 48 * u + 21 * u2) : T(0);
    return std::log(height > 0 ? height : T(0));
}

} // namespace sitenet

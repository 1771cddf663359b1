// Pairs within a radius, defined in sphere.cpp.
#pragma once

#include "../../pairs.h"

namespace sitenet::SITENET_LEVEL {

int64_t count_sphere(const PairInput &input, double radius);
int64_t find_sphere(const PairInput &input, const SphereOptions &options, SpherePairs &pairs);

} // namespace sitenet::SITENET_LEVEL

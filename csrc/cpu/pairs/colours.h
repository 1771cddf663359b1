// Colours of sites: the start and the numbering of every colour refinement in this folder.
#pragma once

#include "../../geometry.h"
#include "../../pairs.h"
#include "../buffer.h"

namespace sitenet::SITENET_LEVEL {
namespace {

constexpr double kSamePlace = 1e-6;           // angstrom; nearer sites coincide
constexpr double kSmallestCellVolume = 1e-12; // share of the product of the cell's edges

/// Numbers the colours by their leaders, the first site of each. `leader_of` maps every site to its
/// leader. Returns the number of colours.
int64_t number_colours(const int32_t *leader_of, int64_t sites, int32_t *colour, int32_t *leader) {
    int64_t colours = 0;
    for (int64_t i = 0; i < sites; ++i)
        if (leader_of[i] == i) {
            leader[colours] = int32_t(i);
            colour[i] = int32_t(colours++);
        }
    for (int64_t i = 0; i < sites; ++i)
        colour[i] = colour[leader_of[i]];
    return colours;
}

/// Colours the sites by (number, oxidation, occupancy). Returns the number of colours.
int64_t first_colours(const PairInput &input, int32_t *colour, int32_t *leader) {
    const int64_t n = input.sites;
    Buffer<int32_t> leader_of(n);
    int64_t kinds = 0;
    for (int64_t i = 0; i < n; ++i) {
        int64_t k = 0;
        for (; k < kinds; ++k) {
            const int32_t j = leader[k];
            if (input.numbers[i] == input.numbers[j] &&
                (!input.oxidation || input.oxidation[i] == input.oxidation[j]) &&
                (!input.occupancy || input.occupancy[i] == input.occupancy[j]))
                break;
        }
        if (k == kinds)
            leader[kinds++] = int32_t(i);
        leader_of[i] = leader[k];
    }
    return number_colours(leader_of.get(), n, colour, leader);
}

} // namespace
} // namespace sitenet::SITENET_LEVEL

// Pairs of a crystal with its supercell, equal ones merged.
//
// A hidden state of Site-Net depends on the two sites' states and the pair's features alone. So the
// supercell sites of one orbit at one distance from site i are the same pair in every block, and
// sites of one kind that see the same distances to every orbit are one orbit.
#pragma once

#include <cstdint>

namespace sitenet {

// One crystal and its supercell.
struct PairInput {
    const double *cell;       // (3, 3) primitive vectors in rows, angstrom
    const double *frac;       // (sites, 3)
    const int64_t *numbers;   // (sites,)
    const double *oxidation;  // (sites,) or null: nothing known, all equal
    const double *occupancy;  // (sites,) or null: all 1
    const int64_t *supercell; // (3, 3) integer matrix T: the supercell's vectors are T cell
    int64_t sites;
    double tolerance; // angstrom: pairs that agree within it are merged
};

// Rows [first, last) of the pairs as CSR. Room for (last - first) * sites * images pairs.
struct PairOutput {
    int64_t first, last;
    int64_t *offsets;      // (last - first + 1,)
    int32_t *sites;        // (pairs,) orbit of j; merged: ascending, then by distance
    double *distance;      // (pairs,) angstrom
    int32_t *multiplicity; // (pairs,)
};

// Instead of a count:
constexpr int64_t bad_cell = -1;      // no volume, not finite, or not reducible
constexpr int64_t bad_supercell = -2; // det T is 0
constexpr int64_t coincident = -3;    // two supercell sites within 1e-6 angstrom

struct MergeKernels {
    // The published supercell matrix T (3, 3), upper triangular: diagonal k grown while `sites`
    // times its product stays within max_sites, shears rounded; halves round up. Returns 0 or
    // bad_cell.
    int64_t (*supercell_matrix)(const double *cell, int64_t sites, int64_t max_sites,
                                int64_t *matrix);
    // Fills orbit (sites,) and leader (sites, of which one an orbit is used), numbered by their
    // first site. Returns the number of orbits.
    int64_t (*find_orbits)(const PairInput &input, int32_t *orbit, int32_t *leader);
    // Fills the rows of the given orbits; orbit null: one row a site, one pair a supercell site, in
    // the supercell's order. Returns the number of pairs.
    int64_t (*fill_pairs)(const PairInput &input, const int32_t *orbit, const PairOutput &output);
    // All periodic images within a radius instead of a supercell (which the input then ignores).
    // The number of pairs before merging is the room that find_sphere needs.
    int64_t (*count_sphere)(const PairInput &input, double radius);
    // Fills orbit and leader as find_orbits does (merge false: one orbit a site) and all rows.
    // Returns the number of pairs; the rows are the orbits, the highest of `orbit` and one.
    int64_t (*find_sphere)(const PairInput &input, double radius, bool merge, int64_t room,
                           int32_t *orbit, int32_t *leader, const PairOutput &output);
};

} // namespace sitenet

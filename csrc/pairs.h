// Pairs of a crystal's sites with the sites of a supercell or of a sphere, equal ones merged.
//
// A hidden state of Site-Net depends on nothing but the states of the two sites and the features of
// their pair. Two statements follow, and both are exact at any depth:
//   - The images of one orbit at one distance from site i are the same pair in every block. One
//     pair stands for all of them and carries their number as its multiplicity.
//   - Sites of one kind that see the same distances to every orbit are one orbit; with vectors,
//     those that see the same angles, too.
//
// Rows of pairs are CSR: row r holds the pairs offsets[r] to offsets[r + 1].
#pragma once

#include <cstdint>
#include <vector>

namespace sitenet {

/// One crystal and its supercell.
struct PairInput {
    const double *cell;       ///< (3, 3), primitive lattice vectors as rows, angstrom
    const double *frac;       ///< (sites, 3)
    const int64_t *numbers;   ///< (sites), atomic numbers
    const double *oxidation;  ///< (sites); null if unknown
    const double *occupancy;  ///< (sites); null if all are 1
    const int64_t *supercell; ///< (3, 3), integer matrix T: the supercell's vectors are T cell
    int64_t sites;
    double tolerance; ///< angstrom; distances that differ by less are merged
};

/// The rows first to last - 1, with room for (last - first) * sites * images pairs.
struct PairOutput {
    int64_t first;
    int64_t last;
    int64_t *offsets;      ///< (last - first + 1)
    int32_t *sites;        ///< (pairs), orbit of j; merged pairs ascend by it, then by distance
    double *distance;      ///< (pairs), angstrom
    int32_t *multiplicity; ///< (pairs)
};

/// How to search in spheres.
struct SphereOptions {
    double radius;        ///< angstrom
    bool merge;           ///< without it, every site is an orbit
    bool vectors;         ///< whether they are wanted
    double most_searched; ///< lattice points to look at, at most
};

/// All pairs within spheres around the sites of a crystal.
struct SpherePairs {
    std::vector<int32_t> orbit;        ///< (sites), as find_orbits writes it
    std::vector<int32_t> leader;       ///< (rows), the first site of each orbit
    std::vector<int64_t> offsets;      ///< (rows + 1)
    std::vector<int32_t> sites;        ///< (pairs), orbit of j; merged pairs ascend by it, then by
                                       ///< distance
    std::vector<double> distance;      ///< (pairs), angstrom
    std::vector<int32_t> multiplicity; ///< (pairs)
    std::vector<float> vectors;        ///< (sum of multiplicity, 3), angstrom, from a row's site to
                                       ///< the images that its pairs stand for, 0 for the self
                                       ///< pair; empty if not wanted
};

// Errors, returned in place of a count.
constexpr int64_t kBadCell = -1;      // no volume, not finite, or not reducible
constexpr int64_t kBadSupercell = -2; // det T is 0
constexpr int64_t kCoincident = -3;   // two supercell sites within 1e-6 angstrom
constexpr int64_t kTooMany = -4;      // more to search than SphereOptions allow

/// The kernels of one SIMD level.
struct PairKernels {
    /// Writes the published supercell matrix T (3, 3), upper triangular: the shortest repeated axis
    /// grows while `sites` times the number of images stays within max_sites, and the shears are
    /// rounded, halves up. Returns 0 or kBadCell.
    int64_t (*supercell_matrix)(const double *cell, int64_t sites, int64_t max_sites,
                                int64_t *matrix);
    /// Writes each site's orbit (sites) and each orbit's first site, `leader`, with room for
    /// (sites). Orbits are numbered by their first site. Returns the number of orbits.
    int64_t (*find_orbits)(const PairInput &input, int32_t *orbit, int32_t *leader);
    /// Writes the rows of the given orbits. With orbit null, writes one row per site and one pair
    /// per supercell site, in the order of the supercell. Returns the number of pairs.
    int64_t (*fill_pairs)(const PairInput &input, const int32_t *orbit, const PairOutput &output);
    /// Returns the number of images within a radius (angstrom) of the sites.
    int64_t (*count_sphere)(const PairInput &input, double radius);
    /// Finds the pairs with all images within a radius. Returns the number of orbits. Neither of
    /// the two reads a supercell.
    int64_t (*find_sphere)(const PairInput &input, const SphereOptions &options,
                           SpherePairs &pairs);
};

} // namespace sitenet

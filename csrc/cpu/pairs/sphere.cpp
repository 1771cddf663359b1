// Pairs with all periodic images within a radius, merged. The result does not depend on the choice
// of the cell, and an image of the site itself is a pair like any other.
//
// In the reduced basis B, a displacement x + n with |(x + n) B| <= radius has
//
//   |x_k + n_k| <= radius |b*_k|      b*: the columns of B^-1
//
// which leaves a box of integers for every pair of sites; about half of the box lies within the
// sphere. A shell on the surface counts as inside (1e-6 angstrom). The colours are refined as in
// merge.cpp, but on rows that stay in memory, 44 bytes per image: their length does not grow with
// the number of sites. A row is sorted by distance once; each new colouring then takes one pass.
// Single-threaded and deterministic.
//
// With vectors, sites of one orbit must agree in angles, too. Rows that agree in their distances
// have the same shells: the images that one merged pair stands for. The angles of a row are the
// products sum over m of S_lm[shell] S_lm[shell'], with S_lm[shell] the sum of Y_lm over a shell's
// images. If two rows differ in one of them, almost every weighted sum of all S_lm differs in its
// norm over m, so that one choice of weights decides.
#include "sphere.h"

#include "../../power_spectrum.h"
#include "colours.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace sitenet::SITENET_LEVEL {
namespace {

constexpr double kSurface = 1e-6; // angstrom by which the radius grows

/// The other end of a pair.
struct End {
    double distance;
    int32_t image, colour;
};

bool nearer(const End &a, const End &b) {
    return a.distance != b.distance ? a.distance < b.distance : a.image < b.image;
}

struct Sphere {
    bool good; ///< whether the cell reduces; the rest is unset if not
    double radius;
    double basis[9], inverse[9];
    double reach[3];       ///< radius |b*_k|
    Buffer<double> points; ///< (sites, 3) in the reduced basis

    Sphere(const PairInput &input, double radius)
        : radius(radius + kSurface), points(3 * input.sites) {
        Reduced reduced;
        good = reduce(input.cell, kSmallestCellVolume, reduced);
        if (!good)
            return;
        std::memcpy(basis, reduced.basis, sizeof basis);
        invert(basis, inverse);
        for (int k = 0; k < 3; ++k) {
            const double column[3] = {inverse[k], inverse[3 + k], inverse[6 + k]};
            reach[k] = this->radius * std::sqrt(dot3(column, column));
        }
        double to_reduced[9];
        invert(reduced.integer, to_reduced);
        for (int64_t i = 0; i < input.sites; ++i)
            transform(input.frac + 3 * i, to_reduced, &points[3 * i]);
    }

    /// An upper bound of the lattice points that `images` looks at for one pair of sites.
    double box() const {
        double points = 1;
        for (double r : reach)
            points *= 2 * r + 1;
        return points;
    }

    /// Calls visit(vector, distance) for every image of site j within the radius of site i.
    template <class Visit> void images(int64_t i, int64_t j, const Visit &visit) const {
        double x[3];
        int64_t low[3], high[3];
        for (int k = 0; k < 3; ++k) {
            x[k] = wrap(points[3 * j + k] - points[3 * i + k]);
            low[k] = int64_t(std::ceil(-reach[k] - x[k]));
            high[k] = int64_t(std::floor(reach[k] - x[k]));
        }
        for (int64_t a = low[0]; a <= high[0]; ++a)
            for (int64_t b = low[1]; b <= high[1]; ++b)
                for (int64_t c = low[2]; c <= high[2]; ++c) {
                    const double u[3] = {x[0] + double(a), x[1] + double(b), x[2] + double(c)};
                    double v[3];
                    transform(u, basis, v);
                    const double square = dot3(v, v);
                    if (square <= radius * radius)
                        visit(v, std::sqrt(square));
                }
    }
};

/// All rows before merging, one after another.
struct Ends {
    Buffer<int64_t> begin; ///< (sites + 1)
    std::vector<End> by_distance;
    std::vector<int32_t> site_of_image;
    std::vector<float> vectors; ///< (images, 3), from the row's site; empty if not wanted
    Buffer<End> ends;           ///< sorted by colour, then by distance

    Ends(const Sphere &sphere, int64_t sites, bool need_vectors) : begin(sites + 1) {
        for (int64_t i = 0; i < sites; ++i) {
            for (int64_t j = 0; j < sites; ++j)
                sphere.images(i, j, [&](const double *v, double distance) {
                    by_distance.push_back({distance, int32_t(site_of_image.size()), 0});
                    site_of_image.push_back(int32_t(j));
                    if (need_vectors)
                        for (int k = 0; k < 3; ++k)
                            vectors.push_back(distance > kSamePlace ? float(v[k]) : 0);
                });
            begin[i + 1] = int64_t(site_of_image.size());
        }
    }
    void sort_by_distance(int64_t sites) {
        for (int64_t i = 0; i < sites; ++i)
            std::sort(by_distance.begin() + begin[i], by_distance.begin() + begin[i + 1], nearer);
        ends.resize(by_distance.size());
    }
    /// Colours the rows, and sorts them by colour.
    void colour(const int32_t *colours, int64_t num_colours, int64_t sites) {
        Buffer<int32_t> places(num_colours + 1);
        for (int64_t i = 0; i < sites; ++i) {
            std::fill_n(places.get(), num_colours + 1, 0);
            for (int64_t k = begin[i]; k < begin[i + 1]; ++k)
                ++places[colours[site_of_image[k]] + 1];
            for (int64_t c = 1; c < num_colours; ++c)
                places[c] += places[c - 1];
            for (int64_t k = begin[i]; k < begin[i + 1]; ++k) {
                End end = by_distance[k];
                end.colour = colours[site_of_image[end.image]];
                ends[begin[i] + places[end.colour]++] = end;
            }
        }
    }
    /// Whether two sorted rows agree within the tolerance.
    bool agree(int64_t i, int64_t j, double tolerance) const {
        const int64_t size = begin[i + 1] - begin[i];
        if (size != begin[j + 1] - begin[j])
            return false;
        const End *a = &ends[begin[i]], *b = &ends[begin[j]];
        for (int64_t k = 0; k < size; ++k)
            if (a[k].colour != b[k].colour || std::fabs(a[k].distance - b[k].distance) > tolerance)
                return false;
        return true;
    }
    /// The end of the shell that begins at k: its images have one colour and, within the tolerance,
    /// one distance.
    static int64_t shell_end(const End *row, int64_t k, int64_t size, double tolerance) {
        int64_t next = k + 1;
        while (next < size && row[next].colour == row[k].colour &&
               row[next].distance - row[k].distance <= tolerance)
            ++next;
        return next;
    }
    void copy_vector(const End &end, float *to) const {
        std::copy_n(&vectors[3 * size_t(end.image)], 3, to);
    }
    void append_vector(const End &end, std::vector<float> &to) const {
        if (!vectors.empty())
            to.insert(to.end(), &vectors[3 * size_t(end.image)],
                      &vectors[3 * size_t(end.image)] + 3);
    }
};

/// Norms of a weighted sum of the harmonics over a sorted row, which tell angles apart.
struct Angles {
    float norm[kMostDegrees];
    float uncertainty; ///< of each norm, if every vector is uncertain by the tolerance

    /// The shells are those of the row `model`, so that rows which agree with it have the same.
    Angles(const Ends &rows, int64_t row, int64_t model, double tolerance) : uncertainty(0) {
        // |Y_lm| of all m together changes by at most sqrt(l (l + 1)) per radian.
        const float steepest = std::sqrt(float((kMostDegrees - 1) * kMostDegrees));
        const End *ends = &rows.ends[rows.begin[row]], *like = &rows.ends[rows.begin[model]];
        const int64_t size = rows.begin[row + 1] - rows.begin[row];
        float sum[kMostHarmonics] = {};
        uint32_t state = 1;
        for (int64_t k = 0; k < size;) {
            const int64_t next = Ends::shell_end(like, k, size, tolerance);
            state = state * 1664525u + 1013904223u; // Numerical Recipes, section 7.1
            const float weight = float(state >> 8) / (1 << 23) - 1;
            for (; k < next; ++k) {
                if (!(ends[k].distance > kSamePlace))
                    continue;
                const float inverse = 1 / float(ends[k].distance);
                float v[3];
                rows.copy_vector(ends[k], v);
                spherical_harmonics<float>(v[0] * inverse, v[1] * inverse, v[2] * inverse,
                                           kMostDegrees,
                                           [&](int lm, float y) { sum[lm] += weight * y; });
                uncertainty += steepest * float(tolerance) * inverse;
            }
        }
        for (int l = 0; l < kMostDegrees; ++l) {
            float square = 0;
            for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm)
                square += sum[lm] * sum[lm];
            norm[l] = std::sqrt(square);
        }
    }
    bool agree(const Angles &other) const {
        for (int l = 0; l < kMostDegrees; ++l)
            if (!(std::fabs(norm[l] - other.norm[l]) <= uncertainty))
                return false;
        return true;
    }
};

/// Splits every colour whose rows do not agree(first row of a part, row). Returns the new number of
/// colours.
template <class Agree>
int64_t split(int64_t sites, int32_t *colour, int32_t *leader, const Agree &agree) {
    Buffer<int32_t> leader_of(sites), leaders(sites);
    int64_t num_leaders = 0;
    for (int64_t i = 0; i < sites; ++i) {
        int64_t k = 0;
        while (k < num_leaders && (colour[leaders[k]] != colour[i] || !agree(leaders[k], i)))
            ++k;
        if (k == num_leaders)
            leaders[num_leaders++] = int32_t(i);
        leader_of[i] = leaders[k];
    }
    return number_colours(leader_of.get(), sites, colour, leader);
}

/// Splits the colours by the angles of their rows, which are sorted and agree in distances.
int64_t split_by_angles(const Ends &rows, int64_t sites, double tolerance, int32_t *colour,
                        int32_t *leader, int64_t colours) {
    Buffer<int32_t> members(colours);
    for (int64_t i = 0; i < sites; ++i)
        ++members[colour[i]];
    Buffer<Angles> angles(sites);
    for (int64_t i = 0; i < sites; ++i)
        if (members[colour[i]] > 1)
            angles[i] = Angles(rows, i, leader[colour[i]], tolerance);
    return split(sites, colour, leader,
                 [&](int64_t i, int64_t j) { return angles[i].agree(angles[j]); });
}

int64_t find_orbits(const PairInput &input, Ends &rows, int32_t *orbit, int32_t *leader) {
    const int64_t n = input.sites;
    int64_t colours = first_colours(input, orbit, leader);
    rows.sort_by_distance(n);
    for (int64_t before = 0; colours > before;) {
        before = colours;
        rows.colour(orbit, colours, n);
        colours = split(n, orbit, leader,
                        [&](int64_t i, int64_t j) { return rows.agree(i, j, input.tolerance); });
        if (colours == before && rows.vectors.size())
            colours = split_by_angles(rows, n, input.tolerance, orbit, leader, colours);
    }
    return colours;
}

/// Replaces the row of an orbit's leader by the mean row of its sites, and merges that. Returns
/// whether no two sites coincide.
bool merge_row(const Ends &rows, int64_t sites, int64_t leader, double tolerance,
               SpherePairs &pairs) {
    const int32_t *orbit = pairs.orbit.data();
    const int64_t size = rows.begin[leader + 1] - rows.begin[leader];
    End *mean = rows.ends.get() + rows.begin[leader];
    for (int64_t i = leader + 1, count = 2; i < sites; ++i) {
        if (orbit[i] != orbit[leader])
            continue;
        const End *row = rows.ends.get() + rows.begin[i];
        for (int64_t k = 0; k < size; ++k)
            mean[k].distance += (row[k].distance - mean[k].distance) / double(count);
        ++count;
    }
    bool self = true; // until the first pair of the row's own colour
    for (int64_t k = 0; k < size;) {
        const End first = mean[k];
        const bool own = self && first.colour == orbit[leader];
        if (!own && !(first.distance > kSamePlace))
            return false;
        const int64_t next = own ? k + 1 : Ends::shell_end(mean, k, size, tolerance);
        double sum = 0;
        for (int64_t l = k; l < next; ++l) {
            sum += mean[l].distance - first.distance;
            rows.append_vector(mean[l], pairs.vectors);
        }
        self = self && !own;
        pairs.sites.push_back(first.colour);
        pairs.distance.push_back(own ? 0 : first.distance + sum / double(next - k));
        pairs.multiplicity.push_back(int32_t(next - k));
        k = next;
    }
    return true;
}

/// Copies a row unmerged. Returns whether no two sites coincide.
bool copy_row(const Ends &rows, int64_t i, SpherePairs &pairs) {
    int64_t near = 0;
    for (int64_t k = rows.begin[i]; k < rows.begin[i + 1]; ++k) {
        const double distance = rows.by_distance[k].distance;
        const bool zero = !(distance > kSamePlace);
        near += zero;
        pairs.sites.push_back(rows.site_of_image[k]);
        pairs.distance.push_back(zero ? 0 : distance);
        pairs.multiplicity.push_back(1);
        rows.append_vector(rows.by_distance[k], pairs.vectors);
    }
    return near == 1;
}

} // namespace

int64_t count_sphere(const PairInput &input, double radius) {
    const Sphere sphere(input, radius);
    if (!sphere.good)
        return kBadCell;
    int64_t pairs = 0;
    for (int64_t i = 0; i < input.sites; ++i)
        for (int64_t j = 0; j < input.sites; ++j)
            sphere.images(i, j, [&](const double *, double) { ++pairs; });
    return pairs;
}

int64_t find_sphere(const PairInput &input, const SphereOptions &options, SpherePairs &pairs) {
    const int64_t n = input.sites;
    const Sphere sphere(input, options.radius);
    if (!sphere.good)
        return kBadCell;
    if (!(sphere.box() * double(n) * double(n) <= options.most_searched))
        return kTooMany;
    Ends rows(sphere, n, options.vectors);
    pairs.orbit.resize(n);
    pairs.leader.resize(n);
    int64_t orbits = n;
    if (options.merge)
        orbits = find_orbits(input, rows, pairs.orbit.data(), pairs.leader.data());
    else
        for (int64_t i = 0; i < n; ++i)
            pairs.orbit[i] = pairs.leader[i] = int32_t(i);
    pairs.leader.resize(orbits);
    pairs.offsets.push_back(0);
    for (int32_t leader : pairs.leader) {
        const bool apart = options.merge ? merge_row(rows, n, leader, input.tolerance, pairs)
                                         : copy_row(rows, leader, pairs);
        if (!apart)
            return kCoincident;
        pairs.offsets.push_back(int64_t(pairs.sites.size()));
    }
    return orbits;
}

} // namespace sitenet::SITENET_LEVEL

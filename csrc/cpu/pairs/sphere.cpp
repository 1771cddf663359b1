// All periodic images within a radius of each site, merged: what they are does not depend on the
// choice of the cell, and an image of the site itself is a pair like any other.
//
// In the reduced basis B a displacement x + n with |(x + n) B| <= radius has |x_k + n_k| <= radius
// |b*_k|, b* the columns of B^-1: a box of integers for every pair of sites, of which about half
// lie within. The colours are refined as in merge.cpp, on rows that are kept: their number of pairs
// grows with the sites alone. A shell on the sphere's surface counts as inside (1e-6 angstrom).
#include "colours.h"

#include <algorithm>
#include <cstring>

namespace sitenet::SITENET_LEVEL {
namespace {

constexpr double surface = 1e-6; // angstrom

struct End {
    double distance;
    int32_t site, colour;
};

bool nearer(const End &a, const End &b) {
    return a.colour != b.colour ? a.colour < b.colour : a.distance < b.distance;
}

struct Sphere {
    double basis[9], inverse[9], reach[3], radius;
    Buffer<double> points; // (sites, 3) in the reduced basis

    Sphere(const PairInput &input, double radius)
        : radius(radius + surface), points(3 * input.sites) {
        Reduced reduced;
        good = reduce(input.cell, smallest_volume, reduced);
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
            transform(input.frac + 3 * i, to_reduced, points + 3 * i);
    }

    // Calls found(distance) for every image of site j within the radius of site i, in order.
    template <class Found> void images(int64_t i, int64_t j, const Found &found) const {
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
                        found(std::sqrt(square));
                }
    }
    bool good;
};

// All rows, before merging.
struct Ends {
    Ends(const Sphere &sphere, int64_t sites, int64_t size) : begin(sites + 1), ends(size) {
        int64_t at = 0;
        for (int64_t i = 0; i < sites; ++i) {
            begin[i] = at;
            for (int64_t j = 0; j < sites; ++j)
                sphere.images(i, j, [&](double d) { ends[at++] = {d, int32_t(j), 0}; });
        }
        begin[sites] = at;
    }
    // Recolours the rows and sorts them.
    void colour(const int32_t *colours, int64_t sites) {
        for (int64_t k = 0; k < begin[sites]; ++k)
            ends[k].colour = colours[ends[k].site];
        for (int64_t i = 0; i < sites; ++i)
            std::sort(ends + begin[i], ends + begin[i + 1], nearer);
    }
    bool agree(int64_t i, int64_t j, double tolerance) const {
        const int64_t size = begin[i + 1] - begin[i];
        if (size != begin[j + 1] - begin[j])
            return false;
        const End *a = ends + begin[i], *b = ends + begin[j];
        for (int64_t k = 0; k < size; ++k)
            if (a[k].colour != b[k].colour || std::fabs(a[k].distance - b[k].distance) > tolerance)
                return false;
        return true;
    }
    Buffer<int64_t> begin;
    Buffer<End> ends;
};

int64_t find_orbits(const PairInput &input, Ends &rows, int32_t *orbit, int32_t *leader) {
    const int64_t n = input.sites;
    int64_t colours = first_colours(input, orbit, leader);
    Buffer<int32_t> leader_of(n), leaders(n);
    for (int64_t before = 0; colours > before;) {
        before = colours;
        rows.colour(orbit, n);
        int64_t found = 0; // leaders so far
        for (int64_t i = 0; i < n; ++i) {
            int64_t k = 0;
            while (k < found &&
                   (orbit[leaders[k]] != orbit[i] || !rows.agree(leaders[k], i, input.tolerance)))
                ++k;
            if (k == found)
                leaders[found++] = int32_t(i);
            leader_of[i] = leaders[k];
        }
        colours = number_colours(leader_of, n, orbit, leader);
    }
    return colours;
}

// The mean row of an orbit, whose leader's row receives it, as merged pairs.
int64_t merge_row(const Ends &rows, const int32_t *orbit, int64_t sites, int64_t leader,
                  double tolerance, const PairOutput &output, int64_t pairs) {
    const int64_t size = rows.begin[leader + 1] - rows.begin[leader];
    End *mean = rows.ends + rows.begin[leader];
    for (int64_t i = leader + 1, count = 2; i < sites; ++i) {
        if (orbit[i] != orbit[leader])
            continue;
        const End *row = rows.ends + rows.begin[i];
        for (int64_t k = 0; k < size; ++k)
            mean[k].distance += (row[k].distance - mean[k].distance) / double(count);
        ++count;
    }
    bool self = true; // the first pair of the row's own colour
    for (int64_t k = 0; k < size;) {
        const End first = mean[k];
        const bool own = self && first.colour == orbit[leader];
        int64_t next = k + 1;
        double sum = 0;
        for (; !own && next < size && mean[next].colour == first.colour &&
               mean[next].distance - first.distance <= tolerance;
             ++next)
            sum += mean[next].distance - first.distance;
        if (!own && !(first.distance > same_place))
            return coincident;
        self = self && !own;
        output.sites[pairs] = first.colour;
        output.distance[pairs] = own ? 0 : first.distance + sum / double(next - k);
        output.multiplicity[pairs++] = int32_t(next - k);
        k = next;
    }
    return pairs;
}

int64_t copy_rows(const Ends &rows, int64_t sites, const PairOutput &output) {
    for (int64_t i = 0; i < sites; ++i) {
        output.offsets[i + 1] = rows.begin[i + 1];
        int64_t near = 0;
        for (int64_t k = rows.begin[i]; k < rows.begin[i + 1]; ++k) {
            const bool zero = !(rows.ends[k].distance > same_place);
            near += zero;
            output.sites[k] = rows.ends[k].site;
            output.distance[k] = zero ? 0 : rows.ends[k].distance;
            output.multiplicity[k] = 1;
        }
        if (near != 1)
            return coincident;
    }
    return rows.begin[sites];
}

} // namespace

int64_t count_sphere(const PairInput &input, double radius) {
    const Sphere sphere(input, radius);
    if (!sphere.good)
        return bad_cell;
    int64_t pairs = 0;
    for (int64_t i = 0; i < input.sites; ++i)
        for (int64_t j = 0; j < input.sites; ++j)
            sphere.images(i, j, [&](double) { ++pairs; });
    return pairs;
}

int64_t find_sphere(const PairInput &input, double radius, bool merge, int64_t room, int32_t *orbit,
                    int32_t *leader, const PairOutput &output) {
    const int64_t n = input.sites;
    const Sphere sphere(input, radius);
    if (!sphere.good)
        return bad_cell;
    Ends rows(sphere, n, room);
    output.offsets[0] = 0;
    if (!merge) {
        for (int64_t i = 0; i < n; ++i)
            orbit[i] = leader[i] = int32_t(i);
        return copy_rows(rows, n, output);
    }
    const int64_t orbits = find_orbits(input, rows, orbit, leader);
    int64_t pairs = 0;
    for (int64_t own = 0; own < orbits; ++own) {
        pairs = merge_row(rows, orbit, n, leader[own], input.tolerance, output, pairs);
        if (pairs < 0)
            return pairs;
        output.offsets[own + 1] = pairs;
    }
    return pairs;
}

} // namespace sitenet::SITENET_LEVEL

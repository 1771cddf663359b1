// Merged pairs of a crystal with its supercell (what may be merged: ../../pairs.h).
//
// find_orbits is a colour refinement. Sites start with a colour per (number, oxidation, occupancy).
// The row of a site is its distances to all supercell sites, sorted within each colour of the other
// end. Two rows of one colour that differ anywhere by more than the tolerance split it. Each row is
// compared with the first row of each part, so that no chain of small differences joins sites that
// are far apart. The shortest distances come first: they tell most sites apart without sorting.
// Whole rows then split what is left, until nothing splits.
//
// fill_pairs takes the mean of the sorted rows of an orbit's sites. Neighbours within the tolerance
// of the first of a group become one pair at their mean distance, which changes no prediction to
// first order in the differences. The self pair stays alone.
//
// Memory: one row, and the first rows of the colour being split; never sites x supercell sites.
// Time per distance of a row, in double: some 1 ns to compute it and some 10 ns to sort it.
// Single-threaded and deterministic.
#include "colours.h"
#include "sphere.h"
#include "supercell.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace sitenet::SITENET_LEVEL {
namespace {

/// Rows of one width, as many as are appended.
struct Rows {
    int64_t width;
    int64_t size = 0;
    Buffer<double> data;

    explicit Rows(int64_t width) : width(width), data(8 * width) {}
    const double *row(int64_t i) const { return data.get() + i * width; }
    void append(const double *values) {
        if (size * width == int64_t(data.size())) {
            Buffer<double> larger(2 * data.size());
            std::copy_n(data.get(), data.size(), larger.get());
            data = std::move(larger);
        }
        std::copy_n(values, width, data.get() + size++ * width);
    }
};

/// Sites in the order of their colours.
struct Arrangement {
    int64_t colours;
    Buffer<int64_t> begin; ///< (colours + 1), in sites
    Buffer<int32_t> order; ///< (sites)
    Buffer<double> points; ///< (3, stride), the supercell's points in that order

    Arrangement(const Supercell &super, const int32_t *colour, int64_t colours)
        : colours(colours), begin(colours + 1), order(super.sites), points(3 * super.stride) {
        const int64_t n = super.sites, m = super.images;
        for (int64_t i = 0; i < n; ++i)
            ++begin[colour[i] + 1];
        for (int64_t c = 0; c < colours; ++c)
            begin[c + 1] += begin[c];
        Buffer<int64_t> next(colours);
        std::copy_n(begin.get(), colours, next.get());
        for (int64_t i = 0; i < n; ++i) {
            const int64_t to = next[colour[i]]++;
            order[to] = int32_t(i);
            for (int k = 0; k < 3; ++k)
                std::copy_n(&super.points[k * super.stride + i * m], m,
                            &points[k * super.stride + to * m]);
        }
    }
    /// Distances from a site to all supercell sites, ascending within each colour.
    void read_sorted_row(const Supercell &super, int64_t site, double *row) const {
        super.read_row(site, points.get(), row);
        for (int64_t c = 0; c < colours; ++c)
            std::sort(row + begin[c] * super.images, row + begin[c + 1] * super.images,
                      [](double a, double b) { return a < b; });
    }
};

/// A signature of a site: the shortest distances to each of the first colours, some 64 numbers.
struct Shortest {
    int64_t colours;
    int64_t most; ///< distances per colour
    Buffer<double> row;

    Shortest(const Supercell &super, const Arrangement &sites)
        : colours(std::min<int64_t>(sites.colours, 64)), most(colours > 16 ? 64 / colours : 4),
          row(super.size) {}
    int64_t width() const { return colours * most; }
    void read(const Supercell &super, const Arrangement &sites, int64_t site, double *shortest) {
        super.read_row(site, sites.points.get(), row.get());
        for (int64_t c = 0; c < colours; ++c) {
            const double *from = row.get() + sites.begin[c] * super.images;
            const int64_t size = (sites.begin[c + 1] - sites.begin[c]) * super.images;
            const int64_t k = std::min(most, size);
            double *best = shortest + c * most;
            std::fill(best, best + most, 0); // padding, the same in all rows
            std::partial_sort_copy(from, from + size, best, best + k,
                                   [](double a, double b) { return a < b; });
        }
    }
};

/// A signature of a site: its sorted row.
struct Whole {
    int64_t size;

    Whole(const Supercell &super, const Arrangement &) : size(super.size) {}
    int64_t width() const { return size; }
    void read(const Supercell &super, const Arrangement &sites, int64_t site, double *row) {
        sites.read_sorted_row(super, site, row);
    }
};

/// Whether no two entries differ by more than the tolerance.
bool agree(const double *a, const double *b, int64_t size, double tolerance) {
    constexpr int64_t block = 16;
    int64_t k = 0;
    for (; k + block <= size; k += block) {
        int differs = 0;
        for (int64_t l = k; l < k + block; ++l)
            differs |= std::fabs(a[l] - b[l]) > tolerance;
        if (differs)
            return false;
    }
    for (; k < size; ++k)
        if (std::fabs(a[k] - b[k]) > tolerance)
            return false;
    return true;
}

/// Splits every colour whose sites have different signatures. Returns the new number of colours.
template <class Signature>
int64_t split(const Supercell &super, double tolerance, int64_t colours, int32_t *colour,
              int32_t *leader) {
    const Arrangement sites(super, colour, colours);
    Signature signature(super, sites);
    const int64_t width = signature.width();
    Buffer<double> row(width);
    Buffer<int32_t> leader_of(super.sites), leaders(super.sites); // leaders: of one colour's parts
    for (int64_t c = 0; c < colours; ++c) {
        const int64_t begin = sites.begin[c], end = sites.begin[c + 1];
        leader_of[sites.order[begin]] = sites.order[begin];
        if (end - begin == 1)
            continue;
        Rows rows(width);
        for (int64_t at = begin; at < end; ++at) {
            const int32_t site = sites.order[at];
            signature.read(super, sites, site, row.get());
            int64_t k = 0;
            while (k < rows.size && !agree(rows.row(k), row.get(), width, tolerance))
                ++k;
            if (k == rows.size) {
                rows.append(row.get());
                leaders[k] = site;
            }
            leader_of[site] = leaders[k];
        }
    }
    return number_colours(leader_of.get(), super.sites, colour, leader);
}

int64_t find_orbits(const PairInput &input, int32_t *orbit, int32_t *leader) {
    const Supercell super(input);
    if (super.error)
        return super.error;
    const int64_t n = input.sites;
    int64_t colours = first_colours(input, orbit, leader);
    for (int64_t before = 0; colours > before && colours < n;) {
        before = colours;
        colours = split<Shortest>(super, input.tolerance, colours, orbit, leader);
    }
    for (int64_t before = 0; colours > before && colours < n;) {
        before = colours;
        colours = split<Whole>(super, input.tolerance, colours, orbit, leader);
    }
    return colours;
}

/// Merges a sorted row of `own`, one orbit. Returns the number of pairs, or kCoincident.
int64_t merge_row(const Arrangement &sites, int64_t images, const double *row, int64_t own,
                  double tolerance, int32_t *orbit, double *distance, int32_t *multiplicity) {
    int64_t pairs = 0;
    for (int64_t c = 0; c < sites.colours; ++c) {
        int64_t k = sites.begin[c] * images;
        const int64_t end = sites.begin[c + 1] * images;
        for (bool self = c == own; k < end; self = false) {
            const double first = row[k];
            if (!self && !(first > kSamePlace))
                return kCoincident;
            int64_t next = k + 1;
            double sum = 0;
            if (!self)
                for (; next < end && row[next] - first <= tolerance; ++next)
                    sum += row[next] - first;
            orbit[pairs] = int32_t(c);
            distance[pairs] = self ? 0 : first + sum / double(next - k);
            multiplicity[pairs++] = int32_t(next - k);
            k = next;
        }
    }
    return pairs;
}

int64_t fill_merged(const PairInput &input, const Supercell &super, const int32_t *orbit,
                    const PairOutput &output) {
    const int64_t size = super.size;
    const int64_t colours = 1 + *std::max_element(orbit, orbit + super.sites);
    const Arrangement sites(super, orbit, colours);
    Buffer<double> row(size), mean(size);
    int64_t pairs = 0;
    output.offsets[0] = 0;
    for (int64_t own = output.first; own < output.last; ++own) {
        const int64_t begin = sites.begin[own], end = sites.begin[own + 1];
        sites.read_sorted_row(super, sites.order[begin], mean.get());
        for (int64_t at = begin + 1; at < end; ++at) {
            sites.read_sorted_row(super, sites.order[at], row.get());
            for (int64_t k = 0; k < size; ++k)
                mean[k] += (row[k] - mean[k]) / double(at + 1 - begin);
        }
        const int64_t in_row =
            merge_row(sites, super.images, mean.get(), own, input.tolerance, output.sites + pairs,
                      output.distance + pairs, output.multiplicity + pairs);
        if (in_row < 0)
            return in_row;
        pairs += in_row;
        output.offsets[own - output.first + 1] = pairs;
    }
    return pairs;
}

int64_t fill_unmerged(const Supercell &super, const PairOutput &output) {
    const int64_t n = super.sites, m = super.images, size = super.size;
    for (int64_t i = output.first; i < output.last; ++i) {
        const int64_t begin = (i - output.first) * size;
        output.offsets[i - output.first] = begin;
        double *distance = output.distance + begin;
        super.read_row(i, super.points.get(), distance);
        int64_t near = 0;
        for (int64_t k = 0; k < size; ++k)
            near += !(distance[k] > kSamePlace);
        if (near != 1)
            return kCoincident;
        for (int64_t j = 0; j < n; ++j)
            std::fill(output.sites + begin + j * m, output.sites + begin + (j + 1) * m, int32_t(j));
        std::fill(output.multiplicity + begin, output.multiplicity + begin + size, 1);
    }
    const int64_t pairs = (output.last - output.first) * size;
    output.offsets[output.last - output.first] = pairs;
    return pairs;
}

int64_t fill_pairs(const PairInput &input, const int32_t *orbit, const PairOutput &output) {
    const Supercell super(input);
    if (super.error)
        return super.error;
    return orbit ? fill_merged(input, super, orbit, output) : fill_unmerged(super, output);
}

} // namespace

extern const PairKernels pairs = {supercell_matrix, find_orbits, fill_pairs, count_sphere,
                                  find_sphere};

} // namespace sitenet::SITENET_LEVEL

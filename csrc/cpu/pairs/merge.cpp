// find_orbits: colour refinement. Sites start with a colour for (number, oxidation, occupancy). A
// site's row is its distances to all supercell sites, sorted within each colour of the other end;
// rows that differ anywhere by more than the tolerance split their colour. A row is compared with
// the first site of each part, so that no chain of small differences joins what is far apart. First
// only the shortest distances are looked at, which tells most sites apart without sorting; then
// whole rows of those left together, until nothing splits. One row at a time is in memory, and the
// first rows of the colour under way: never sites x supercell sites.
//
// fill_pairs: the row of an orbit is the mean of its sites' sorted rows. Neighbours within the
// tolerance of a group's first become one pair at their mean distance: to first order in the
// differences a model's answer does not change. The self pair stays alone.
//
// Single-threaded and deterministic. Reading a row: images x sites distances in double, some 1 ns
// each; sorting it: some 10 ns each.
#include "colours.h"

#include <algorithm>
#include <cstring>

namespace sitenet::SITENET_LEVEL {

int64_t count_sphere(const PairInput &input, double radius); // sphere.cpp
int64_t find_sphere(const PairInput &input, double radius, bool merge, int64_t room, int32_t *orbit,
                    int32_t *leader, const PairOutput &output);

namespace {

// Growing rows of equal width.
struct Rows {
    explicit Rows(int64_t width) : width(width), capacity(8), data(new double[8 * width]) {}
    ~Rows() { delete[] data; }
    Rows(const Rows &) = delete;
    Rows &operator=(const Rows &) = delete;
    double *row(int64_t i) const { return data + i * width; }
    void append(const double *values) {
        if (size == capacity) {
            double *larger = new double[2 * capacity * width];
            std::memcpy(larger, data, sizeof(double) * size * width);
            delete[] data;
            data = larger;
            capacity *= 2;
        }
        std::memcpy(row(size++), values, sizeof(double) * width);
    }
    int64_t width, size = 0, capacity;
    double *data;
};

// The supercell in coordinates of its reduced basis.
struct Supercell {
    Metric<double> metric;
    int64_t sites, images, size, stride;
    Buffer<double> points; // (3, stride): site by site, its images in order

    explicit Supercell(const PairInput &input, int64_t images)
        : sites(input.sites), images(images), size(input.sites * images), stride(padded(size)),
          points(3 * stride) {
        std::fill(points.data, points.data + 3 * stride, 0);
    }
    // Distances from the first image of a site to the points of an arrangement.
    void read_row(int64_t site, const double *to, double *row) const {
        const double *from = points + site * images;
        distance_row(metric, from[0], from[stride], from[2 * stride], to, stride, size, row);
    }
};

// Gram-Schmidt from the last vector up: S cell has orthogonal rows, S unit upper triangular. The
// axis whose repeated length is least grows by one until the next step would pass max_sites. In
// centred cells the shears are often exact halves, which the published code leaves to the rounding
// errors of LAPACK; here they round up, which is its choice most often.
int64_t supercell_matrix(const double *cell, int64_t sites, int64_t max_sites, int64_t *matrix) {
    Reduced reduced;
    if (!reduce(cell, smallest_volume, reduced))
        return bad_cell;
    const double *a = cell, *b = cell + 3, *c = cell + 6;
    const double b_on_c = dot3(b, c) / dot3(c, c), a_on_c = dot3(a, c) / dot3(c, c);
    double across_b[3], across_a[3];
    for (int k = 0; k < 3; ++k)
        across_b[k] = b[k] - b_on_c * c[k];
    const double a_on_b = dot3(a, across_b) / dot3(across_b, across_b);
    for (int k = 0; k < 3; ++k)
        across_a[k] = a[k] - a_on_b * across_b[k] - a_on_c * c[k];
    const double shear[9] = {1, -a_on_b, a_on_b * b_on_c - a_on_c, 0, 1, -b_on_c, 0, 0, 1};
    const double lengths[3] = {std::sqrt(dot3(across_a, across_a)),
                               std::sqrt(dot3(across_b, across_b)), std::sqrt(dot3(c, c))};
    int64_t repeats[3] = {1, 1, 1};
    for (;;) {
        int axis = 0;
        for (int k = 1; k < 3; ++k)
            if (double(repeats[k]) * lengths[k] < double(repeats[axis]) * lengths[axis])
                axis = k;
        ++repeats[axis];
        if (repeats[0] * repeats[1] * repeats[2] * sites > max_sites) {
            --repeats[axis];
            break;
        }
    }
    for (int row = 0; row < 3; ++row)
        for (int k = 0; k < 3; ++k)
            matrix[3 * row + k] =
                int64_t(std::floor(double(repeats[row]) * shear[3 * row + k] + 0.5 + 1e-9));
    return 0;
}

int64_t determinant(const int64_t *t) {
    return t[0] * (t[4] * t[8] - t[5] * t[7]) - t[1] * (t[3] * t[8] - t[5] * t[6]) +
           t[2] * (t[3] * t[7] - t[4] * t[6]);
}

int64_t count_images(const PairInput &input) { return std::abs(determinant(input.supercell)); }

// Lattice points of the supercell in lexicographic order: integer L with L T^-1 in [0, 1).
void lattice_points(const int64_t *t, int64_t images, int64_t *points) {
    const int64_t sign = determinant(t) < 0 ? -1 : 1;
    int64_t adjugate[9], low[3] = {0, 0, 0}, high[3] = {0, 0, 0};
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
            const int r = (j + 1) % 3, s = (j + 2) % 3, u = (i + 1) % 3, v = (i + 2) % 3;
            adjugate[3 * i + j] =
                sign * (t[3 * r + u] * t[3 * s + v] - t[3 * r + v] * t[3 * s + u]);
        }
    for (int row = 0; row < 3; ++row)
        for (int k = 0; k < 3; ++k)
            (t[3 * row + k] < 0 ? low : high)[k] += t[3 * row + k];
    int64_t found = 0;
    for (int64_t a = low[0]; a <= high[0]; ++a)
        for (int64_t b = low[1]; b <= high[1]; ++b)
            for (int64_t c = low[2]; c <= high[2]; ++c) {
                bool inside = true;
                for (int k = 0; k < 3; ++k) {
                    const int64_t f = a * adjugate[k] + b * adjugate[3 + k] + c * adjugate[6 + k];
                    inside = inside && f >= 0 && f < images;
                }
                if (!inside || found == images)
                    continue;
                points[3 * found] = a;
                points[3 * found + 1] = b;
                points[3 * found + 2] = c;
                ++found;
            }
}

// Returns 0, or bad_cell.
int64_t build(const PairInput &input, Supercell &super) {
    double integer[9], vectors[9], frame[9], inverse[9];
    for (int k = 0; k < 9; ++k)
        integer[k] = double(input.supercell[k]);
    for (int row = 0; row < 3; ++row)
        transform(integer + 3 * row, input.cell, vectors + 3 * row);
    Reduced reduced;
    if (!reduce(vectors, smallest_volume, reduced))
        return bad_cell;
    super.metric = make_metric<double>(reduced.basis);
    for (int row = 0; row < 3; ++row)
        transform(reduced.integer + 3 * row, integer, frame + 3 * row);
    invert(frame, inverse); // coordinates in the cell -> in the reduced basis
    Buffer<int64_t> points(3 * super.images);
    lattice_points(input.supercell, super.images, points);
    for (int64_t site = 0; site < super.sites; ++site)
        for (int64_t image = 0; image < super.images; ++image) {
            double f[3], g[3];
            for (int k = 0; k < 3; ++k)
                f[k] = input.frac[3 * site + k] + double(points[3 * image + k]);
            transform(f, inverse, g);
            for (int k = 0; k < 3; ++k)
                super.points[k * super.stride + site * super.images + image] = wrap(g[k]);
        }
    return 0;
}

// Sites in the order of their colours, and where each colour begins.
struct Arrangement {
    Arrangement(const Supercell &super, const int32_t *colour, int64_t colours)
        : colours(colours), begin(colours + 1), order(super.sites), points(3 * super.stride) {
        const int64_t n = super.sites, m = super.images;
        std::fill(begin.data, begin.data + colours + 1, 0);
        for (int64_t i = 0; i < n; ++i)
            ++begin[colour[i] + 1];
        for (int64_t c = 0; c < colours; ++c)
            begin[c + 1] += begin[c];
        Buffer<int64_t> next(colours);
        std::copy(begin.data, begin.data + colours, next.data);
        for (int64_t i = 0; i < n; ++i) {
            const int64_t to = next[colour[i]]++;
            order[to] = int32_t(i);
            for (int k = 0; k < 3; ++k)
                std::memcpy(points + k * super.stride + to * m,
                            super.points + k * super.stride + i * m, sizeof(double) * m);
        }
        for (int k = 0; k < 3; ++k)
            std::fill(points + k * super.stride + n * m, points + (k + 1) * super.stride, 0);
    }
    // Distances from a site to all supercell sites, ascending within each colour.
    void read_sorted_row(const Supercell &super, int64_t site, double *row) const {
        super.read_row(site, points, row);
        for (int64_t c = 0; c < colours; ++c)
            std::sort(row + begin[c] * super.images, row + begin[c + 1] * super.images,
                      [](double a, double b) { return a < b; });
    }
    int64_t colours;
    Buffer<int64_t> begin; // (colours + 1,) in sites
    Buffer<int32_t> order; // (sites,)
    Buffer<double> points; // (3, stride), in that order
};

// The shortest distances of each of the first colours: some 64 numbers that equal rows share.
struct Shortest {
    Shortest(const Supercell &super, const Arrangement &sites)
        : colours(std::min<int64_t>(sites.colours, 64)), most(colours > 16 ? 64 / colours : 4),
          row(super.size) {}
    int64_t width() const { return colours * most; }
    void read(const Supercell &super, const Arrangement &sites, int64_t site, double *shortest) {
        super.read_row(site, sites.points, row);
        for (int64_t c = 0; c < colours; ++c) {
            const double *from = row + sites.begin[c] * super.images;
            const int64_t size = (sites.begin[c + 1] - sites.begin[c]) * super.images;
            const int64_t k = std::min(most, size);
            double *best = shortest + c * most;
            std::fill(best, best + most, 0); // the same for all rows where there are fewer
            std::partial_sort_copy(from, from + size, best, best + k,
                                   [](double a, double b) { return a < b; });
        }
    }
    int64_t colours, most;
    Buffer<double> row;
};

struct Whole {
    Whole(const Supercell &super, const Arrangement &) : size(super.size) {}
    int64_t width() const { return size; }
    void read(const Supercell &super, const Arrangement &sites, int64_t site, double *row) {
        sites.read_sorted_row(super, site, row);
    }
    int64_t size;
};

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

// One pass of splitting. Returns the number of colours after it.
template <class Signature>
int64_t split(const Supercell &super, double tolerance, int64_t colours, int32_t *colour,
              int32_t *leader) {
    const Arrangement sites(super, colour, colours);
    Signature signature(super, sites);
    const int64_t width = signature.width();
    Buffer<double> row(width);
    Buffer<int32_t> leader_of(super.sites), found(super.sites);
    for (int64_t c = 0; c < colours; ++c) {
        const int64_t begin = sites.begin[c], end = sites.begin[c + 1];
        leader_of[sites.order[begin]] = sites.order[begin];
        if (end - begin == 1)
            continue;
        Rows rows(width);
        for (int64_t at = begin; at < end; ++at) {
            const int32_t site = sites.order[at];
            signature.read(super, sites, site, row);
            int64_t k = 0;
            while (k < rows.size && !agree(rows.row(k), row, width, tolerance))
                ++k;
            if (k == rows.size) {
                rows.append(row);
                found[k] = site;
            }
            leader_of[site] = found[k];
        }
    }
    return number_colours(leader_of, super.sites, colour, leader);
}

int64_t find_orbits(const PairInput &input, int32_t *orbit, int32_t *leader) {
    const int64_t n = input.sites;
    int64_t colours = first_colours(input, orbit, leader);
    const int64_t images = count_images(input);
    if (images == 0)
        return bad_supercell;
    Supercell super(input, images);
    if (const int64_t error = build(input, super))
        return error;
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

// One row of merged pairs. Returns their number, or `coincident`.
int64_t merge_row(const Arrangement &sites, int64_t images, const double *row, int64_t own,
                  double tolerance, int32_t *orbit, double *distance, int32_t *multiplicity) {
    int64_t pairs = 0;
    for (int64_t c = 0; c < sites.colours; ++c) {
        int64_t k = sites.begin[c] * images;
        const int64_t end = sites.begin[c + 1] * images;
        for (bool self = c == own; k < end; self = false) {
            const double first = row[k];
            if (!self && !(first > same_place))
                return coincident;
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
        sites.read_sorted_row(super, sites.order[begin], mean);
        for (int64_t at = begin + 1; at < end; ++at) {
            sites.read_sorted_row(super, sites.order[at], row);
            for (int64_t k = 0; k < size; ++k)
                mean[k] += (row[k] - mean[k]) / double(at + 1 - begin);
        }
        const int64_t found =
            merge_row(sites, super.images, mean, own, input.tolerance, output.sites + pairs,
                      output.distance + pairs, output.multiplicity + pairs);
        if (found < 0)
            return found;
        pairs += found;
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
        super.read_row(i, super.points, distance);
        int64_t near = 0;
        for (int64_t k = 0; k < size; ++k)
            near += !(distance[k] > same_place);
        if (near != 1)
            return coincident;
        for (int64_t j = 0; j < n; ++j)
            std::fill(output.sites + begin + j * m, output.sites + begin + (j + 1) * m, int32_t(j));
        std::fill(output.multiplicity + begin, output.multiplicity + begin + size, 1);
    }
    const int64_t pairs = (output.last - output.first) * size;
    output.offsets[output.last - output.first] = pairs;
    return pairs;
}

int64_t fill_pairs(const PairInput &input, const int32_t *orbit, const PairOutput &output) {
    const int64_t images = count_images(input);
    if (images == 0)
        return bad_supercell;
    Supercell super(input, images);
    if (const int64_t error = build(input, super))
        return error;
    return orbit ? fill_merged(input, super, orbit, output) : fill_unmerged(super, output);
}

} // namespace

extern const MergeKernels merge = {supercell_matrix, find_orbits, fill_pairs, count_sphere,
                                   find_sphere};

} // namespace sitenet::SITENET_LEVEL

// The supercell of a crystal: its matrix, its lattice points, and its sites in reduced coordinates.
#pragma once

#include "../../geometry.h"
#include "../../pairs.h"
#include "../buffer.h"
#include "colours.h"

#include <algorithm>
#include <cstdlib>

namespace sitenet::SITENET_LEVEL {
namespace {

// Gram-Schmidt from the last vector up: S cell has orthogonal rows, with S unit upper triangular.
// The axis whose repeated length is least grows by one until the next step would exceed max_sites.
// In centred cells the shears are often exact halves. The published code leaves those to rounding
// errors of LAPACK; here they round up, which is what it does most often.
int64_t supercell_matrix(const double *cell, int64_t sites, int64_t max_sites, int64_t *matrix) {
    Reduced reduced;
    if (!reduce(cell, kSmallestCellVolume, reduced))
        return kBadCell;
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

/// Lattice points of the supercell T in lexicographic order: the integer L with L T^-1 in [0, 1).
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
    int64_t count = 0;
    for (int64_t a = low[0]; a <= high[0]; ++a)
        for (int64_t b = low[1]; b <= high[1]; ++b)
            for (int64_t c = low[2]; c <= high[2]; ++c) {
                bool inside = true;
                for (int k = 0; k < 3; ++k) {
                    const int64_t f = a * adjugate[k] + b * adjugate[3 + k] + c * adjugate[6 + k];
                    inside = inside && f >= 0 && f < images;
                }
                if (!inside || count == images)
                    continue;
                points[3 * count] = a;
                points[3 * count + 1] = b;
                points[3 * count + 2] = c;
                ++count;
            }
}

/// The sites of a supercell in coordinates of its reduced basis.
struct Supercell {
    Metric<double> metric;
    int64_t sites;         ///< of the primitive cell
    int64_t images;        ///< per site
    int64_t size;          ///< sites * images
    int64_t stride;        ///< size, rounded up
    Buffer<double> points; ///< (3, stride), site by site, the images of a site in order
    int64_t error;         ///< 0, kBadCell or kBadSupercell, which leaves the rest unset

    explicit Supercell(const PairInput &input)
        : sites(input.sites), images(count_images(input)), size(sites * images),
          stride(padded(size)), points(3 * stride), error(images ? place(input) : kBadSupercell) {}

    /// Distances from a site's first image to `to`, points in any arrangement.
    void read_row(int64_t site, const double *to, double *row) const {
        const double *from = points.get() + site * images;
        distance_row(metric, from[0], from[stride], from[2 * stride], to, stride, size, row);
    }

  private:
    int64_t place(const PairInput &input) {
        double integer[9], vectors[9], frame[9], inverse[9];
        for (int k = 0; k < 9; ++k)
            integer[k] = double(input.supercell[k]);
        for (int row = 0; row < 3; ++row)
            transform(integer + 3 * row, input.cell, vectors + 3 * row);
        Reduced reduced;
        if (!reduce(vectors, kSmallestCellVolume, reduced))
            return kBadCell;
        metric = make_metric<double>(reduced.basis);
        for (int row = 0; row < 3; ++row)
            transform(reduced.integer + 3 * row, integer, frame + 3 * row);
        invert(frame, inverse); // from coordinates in the cell to those in the reduced basis
        Buffer<int64_t> lattice(3 * images);
        lattice_points(input.supercell, images, lattice.get());
        for (int64_t site = 0; site < sites; ++site)
            for (int64_t image = 0; image < images; ++image) {
                double f[3], g[3];
                for (int k = 0; k < 3; ++k)
                    f[k] = input.frac[3 * site + k] + double(lattice[3 * image + k]);
                transform(f, inverse, g);
                for (int k = 0; k < 3; ++k)
                    points[k * stride + site * images + image] = wrap(g[k]);
            }
        return 0;
    }
};

} // namespace
} // namespace sitenet::SITENET_LEVEL

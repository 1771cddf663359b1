// A batch of crystals from a store of pairs, padded to fixed sizes (sitenet/pairs/store.py).
//
// The store holds the rows of all crystals one after another, the pairs of all rows, and the images
// of all pairs; the batch those of the crystals in `index`. Numbers -1 - c at the end of index stand
// for padding crystals, whose rows repeat the first row of crystal c, the same one for all of them.
// Each has one row, the last one all rows that are left over. The pairs that are
// left over are shared evenly by those rows, as pairs of a row with itself, and the images that are
// left over by those pairs, as their multiplicity. With `places` that share `total`, place k gets
//
//   share(k) = floor((k + 1) total / places) - floor(k total / places)
//
// so that what place k gets begins at floor(k total / places), and number q belongs to place
// floor(((q + 1) places - 1) / total).
#pragma once

#include "host_device.h"

#include <cstdint>

namespace sitenet {

struct PaddedBatchShape {
    int64_t pairs;
    int64_t images; ///< 0 without vectors
    int places;     ///< crystals, padding included
    int rows;
};

struct PaddedBatch {
    PaddedBatchShape shape;
    const int64_t *index;            ///< (places), numbers in the store, or -1 - number for padding
    const int64_t *row_of_crystal;   ///< store: (crystals + 1), first row
    const int64_t *pair_of_row;      ///< store: (rows + 1), first pair
    const int64_t *image_of_crystal; ///< store: (crystals + 1), first image; null without vectors
    const int32_t *stored_num_sites; ///< store: (crystals)
    const int32_t *stored_images;    ///< store: (crystals)
    const uint8_t *stored_numbers;   ///< store: (rows)
    const float *stored_oxidation;   ///< store: (rows)
    const int32_t *stored_count;     ///< store: (rows)
    const int32_t *stored_sites;     ///< store: (pairs), from the crystal's first row
    const float *stored_distance;    ///< store: (pairs)
    const int32_t *stored_multiplicity; ///< store: (pairs)
    const float *stored_vectors;        ///< store: (images, 3); null without vectors
    int64_t *crystals;                  ///< (places + 1), first row
    int64_t *num_sites;                 ///< (places)
    int64_t *supercell;                 ///< (places), supercell sites per site
    int64_t *offsets;                   ///< (rows + 1), first pair
    int64_t *numbers;                   ///< (rows)
    float *oxidation;                   ///< (rows)
    int32_t *count;                     ///< (rows)
    int32_t *sites;                     ///< (pairs), row
    float *distance;                    ///< (pairs)
    int32_t *multiplicity;              ///< (pairs)
    float *vectors;                     ///< (images, 3)
};

/// The crystal that a place of index holds or repeats.
static SITENET_HD int64_t stored_crystal(int64_t number) {
    return number < 0 ? -1 - number : number;
}

/// Where the share of a place begins.
static SITENET_HD int64_t share_begin(int64_t place, int64_t places, int64_t total) {
    return place * total / places;
}

/// The place that number q of the total belongs to.
static SITENET_HD int64_t place_of_share(int64_t q, int64_t places, int64_t total) {
    return ((q + 1) * places - 1) / total;
}

} // namespace sitenet

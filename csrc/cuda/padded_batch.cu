// A padded batch on the GPU (formulas and layouts: ../padded_batch.h): two kernels in place of some
// seventy operations, which a training step would start one after another.
//   begins   one warp adds up the rows, pairs and images of the crystals; a lane takes consecutive
//            crystals
//   gather   a thread per crystal, row, pair and image of the batch finds its crystal by binary
//            search, and copies
//
// Memory traffic: 12 bytes of the store and 24 of the batch per row, 12 and 12 per pair, 12 and 12
// per image.
#include "kernels.h"
#include "launch.cuh"

namespace sitenet::cuda {
namespace {

enum { kRows, kPairs, kImages, kLevels };
constexpr int kGatherThreads = 256;

/// What begins_kernel leaves for gather_kernel.
struct Begins {
    int64_t *in_batch[kLevels]; ///< (places + 1), first row, pair and image; padding has none
    int64_t *in_store[kLevels]; ///< (places), likewise; padding stands at what it repeats
    int64_t *crystals;          ///< (1), crystals that are no padding
    int64_t bytes;

    Begins(const PaddedBatchShape &s, void *memory) {
        Scratch scratch(memory);
        for (int level = 0; level < kLevels; ++level) {
            in_batch[level] = scratch.take<int64_t>(s.places + 1);
            in_store[level] = scratch.take<int64_t>(s.places);
        }
        crystals = scratch.take<int64_t>(1);
        bytes = scratch.bytes();
    }
};

/// Sum over this lane and those before it.
__device__ inline int64_t sum_of_lanes_before(int64_t x) {
    const int lane = threadIdx.x % kWarp;
    for (int step = 1; step < kWarp; step *= 2) {
        const int64_t before = __shfl_sync(kAllLanes, x, lane >= step ? lane - step : lane);
        x += lane >= step ? before : 0;
    }
    return x;
}

/// First row, pair and image of a crystal in the store.
__device__ inline void begins_in_store(const PaddedBatch &p, int64_t crystal, int64_t *begins) {
    begins[kRows] = p.row_of_crystal[crystal];
    begins[kPairs] = p.pair_of_row[begins[kRows]];
    begins[kImages] = p.image_of_crystal ? p.image_of_crystal[crystal] : 0;
}

__global__ void begins_kernel(PaddedBatch p, Begins to) {
    const int places = p.shape.places, per_lane = int(divide_up(places, kWarp));
    const int first = threadIdx.x * per_lane < unsigned(places) ? threadIdx.x * per_lane : places;
    const int last = first + per_lane < places ? first + per_lane : places;
    int64_t sums[kLevels] = {}, real = 0;
    for (int k = first; k < last; ++k) {
        const int64_t crystal = p.index[k];
        int64_t begins[kLevels], ends[kLevels];
        begins_in_store(p, stored_crystal(crystal), begins);
        if (crystal >= 0) {
            begins_in_store(p, crystal + 1, ends);
            ++real;
        }
        for (int level = 0; level < kLevels; ++level) {
            to.in_store[level][k] = begins[level];
            to.in_batch[level][k] = sums[level]; // of this lane so far
            sums[level] += crystal < 0 ? 0 : ends[level] - begins[level];
        }
    }
    const int64_t crystals = sum_of_lanes_before(real);
    for (int level = 0; level < kLevels; ++level) {
        const int64_t end = sum_of_lanes_before(sums[level]), before = end - sums[level];
        for (int k = first; k < last; ++k)
            to.in_batch[level][k] += before;
        if (threadIdx.x == kWarp - 1)
            to.in_batch[level][places] = end;
    }
    if (threadIdx.x == kWarp - 1)
        *to.crystals = crystals;
}

/// One row, pair or image of the batch: its crystal, and its place in the store.
struct Source {
    int crystal;
    int64_t at;

    __device__ Source(const Begins &begins, int level, int places, int64_t number) {
        const int64_t *list = begins.in_batch[level];
        int low = 0, high = places; // list[low] <= number < list[high]
        while (high - low > 1) {
            const int middle = low + (high - low) / 2;
            (list[middle] <= number ? low : high) = middle;
        }
        crystal = low;
        at = begins.in_store[level][low] + number - list[low];
    }
};

__device__ void gather_crystal(const PaddedBatch &p, const Begins &begins, int64_t k) {
    const int places = p.shape.places;
    const int64_t padding = k - *begins.crystals;
    p.crystals[k] =
        k == places ? p.shape.rows : begins.in_batch[kRows][k] + (padding > 0 ? padding : 0);
    if (k == places)
        return;
    const int64_t crystal = stored_crystal(p.index[k]);
    p.num_sites[k] = p.stored_num_sites[crystal];
    p.supercell[k] = p.stored_images[crystal];
}

__device__ void gather_row(const PaddedBatch &p, const Begins &begins, int64_t row) {
    const PaddedBatchShape &s = p.shape;
    const int64_t rows = begins.in_batch[kRows][s.places],
                  pairs = begins.in_batch[kPairs][s.places];
    if (row == s.rows) {
        p.offsets[row] = s.pairs;
        return;
    }
    int64_t at = begins.in_store[kRows][s.places - 1]; // of padding, which is never missing
    if (row < rows) {
        const Source source(begins, kRows, s.places, row);
        at = source.at;
        p.offsets[row] = p.pair_of_row[at] - begins.in_store[kPairs][source.crystal] +
                         begins.in_batch[kPairs][source.crystal];
    } else {
        p.offsets[row] = pairs + share_begin(row - rows, s.rows - rows, s.pairs - pairs);
    }
    p.numbers[row] = p.stored_numbers[at];
    p.oxidation[row] = p.stored_oxidation[at];
    p.count[row] = p.stored_count[at];
}

__device__ void gather_pair(const PaddedBatch &p, const Begins &begins, int64_t pair) {
    const PaddedBatchShape &s = p.shape;
    const int64_t rows = begins.in_batch[kRows][s.places],
                  pairs = begins.in_batch[kPairs][s.places];
    if (pair < pairs) {
        const Source source(begins, kPairs, s.places, pair);
        p.sites[pair] = p.stored_sites[source.at] + int32_t(begins.in_batch[kRows][source.crystal]);
        p.distance[pair] = p.stored_distance[source.at];
        p.multiplicity[pair] = p.stored_multiplicity[source.at];
        return;
    }
    const int64_t q = pair - pairs, left = s.pairs - pairs;
    const int64_t images = s.images - begins.in_batch[kImages][s.places];
    p.sites[pair] = int32_t(rows + place_of_share(q, s.rows - rows, left));
    p.distance[pair] = 1;
    p.multiplicity[pair] =
        s.images ? int32_t(share_begin(q + 1, left, images) - share_begin(q, left, images)) : 1;
}

__device__ void gather_image(const PaddedBatch &p, const Begins &begins, int64_t image) {
    const int places = p.shape.places;
    const bool real = image < begins.in_batch[kImages][places];
    const int64_t at = real ? Source(begins, kImages, places, image).at : 0;
    for (int axis = 0; axis < 3; ++axis)
        p.vectors[3 * image + axis] = real ? p.stored_vectors[3 * at + axis] : 0.0f;
}

__global__ void gather_kernel(PaddedBatch p, Begins begins) {
    const PaddedBatchShape &s = p.shape;
    int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i <= s.places)
        return gather_crystal(p, begins, i);
    if ((i -= s.places + 1) <= s.rows)
        return gather_row(p, begins, i);
    if ((i -= s.rows + 1) < s.pairs)
        return gather_pair(p, begins, i);
    if ((i -= s.pairs) < s.images)
        gather_image(p, begins, i);
}

} // namespace

int64_t padded_batch_scratch(const PaddedBatchShape &s) { return Begins(s, nullptr).bytes; }

void padded_batch(const PaddedBatch &p, void *memory, void *handle) {
    const char *op = "padded_batch";
    const auto stream = static_cast<cudaStream_t>(handle);
    const PaddedBatchShape &s = p.shape;
    const Begins begins(s, memory);
    const int64_t threads = int64_t(s.places) + s.rows + 2 + s.pairs + s.images;
    LAUNCH(op, begins_kernel, 1, kWarp, 0, stream, p, begins);
    LAUNCH(op, gather_kernel, grid_of(divide_up(threads, kGatherThreads)), kGatherThreads, 0,
           stream, p, begins);
}

} // namespace sitenet::cuda

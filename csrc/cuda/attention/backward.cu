// The attention block on the GPU, backward pass (formulas and layouts: ../../attention.h).
//
// z is computed again from e and the states of sites; the norm of the hidden columns and the logits
// come from the forward pass (AttentionForwardKept). Pairs go in slabs of 50,688, because
// dz (the gradient of z, in bfloat16 or T) is as wide as the columns: 32 MB per slab in bfloat16,
// which stays in the second-level cache. pack_backward_kernel lays out what all slabs read
// (backward_packing.cuh). Then, per slab, in this order on the stream:
//   1. gradient_kernel, a warp per 16 pairs (backward_gradient.cuh): the attention and interaction
//      columns once for their norms, then all columns for dz; one partial sum of grad_logit_weight
//      per block. For known shapes (known_shapes.cuh) also grad_e = dz W.
//   2. For any other shape grad_e_kernel, a warp per 16 pairs (backward_products.cuh): dz W.
//   3. grad_weight_kernel, a warp per 32 columns and 512 pairs: partial sums of dz^T e.
//   4. sum_sites_kernel, blocks that go through the rows of grad_site_i and grad_site_j with pairs
//      in the slab, and sum the dz of those pairs: the consecutive pairs of row i, and the pairs of
//      site j that `pairs_of_site` lists.
//   5. sum_weight_kernel and sum_logit_parts_kernel: the partial sums of steps 3 and 1
//      (backward_sums.cuh).
// sum_logit_weight_kernel follows the last slab.
//
// Memory traffic per pair at the published size in bfloat16: 96 bytes of e and 96 of grad_e_out in,
// 96 of grad_e out, some 40 of indices, 20 of statistics. Through the second-level cache: 640 bytes
// of dz written once and read three times, 96 of e as fragments written once and read five times,
// 165 of partial sums; 3.3 KB in all, and 4 where grad_e_kernel reads dz once more.
//
// Operations per pair for the shape of `paper`, from the compiled loops (sm_90, counted by
// bench/count_instructions.py), per 16 pairs and 16 columns: 170 to 190 instructions for the norms
// and 250 to 270 for dz and grad_e. That is 94 clocks of a multiprocessor per pair at 4
// instructions per clock, while the special-function units take 50, and 14 more for steps 3 and 4,
// which the cache bounds.
//
// Predicted floor on an H100 or H200 (132 multiprocessors, 1.75 GHz, 5 TB/s of second-level cache),
// not measured: 0.5 ns for dz and 0.5 ns for the rest, 1 G pairs/s. With waits for loads, forward
// and backward are expected to reach 0.5 G pairs/s together (bench/results/cuda.md). In float about
// a quarter of that, from the products and twice the bytes.
//
// No atomics. Results are bitwise reproducible and do not depend on the number of multiprocessors.
#include "backward_gradient.cuh"
#include "backward_packing.cuh"
#include "backward_products.cuh"
#include "backward_sums.cuh"

namespace sitenet::cuda {
namespace {

/// Launches the kernels of the pairs begin to end - 1.
template <class T, class E>
void run_slab(const AttentionBackwardKept<T, E> &p, const BackwardScratch<T, E> &scratch,
              int64_t begin, int64_t end, cudaStream_t stream) {
    const char *op = "attention_backward";
    const AttentionShape &s = p.shape;
    const Columns &columns = scratch.packed.columns;
    const int threads = kBlockWarps * kWarp, padded_hidden = scratch.packed.padded_hidden();
    const int64_t bytes = gradient_room(s, padded_hidden) * int64_t(sizeof(T));
    const int warps = warps_in_shared(op, bytes, 0, kBlockWarps,
                                      std::to_string(s.heads) + " heads x " +
                                          std::to_string(s.hidden) + " hidden units");
    const int64_t groups = divide_up(end - begin, kGroup), blocks = divide_up(groups, warps);
    const int64_t splits = divide_up(end - begin, kSplit);
    const bool accumulate = begin > 0;
    with_known_shape<E>(s, [&](auto shape) {
        using S = decltype(shape);
        LAUNCH(op, (gradient_kernel<T, E, S>), grid_of(blocks), warps * kWarp, warps * bytes,
               stream, p, scratch, begin, end);
        if constexpr (!S::kProducts)
            LAUNCH(op, (grad_e_kernel<T, E>), grid_of(divide_up(groups, kBlockWarps)), threads, 0,
                   stream, p, scratch, begin, end);
    });
    LAUNCH(op, (grad_weight_kernel<T, E>),
           grid_of(splits, int(divide_up(columns.steps, kWeightSteps * kBlockWarps)),
                   int(divide_up(s.width, kTileWidth))),
           threads, 0, stream, p, scratch, begin, end);
    const int most = s.rows > s.sites ? s.rows : s.sites;
    LAUNCH(op, (sum_sites_kernel<T, E>),
           grid_of(most < kSumBlocks ? most : kSumBlocks,
                   int(divide_up(columns.padded(), 4 * kWarp)), 2),
           threads, 4 * threads * sizeof(T), stream, p, scratch, begin, end);
    const int sum_bytes = kSumThreads * int(sizeof(T));
    LAUNCH(op, sum_weight_kernel<T>,
           grid_of(divide_up(int64_t(columns.padded()) * scratch.padded_width, kWarp)), kSumThreads,
           sum_bytes, stream, scratch.weight_partials, splits, columns, s.width,
           scratch.padded_width, accumulate, p.grad_weight);
    const int64_t size = int64_t(s.heads) * padded_hidden;
    LAUNCH(op, sum_logit_parts_kernel<T>, grid_of(divide_up(size, kWarp), kLogitParts), kSumThreads,
           sum_bytes, stream, scratch.logit_partials, blocks, size,
           scratch.logit_parts + begin / kSlab * kLogitParts * size);
}

} // namespace

template <class T, class E> int64_t attention_backward_scratch(const AttentionShape &shape) {
    Scratch scratch(nullptr);
    BackwardScratch<T, E>(shape, scratch);
    return scratch.bytes();
}

template <class T, class E>
void attention_backward(const AttentionBackwardKept<T, E> &p, void *memory, void *handle) {
    const char *op = "attention_backward";
    const AttentionShape &s = p.shape;
    const auto stream = static_cast<cudaStream_t>(handle);
    Scratch carved(memory);
    const BackwardScratch<T, E> scratch(s, carved);
    scratch.packed.check_size(op, s);
    const PackBlocks<T, E> blocks(s, scratch.packed);
    LAUNCH(op, (pack_backward_kernel<T, E>), grid_of(blocks.total()), kPackThreads, kPackShared,
           stream, p, scratch, blocks);
    for (int64_t begin = 0; begin == 0 || begin < s.pairs; begin += kSlab)
        run_slab(p, scratch, begin, begin + kSlab < s.pairs ? begin + kSlab : s.pairs, stream);
    const int padded_hidden = scratch.packed.padded_hidden();
    LAUNCH(op, sum_logit_weight_kernel<T>,
           grid_of(divide_up(int64_t(s.heads) * padded_hidden, kWarp)), kSumThreads,
           kSumThreads * int(sizeof(T)), stream, scratch.logit_parts, slabs_of(s) * kLogitParts,
           s.heads, s.hidden, padded_hidden, p.grad_logit_weight);
}

#define INSTANTIATE(T, E)                                                                          \
    template int64_t attention_backward_scratch<T, E>(const AttentionShape &);                     \
    template void attention_backward<T, E>(const AttentionBackwardKept<T, E> &, void *, void *);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, uint16_t)
INSTANTIATE(float, Tf32)
#undef INSTANTIATE

} // namespace sitenet::cuda

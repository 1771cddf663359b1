// The attention block on the CPU (formulas and layouts: ../../attention.h).
//
// The rows are cut into parts with equal numbers of pairs, kPartsPerThread per thread. A free thread
// takes the next part and walks through its pairs in tiles of kTile, across the borders of rows.
// Per tile:
//   1. products.h: z = W e + site_i + site_j, for kTileRows pairs and kTileVectors vectors of
//      columns at a time. The activation (and its derivative, in the backward pass) is applied to
//      the sums while they are in registers, so z is never stored.
//   2. norms.h: mean and variance of each group of columns, and the logits.
//   3. forward.h: the online softmax of the tile's rows, the weighted sums, and e_out.
//      backward.h: dz, then grad_e = dz W, grad_W += dz^T e, and the gradients of the site terms.
// Memory traffic per pair: e in and e_out out, in the backward pass also both gradients. All that
// is as wide as the columns lives in a tile of some 60 KB, in the second-level cache.
//
// Multiplications bound the time. A Zen 4 core starts one 512-bit multiplication per cycle (fp32,
// or twice as many products in bf16); additions, comparisons, integers and most shuffles run beside
// it (a lookup in a register costs a third). Multiplications per pair at the published size, in 19
// vectors of columns:
//
//                        products     activation   norms, logits    all    cycles measured
//   forward   fp32         912          19 * 14         80         1260        1610
//             bf16         456          19 * 4.3        80          620         850
//   backward  fp32      3 * 912         19 * 16        220         3260        4350
//             bf16      3 * 456         19 * 8.7       270         1800        2600
//
// (one core at 3.68 GHz, CPU time, rows of 500 pairs). Memory does not limit: 400 bytes per pair
// forward, 800 backward.
//
// grad_site_j, grad_weight and grad_logit_weight are summed per part and then over parts in order,
// so results are bitwise reproducible for a given number of threads.
#include "../../attention.h"
#include "backward.h"
#include "forward.h"
#include "pair_embedding.h"

namespace sitenet::SITENET_LEVEL {
namespace {

template <class T, class E> void forward(const AttentionForward<T, E> &p, int threads) {
    const AttentionShape &s = p.shape;
    const Columns<T> columns(s.hidden, s.attention, s.interaction);
    threads = useful_threads(threads, s.pairs * columns.count * s.width, kThreadProducts);
    const int parts = num_parts(threads);
    const Weights<T, E> weights(p.weight, s.width, columns, false);
    const LogitWeights<T> logit_weights(p.logit_weight, s.heads, s.hidden);
    const Buffer<T> site_i = pack_rows(p.site_i, s.rows, columns, threads);
    const Buffer<T> site_j = pack_rows(p.site_j, s.sites, columns, threads);
    const std::vector<int> first = shares(p.offsets, s.rows, parts);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int i = 0; i < parts; ++i)
        ForwardRows<T, E>(p, columns, weights, logit_weights, site_i.get(), site_j.get())
            .run(first[i], first[i + 1]);
}

template <class T, class E> void backward(const AttentionBackward<T, E> &p, int threads) {
    const AttentionShape &s = p.shape;
    const Columns<T> columns(s.hidden, s.attention, s.interaction);
    threads = useful_threads(threads, 3 * s.pairs * columns.count * s.width, kThreadProducts);
    const int parts = num_parts(threads);
    const Weights<T, E> weights(p.weight, s.width, columns, true);
    const LogitWeights<T> logit_weights(p.logit_weight, s.heads, s.hidden);
    const RowGradients<T> rows(s, columns.vectors[1], p.y, p.grad_y, threads);
    const Buffer<T> site_i = pack_rows(p.site_i, s.rows, columns, threads);
    const Buffer<T> site_j = pack_rows(p.site_j, s.sites, columns, threads);
    const std::vector<int> first = shares(p.offsets, s.rows, parts);
    std::vector<Sums<T>> sums(parts);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int i = 0; i < parts; ++i)
        BackwardRows<T, E>(p, columns, weights, logit_weights, rows, site_i.get(), site_j.get())
            .run(first[i], first[i + 1], sums[i]);
    add_up(sums, p, columns, threads);
}

} // namespace

#ifndef SITENET_BF16_ONLY
extern const AttentionKernels<float, float> attention_f32 = {
    forward<float, float>, backward<float, float>, pair_embedding_forward<float, float>,
    pair_embedding_backward<float, float>};
extern const AttentionKernels<double, double> attention_f64 = {
    forward<double, double>, backward<double, double>, pair_embedding_forward<double, double>,
    pair_embedding_backward<double, double>};
#endif
extern const AttentionKernels<float, uint16_t> attention_bf16 = {
    forward<float, uint16_t>, backward<float, uint16_t>, pair_embedding_forward<float, uint16_t>,
    pair_embedding_backward<float, uint16_t>};

} // namespace sitenet::SITENET_LEVEL

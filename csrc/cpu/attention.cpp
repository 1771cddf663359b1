// The attention block on the CPU (see ../attention.h for the formulas and layouts).
//
// The rows are cut into parts of equal numbers of pairs, kPartsPerThread per thread. A thread takes
// the next part when it is free, and walks through its pairs in tiles of kTile, across row
// boundaries. Per tile:
//   1. products.h: z = W e + site_i + site_j, kTileRows pairs and kTileVectors vectors of columns
//      at a time; the activation (and its derivative, going backward) is taken from sums in
//      registers, or in bfloat16 while the next ones grow, so z is never stored;
//   2. norms.h: mean and variance of each group of columns, and the logits;
//   3. forward.h: the online softmax of the tile's rows, the weighted sums, e_out;
//      backward.h: dz in place of the derivative, then grad_e = dz W, grad_W += dz^T e, and the
//      gradients of the site terms as running sums.
// Memory traffic per pair: e in, e_out out (backward: both gradients too); everything of width
// `columns` stays in a tile of some 60 KB in the second-level cache.
//
// What bounds it: the units that multiply. A Zen 4 core starts one 512-bit multiplication a cycle
// (fp32, or twice as many products in bf16); additions, comparisons, integers and most shuffles go
// beside it (a lookup in a register costs a third). Multiplications a pair at the published size,
// in 19 vectors of columns:
//                        products     activation   norms, logits    all    cycles measured
//   forward   fp32         912          19 * 14         80         1260        1610
//             bf16         456          19 * 4.3        80          620         850
//   backward  fp32      3 * 912         19 * 16        220         3260        4350
//             bf16      3 * 456         19 * 8.7       270         1800        2600
// (one core at 3.68 GHz, CPU time; rows of 500). Memory takes no part: 400 bytes a pair forward,
// 800 backward.
//
// Groups of columns stand side by side in a row, padded to whole vectors only at its end; sums over
// a group mask the lanes of its last vector that are another's.
//
// grad_site_j, grad_weight and grad_logit_weight are summed per part and then over parts in order:
// results are bitwise reproducible for a given number of threads.
#include "../attention.h"
#include "backward.h"
#include "embedding.h"
#include "forward.h"

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

extern const AttentionKernels attention = {
    forward<float, float>,
    forward<double, double>,
    forward<float, uint16_t>,
    backward<float, float>,
    backward<double, double>,
    backward<float, uint16_t>,
    embedding_forward<float, float>,
    embedding_forward<double, double>,
    embedding_forward<float, uint16_t>,
    embedding_backward<float, float>,
    embedding_backward<double, double>,
    embedding_backward<float, uint16_t>,
};

} // namespace sitenet::SITENET_LEVEL

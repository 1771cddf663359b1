// The attention block on the GPU, backward (formulas and layouts: ../attention.h).
//
// Everything is computed again from e and the states of sites. Pairs go in slabs of 65,536, whose
// dz (the gradient of z, in bfloat16 or T) is the one array as wide as the columns; 42 MB in
// bfloat16, it stays in the second-level cache. For each slab, in this order on the stream:
//   1. gradient_kernel, a warp for 16 pairs (fragments.h): the columns once for the norms, logits
//      and softmax weights, then again for dz; grad_logit_weight as one partial sum a block;
//   2. grad_e_kernel, a warp for 16 pairs: dz W;
//   3. grad_weight_kernel, a warp for 32 columns and 512 pairs: partial sums of dz^T e;
//   4. sum_sites_kernel, a block for a row of grad_site_i or grad_site_j: its pairs' dz, pairs of
//      row i being consecutive and those of site j listed by `pairs_of_site`;
//   5. sum_partials_kernel: the partial sums of 1 and 3, in order.
//
// Memory traffic per pair at the published size in bfloat16: 96 bytes of e and 96 of grad_e_out in,
// 96 of grad_e out, some 40 of indices; through the second-level cache 640 bytes of dz written and
// read four times, e twice again, 165 of partial sums: 3.6 KB.
//
// Operations per pair: 2 * 320 activations of 2 operations on the special-function units (80
// clocks a multiprocessor at 16), 320 * (17 + 32) others (123 clocks at 128), 12 shuffles for each
// 16 hidden columns and 16 pairs (11 clocks), 3 * 2 * 48 * 320 FLOP on the tensor cores (24
// clocks). Predicted floor on an H100 or H200 (132 multiprocessors, 1.75 GHz, 5 TB/s of
// second-level cache): 0.60 ns for dz and 0.7 ns for the cache, together 0.75 G pairs/s; with the
// forward 0.65 G pairs/s. In float about 4 times that, by the products. Not measured: no GPU was at
// hand.
//
// No atomics. Results are bitwise reproducible and do not depend on the machine.
#include "kernels.h"
#include "packing.h"

namespace sitenet::cuda {
namespace {

#ifndef SITENET_SLAB
#define SITENET_SLAB 65536 // less in the tests on the CPU
#endif
constexpr int64_t kSlab = SITENET_SLAB; // pairs
constexpr int kSplit = 512;             // pairs whose dz^T e one warp sums
constexpr int kWeightSteps = 2;         // steps of columns it sums them for
constexpr int kTileWidth = 8 * kTiles;
static_assert(kSlab % kSplit == 0 && kSplit % kGroup == 0, "slabs are whole groups");

template <class T, class E> struct BackwardScratch {
    Packed<T, E> packed;
    void *back_weight;      // W for dz W: fragments, or (padded columns, padded width)
    T *y_dot, *grad_y_sums; // (rows, heads): y . grad_y, sum of grad_y
    E *dz;                  // (pairs of a slab, padded columns), zero beyond the last pair
    T *weight_partials;     // (splits, padded columns, padded width)
    T *logit_partials;      // (blocks, heads, padded hidden)
    int padded_width;
    int64_t slab; // pairs of the largest slab, rounded up to whole groups

    BackwardScratch(const AttentionShape &s, Scratch &scratch) : packed(s, scratch) {
        const int64_t columns = packed.columns.padded();
        padded_width = int(round_up(s.width, 8));
        slab = round_up(s.pairs < kSlab ? s.pairs : kSlab, kGroup);
        back_weight = scratch.take<T>(columns * padded_width);
        y_dot = scratch.take<T>(int64_t(s.rows) * s.heads);
        grad_y_sums = scratch.take<T>(int64_t(s.rows) * s.heads);
        dz = scratch.take<E>(slab * columns);
        weight_partials = scratch.take<T>(divide_up(slab, kSplit) * columns * padded_width);
        logit_partials =
            scratch.take<T>(divide_up(slab, kGroup) * s.heads * packed.padded_hidden());
    }
};

template <class T>
__global__ void row_sums_kernel(const T *__restrict__ y, const T *__restrict__ grad_y, int rows,
                                int attention, int heads, T *__restrict__ y_dot,
                                T *__restrict__ grad_y_sums) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= int64_t(rows) * heads)
        return;
    const int64_t begin = i / heads * attention * heads + i % heads;
    T dot = 0, sum = 0;
    for (int a = 0; a < attention; ++a) {
        const T g = grad_y[begin + int64_t(a) * heads];
        dot += g * y[begin + int64_t(a) * heads];
        sum += g;
    }
    y_dot[i] = dot;
    grad_y_sums[i] = sum;
}

template <class T>
__global__ void pack_back_weight_kernel(const T *__restrict__ weight, int width, int padded_width,
                                        Columns columns, T *__restrict__ packed) {
    const int dense = columns.dense_of(blockIdx.x);
    for (int k = threadIdx.x; k < padded_width; k += blockDim.x)
        packed[int64_t(blockIdx.x) * padded_width + k] =
            dense < 0 || k >= width ? T(0) : weight[dense * width + k];
}

// ------------------------------------------------------------------------------------------------
// dz.

// The backward of a norm for two pairs: dm = rstd (g - mean - dot n), n = (m - at.mean) at.rstd.
template <class T> struct NormBackward {
    Normaliser<T> at[2];
    T mean[2], dot[2];
    __device__ T operator()(int r, T m, T g) const {
        return at[r].rstd * (g - mean[r] - dot[r] * ((m - at[r].mean) * at[r].rstd));
    }
};

// Sums v over the eight lanes of one quad position (the 16 pairs) and returns column `kept` of it.
template <class T> __device__ T sum_of_pairs(const T v[4], int lane, int &kept) {
    const bool upper = lane & 16, right = lane & 8;
    T a = upper ? v[2] : v[0], b = upper ? v[3] : v[1];
    a += __shfl_xor_sync(kAllLanes, upper ? v[0] : v[2], 16);
    b += __shfl_xor_sync(kAllLanes, upper ? v[1] : v[3], 16);
    T sum = right ? b : a;
    sum += __shfl_xor_sync(kAllLanes, right ? a : b, 8);
    kept = 2 * upper + right;
    return sum + __shfl_xor_sync(kAllLanes, sum, 4);
}

template <class T, class E> class GradientWarp {
  public:
    // first: in the slab that begins at pair `begin`; slabs are whole groups.
    __device__ GradientWarp(const AttentionBackward<T, E> &p, const BackwardScratch<T, E> &scratch,
                            T *shared, T *logit_sums, int64_t begin, int64_t first)
        : p(p), s(p.shape), scratch(scratch), columns(scratch.packed.columns),
          pairs(begin + first, s.pairs, scratch.packed.row_of_pair, p.sites_of_pair),
          walk(scratch.packed, p.e, s.width, pairs), logit(shared + at.row),
          weight(shared + s.heads * kGroup + at.row),
          gradient(shared + 2 * s.heads * kGroup + at.row), logit_sums(logit_sums),
          dz(scratch.dz + (first + at.row) * columns.padded() + 4 * at.quad) {}

    __device__ void run() {
        const NormBackward<T> interaction = interaction_norm();
        Normaliser<T> hidden[2];
        for (int head = 0; head < s.heads; head += kHeads)
            logits(head, hidden);
        __syncwarp();
        const NormBackward<T> attention = attention_norm();
        __syncwarp();
        hidden_columns(hidden);
        attention_columns(attention);
        if (s.interaction)
            interaction_columns(interaction);
    }

  private:
    const AttentionBackward<T, E> &p;
    const AttentionShape &s;
    const BackwardScratch<T, E> &scratch;
    const Columns &columns;
    const LaneOf at;
    const PairsOfLane pairs;
    const Walk<T, E> walk;
    T *logit, *weight, *gradient; // of the lane's first pair: (heads, kGroup)
    T *logit_sums;                // (heads, padded hidden) of this warp
    E *dz;

    __device__ void logits(int head, Normaliser<T> n[2]) {
        const int num_heads = s.heads - head < kHeads ? s.heads - head : kHeads;
        const int padded = scratch.packed.padded_hidden();
        const T *w = scratch.packed.logit_weight + int64_t(head) * padded + 4 * at.quad;
        GroupSums<T, kHeads> sums;
#pragma unroll 1
        for (int step = 0; step < columns.first[1]; ++step) {
            T m[2][4];
            walk.z_of(step, m);
            activate(m, s.activation);
            sums.add(m, kStep * step, s.hidden, num_heads,
                     [&](int, int h) { return load4(w + h * padded + kStep * step); });
        }
        sums.finish();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            n[r] = sums.normaliser(r, s.hidden, s.norm, T(s.eps));
            const T lm = p.log_multiplicity[pairs.pair[r]];
            const T *logsum = p.logsum + int64_t(pairs.row[r]) * s.heads + head;
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
                if (h >= num_heads || at.quad)
                    continue;
                const T l = sums.normal_dot(r, h, scratch.packed.logit_sums[head + h], n[r]);
                const bool kept = lm != kNone<T> && pairs.valid(r);
                logit[(head + h) * kGroup + 8 * r] = l;
                weight[(head + h) * kGroup + 8 * r] = kept ? exponential(l + lm - logsum[h]) : T(0);
            }
        }
    }

    // grad_y of a pair's row and head at four attention columns.
    __device__ Four<T> grad_y_at(int r, int head, int column) const {
        const T *g = p.grad_y + int64_t(pairs.row[r]) * s.attention * s.heads + head;
        Four<T> four;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            four.v[j] = column + j < s.attention ? g[int64_t(column + j) * s.heads] : T(0);
        return four;
    }

    // Also the gradients of the logits, from how far grad_y lies along the attention columns.
    __device__ NormBackward<T> attention_norm() {
        NormBackward<T> back{};
        for (int head = 0; head < s.heads; head += kHeads) {
            const int num_heads = s.heads - head < kHeads ? s.heads - head : kHeads;
            GroupSums<T, kHeads> sums;
#pragma unroll 1
            for (int step = 0; step < columns.steps_of(1); ++step) {
                T m[2][4];
                walk.z_of(columns.first[1] + step, m);
                activate(m, s.activation);
                const int column = kStep * step + 4 * at.quad;
                sums.add(m, kStep * step, s.attention, num_heads,
                         [&](int r, int h) { return grad_y_at(r, head + h, column); });
            }
            sums.finish();
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                back.at[r] = sums.normaliser(r, s.attention, s.norm, T(s.eps));
                const int64_t of_row = int64_t(pairs.row[r]) * s.heads + head;
#pragma unroll
                for (int h = 0; h < kHeads; ++h) {
                    if (h >= num_heads)
                        continue;
                    const T w = weight[(head + h) * kGroup + 8 * r];
                    const T sum = scratch.grad_y_sums[of_row + h];
                    const T along = sums.normal_dot(r, h, sum, back.at[r]);
                    back.mean[r] += w * sum;
                    back.dot[r] += w * along;
                    if (at.quad == 0)
                        gradient[(head + h) * kGroup + 8 * r] =
                            w * (along - scratch.y_dot[of_row + h]);
                }
            }
        }
        return scaled(back, s.attention);
    }

    __device__ NormBackward<T> scaled(NormBackward<T> back, int size) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            back.mean[r] = s.norm ? back.mean[r] / size : T(0);
            back.dot[r] = s.norm ? back.dot[r] / size : T(0);
        }
        return back;
    }

    __device__ Four<T> grad_e_out_at(int r, int column) const {
        const E *g = p.grad_e_out + pairs.pair[r] * s.interaction;
        const bool wanted = pairs.valid(r) && p.grad_e_out;
        Four<T> four;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            four.v[j] = wanted && column + j < s.interaction ? number(g[column + j]) : T(0);
        return four;
    }

    __device__ NormBackward<T> interaction_norm() const {
        NormBackward<T> back{};
        if (!s.interaction || !p.grad_e_out)
            return back;
        GroupSums<T, 1> sums;
        T total[2] = {};
#pragma unroll 1
        for (int step = 0; step < columns.steps_of(2); ++step) {
            T m[2][4];
            walk.z_of(columns.first[2] + step, m);
            activate(m, s.activation);
            const int column = kStep * step + 4 * at.quad;
            sums.add(m, kStep * step, s.interaction, 1, [&](int r, int) {
                const Four<T> g = grad_e_out_at(r, column);
                total[r] += g.v[0] + g.v[1] + g.v[2] + g.v[3];
                return g;
            });
        }
        sums.finish();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            back.at[r] = sums.normaliser(r, s.interaction, s.norm, T(s.eps));
            back.mean[r] = quad_sum(total[r]);
            back.dot[r] = sums.normal_dot(r, 0, back.mean[r], back.at[r]);
        }
        return scaled(back, s.interaction);
    }

    // dz of one step: its columns' activation and derivative, then gradient(r, m[4], dm[4]).
    template <class F> __device__ void step_of_dz(int step, F grad) {
        T m[2][4], d[2][4];
        walk.z_of(step, m);
        activate(m, d, s.activation);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            T dm[4];
            grad(r, m[r], dm);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                dm[j] = pairs.valid(r) ? dm[j] * d[r][j] : T(0);
            store4(dz + 8 * r * columns.padded() + kStep * step, dm);
        }
    }

    // With g_h the gradient of logit h: the gradient of n is sum_h g_h w_h, its mean is
    // sum_h g_h sum(w_h) / hidden, its mean product with n sum_h g_h logit_h / hidden. So
    // dm = sum_h (rstd g_h) w_h + shift + slope (m - mean), and grad_logit_weight is the sum over
    // pairs of (rstd g_h) (m - mean).
    __device__ void hidden_columns(const Normaliser<T> n[2]) {
        const int padded = scratch.packed.padded_hidden();
        T shift[2] = {}, slope[2] = {}, g[2][kHeads] = {};
        for (int h = 0; h < s.heads; ++h)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const T of_head = gradient[h * kGroup + 8 * r];
                shift[r] += of_head * scratch.packed.logit_sums[h];
                slope[r] += of_head * logit[h * kGroup + 8 * r];
            }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            shift[r] = s.norm ? -shift[r] * n[r].rstd / s.hidden : T(0);
            slope[r] = s.norm ? -slope[r] * n[r].rstd * n[r].rstd / s.hidden : T(0);
#pragma unroll
            for (int h = 0; h < kHeads; ++h)
                g[r][h] = h < s.heads ? gradient[h * kGroup + 8 * r] * n[r].rstd : T(0);
        }
        auto of_head = [&](int r, int h) { return gradient[h * kGroup + 8 * r] * n[r].rstd; };
#pragma unroll 1
        for (int step = 0; step < columns.first[1]; ++step) {
            const int column = kStep * step + 4 * at.quad;
            const T *w = scratch.packed.logit_weight + column;
            T centred[2][4];
            step_of_dz(step, [&](int r, const T m[4], T dm[4]) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    centred[r][j] = m[j] - n[r].mean;
                    dm[j] = shift[r] + slope[r] * centred[r][j];
                }
                auto add = [&](int h, T by) {
                    const Four<T> wh = load4(w + int64_t(h) * padded);
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        dm[j] += by * wh.v[j];
                };
#pragma unroll
                for (int h = 0; h < kHeads; ++h)
                    if (h < s.heads)
                        add(h, g[r][h]);
                for (int h = kHeads; h < s.heads; ++h)
                    add(h, of_head(r, h));
            });
            auto sum_head = [&](int h, T g0, T g1) {
                T v[4];
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    v[j] = g0 * centred[0][j] + g1 * centred[1][j];
                int kept;
                const T sum = sum_of_pairs(v, at.lane, kept);
                if (!(at.lane & 4))
                    logit_sums[h * padded + column + kept] = sum;
            };
#pragma unroll
            for (int h = 0; h < kHeads; ++h)
                if (h < s.heads)
                    sum_head(h, g[0][h], g[1][h]);
            for (int h = kHeads; h < s.heads; ++h)
                sum_head(h, of_head(0, h), of_head(1, h));
        }
    }

    __device__ void attention_columns(const NormBackward<T> &back) {
#pragma unroll 1
        for (int step = 0; step < columns.steps_of(1); ++step)
            step_of_dz(columns.first[1] + step, [&](int r, const T m[4], T dm[4]) {
                T g[4] = {};
                for (int h = 0; h < s.heads; ++h) {
                    const Four<T> of_head = grad_y_at(r, h, kStep * step + 4 * at.quad);
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        g[j] += weight[h * kGroup + 8 * r] * of_head.v[j];
                }
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    dm[j] = back(r, m[j], g[j]);
            });
    }

    __device__ void interaction_columns(const NormBackward<T> &back) {
#pragma unroll 1
        for (int step = 0; step < columns.steps_of(2); ++step)
            step_of_dz(columns.first[2] + step, [&](int r, const T m[4], T dm[4]) {
                const Four<T> g = grad_e_out_at(r, kStep * step + 4 * at.quad);
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    dm[j] = p.grad_e_out ? back(r, m[j], g.v[j]) : T(0);
            });
    }
};

// Shared memory of one warp, in numbers of T: three arrays (heads, kGroup), then its logit sums.
SITENET_HD int64_t gradient_room(const AttentionShape &s, int padded_hidden) {
    return int64_t(s.heads) * (3 * kGroup + padded_hidden);
}

template <class T, class E>
__global__ void __launch_bounds__(kBlockWarps *kWarp, kMinBlocks<T>)
    gradient_kernel(AttentionBackward<T, E> p, BackwardScratch<T, E> scratch, int64_t begin,
                    int64_t end) {
    DYNAMIC_SHARED(T, shared);
    const int warps = blockDim.x / kWarp, padded = scratch.packed.padded_hidden();
    const int64_t room = gradient_room(p.shape, padded),
                  first_of_block = int64_t(blockIdx.x) * warps;
    const int64_t first = (first_of_block + threadIdx.x / kWarp) * kGroup;
    if (begin + first < end) {
        T *mine = shared + threadIdx.x / kWarp * room;
        GradientWarp<T, E>(p, scratch, mine, mine + 3 * p.shape.heads * kGroup, begin, first).run();
    }
    __syncthreads();
    const int64_t groups = divide_up(end - begin, kGroup) - first_of_block;
    const int size = p.shape.heads * padded, active = groups < warps ? int(groups) : warps;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        T sum = 0;
        for (int w = 0; w < active; ++w)
            sum += shared[w * room + 3 * p.shape.heads * kGroup + i];
        scratch.logit_partials[int64_t(blockIdx.x) * size + i] = sum;
    }
}

// ------------------------------------------------------------------------------------------------
// grad_e = dz W. A lane holds two pairs and, of each 8 of the width, two columns.

template <class T, class E>
__device__ void multiply_back(const BackwardScratch<T, E> &scratch, const E *const dz[2], int tile,
                              int tiles, T c[kTiles][4]) {
    const LaneOf at;
    const int steps = scratch.packed.columns.steps, width = scratch.padded_width;
    if constexpr (kTensorCores<E>) {
        const uint2 *w = static_cast<const uint2 *>(scratch.back_weight) + tile * kWarp + at.lane;
        for (int step = 0; step < steps; ++step, w += width / 8 * kWarp) {
            const int column = kStep * step + 4 * at.quad;
            const uint2 x0 = *reinterpret_cast<const uint2 *>(dz[0] + column);
            const uint2 x1 = *reinterpret_cast<const uint2 *>(dz[1] + column);
            const uint32_t a[4] = {x0.x, x1.x, x0.y, x1.y};
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                if (n < tiles) {
                    const uint2 b = w[n * kWarp];
                    const uint32_t right[2] = {b.x, b.y};
                    mma_bf16(c[n], a, right);
                }
        }
    } else {
        const T *w = static_cast<const T *>(scratch.back_weight) + 8 * tile + 2 * at.quad;
        for (int column = 0; column < kStep * steps; ++column, w += width) {
            const T x0 = dz[0][column], x1 = dz[1][column];
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                if (n < tiles)
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        c[n][j] += x0 * w[8 * n + j];
                        c[n][2 + j] += x1 * w[8 * n + j];
                    }
        }
    }
}

template <class T, class E>
__global__ void __launch_bounds__(kBlockWarps *kWarp, kMinBlocks<T>)
    grad_e_kernel(AttentionBackward<T, E> p, BackwardScratch<T, E> scratch, int64_t begin,
                  int64_t end) {
    const LaneOf at;
    const int width = p.shape.width, padded = scratch.packed.columns.padded();
    const int64_t first = (int64_t(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp) * kGroup;
    if (begin + first >= end)
        return;
    const E *const dz[2] = {scratch.dz + (first + at.row) * padded,
                            scratch.dz + (first + at.row + 8) * padded};
    for (int tile = 0; 8 * tile < width; tile += kTiles) {
        T c[kTiles][4] = {};
        const int left = scratch.padded_width / 8 - tile, tiles = left < kTiles ? left : kTiles;
        multiply_back(scratch, dz, tile, tiles, c);
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int64_t pair = begin + first + at.row + 8 * (i / 2);
                const int k = 8 * (tile + n) + 2 * at.quad + i % 2;
                if (n < tiles && k < width && pair < end)
                    assign(c[n][i], p.grad_e + pair * width + k);
            }
    }
}

// ------------------------------------------------------------------------------------------------
// Partial sums of grad_weight = dz^T e. A lane holds, of each step, the columns column_of(0, row)
// and column_of(1, row), and of each 8 of the width two.

template <class T, class E>
__device__ void multiply_pairs(const AttentionBackward<T, E> &p, const E *dz, int padded, int steps,
                               int64_t first, int64_t last, int width_begin, int tiles,
                               T c[kWeightSteps][kTiles][4]) {
    const LaneOf at;
    const int width = p.shape.width;
    if constexpr (kTensorCores<E>) {
        const bool whole = whole_words(p.e, width);
        for (int64_t pair = first; pair < last; pair += kGroup, dz += kGroup * padded) {
            uint32_t a[kWeightSteps][4];
#pragma unroll
            for (int step = 0; step < kWeightSteps; ++step)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const uint2 x = step < steps ? *reinterpret_cast<const uint2 *>(
                                                       dz + int64_t(at.row + 8 * r) * padded +
                                                       kStep * step + 4 * at.quad)
                                                 : uint2{0, 0};
                    a[step][2 * r] = transpose_8x8(x.x);
                    a[step][2 * r + 1] = transpose_8x8(x.y);
                }
            const int64_t mine = pair + at.row;
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                if (n < tiles) {
                    const int k = width_begin + 8 * n + 2 * at.quad;
                    uint32_t b[2];
#pragma unroll
                    for (int r = 0; r < 2; ++r)
                        b[r] = transpose_8x8(
                            mine + 8 * r < p.shape.pairs
                                ? two_of_row(p.e + (mine + 8 * r) * width, k, width, whole)
                                : 0);
#pragma unroll
                    for (int step = 0; step < kWeightSteps; ++step)
                        mma_bf16(c[step][n], a[step], b);
                }
        }
    } else {
        for (int64_t pair = first; pair < last && pair < p.shape.pairs; ++pair, dz += padded) {
            const E *e = p.e + pair * width;
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
                if (n < tiles)
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const int k = width_begin + 8 * n + 2 * at.quad + j;
                        const T x = k < width ? e[k] : T(0);
#pragma unroll
                        for (int step = 0; step < kWeightSteps; ++step)
#pragma unroll
                            for (int half = 0; half < 2; ++half)
                                if (step < steps)
                                    c[step][n][2 * half + j] +=
                                        dz[kStep * step + column_of(half, at.row)] * x;
                    }
        }
    }
}

// grid: splits of the slab, blocks of columns, tiles of the width.
template <class T, class E>
__global__ void __launch_bounds__(kBlockWarps *kWarp, kMinBlocks<T>)
    grad_weight_kernel(AttentionBackward<T, E> p, BackwardScratch<T, E> scratch, int64_t begin,
                       int64_t end) {
    const LaneOf at;
    const Columns &columns = scratch.packed.columns;
    const int padded = columns.padded(), width = scratch.padded_width;
    const int step = (blockIdx.y * kBlockWarps + threadIdx.x / kWarp) * kWeightSteps;
    if (step >= columns.steps)
        return;
    const int64_t first = int64_t(blockIdx.x) * kSplit;
    const int64_t last = first + kSplit < end - begin ? first + kSplit : end - begin;
    const int tile = blockIdx.z * kTiles, left = width / 8 - tile;
    const int steps = columns.steps - step < kWeightSteps ? columns.steps - step : kWeightSteps;
    const int tiles = left < kTiles ? left : kTiles;
    T c[kWeightSteps][kTiles][4] = {};
    multiply_pairs(p, scratch.dz + first * padded + kStep * step, padded, steps, begin + first,
                   begin + last, 8 * tile, tiles, c);
    T *to = scratch.weight_partials + (int64_t(blockIdx.x) * padded + kStep * step) * width;
#pragma unroll
    for (int t = 0; t < kWeightSteps; ++t)
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (t < steps && n < tiles)
                    to[(kStep * t + column_of(i / 2, at.row)) * width + 8 * (tile + n) +
                       2 * at.quad + i % 2] = c[t][n][i];
}

// ------------------------------------------------------------------------------------------------
// Sums in a fixed order.

// First of list[begin, end), ascending, that is not below `value`.
__device__ inline int64_t lower_bound(const int64_t *list, int64_t begin, int64_t end,
                                      int64_t value) {
    while (begin < end) {
        const int64_t middle = begin + (end - begin) / 2;
        if (list[middle] < value)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

// grid: rows of grad_site_i, then of grad_site_j; 128 columns. The block's warps share the pairs.
template <class T, class E>
__global__ void __launch_bounds__(kBlockWarps *kWarp)
    sum_sites_kernel(AttentionBackward<T, E> p, BackwardScratch<T, E> scratch, PairsOfSites by_site,
                     int64_t begin, int64_t end) {
    DYNAMIC_SHARED(T, shared); // (warps, lanes, 4)
    const Columns &columns = scratch.packed.columns;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, padded = columns.padded();
    const int column = 4 * (blockIdx.y * kWarp + lane);
    const bool of_j = int(blockIdx.x) >= p.shape.rows;
    const int row = of_j ? blockIdx.x - p.shape.rows : blockIdx.x;
    const int64_t *list = by_site.pairs_of_site;
    int64_t from, to;
    if (of_j) {
        from = by_site.offsets_of_site[row];
        to = by_site.offsets_of_site[row + 1];
        from = lower_bound(list, from, to, begin);
        to = lower_bound(list, from, to, end);
    } else {
        from = p.offsets[row] > begin ? p.offsets[row] : begin;
        to = p.offsets[row + 1] < end ? p.offsets[row + 1] : end;
    }
    if (from >= to && begin > 0)
        return;
    T sum[4] = {};
    if (column < padded)
        for (int64_t i = from + warp; i < to; i += kBlockWarps) {
            const int64_t pair = (of_j ? list[i] : i) - begin;
            const Four<E> x = load4(scratch.dz + pair * padded + column);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                sum[j] += number(x.v[j]);
        }
    store4(shared + 4 * threadIdx.x, sum);
    __syncthreads();
    T *out = (of_j ? p.grad_site_j : p.grad_site_i) + int64_t(row) * columns.num_dense;
    for (int i = threadIdx.x; i < 4 * kWarp; i += blockDim.x) {
        const int c = 4 * kWarp * blockIdx.y + i, dense = c < padded ? columns.dense_of(c) : -1;
        if (dense < 0)
            continue;
        T total = begin > 0 ? out[dense] : T(0);
        for (int w = 0; w < kBlockWarps; ++w)
            total += shared[4 * kWarp * w + i];
        out[dense] = total;
    }
}

// to[i] (+)= the sum over `count` parts of from[part * size + i]; a block takes 32 i, its warps
// share the parts. out_of(i): where i goes, or -1.
template <class T, class F>
__device__ void sum_partials(const T *from, int64_t count, int64_t size, bool accumulate, T *shared,
                             T *to, F out_of) {
    const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
    const int64_t i = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
    T sum = 0;
    for (int64_t part = warp; i < size && part < count; part += warps)
        sum += from[part * size + i];
    shared[threadIdx.x] = sum;
    __syncthreads();
    const int64_t out = warp == 0 && i < size ? out_of(i) : -1;
    if (out < 0)
        return;
    sum = accumulate ? to[out] : T(0);
    for (int w = 0; w < warps; ++w)
        sum += shared[w * kWarp + threadIdx.x];
    to[out] = sum;
}

template <class T>
__global__ void sum_weight_kernel(const T *__restrict__ partials, int64_t count, Columns columns,
                                  int width, int padded_width, bool accumulate,
                                  T *__restrict__ grad_weight) {
    DYNAMIC_SHARED(T, shared);
    const int64_t size = int64_t(columns.padded()) * padded_width;
    sum_partials(partials, count, size, accumulate, shared, grad_weight, [&](int64_t i) -> int64_t {
        const int dense = columns.dense_of(int(i / padded_width)), k = int(i % padded_width);
        return dense < 0 || k >= width ? -1 : int64_t(dense) * width + k;
    });
}

template <class T>
__global__ void sum_logit_weight_kernel(const T *__restrict__ partials, int64_t count, int heads,
                                        int hidden, int padded, bool accumulate,
                                        T *__restrict__ grad_logit_weight) {
    DYNAMIC_SHARED(T, shared);
    sum_partials(partials, count, int64_t(heads) * padded, accumulate, shared, grad_logit_weight,
                 [&](int64_t i) -> int64_t {
                     return i % padded < hidden ? i / padded * hidden + i % padded : -1;
                 });
}

template <class T, class E>
void run_slab(const AttentionBackward<T, E> &p, const BackwardScratch<T, E> &scratch,
              const PairsOfSites &by_site, int64_t begin, int64_t end, cudaStream_t stream) {
    const char *op = "attention_backward";
    const AttentionShape &s = p.shape;
    const Columns &columns = scratch.packed.columns;
    const int threads = kBlockWarps * kWarp, padded_hidden = scratch.packed.padded_hidden();
    const int bytes = int(gradient_room(s, padded_hidden) * int64_t(sizeof(T)));
    const int warps = kSharedBytes / bytes < kBlockWarps ? kSharedBytes / bytes : kBlockWarps;
    if (warps == 0)
        throw std::runtime_error("attention_backward: its heads do not fit into shared memory");
    const int64_t groups = divide_up(end - begin, kGroup), blocks = divide_up(groups, warps);
    const int64_t splits = divide_up(end - begin, kSplit);
    const bool accumulate = begin > 0;
    LAUNCH(op, (gradient_kernel<T, E>), grid_of(blocks), warps * kWarp, warps * bytes, stream, p,
           scratch, begin, end);
    LAUNCH(op, (grad_e_kernel<T, E>), grid_of(divide_up(groups, kBlockWarps)), threads, 0, stream,
           p, scratch, begin, end);
    LAUNCH(op, (grad_weight_kernel<T, E>),
           grid_of(splits, int(divide_up(columns.steps, kWeightSteps * kBlockWarps)),
                   int(divide_up(s.width, kTileWidth))),
           threads, 0, stream, p, scratch, begin, end);
    LAUNCH(op, (sum_sites_kernel<T, E>),
           grid_of(int64_t(s.rows) + s.sites, int(divide_up(columns.padded(), 4 * kWarp))), threads,
           4 * threads * sizeof(T), stream, p, scratch, by_site, begin, end);
    const int sum_threads = 8 * kWarp, sum_bytes = sum_threads * int(sizeof(T));
    LAUNCH(op, sum_weight_kernel<T>,
           grid_of(divide_up(int64_t(columns.padded()) * scratch.padded_width, kWarp)), sum_threads,
           sum_bytes, stream, scratch.weight_partials, splits, columns, s.width,
           scratch.padded_width, accumulate, p.grad_weight);
    LAUNCH(op, sum_logit_weight_kernel<T>,
           grid_of(divide_up(int64_t(s.heads) * padded_hidden, kWarp)), sum_threads, sum_bytes,
           stream, scratch.logit_partials, blocks, s.heads, s.hidden, padded_hidden, accumulate,
           p.grad_logit_weight);
}

} // namespace

template <class T, class E> int64_t attention_backward_scratch(const AttentionShape &shape) {
    Scratch scratch(nullptr);
    BackwardScratch<T, E>(shape, scratch);
    return scratch.bytes();
}

template <class T, class E>
void attention_backward(const AttentionBackward<T, E> &p, const PairsOfSites &by_site, void *memory,
                        void *handle) {
    const char *op = "attention_backward";
    const AttentionShape &s = p.shape;
    const auto stream = static_cast<cudaStream_t>(handle);
    Scratch carved(memory);
    const BackwardScratch<T, E> scratch(s, carved);
    const Columns &columns = scratch.packed.columns;
    const int threads = 128;
    scratch.packed.fill(op, p, stream);
    if constexpr (kTensorCores<E>)
        LAUNCH(op, pack_back_fragments_kernel, grid_of(columns.steps), threads, 0, stream, p.weight,
               s.width, columns, static_cast<uint32_t *>(scratch.back_weight));
    else
        LAUNCH(op, pack_back_weight_kernel<T>, grid_of(columns.padded()), threads, 0, stream,
               p.weight, s.width, scratch.padded_width, columns,
               static_cast<T *>(scratch.back_weight));
    LAUNCH(op, row_sums_kernel<T>, grid_of(divide_up(int64_t(s.rows) * s.heads, threads)), threads,
           0, stream, p.y, p.grad_y, s.rows, s.attention, s.heads, scratch.y_dot,
           scratch.grad_y_sums);
    for (int64_t begin = 0; begin == 0 || begin < s.pairs; begin += kSlab)
        run_slab(p, scratch, by_site, begin, begin + kSlab < s.pairs ? begin + kSlab : s.pairs,
                 stream);
}

#define INSTANTIATE(T, E)                                                                          \
    template int64_t attention_backward_scratch<T, E>(const AttentionShape &);                     \
    template void attention_backward<T, E>(const AttentionBackward<T, E> &, const PairsOfSites &,  \
                                           void *, void *);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, uint16_t)
#undef INSTANTIATE

} // namespace sitenet::cuda

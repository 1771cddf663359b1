// dz, the gradient of z, for 16 pairs per warp, and partial sums of grad_logit_weight; for known
// shapes also grad_e = dz W (backward.cu).
#pragma once

#include "backward_products.cuh"

namespace sitenet::cuda {
namespace {

/// The backward pass of a norm, for the two pairs of a lane:
///   dm = rstd (g - mean - dot n)      n = (m - at.mean) at.rstd
template <class T> struct NormBackward {
    Normaliser<T> at[2];
    T mean[2], dot[2];
    __device__ T operator()(int r, T m, T g) const {
        return at[r].rstd * (g - mean[r] - dot[r] * ((m - at[r].mean) * at[r].rstd));
    }
};

/// Sums v over the eight lanes of one quad position, which hold the 16 pairs. Returns one of the
/// four sums, and sets `kept` to its index.
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

/// The work of one warp on its 16 pairs.
template <class T, class E, class S> class GradientWarp {
  public:
    /// first: the first pair, counted from the begin of the slab.
    __device__ GradientWarp(const AttentionBackwardKept<T, E> &p,
                            const BackwardScratch<T, E> &scratch, T *shared, T *logit_sums,
                            int64_t begin, int64_t first)
        : p(p), s(p.shape), scratch(scratch), columns(scratch.packed.columns), begin(begin),
          first(first), pairs(begin + first, s.pairs, scratch.packed.row_of_pair, p.sites_of_pair),
          walk(scratch.packed, p.e, s.width, pairs), logit(shared + at.row),
          weight(shared + s.heads * kGroup + at.row),
          gradient(shared + 2 * s.heads * kGroup + at.row), logit_sums(logit_sums),
          dz(uint32_t((first + at.row) * columns.padded() + 4 * at.quad)) {}

    __device__ void run() {
        if constexpr (kBfloat16<E>)
            walk.products.store_transposed(scratch.e_fragments, first / kGroup);
        const NormBackward<T> interaction = interaction_norm();
        Normaliser<T> hidden[2];
        logits(hidden);
        __syncwarp();
        const NormBackward<T> attention = attention_norm(hidden);
        __syncwarp();
        hidden_columns(hidden);
        attention_columns(attention);
        if (s.interaction)
            interaction_columns(interaction);
        if constexpr (S::kProducts)
            write_grad_e(p, begin + first, s.pairs, 0, 2 * S::kProducts, grad_e);
    }

  private:
    const AttentionBackwardKept<T, E> &p;
    const S s;
    const BackwardScratch<T, E> &scratch;
    const Columns &columns;
    const LaneOf at;
    const int64_t begin, first;
    const PairsOfLane pairs;
    const Walk<T, E, S> walk;
    T *logit;      // (heads, kGroup), from the lane's first pair on
    T *weight;     // likewise: softmax weights
    T *gradient;   // likewise: gradients of the logits, times rstd of the hidden columns
    T *logit_sums; // (heads, padded hidden) of this warp
    uint32_t dz;   // offset of the lane's first pair and column (shared memory limits the columns)
    T grad_e[S::kProducts ? 2 * S::kProducts : 1][4] = {}; // as of multiply_back

    // Writes the logits that the forward pass kept, and their softmax weights; sets the norm.
    __device__ void logits(Normaliser<T> n[2]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const T *kept = p.statistics + pairs.pair[r] * (2 + s.heads);
            n[r] = {kept[0], kept[1]};
            const T lm = p.log_multiplicity[pairs.pair[r]];
            const T *logsum = p.logsum + int64_t(pairs.row[r]) * s.heads;
            const bool counts = lm != kNone<T> && pairs.valid(r);
            for (int h = at.quad; h < s.heads; h += 4) { // the four lanes of a pair share its heads
                const T l = kept[2 + h];
                logit[h * kGroup + 8 * r] = l;
                weight[h * kGroup + 8 * r] = counts ? exponential(l + lm - logsum[h]) : T(0);
            }
        }
    }

    // Offset of grad_y of the row of pair r, from the lane's columns on: (attention columns / 4,
    // heads, 4).
    __device__ uint32_t grad_y_of(int r) const {
        const uint32_t fours = pairs.row[r] * (kStep / 4 * columns.steps_of(1)) + at.quad;
        return 4 * s.heads * fours;
    }
    // grad_y of one head for four columns of a step of the row at that offset.
    __device__ Four<T> grad_y_at(uint32_t row, int step, int head) const {
        return load4(scratch.grad_y + (row + uint32_t(kStep * step * s.heads)) + 4 * head);
    }

    // Computes the norm of the attention columns, and the gradients of the logits from the products
    // of grad_y with them.
    __device__ NormBackward<T> attention_norm(const Normaliser<T> hidden[2]) {
        NormBackward<T> back{};
        const uint32_t grad_y[2] = {grad_y_of(0), grad_y_of(1)};
        for (int head = 0; head < s.heads; head += kHeads) {
            const int num_heads = s.heads - head < kHeads ? s.heads - head : kHeads;
            GroupSums<T, kHeads> sums;
#pragma unroll 1
            for (int step = 0; step < columns.steps_of(1); ++step) {
                T m[2][4];
                walk.z_of(columns.first[1] + step, m);
                activate(m, s.activation);
                sums.add(m, kStep * step, s.attention, num_heads,
                         [&](int r, int h) { return grad_y_at(grad_y[r], step, head + h); });
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
                            w * (along - scratch.y_dot[of_row + h]) * hidden[r].rstd;
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

    // grad_e_out of each pair of the lane.
    struct GradEOut {
        const E *row[2]; // null for zeros
        int size;
        bool whole;
        __device__ GradEOut(const GradientWarp &w)
            : row{}, size(w.s.interaction), whole(whole_fours(w.p.grad_e_out, size)) {
#pragma unroll
            for (int r = 0; r < 2; ++r)
                if (w.pairs.valid(r) && w.p.grad_e_out)
                    row[r] = w.p.grad_e_out + w.pairs.pair[r] * size;
        }
        __device__ Four<T> operator()(int r, int column) const {
            return row[r] && column < size ? values_of_row<T>(row[r], column, size, whole)
                                           : Four<T>{};
        }
    };

    __device__ NormBackward<T> interaction_norm() const {
        NormBackward<T> back{};
        if (!s.interaction || !p.grad_e_out)
            return back;
        const GradEOut grad_e_out(*this);
        GroupSums<T, 1> sums;
        T total[2] = {};
#pragma unroll 1
        for (int step = 0; step < columns.steps_of(2); ++step) {
            T m[2][4];
            walk.z_of(columns.first[2] + step, m);
            activate(m, s.activation);
            const int column = kStep * step + 4 * at.quad;
            sums.add(m, kStep * step, s.interaction, 1, [&](int r, int) {
                const Four<T> g = grad_e_out(r, column);
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

    // Writes dz of one step. grad(m, dm) computes the gradients dm of the activations m. They are
    // zero for pairs past the end, whose softmax weights and grad_e_out are.
    template <class F> __device__ void step_of_dz(int step, F grad) {
        T m[2][4], d[2][4], dm[2][4];
        walk.z_of(step, m);
        activate(m, d, s.activation);
        grad(m, dm);
#pragma unroll
        for (int i = 0; i < 8; ++i)
            dm[i / 4][i % 4] *= d[i / 4][i % 4];
        if constexpr (S::kProducts)
            add_grad_e(step, dm);
#pragma unroll
        for (int r = 0; r < 2; ++r)
            store4(scratch.dz + (dz + uint32_t(8 * r * columns.padded() + kStep * step)), dm[r]);
    }

    // Adds the products of one step to grad_e.
    __device__ void add_grad_e(int step, const T dm[2][4]) {
        const uint4 *w = static_cast<const uint4 *>(scratch.back_weight) +
                         (uint32_t(step) * (S::kProducts * kWarp) + at.lane);
        uint32_t left[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const T *x = &dm[i % 2][i / 2 * 2];
            left[i] = to_bf16x2(x[0], x[1]);
        }
#pragma unroll
        for (int t = 0; t < S::kProducts; ++t)
            multiply_halves(grad_e + 2 * t, left, w[t * kWarp]);
    }

    // Let g_h be the gradient of logit h. The gradient of n is sum_h g_h w_h; its mean is
    // sum_h g_h sum(w_h) / hidden, and its mean product with n is sum_h g_h logit_h / hidden. So
    //
    //   dm                = sum_h (rstd g_h) w_h + shift + slope (m - mean)
    //   grad_logit_weight = sum over pairs of (rstd g_h) (m - mean)
    __device__ void hidden_columns(const Normaliser<T> n[2]) {
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
            shift[r] = s.norm ? -shift[r] / s.hidden : T(0);
            slope[r] = s.norm ? -slope[r] * n[r].rstd / s.hidden : T(0);
#pragma unroll
            for (int h = 0; h < kHeads; ++h)
                g[r][h] = h < s.heads ? gradient[h * kGroup + 8 * r] : T(0);
        }
        uint32_t factor[4]; // of sum_heads_bf16, for the first heads
        if constexpr (kBfloat16<E>)
            gradients_as_factor(0, factor);
#pragma unroll 1
        for (int step = 0; step < columns.first[1]; ++step) {
            const int column = kStep * step + 4 * at.quad;
            const T *w = scratch.packed.logit_weight + uint32_t(column * s.heads);
            T centred[2][4];
            step_of_dz(step, [&](const T m[2][4], T dm[2][4]) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const int r = i / 4, j = i % 4;
                    centred[r][j] = m[r][j] - n[r].mean;
                    dm[r][j] = shift[r] + slope[r] * centred[r][j];
                }
                auto add = [&](int h, T g0, T g1) {
                    const Four<T> wh = load4(w + 4 * h);
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        dm[0][j] += g0 * wh.v[j];
                        dm[1][j] += g1 * wh.v[j];
                    }
                };
#pragma unroll
                for (int h = 0; h < kHeads; ++h)
                    if (h < s.heads)
                        add(h, g[0][h], g[1][h]);
#pragma unroll 1
                for (int h = kHeads; h < s.heads; ++h)
                    add(h, gradient[h * kGroup], gradient[h * kGroup + 8]);
            });
            if constexpr (kBfloat16<E>) {
                sum_heads_bf16(column, centred, factor);
            } else {
#pragma unroll
                for (int h = 0; h < kHeads; ++h)
                    if (h < s.heads)
                        sum_head(h, column, centred, g[0][h], g[1][h]);
#pragma unroll 1
                for (int h = kHeads; h < s.heads; ++h)
                    sum_head(h, column, centred, gradient[h * kGroup], gradient[h * kGroup + 8]);
            }
        }
    }

    // The gradients g_h of 16 heads from `head` on as left factor of products over the 16 pairs.
    __device__ void gradients_as_factor(int head, uint32_t factor[4]) const {
        const T *g = gradient - at.row + 2 * at.quad;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int above = 8 * (i % 2), h = head + above + at.row, pair = 8 * (i / 2);
            factor[i] = above < s.heads && h < s.heads
                            ? to_bf16x2(g[h * kGroup + pair], g[h * kGroup + pair + 1])
                            : 0;
        }
    }

    // Sums g_h (m - mean) over the 16 pairs for all heads, on tensor cores: the left factor is
    // (heads, pairs), and the transposed halves of a step are (pairs, 8 columns) each.
    __device__ void sum_heads_bf16(int column, const T centred[2][4], const uint32_t first[4]) {
        uint32_t right[2][2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const T *x = &centred[i % 2][i / 2 * 2];
            right[i / 2][i % 2] = transpose_8x8(to_bf16x2(x[0], x[1]));
        }
        auto sum = [&](int head, const uint32_t factor[4]) {
            T c[2][4]; // heads at.row and at.row + 8, two of the lane's columns per half
            set_mma_bf16(c[0], factor, right[0]);
            set_mma_bf16(c[1], factor, right[1]);
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const int above = 4 * i, h = head + above + at.row;
                const T sums[4] = {c[0][i], c[0][i + 1], c[1][i], c[1][i + 1]};
                if (above < s.heads && h < s.heads)
                    store4(logit_sums + h * scratch.packed.padded_hidden() + column, sums);
            }
        };
        sum(0, first);
#pragma unroll 1
        for (int head = 16; head < s.heads; head += 16) {
            uint32_t factor[4];
            gradients_as_factor(head, factor);
            sum(head, factor);
        }
    }

    // Sums g_h (m - mean) over the 16 pairs.
    __device__ void sum_head(int h, int column, const T centred[2][4], T g0, T g1) {
        T v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            v[j] = g0 * centred[0][j] + g1 * centred[1][j];
        int kept;
        const T sum = sum_of_pairs(v, at.lane, kept);
        if (!(at.lane & 4))
            logit_sums[h * scratch.packed.padded_hidden() + column + kept] = sum;
    }

    __device__ void attention_columns(const NormBackward<T> &back) {
        const uint32_t grad_y[2] = {grad_y_of(0), grad_y_of(1)};
#pragma unroll 1
        for (int step = 0; step < columns.steps_of(1); ++step)
            step_of_dz(columns.first[1] + step, [&](const T m[2][4], T dm[2][4]) {
                T g[2][4] = {};
                for (int h = 0; h < s.heads; ++h)
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const Four<T> of_head = grad_y_at(grad_y[r], step, h);
#pragma unroll
                        for (int j = 0; j < 4; ++j)
                            g[r][j] += weight[h * kGroup + 8 * r] * of_head.v[j];
                    }
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    dm[i / 4][i % 4] = back(i / 4, m[i / 4][i % 4], g[i / 4][i % 4]);
            });
    }

    __device__ void interaction_columns(const NormBackward<T> &back) {
        const GradEOut grad_e_out(*this);
#pragma unroll 1
        for (int step = 0; step < columns.steps_of(2); ++step)
            step_of_dz(columns.first[2] + step, [&](const T m[2][4], T dm[2][4]) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const Four<T> g = grad_e_out(r, kStep * step + 4 * at.quad);
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        dm[r][j] = p.grad_e_out ? back(r, m[r][j], g.v[j]) : T(0);
                }
            });
    }
};

/// Shared memory of one warp, in numbers of T: three arrays (heads, kGroup), then its logit sums.
SITENET_HD int64_t gradient_room(const AttentionShape &s, int padded_hidden) {
    return int64_t(s.heads) * (3 * kGroup + padded_hidden);
}

/// A warp per 16 pairs.
template <class T, class E, class S>
__global__ void __launch_bounds__(kBlockWarps *kWarp, kMinBlocks<T>)
    gradient_kernel(AttentionBackwardKept<T, E> p, BackwardScratch<T, E> scratch, int64_t begin,
                    int64_t end) {
    DYNAMIC_SHARED(T, shared);
    const int warps = blockDim.x / kWarp, padded = scratch.packed.padded_hidden();
    const int64_t room = gradient_room(p.shape, padded),
                  first_of_block = int64_t(blockIdx.x) * warps;
    const int64_t first = (first_of_block + threadIdx.x / kWarp) * kGroup;
    if (begin + first < end) {
        T *mine = shared + threadIdx.x / kWarp * room;
        GradientWarp<T, E, S>(p, scratch, mine, mine + 3 * p.shape.heads * kGroup, begin, first)
            .run();
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

} // namespace
} // namespace sitenet::cuda

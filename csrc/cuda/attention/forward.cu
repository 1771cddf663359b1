// The attention block on the GPU, forward pass (formulas and layouts: ../../attention.h).
//
// Mapping. A warp owns a span of 64 consecutive pairs (16 where pairs are few), whatever rows they
// belong to, so rows of 10 and of 10,000 pairs load the machine alike. It works on 16 pairs at a
// time (fragments.cuh):
//   1. Hidden columns, 16 per step: z = site_i + site_j + W e, activation, sum, sum of squares and
//      one dot product per head, all in registers. Mean, rstd and the logits follow.
//   2. Attention and interaction columns likewise. They wait in shared memory for their norm (each
//      lane reads only what it wrote); e_out leaves from there.
//   3. The online softmax of the segments of rows, and the weighted sums, in shared memory.
// Warps do not wait for each other. A row within one span is finished there. A longer row leaves
// one state per span (largest logit, sum, weighted sums); one warp per row merges them in order.
//
// Memory traffic per pair at the published size (48 -> 225 | 30 | 48, 3 heads, bfloat16): 96 bytes
// of e in, 96 out, 16 of indices, 12 for a span's state, and 20 of statistics out if a backward
// pass follows. 2.4 KB of site terms and 2 KB of weights come from the first-level cache.
//
// Operations per pair. The compiled loop over hidden columns takes 181 instructions per 16 pairs
// and 16 columns for the shape of `paper` (known_shapes.cuh; sm_90, counted by
// bench/count_instructions.py), 23 per activation, of which 14 are the formula and the sums. All 20
// steps take 55 clocks of a multiprocessor at 4 instructions per clock. Two instructions per
// activation go to the special-function units (16 per clock: 38 clocks), and 2 * 48 * 320 FLOP to
// the tensor cores (8 clocks). Polynomials for exponentials and reciprocals would move work from a
// unit with time to spare to the one that bounds the kernel, so both stay where they are.
//
// Predicted floor on an H100 or H200 (132 multiprocessors, 1.75 GHz), not measured: 3.5 G pairs/s
// by instructions, 15 by memory. In float the products run on the ordinary units: 128 clocks per
// pair by instructions and some 300 by the first-level cache, 0.7 G pairs/s. In tf32 some 110: 2 G
// pairs/s.
//
// No atomics. Results are bitwise reproducible and do not depend on the number of multiprocessors.
#include "../kernels.h"
#include "walk.cuh"

namespace sitenet::cuda {
namespace {

/// Pairs per warp. Long spans leave fewer states of rows to merge.
SITENET_HD int span_of(int64_t pairs) { return pairs < kFewPairs ? kGroup : 4 * kGroup; }

/// The online softmax of one row.
template <class T> struct RowState {
    T *largest;  ///< (heads), largest logit so far
    T *sum;      ///< (heads), sum of exp(logit - largest)
    T *weighted; ///< (attention, heads), sums of the columns weighted likewise
    static SITENET_HD int64_t size(const AttentionShape &s) {
        return int64_t(s.heads) * (2 + s.attention);
    }
    SITENET_HD RowState(T *at, const AttentionShape &s)
        : largest(at), sum(at + s.heads), weighted(at + 2 * s.heads) {}
};

/// Offsets in the shared memory of one warp, in numbers of T.
struct ForwardRoom {
    int stride;   ///< of a pair's row of features
    int softmax;  ///< RowState
    int scale;    ///< (heads)
    int weights;  ///< (heads, kGroup), logits and then softmax weights
    int features; ///< (kGroup, stride), attention or interaction columns
    int rows;     ///< (kGroup), row of each pair
    int total;
    explicit ForwardRoom(const AttentionShape &s) {
        const int widest = s.attention > s.interaction ? s.attention : s.interaction;
        stride = int(round_up(widest, kStep)) + 4; // so that lanes of two pairs use different banks
        softmax = 0;
        scale = softmax + int(round_up(RowState<float>::size(s), 4));
        weights = scale + int(round_up(s.heads, 4));
        features = weights + s.heads * kGroup;
        rows = features + kGroup * stride;
        total = rows + kGroup;
    }
};

/// Scratch memory of the forward pass.
template <class T, class E> struct ForwardScratch {
    Packed<T, E> packed;
    /// (spans, 2) states: of the span's first row if that began earlier, of the row it ends in.
    T *states;
    int span_pairs; ///< pairs per span
    ForwardScratch(const AttentionShape &s, Scratch &scratch)
        : packed(s, scratch), span_pairs(span_of(s.pairs)) {
        states = scratch.take<T>(divide_up(s.pairs, span_pairs) * 2 * RowState<T>::size(s));
    }
};

template <class T> __device__ T inverse_sum(T sum) {
    return sum > 0 ? 1 / sum : sum; // 0 if nothing was attended to; a NaN stays a NaN
}

/// The work of one warp on its span.
template <class T, class E, class S> class ForwardWarp {
  public:
    __device__ ForwardWarp(const AttentionForwardKept<T, E> &p, const ForwardScratch<T, E> &scratch,
                           const ForwardRoom &room, T *shared, int64_t span)
        : p(p), s(p.shape), scratch(scratch), columns(scratch.packed.columns), room(room),
          shared(shared), state(shared + room.softmax, s), span(span) {}

    __device__ void run() {
        const int64_t begin = span * scratch.span_pairs;
        const int64_t end =
            begin + scratch.span_pairs < s.pairs ? begin + scratch.span_pairs : s.pairs;
        int *rows = reinterpret_cast<int *>(shared + room.rows);
        current = scratch.packed.row_of_pair[begin];
        reset();
        for (int64_t first = begin; first < end; first += kGroup) {
            const PairsOfLane pairs(first, end, scratch.packed.row_of_pair, p.sites_of_pair);
            const Walk<T, E, S> walk(scratch.packed, p.e, s.width, pairs);
            if (at.quad == 0)
                for (int r = 0; r < 2; ++r)
                    rows[at.row + 8 * r] = pairs.row[r];
            for (int head = 0; head < s.heads; head += kHeads)
                logits(walk, pairs, head);
            if (s.interaction) {
                normal_columns(walk, 2);
                write_interaction(pairs);
            }
            normal_columns(walk, 1);
            __syncwarp();
            attend(rows, pairs.count);
        }
        finish();
    }

  private:
    const AttentionForwardKept<T, E> &p;
    HeldShape<S> s;
    const ForwardScratch<T, E> &scratch;
    const Columns &columns;
    const ForwardRoom &room;
    T *shared;
    RowState<T> state;
    const int64_t span;
    const LaneOf at;
    int current; // row of the state

    // Writes the logits of the group, heads `head` to head + kHeads - 1, to shared memory.
    __device__ void logits(const Walk<T, E, S> &walk, const PairsOfLane &pairs, int head) {
        const GroupSums<T, kHeads> sums = hidden_sums(walk, s, head);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const Normaliser<T> n = sums.normaliser(r, s.hidden, s.norm, T(s.eps));
            T *kept = p.statistics && pairs.valid(r) && at.quad == 0
                          ? p.statistics + pairs.pair[r] * (2 + s.heads)
                          : nullptr;
            if (kept && head == 0) {
                kept[0] = n.mean;
                kept[1] = n.rstd;
            }
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
                if (head + h >= s.heads || at.quad)
                    continue;
                const T alone = sums.normal_dot(r, h, scratch.packed.logit_sums[head + h], n);
                const T logit = alone + p.log_multiplicity[pairs.pair[r]];
                shared[room.weights + (head + h) * kGroup + at.row + 8 * r] = logit;
                if (kept)
                    kept[2 + head + h] = alone;
                if (p.logits && pairs.valid(r))
                    p.logits[pairs.pair[r] * s.heads + head + h] = logit;
            }
        }
    }

    // Writes the normalised columns of a group to shared memory, (16 pairs, stride).
    __device__ void normal_columns(const Walk<T, E, S> &walk, int group) {
        T *features = shared + room.features + 4 * at.quad;
        const int steps = columns.steps_of(group), size = columns.size[group];
        GroupSums<T, 1> sums;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            T m[2][4];
            walk.z_of(columns.first[group] + step, m);
            activate(m, s.activation);
            sums.add(m, kStep * step, size, 0, [](int, int) { return Four<T>{}; });
#pragma unroll
            for (int r = 0; r < 2; ++r)
                store4(features + (at.row + 8 * r) * room.stride + kStep * step, m[r]);
        }
        sums.finish();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const Normaliser<T> n = sums.normaliser(r, size, s.norm, T(s.eps));
            T *mine = features + (at.row + 8 * r) * room.stride;
            for (int step = 0; step < steps; ++step) {
                Four<T> m = load4(mine + kStep * step);
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    m.v[j] = (m.v[j] - n.mean) * n.rstd;
                store4(mine + kStep * step, m.v);
            }
        }
    }

    // Writes e_out; each lane writes its own columns.
    __device__ void write_interaction(const PairsOfLane &pairs) {
        for (int r = 0; r < 2; ++r) {
            if (!pairs.valid(r))
                continue;
            const T *from = shared + room.features + (at.row + 8 * r) * room.stride;
            E *to = p.e_out + pairs.pair[r] * s.interaction;
            for (int c = 4 * at.quad; c < s.interaction; c += kStep) {
                if (s.interaction % 4 == 0)
                    store4(to + c, from + c);
                else
                    for (int j = c; j < c + 4 && j < s.interaction; ++j)
                        assign(from[j], to + j);
            }
        }
    }

    // Adds the pairs of the group to their rows.
    __device__ void attend(const int *rows, int count) {
        T *scale = shared + room.scale;
        for (int a = 0, b; a < count; a = b) { // [a, b): a segment of one row
            for (b = a + 1; b < count && rows[b] == rows[a];)
                ++b;
            if (rows[a] != current) {
                finish();
                current = rows[a];
                reset();
            }
            const bool mine = at.lane >= a && at.lane < b;
            for (int h = 0; h < s.heads; ++h) {
                T *weight = shared + room.weights + h * kGroup + at.lane;
                const T logit = mine ? *weight : kNone<T>;
                const T before = state.largest[h], top = warp_max(logit);
                const T largest = top > before ? top : before;
                const T w = mine ? exponential(logit - (largest == kNone<T> ? T(0) : largest)) : 0;
                const T sum = warp_sum(w);
                __syncwarp(); // all lanes have read largest[h]; shuffles do not order memory
                if (mine)
                    *weight = w;
                if (at.lane == 0) {
                    scale[h] = largest == before ? T(1) : exponential(before - largest);
                    state.largest[h] = largest;
                    state.sum[h] = state.sum[h] * scale[h] + sum;
                }
            }
            __syncwarp();
            for (int i = at.lane; i < s.attention * s.heads; i += kWarp) {
                const int h = i % s.heads;
                const T *weight = shared + room.weights + h * kGroup;
                const T *feature = shared + room.features + i / s.heads;
                T sum = state.weighted[i] * scale[h];
                for (int t = a; t < b; ++t)
                    sum += weight[t] * feature[t * room.stride];
                state.weighted[i] = sum;
            }
            __syncwarp();
        }
    }

    __device__ void reset() {
        for (int i = at.lane; i < RowState<T>::size(s); i += kWarp)
            state.largest[i] = i < s.heads ? kNone<T> : T(0);
        __syncwarp();
    }

    // Writes the result of the current row if it lies within the span, else its state.
    __device__ void finish() {
        const int64_t begin = p.offsets[current], end = p.offsets[current + 1];
        const bool starts = begin >= span * scratch.span_pairs;
        if (starts && end <= (span + 1) * scratch.span_pairs) {
            const int width = s.attention * s.heads;
            for (int i = at.lane; i < width; i += kWarp)
                p.y[int64_t(current) * width + i] =
                    state.weighted[i] * inverse_sum(state.sum[i % s.heads]);
            for (int h = at.lane; h < s.heads; h += kWarp)
                p.logsum[int64_t(current) * s.heads + h] = state.largest[h] + log(state.sum[h]);
        } else {
            T *to = scratch.states + (2 * span + starts) * RowState<T>::size(s);
            for (int i = at.lane; i < RowState<T>::size(s); i += kWarp)
                to[i] = state.largest[i];
        }
        __syncwarp();
    }
};

template <class T, class E>
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(AttentionInputs<T, E> p, Packed<T, E> packed) {
    packed.fill(p, blockIdx.x);
}

/// A warp per span.
template <class T, class E, class S>
__global__ void __launch_bounds__(kBlockWarps *kWarp, kMinBlocks<T>)
    attention_forward_kernel(AttentionForwardKept<T, E> p, ForwardScratch<T, E> scratch,
                             ForwardRoom room) {
    DYNAMIC_SHARED(T, shared);
    const int warp = threadIdx.x / kWarp;
    const int64_t span = int64_t(blockIdx.x) * (blockDim.x / kWarp) + warp;
    if (span * scratch.span_pairs < p.shape.pairs)
        ForwardWarp<T, E, S>(p, scratch, room, shared + warp * room.total, span).run();
}

/// A warp per row: writes the results of rows without pairs and of rows with several spans.
template <class T, class E>
__global__ void merge_states_kernel(AttentionForwardKept<T, E> p, const T *__restrict__ states,
                                    int span_pairs) {
    const AttentionShape &s = p.shape;
    const int row = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp, lane = LaneOf().lane;
    if (row >= s.rows)
        return;
    const int64_t begin = p.offsets[row], end = p.offsets[row + 1];
    const int64_t first = begin / span_pairs, last = (end - 1) / span_pairs,
                  size = RowState<T>::size(s);
    if (begin < end && first == last)
        return;
    const int width = s.attention * s.heads;
    auto state_of =
        [&](int64_t span) { // slot 1 in the span where the row begins, slot 0 in later ones
            return states + (2 * span + (span == first)) * size;
        };
    for (int i = lane; i < width + s.heads; i += kWarp) {
        const int h = i % s.heads;
        const T *own = i < width ? states + 2 * s.heads + i : states + s.heads + h;
        T largest = kNone<T>, sum = 0, weighted = 0;
        for (int64_t span = first; begin < end && span <= last; ++span) {
            const T other = state_of(span)[h];
            largest = other > largest ? other : largest;
        }
        for (int64_t span = first; begin < end && span <= last; ++span) {
            const T *state = state_of(span);
            const T scale = state[h] == kNone<T> ? T(1) : exponential(state[h] - largest);
            sum += scale * state[s.heads + h];
            weighted += scale * state[own - states];
        }
        if (i < width)
            p.y[int64_t(row) * width + i] = weighted * inverse_sum(sum);
        else
            p.logsum[int64_t(row) * s.heads + h] = largest + log(sum);
    }
}

/// Launches the kernels that follow the packing.
template <class T, class E>
void run_spans(const char *op, const AttentionForwardKept<T, E> &p,
               const ForwardScratch<T, E> &scratch, cudaStream_t stream) {
    const AttentionShape &s = p.shape;
    const ForwardRoom room(s);
    const int64_t bytes = room.total * int64_t(sizeof(T));
    const int warps = warps_in_shared(op, bytes, 0, kBlockWarps,
                                      std::to_string(s.heads) + " heads x " +
                                          std::to_string(s.attention) + " attention features and " +
                                          std::to_string(s.interaction) + " interaction features");
    const int64_t blocks = divide_up(divide_up(s.pairs, scratch.span_pairs), warps);
    with_known_shape<E>(s, [&](auto shape) {
        LAUNCH(op, (attention_forward_kernel<T, E, decltype(shape)>), grid_of(blocks),
               warps * kWarp, warps * bytes, stream, p, scratch, room);
    });
    LAUNCH(op, (merge_states_kernel<T, E>), grid_of(divide_up(s.rows, kBlockWarps)),
           kBlockWarps * kWarp, 0, stream, p, scratch.states, scratch.span_pairs);
}

} // namespace

template <class T, class E> int64_t attention_forward_scratch(const AttentionShape &shape) {
    Scratch scratch(nullptr);
    ForwardScratch<T, E>(shape, scratch);
    return scratch.bytes();
}

template <class T, class E>
void attention_forward(const AttentionForwardKept<T, E> &p, void *memory, void *handle) {
    const char *op = "attention_forward";
    const auto stream = static_cast<cudaStream_t>(handle);
    Scratch carved(memory);
    const ForwardScratch<T, E> scratch(p.shape, carved);
    scratch.packed.check_size(op, p.shape);
    LAUNCH(op, (pack_kernel<T, E>), grid_of(scratch.packed.blocks(p.shape)), kPackThreads, 0,
           stream, p, scratch.packed);
    run_spans(op, p, scratch, stream);
}

#define INSTANTIATE(T, E)                                                                          \
    template int64_t attention_forward_scratch<T, E>(const AttentionShape &);                      \
    template void attention_forward<T, E>(const AttentionForwardKept<T, E> &, void *, void *);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(float, uint16_t)
INSTANTIATE(float, Tf32)
#undef INSTANTIATE

} // namespace sitenet::cuda

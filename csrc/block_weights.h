// The weights of an attention block as its products take them (sitenet/model/blocks.py). W and b
// stack the first layers of the block's groups, [hidden; attention; interaction]:
//
//   sites[0]    = W[:, :D], sites[1] = W[:, D:2D]
//   bias[c]     = b[c] + sum over k of W[c, 2D + k] shift[k]
//   pairs[c, k] = W[c, 2D + k] gain[k]
//   logits[h]   = u - mean(u), u[k] = logit[h, k] hidden_gain[k]
//
// gain and shift are those of the norm that interaction features travel without, hidden_gain that of
// the hidden layer's norm. Without the first norm, pairs = W[:, 2D:] and bias = b; without the
// second, logits = logit.
//
// T is the type of the weights, S that in which products over sites take theirs. Arrays are
// row-major.
#pragma once

#include "host_device.h"

#include <cstdint>

namespace sitenet {

struct BlockWeightsShape {
    int hidden; ///< columns of each group
    int attention;
    int interaction; ///< 0 in a block that renews no interaction features
    int sites;       ///< D, features per site
    int width;       ///< interaction features
    int heads;
};

/// What both passes read.
template <class T> struct BlockWeightsInputs {
    BlockWeightsShape shape;
    const T *hidden;      ///< (hidden, 2 D + width)
    const T *attention;   ///< (attention, 2 D + width)
    const T *interaction; ///< (interaction, 2 D + width), or null
    const T *hidden_bias;
    const T *attention_bias;
    const T *interaction_bias; ///< or null
    const T *logit;            ///< (heads, hidden)
    const T *gain;             ///< (width), or null
    const T *shift;            ///< (width), or null
    const T *hidden_gain;      ///< (hidden), or null
};

template <class T, class S> struct BlockWeightsForward : BlockWeightsInputs<T> {
    S *sites;  ///< (2, columns, D)
    T *bias;   ///< (columns)
    T *pairs;  ///< (columns, width)
    T *logits; ///< (heads, hidden)
};

/// Gradients of the inputs, each as what it belongs to, from those of the outputs.
template <class T, class S> struct BlockWeightsBackward : BlockWeightsInputs<T> {
    const S *grad_sites;
    const T *grad_bias;
    const T *grad_pairs;
    const T *grad_logits;
    T *grad_hidden;
    T *grad_attention;
    T *grad_interaction; ///< or null
    T *grad_hidden_bias;
    T *grad_attention_bias;
    T *grad_interaction_bias; ///< or null
    T *grad_logit;
    T *grad_gain;        ///< or null
    T *grad_shift;       ///< or null
    T *grad_hidden_gain; ///< or null
};

static SITENET_HD int columns_of(const BlockWeightsShape &s) {
    return s.hidden + s.attention + s.interaction;
}

/// Row c of the stacked matrices of three groups, which are `length` long, or entry c of their
/// biases with length 1.
template <class T>
static SITENET_HD T *row_of_groups(const BlockWeightsShape &s, T *hidden, T *attention,
                                   T *interaction, int c, int length) {
    if (c < s.hidden)
        return hidden + int64_t(c) * length;
    c -= s.hidden;
    return c < s.attention ? attention + int64_t(c) * length
                           : interaction + int64_t(c - s.attention) * length;
}

} // namespace sitenet

// One attention block of Site-Net over CSR rows of pairs, and the embedding of pair features.
//
//   z[p]     = site_i[row(p)] + site_j[sites_of_pair[p]] + weight e[p]
//   m[p]     = activation(z[p])           columns in three groups: hidden | attention | interaction
//   n[p]     = (m[p] - mean) * rstd       per group (LayerNorm without affine); m[p] without norm
//   logit[p] = logit_weight n_hidden[p] + log_multiplicity[p]
//   y[r]     = sum over the pairs p of row r of softmax(logit)[p] n_attention[p]        per head
//   e_out[p] = n_interaction[p]
//
// The affine parts of the norms and the products with the states of sites are folded outside
// (sitenet/model). Arrays are row-major and contiguous:
//
//   site_i       (rows, columns)          weight            (columns, width)
//   site_j       (sites, columns)         logit_weight      (heads, hidden)
//   e            (pairs, width)           log_multiplicity  (pairs)
//   offsets      (rows + 1)               sites_of_pair     (pairs)
//   y            (rows, attention, heads) e_out             (pairs, interaction)
//   logsum       (rows, heads)            logits            (pairs, heads)
//
// with columns = hidden + attention + interaction. The last block has interaction = 0 and no e_out.
// A row without pairs, or whose pairs all have log_multiplicity -inf, gets y = 0 and logsum = -inf.
//
// The embedding of pair features f takes the same steps without sites:
//
//   e[p] = normalise(activation(weight f[p] + bias))
//
// T is float or double. E is the type of e, e_out and their gradients: T, or bfloat16 (as uint16_t)
// with T = float; then the products with weight take factors in bfloat16 and sum in float. On a GPU
// the sums over pairs in the gradient of logit_weight do too.
#pragma once

#include "host_device.h"

#include <cstdint>

namespace sitenet {

enum Activation : int { kIdentity = 0, kRelu = 1, kMish = 2 };

// -------------------------------------------------------------------------------------------------
// Arguments of the kernels. In each struct, all members after the shape are pointers, in the order
// in which sitenet/ops/attention.py passes their addresses (csrc/bindings.h).

struct AttentionShape {
    int64_t pairs;
    int rows;
    int sites;
    int hidden;      ///< columns from which the logits follow
    int attention;   ///< columns that are attended to
    int interaction; ///< columns of e_out; 0 in the last block
    int width;       ///< columns of e
    int heads;
    int activation; ///< an Activation
    int norm;       ///< whether each group of columns is normalised
    double eps;     ///< added to the variance
};

/// What both passes read.
template <class T, class E> struct AttentionInputs {
    AttentionShape shape;
    const T *site_i;              ///< (rows, columns), with the bias of the layer
    const T *site_j;              ///< (sites, columns)
    const E *e;                   ///< (pairs, width)
    const T *weight;              ///< (columns, width)
    const T *logit_weight;        ///< (heads, hidden)
    const T *log_multiplicity;    ///< (pairs)
    const int64_t *offsets;       ///< (rows + 1), first pair of each row
    const int32_t *sites_of_pair; ///< (pairs), row of site_j of each pair
};

template <class T, class E> struct AttentionForward : AttentionInputs<T, E> {
    T *y;      ///< (rows, attention, heads)
    E *e_out;  ///< (pairs, interaction)
    T *logsum; ///< (rows, heads), ln of the softmax's denominator
    T *logits; ///< (pairs, heads); null if not wanted
};

/// Gradients of sum(y * grad_y) + sum(e_out * grad_e_out).
template <class T, class E> struct AttentionBackward : AttentionInputs<T, E> {
    const T *y;                     ///< of the forward pass
    const T *logsum;                ///< of the forward pass
    const T *grad_y;                ///< (rows, attention, heads)
    const E *grad_e_out;            ///< (pairs, interaction); null for zeros
    T *grad_site_i;                 ///< as site_i
    T *grad_site_j;                 ///< as site_j
    E *grad_e;                      ///< as e
    T *grad_weight;                 ///< as weight
    T *grad_logit_weight;           ///< as logit_weight
    const int64_t *pairs_of_site;   ///< CUDA only: (pairs), sorted by site, ascending within a site
    const int64_t *offsets_of_site; ///< CUDA only: (sites + 1), first entry of each site there
};

struct PairEmbeddingShape {
    int64_t pairs;
    int num_features;
    int width;      ///< columns of e
    int activation; ///< an Activation
    int norm;       ///< whether each row of e is normalised
    double eps;     ///< added to the variance
};

/// What both passes read.
template <class T> struct PairEmbeddingInputs {
    PairEmbeddingShape shape;
    const T *features; ///< (pairs, num_features)
    const T *weight;   ///< (width, num_features)
    const T *bias;     ///< (width)
};

template <class T, class E> struct PairEmbeddingForward : PairEmbeddingInputs<T> {
    E *e; ///< (pairs, width)
};

/// Gradients of sum(e * grad_e).
template <class T, class E> struct PairEmbeddingBackward : PairEmbeddingInputs<T> {
    const E *grad_e;  ///< (pairs, width)
    T *grad_features; ///< as features; null if not wanted
    T *grad_weight;   ///< as weight
    T *grad_bias;     ///< as bias
};

// -------------------------------------------------------------------------------------------------
// Formulas.

/// Mish(x) = x tanh(ln(1 + u)) with u = exp(x), without a second transcendental function:
///
///   tanh(ln(1 + u)) = n / (n + 2)      n = u (u + 2)
///
/// Callers clamp x at 20 before the exponential, where the ratio has long been 1. V is float,
/// double or a vector of them. r = 1 / (n + 2) is an argument for callers with a fast reciprocal.
/// mish_value and mish_parts round the value alike.
template <class V> struct MishParts {
    V value, derivative;
};

template <class V> static SITENET_HD V mish_divisor(V u) { return u * (u + 2) + 2; }

template <class V> static SITENET_HD V mish_value(V x, V u, V r) { return x * r * (u * (u + 2)); }

/// 1 / x. In float on a GPU, one instruction, accurate to one unit in the last place.
template <class V> static SITENET_HD V reciprocal(V x) { return 1 / x; }
#ifdef __CUDA_ARCH__
template <> SITENET_HD float reciprocal(float x) {
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}
#endif

template <class V> static SITENET_HD V mish_value(V x, V u) {
    return mish_value(x, u, reciprocal(mish_divisor(u)));
}

/// d Mish / dx = t + x (1 - t^2) sigmoid(x) with t = n / (n + 2). Since n + 1 = (u + 1)^2, the
/// second term is 4 x u (u + 1) / (n + 2)^2, and u (u + 1) = n - u.
template <class V> static SITENET_HD MishParts<V> mish_parts(V x, V u, V r) {
    const V n = u * (u + 2), y = x * r;
    const V w = n - u + (n - u);
    return {y * n, r * (n + y * (w + w))};
}
template <class V> static SITENET_HD MishParts<V> mish_parts(V x, V u) {
    return mish_parts(x, u, reciprocal(mish_divisor(u)));
}

/// LayerNorm without affine parameters: n = (m - mean) * rstd. With g the gradient of n, the
/// gradient of m is rstd * (g - mean(g) - n * mean(g * n)).
template <class T> struct Normaliser {
    T mean, rstd;
};

#ifndef __CUDACC__
/// The CPU kernels of one SIMD level for one pair of types.
template <class T, class E> struct AttentionKernels {
    void (*forward)(const AttentionForward<T, E> &, int threads);
    void (*backward)(const AttentionBackward<T, E> &, int threads);
    void (*pair_embedding_forward)(const PairEmbeddingForward<T, E> &, int threads);
    void (*pair_embedding_backward)(const PairEmbeddingBackward<T, E> &, int threads);
};
#endif

} // namespace sitenet

// One attention block of Site-Net over CSR rows of pairs, and the embedding of pair features.
//
//   z[p]      = site_i[row(p)] + site_j[sites[p]] + weight e[p]                      (columns)
//   m         = activation(z), in three groups of columns: hidden | attention | interaction
//   n         = (m - mean) * rstd per group, if norm (LayerNorm without affine)
//   logit[p]  = logit_weight n_hidden[p] + log_multiplicity[p]                       (heads)
//   y[r]      = sum over the row's p of softmax(logit)[p, head] * n_attention[p]     (a * heads +
//   head) e_out[p]  = n_interaction[p]
//
// The affine parts of the norms, and the products with the states of sites, are folded outside
// (sitenet/model.py). Layout: everything row-major and contiguous,
//   site_i (rows, columns)   site_j (sites, columns)   e (pairs, width)   weight (columns, width)
//   logit_weight (heads, hidden)   log_multiplicity (pairs)   offsets (rows + 1)   sites (pairs)
//   y (rows, attention * heads)   e_out (pairs, interaction)   logsum (rows, heads)
//   logits (pairs, heads), only if its pointer is not null
// with columns = hidden + attention + interaction; interaction is 0 where no e_out is wanted.
// A row without pairs, or whose pairs all have log_multiplicity -inf, gets y = 0, logsum = -inf.
#pragma once

#include "host_device.h"

#include <cstdint>

namespace sitenet {

enum Activation : int { kIdentity = 0, kRelu = 1, kMish = 2 };

struct AttentionShape {
    int64_t pairs;
    int rows, sites, hidden, attention, interaction, width, heads;
    int activation;
    int norm;
    double eps;
};

// T: float or double. E, the type of e, e_out and their gradients: T, or bfloat16 (as uint16_t)
// with T = float; then the products with weight take bfloat16 factors and sum in float.
template <class T, class E> struct AttentionForward {
    AttentionShape shape;
    const T *site_i, *site_j;
    const E *e;
    const T *weight, *logit_weight, *log_multiplicity;
    const int64_t *offsets;
    const int32_t *sites_of_pair;
    T *y;
    E *e_out;
    T *logsum;
    T *logits;
};

// Gradients of sum(y * grad_y) + sum(e_out * grad_e_out). grad_e_out may be null (zeros).
template <class T, class E> struct AttentionBackward {
    AttentionShape shape;
    const T *site_i, *site_j;
    const E *e;
    const T *weight, *logit_weight, *log_multiplicity;
    const int64_t *offsets;
    const int32_t *sites_of_pair;
    const T *y, *logsum, *grad_y;
    const E *grad_e_out;
    T *grad_site_i, *grad_site_j;
    E *grad_e;
    T *grad_weight, *grad_logit_weight;
};

// e[p] = normalise(activation(weight f[p] + bias)):  features (pairs, num_features), weight
// (width, num_features), bias (width), e (pairs, width).
struct EmbeddingShape {
    int64_t pairs;
    int num_features, width;
    int activation;
    int norm;
    double eps;
};

template <class T, class E> struct EmbeddingForward {
    EmbeddingShape shape;
    const T *features, *weight, *bias;
    E *e;
};

template <class T, class E> struct EmbeddingBackward {
    EmbeddingShape shape;
    const T *features, *weight, *bias;
    const E *grad_e;
    T *grad_features; // null if not wanted
    T *grad_weight, *grad_bias;
};

// Mish(x) = x tanh(ln(1 + u)) with u = exp(x), without a second transcendental:
// tanh(ln(1 + u)) = n / (n + 2), n = u (u + 2). Callers clamp x at 20 before the exponential,
// where the ratio has long been 1. V: float, double or a vector of them; r = 1 / (n + 2), for
// callers that have a faster reciprocal. Both functions round the value alike.
template <class V> struct MishParts {
    V value, derivative;
};

template <class V> static SITENET_HD V mish_divisor(V u) { return u * (u + 2) + 2; }

template <class V> static SITENET_HD V mish_value(V x, V u, V r) { return x * r * (u * (u + 2)); }

// 1 / x; in float on the GPU to within one unit in the last place, in one instruction.
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

// d/dx = t + x (1 - t^2) sigmoid(x) with t = n / (n + 2); since n + 1 = (u + 1)^2 the second term
// is 4 x u (u + 1) / (n + 2)^2, and u (u + 1) = n - u.
template <class V> static SITENET_HD MishParts<V> mish_parts(V x, V u, V r) {
    const V n = u * (u + 2), y = x * r;
    const V w = n - u + (n - u);
    return {y * n, r * (n + y * (w + w))};
}
template <class V> static SITENET_HD MishParts<V> mish_parts(V x, V u) {
    return mish_parts(x, u, reciprocal(mish_divisor(u)));
}

// Numbers of LayerNorm without affine: n = (m - mean) * rstd. Its backward, with n's gradient g, is
// rstd * (g - mean(g) - n * mean(g * n)).
template <class T> struct Normaliser {
    T mean, rstd;
};

#ifndef __CUDACC__
struct AttentionKernels {
    void (*forward_f32)(const AttentionForward<float, float> &, int threads);
    void (*forward_f64)(const AttentionForward<double, double> &, int threads);
    void (*forward_bf16)(const AttentionForward<float, uint16_t> &, int threads);
    void (*backward_f32)(const AttentionBackward<float, float> &, int threads);
    void (*backward_f64)(const AttentionBackward<double, double> &, int threads);
    void (*backward_bf16)(const AttentionBackward<float, uint16_t> &, int threads);
    void (*embedding_forward_f32)(const EmbeddingForward<float, float> &, int threads);
    void (*embedding_forward_f64)(const EmbeddingForward<double, double> &, int threads);
    void (*embedding_forward_bf16)(const EmbeddingForward<float, uint16_t> &, int threads);
    void (*embedding_backward_f32)(const EmbeddingBackward<float, float> &, int threads);
    void (*embedding_backward_f64)(const EmbeddingBackward<double, double> &, int threads);
    void (*embedding_backward_bf16)(const EmbeddingBackward<float, uint16_t> &, int threads);
};
#endif

} // namespace sitenet

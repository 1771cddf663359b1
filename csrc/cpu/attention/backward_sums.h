// Sums of the backward pass of the attention block: over rows before it, over parts after it.
#pragma once

#include "packing.h"

#include "../../attention.h"

namespace sitenet::SITENET_LEVEL {
namespace {

/// The sums over the pairs of one part.
template <class T> struct Sums {
    int first_site;   ///< the lowest site of its pairs
    int num_sites;    ///< up to the highest
    Buffer<T> site_j; ///< (num_sites, packed columns)
    Buffer<T> weight; ///< (padded width, packed columns)
    Buffer<T> logit;  ///< (heads, padded hidden)
};

/// What the rows contribute to the gradients of their pairs. `dot` sums in the same order as the
/// product of grad_y and a pair's n, so that the two are equal to the bit in a row with one pair,
/// and the gradient of its logit is exactly 0.
template <class T> struct RowGradients {
    int stride;       ///< numbers per row of grad_y
    Buffer<T> grad_y; ///< (rows, heads, padded attention)
    Buffer<T> sum;    ///< (rows, heads), sum of grad_y
    Buffer<T> dot;    ///< (rows, heads), product of grad_y and y

    RowGradients(const AttentionShape &s, int vectors, const T *y, const T *grad, int threads)
        : stride(s.heads * vectors * kLanes<T>), grad_y(size_t(s.rows) * stride),
          sum(size_t(s.rows) * s.heads), dot(size_t(s.rows) * s.heads) {
        const int heads = s.heads, padded = vectors * kLanes<T>;
        threads = useful_threads(threads, grad_y.size(), kThreadNumbers);
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            Buffer<T> of_head(padded);
            T *values = of_head.get();
#pragma omp for schedule(static)
            for (int r = 0; r < s.rows; ++r)
                for (int h = 0; h < heads; ++h) {
                    T *to = grad_y.get() + size_t(r) * stride + h * padded;
                    T total = 0;
                    for (int a = 0; a < s.attention; ++a) {
                        const size_t at = (size_t(r) * s.attention + a) * heads + h;
                        to[a] = grad[at];
                        values[a] = y[at];
                        total += grad[at];
                    }
                    Vec<T> product{};
                    for (int a = 0; a < padded; a += kLanes<T>)
                        product += load(to + a) * load(values + a);
                    sum.get()[size_t(r) * heads + h] = total;
                    dot.get()[size_t(r) * heads + h] = sum_lanes<T>(product);
                }
        }
    }
};

/// Adds the sums of all parts, in order, to the gradients of the site terms and the weights.
template <class T, class E>
void add_up(const std::vector<Sums<T>> &sums, const AttentionBackward<T, E> &p,
            const Columns<T> &columns, int threads) {
    const AttentionShape &s = p.shape;
    const int packed = columns.padded;
    threads = useful_threads(threads, int64_t(s.sites) * packed, kThreadNumbers);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> row(packed);
#pragma omp for schedule(static)
        for (int j = 0; j < s.sites; ++j) {
            std::fill(row.begin(), row.end(), T(0));
            for (const Sums<T> &sum : sums)
                if (j >= sum.first_site && j < sum.first_site + sum.num_sites) {
                    const T *from = sum.site_j.get() + size_t(j - sum.first_site) * packed;
                    for (int c = 0; c < packed; ++c)
                        row[c] += from[c];
                }
            std::copy_n(row.data(), columns.count, p.grad_site_j + size_t(j) * columns.count);
        }
    }
    for (int c = 0; c < columns.count; ++c)
        for (int k = 0; k < s.width; ++k) {
            T total = 0;
            for (const Sums<T> &sum : sums)
                total += sum.weight.get()[size_t(k) * packed + c];
            p.grad_weight[size_t(c) * s.width + k] = total;
        }
    for (int h = 0; h < s.heads; ++h)
        for (int c = 0; c < s.hidden; ++c) {
            T total = 0;
            for (const Sums<T> &sum : sums)
                total += sum.logit.get()[size_t(h) * columns.vectors[0] * kLanes<T> + c];
            p.grad_logit_weight[size_t(h) * s.hidden + c] = total;
        }
}

} // namespace
} // namespace sitenet::SITENET_LEVEL

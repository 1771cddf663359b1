// What bindings.cpp calls. `scratch` is uninitialised device memory, aligned to 256 bytes, of as
// many bytes as the function named *_scratch says; `stream` a cudaStream_t. Launches only: nothing
// is allocated or waited for, so every call can be captured in a graph.
#pragma once

#include "../attention.h"
#include "../geometry.h"

namespace sitenet::cuda {

// Stands for E where e is float and its products take factors rounded to tf32 (11 bits).
struct Tf32 {
    float value;
};

template <class T, class E>
void attention_forward(const AttentionForward<T, E> &p, void *scratch, void *stream);
template <class T, class E> int64_t attention_forward_scratch(const AttentionShape &shape);

// Pairs by site, ascending for each: pairs_of_site (pairs), offsets_of_site (sites + 1).
struct PairsOfSites {
    const int64_t *pairs_of_site, *offsets_of_site;
};
template <class T, class E>
void attention_backward(const AttentionBackward<T, E> &p, const PairsOfSites &by_site,
                        void *scratch, void *stream);
template <class T, class E> int64_t attention_backward_scratch(const AttentionShape &shape);

template <class T, class E> void embedding_forward(const EmbeddingForward<T, E> &p, void *stream);
template <class T, class E>
void embedding_backward(const EmbeddingBackward<T, E> &p, void *scratch, void *stream);
template <class T, class E> int64_t embedding_backward_scratch(const EmbeddingShape &shape);

// pair_offsets (crystals + 1): where each crystal's distances begin. usable (crystals): 1, or 0 for
// a cell without volume or not finite, whose distances are NaN.
template <class T>
void distances_forward(const DistanceInput<T> &in, const int64_t *pair_offsets, int64_t pairs,
                       T *distance, int32_t *usable, void *scratch, void *stream);
template <class T>
void distances_backward(const DistanceInput<T> &in, const int64_t *pair_offsets,
                        const DistanceGradient<T> &out, int32_t *usable, void *scratch,
                        void *stream);
template <class T> int64_t distances_scratch(int64_t crystals, int64_t sites_i, int64_t sites_j);

} // namespace sitenet::cuda

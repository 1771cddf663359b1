// The embedding of pair features, defined in pair_embedding.cpp.
#pragma once

#include "../../attention.h"

namespace sitenet::SITENET_LEVEL {

template <class T, class E>
void pair_embedding_forward(const PairEmbeddingForward<T, E> &p, int threads);
template <class T, class E>
void pair_embedding_backward(const PairEmbeddingBackward<T, E> &p, int threads);

} // namespace sitenet::SITENET_LEVEL

// The embedding of pair features, defined for the types of AttentionKernels in pair_embedding.cpp.
#pragma once

#include "../../attention.h"

namespace sitenet::SITENET_LEVEL {

template <class T, class E> void embedding_forward(const EmbeddingForward<T, E> &p, int threads);
template <class T, class E> void embedding_backward(const EmbeddingBackward<T, E> &p, int threads);

} // namespace sitenet::SITENET_LEVEL

// The CUDA kernels as the bindings call them. `scratch` is uninitialised device memory, aligned to
// 256 bytes, with as many bytes as the kernel's *_scratch function returns; `stream` a
// cudaStream_t. A call only launches: it neither allocates nor waits, so CUDA graphs can capture
// it.
#pragma once

#include "../attention.h"
#include "../block_weights.h"
#include "../geometry.h"
#include "../padded_batch.h"
#include "../pair_inputs.h"
#include "../power_spectrum.h"

namespace sitenet::cuda {

/// Stands for E where e is float and the products with weight take factors rounded to tf32 (11
/// bits).
struct Tf32 {
    float value;
};

/// What the forward pass keeps of each pair, so that the backward pass need not go through the
/// hidden columns a third time: (pairs, 2 + heads), mean and rstd of the hidden columns and the
/// logits without log_multiplicity. 20 bytes per pair with three heads in float.
template <class T, class E> struct AttentionForwardKept : AttentionForward<T, E> {
    T *statistics; ///< null if not wanted
};
template <class T, class E> struct AttentionBackwardKept : AttentionBackward<T, E> {
    const T *statistics;
};

template <class T, class E>
void attention_forward(const AttentionForwardKept<T, E> &p, void *scratch, void *stream);
template <class T, class E> int64_t attention_forward_scratch(const AttentionShape &shape);

template <class T, class E>
void attention_backward(const AttentionBackwardKept<T, E> &p, void *scratch, void *stream);
template <class T, class E> int64_t attention_backward_scratch(const AttentionShape &shape);

template <class T, class E>
void pair_embedding_forward(const PairEmbeddingForward<T, E> &p, void *scratch, void *stream);
template <class T, class E> int64_t pair_embedding_forward_scratch(const PairEmbeddingShape &shape);

template <class T, class E>
void pair_embedding_backward(const PairEmbeddingBackward<T, E> &p, void *scratch, void *stream);
template <class T, class E>
int64_t pair_embedding_backward_scratch(const PairEmbeddingShape &shape);

template <class T>
void power_spectrum_forward(const PowerSpectrumForward<T> &p, void *scratch, void *stream);
template <class T> int64_t power_spectrum_forward_scratch(const PowerSpectrumShape &shape);

template <class T>
void power_spectrum_backward(const PowerSpectrumBackward<T> &p, void *scratch, void *stream);
template <class T> int64_t power_spectrum_backward_scratch(const PowerSpectrumShape &shape);

/// S is float, double or, for bfloat16, uint16_t.
template <class T, class S>
void block_weights_forward(const BlockWeightsForward<T, S> &p, void *scratch, void *stream);
template <class T, class S> int64_t block_weights_forward_scratch(const BlockWeightsShape &shape);

template <class T, class S>
void block_weights_backward(const BlockWeightsBackward<T, S> &p, void *scratch, void *stream);
template <class T, class S> int64_t block_weights_backward_scratch(const BlockWeightsShape &shape);

template <class T, class D>
void pair_inputs(const PairInputs<T, D> &p, void *scratch, void *stream);
template <class T, class D> int64_t pair_inputs_scratch(const PairInputsShape &shape);

template <class T, class D>
void log_multiplicity(const LogMultiplicity<T, D> &p, void *scratch, void *stream);
template <class T, class D> int64_t log_multiplicity_scratch(const LogMultiplicityShape &shape);

void padded_batch(const PaddedBatch &p, void *scratch, void *stream);
int64_t padded_batch_scratch(const PaddedBatchShape &shape);

/// pair_offsets (crystals + 1): the first distance of each crystal; null if there is one crystal.
/// usable (crystals): 1, or 0 for a cell that has no volume or is not finite; its distances are
/// NaN.
template <class T>
void distances_forward(const DistanceInput<T> &in, const int64_t *pair_offsets, int64_t pairs,
                       T *distance, int32_t *usable, void *scratch, void *stream);
template <class T>
void distances_backward(const DistanceInput<T> &in, const int64_t *pair_offsets,
                        const DistanceGradient<T> &out, int32_t *usable, void *scratch,
                        void *stream);
template <class T> int64_t distances_scratch(int64_t crystals, int64_t sites_i, int64_t sites_j);

} // namespace sitenet::cuda

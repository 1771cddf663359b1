// The list of CUDA functions that Python can call: as in ../bindings.cpp, with scratch memory and a
// stream handle instead of a thread count. Also bound to the emulated kernels (tests/kernels).
#pragma once

#include "kernels.h"

#include <pybind11/pybind11.h>

namespace sitenet::cuda {
namespace {

namespace py = pybind11;

template <class T> T *at(uintptr_t address) { return reinterpret_cast<T *>(address); }

template <class T, class E>
void bound_attention_forward(const AttentionShape &shape, uintptr_t site_i, uintptr_t site_j,
                             uintptr_t e, uintptr_t weight, uintptr_t logit_weight,
                             uintptr_t log_multiplicity, uintptr_t offsets, uintptr_t sites,
                             uintptr_t y, uintptr_t e_out, uintptr_t logsum, uintptr_t logits,
                             uintptr_t scratch, uintptr_t stream) {
    attention_forward<T, E>(
        {shape, at<const T>(site_i), at<const T>(site_j), at<const E>(e), at<const T>(weight),
         at<const T>(logit_weight), at<const T>(log_multiplicity), at<const int64_t>(offsets),
         at<const int32_t>(sites), at<T>(y), at<E>(e_out), at<T>(logsum), at<T>(logits)},
        at<void>(scratch), at<void>(stream));
}

template <class T, class E>
void bound_attention_backward(const AttentionShape &shape, uintptr_t site_i, uintptr_t site_j,
                              uintptr_t e, uintptr_t weight, uintptr_t logit_weight,
                              uintptr_t log_multiplicity, uintptr_t offsets, uintptr_t sites,
                              uintptr_t y, uintptr_t logsum, uintptr_t grad_y, uintptr_t grad_e_out,
                              uintptr_t grad_site_i, uintptr_t grad_site_j, uintptr_t grad_e,
                              uintptr_t grad_weight, uintptr_t grad_logit_weight,
                              uintptr_t pairs_of_site, uintptr_t offsets_of_site, uintptr_t scratch,
                              uintptr_t stream) {
    attention_backward<T, E>(
        {shape, at<const T>(site_i), at<const T>(site_j), at<const E>(e), at<const T>(weight),
         at<const T>(logit_weight), at<const T>(log_multiplicity), at<const int64_t>(offsets),
         at<const int32_t>(sites), at<const T>(y), at<const T>(logsum), at<const T>(grad_y),
         at<const E>(grad_e_out), at<T>(grad_site_i), at<T>(grad_site_j), at<E>(grad_e),
         at<T>(grad_weight), at<T>(grad_logit_weight)},
        {at<const int64_t>(pairs_of_site), at<const int64_t>(offsets_of_site)}, at<void>(scratch),
        at<void>(stream));
}

template <class T, class E>
void bound_embedding_forward(const EmbeddingShape &shape, uintptr_t features, uintptr_t weight,
                             uintptr_t bias, uintptr_t e, uintptr_t stream) {
    embedding_forward<T, E>(
        {shape, at<const T>(features), at<const T>(weight), at<const T>(bias), at<E>(e)},
        at<void>(stream));
}

template <class T, class E>
void bound_embedding_backward(const EmbeddingShape &shape, uintptr_t features, uintptr_t weight,
                              uintptr_t bias, uintptr_t grad_e, uintptr_t grad_features,
                              uintptr_t grad_weight, uintptr_t grad_bias, uintptr_t scratch,
                              uintptr_t stream) {
    embedding_backward<T, E>({shape, at<const T>(features), at<const T>(weight), at<const T>(bias),
                              at<const E>(grad_e), at<T>(grad_features), at<T>(grad_weight),
                              at<T>(grad_bias)},
                             at<void>(scratch), at<void>(stream));
}

template <class T>
void bound_distances_forward(uintptr_t cells, uintptr_t frac_i, uintptr_t frac_j,
                             uintptr_t offsets_i, uintptr_t offsets_j, int64_t crystals,
                             int64_t sites_i, int64_t sites_j, uintptr_t pair_offsets,
                             int64_t pairs, uintptr_t distance, uintptr_t usable, uintptr_t scratch,
                             uintptr_t stream) {
    distances_forward<T>({at<T>(cells), at<T>(frac_i), at<T>(frac_j), at<int64_t>(offsets_i),
                          at<int64_t>(offsets_j), crystals, sites_i, sites_j},
                         at<int64_t>(pair_offsets), pairs, at<T>(distance), at<int32_t>(usable),
                         at<void>(scratch), at<void>(stream));
}

template <class T>
void bound_distances_backward(uintptr_t cells, uintptr_t frac_i, uintptr_t frac_j,
                              uintptr_t offsets_i, uintptr_t offsets_j, int64_t crystals,
                              int64_t sites_i, int64_t sites_j, uintptr_t pair_offsets,
                              uintptr_t grad_distance, uintptr_t grad_cells, uintptr_t grad_frac_i,
                              uintptr_t grad_frac_j, uintptr_t usable, uintptr_t scratch,
                              uintptr_t stream) {
    distances_backward<T>(
        {at<T>(cells), at<T>(frac_i), at<T>(frac_j), at<int64_t>(offsets_i), at<int64_t>(offsets_j),
         crystals, sites_i, sites_j},
        at<int64_t>(pair_offsets),
        {at<T>(grad_distance), at<T>(grad_cells), at<T>(grad_frac_i), at<T>(grad_frac_j)},
        at<int32_t>(usable), at<void>(scratch), at<void>(stream));
}

template <class T, class E> void bind_attention(py::module_ &m, const std::string &suffix) {
    using nogil = py::call_guard<py::gil_scoped_release>;
    const auto name = [&](const char *op) { return op + suffix; };
    m.def(name("attention_forward").c_str(), bound_attention_forward<T, E>, nogil());
    m.def(name("attention_forward_scratch").c_str(), attention_forward_scratch<T, E>);
    m.def(name("attention_backward").c_str(), bound_attention_backward<T, E>, nogil());
    m.def(name("attention_backward_scratch").c_str(), attention_backward_scratch<T, E>);
}

template <class T, class E> void bind_embedding(py::module_ &m, const std::string &suffix) {
    using nogil = py::call_guard<py::gil_scoped_release>;
    const auto name = [&](const char *op) { return op + suffix; };
    m.def(name("embedding_forward").c_str(), bound_embedding_forward<T, E>, nogil());
    m.def(name("embedding_backward").c_str(), bound_embedding_backward<T, E>, nogil());
    m.def(name("embedding_backward_scratch").c_str(), embedding_backward_scratch<T, E>);
}

template <class T> void bind_geometry(py::module_ &m, const std::string &suffix) {
    using nogil = py::call_guard<py::gil_scoped_release>;
    const auto name = [&](const char *op) { return op + suffix; };
    m.def(name("minimum_image_distances_forward").c_str(), bound_distances_forward<T>, nogil());
    m.def(name("minimum_image_distances_backward").c_str(), bound_distances_backward<T>, nogil());
    m.def(name("minimum_image_distances_scratch").c_str(), distances_scratch<T>);
}

inline void bind(py::module_ &m) {
    bind_attention<float, float>(m, "_f32_cuda");
    bind_attention<double, double>(m, "_f64_cuda");
    bind_attention<float, uint16_t>(m, "_bf16_cuda");
    bind_attention<float, Tf32>(m, "_tf32_cuda");
    bind_embedding<float, float>(m, "_f32_cuda");
    bind_embedding<double, double>(m, "_f64_cuda");
    bind_embedding<float, uint16_t>(m, "_bf16_cuda");
    bind_geometry<float>(m, "_f32_cuda");
    bind_geometry<double>(m, "_f64_cuda");
}

} // namespace
} // namespace sitenet::cuda

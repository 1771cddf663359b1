// The list of what Python can call: addresses as uintptr_t, sizes, a thread count or a stream. All
// checks are in sitenet/ops and sitenet/pairs.py; nothing here allocates.
#include "attention.h"
#include "cpu/level.h"
#include "geometry.h"
#include "merge.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;
using namespace pybind11::literals;
using sitenet::AttentionShape;
using sitenet::EmbeddingShape;

namespace {

template <class T> T *at(uintptr_t address) { return reinterpret_cast<T *>(address); }

template <class T, class E, auto Kernel>
void attention_forward(const AttentionShape &shape, uintptr_t site_i, uintptr_t site_j, uintptr_t e,
                       uintptr_t weight, uintptr_t logit_weight, uintptr_t log_multiplicity,
                       uintptr_t offsets, uintptr_t sites, uintptr_t y, uintptr_t e_out,
                       uintptr_t logsum, uintptr_t logits, int threads) {
    (sitenet::attention().*
     Kernel)({shape, at<const T>(site_i), at<const T>(site_j), at<const E>(e), at<const T>(weight),
              at<const T>(logit_weight), at<const T>(log_multiplicity), at<const int64_t>(offsets),
              at<const int32_t>(sites), at<T>(y), at<E>(e_out), at<T>(logsum), at<T>(logits)},
             threads);
}

template <class T, class E, auto Kernel>
void attention_backward(const AttentionShape &shape, uintptr_t site_i, uintptr_t site_j,
                        uintptr_t e, uintptr_t weight, uintptr_t logit_weight,
                        uintptr_t log_multiplicity, uintptr_t offsets, uintptr_t sites, uintptr_t y,
                        uintptr_t logsum, uintptr_t grad_y, uintptr_t grad_e_out,
                        uintptr_t grad_site_i, uintptr_t grad_site_j, uintptr_t grad_e,
                        uintptr_t grad_weight, uintptr_t grad_logit_weight, int threads) {
    (sitenet::attention().*
     Kernel)({shape, at<const T>(site_i), at<const T>(site_j), at<const E>(e), at<const T>(weight),
              at<const T>(logit_weight), at<const T>(log_multiplicity), at<const int64_t>(offsets),
              at<const int32_t>(sites), at<const T>(y), at<const T>(logsum), at<const T>(grad_y),
              at<const E>(grad_e_out), at<T>(grad_site_i), at<T>(grad_site_j), at<E>(grad_e),
              at<T>(grad_weight), at<T>(grad_logit_weight)},
             threads);
}

template <class T, class E, auto Kernel>
void embedding_forward(const EmbeddingShape &shape, uintptr_t features, uintptr_t weight,
                       uintptr_t bias, uintptr_t e, int threads) {
    (sitenet::attention().*Kernel)(
        {shape, at<const T>(features), at<const T>(weight), at<const T>(bias), at<E>(e)}, threads);
}

template <class T, class E, auto Kernel>
void embedding_backward(const EmbeddingShape &shape, uintptr_t features, uintptr_t weight,
                        uintptr_t bias, uintptr_t grad_e, uintptr_t grad_features,
                        uintptr_t grad_weight, uintptr_t grad_bias, int threads) {
    (sitenet::attention().*Kernel)({shape, at<const T>(features), at<const T>(weight),
                                    at<const T>(bias), at<const E>(grad_e), at<T>(grad_features),
                                    at<T>(grad_weight), at<T>(grad_bias)},
                                   threads);
}

sitenet::PairInput pair_input(uintptr_t cell, uintptr_t frac, uintptr_t numbers,
                              uintptr_t oxidation, uintptr_t occupancy, uintptr_t supercell,
                              int64_t sites, double tolerance) {
    return {at<double>(cell),
            at<double>(frac),
            at<int64_t>(numbers),
            at<double>(oxidation),
            at<double>(occupancy),
            at<int64_t>(supercell),
            sites,
            tolerance};
}

} // namespace

PYBIND11_MODULE(_C, m) {
    m.attr("level") = sitenet::level_name();
    using nogil = py::call_guard<py::gil_scoped_release>;
    using K = sitenet::AttentionKernels;
    py::class_<AttentionShape>(m, "AttentionShape")
        .def(py::init<int64_t, int, int, int, int, int, int, int, int, int, double>(), "pairs"_a,
             "rows"_a, "sites"_a, "hidden"_a, "attention"_a, "interaction"_a, "width"_a, "heads"_a,
             "activation"_a, "norm"_a, "eps"_a);
    py::class_<EmbeddingShape>(m, "EmbeddingShape")
        .def(py::init<int64_t, int, int, int, int, double>(), "pairs"_a, "num_features"_a,
             "width"_a, "activation"_a, "norm"_a, "eps"_a);
    m.def("attention_forward_f32_cpu", attention_forward<float, float, &K::forward_f32>, nogil());
    m.def("attention_forward_f64_cpu", attention_forward<double, double, &K::forward_f64>, nogil());
    m.def("attention_forward_bf16_cpu", attention_forward<float, uint16_t, &K::forward_bf16>,
          nogil());
    m.def("attention_backward_f32_cpu", attention_backward<float, float, &K::backward_f32>,
          nogil());
    m.def("attention_backward_f64_cpu", attention_backward<double, double, &K::backward_f64>,
          nogil());
    m.def("attention_backward_bf16_cpu", attention_backward<float, uint16_t, &K::backward_bf16>,
          nogil());
    m.def("embedding_forward_f32_cpu", embedding_forward<float, float, &K::embedding_forward_f32>,
          nogil());
    m.def("embedding_forward_f64_cpu", embedding_forward<double, double, &K::embedding_forward_f64>,
          nogil());
    m.def("embedding_forward_bf16_cpu",
          embedding_forward<float, uint16_t, &K::embedding_forward_bf16>, nogil());
    m.def("embedding_backward_f32_cpu",
          embedding_backward<float, float, &K::embedding_backward_f32>, nogil());
    m.def("embedding_backward_f64_cpu",
          embedding_backward<double, double, &K::embedding_backward_f64>, nogil());
    m.def("embedding_backward_bf16_cpu",
          embedding_backward<float, uint16_t, &K::embedding_backward_bf16>, nogil());
#ifdef SITENET_WITH_CUDA
    m.attr("with_cuda") = true;
#else
    m.attr("with_cuda") = false;
#endif

    using release = py::call_guard<py::gil_scoped_release>;
    m.def(
        "find_orbits_cpu",
        [](uintptr_t cell, uintptr_t frac, uintptr_t numbers, uintptr_t oxidation,
           uintptr_t occupancy, uintptr_t supercell, int64_t sites, double tolerance,
           uintptr_t orbit, uintptr_t leader) {
            return sitenet::merge().find_orbits(
                pair_input(cell, frac, numbers, oxidation, occupancy, supercell, sites, tolerance),
                at<int32_t>(orbit), at<int32_t>(leader));
        },
        release());
    m.def(
        "fill_pairs_cpu",
        [](uintptr_t cell, uintptr_t frac, uintptr_t numbers, uintptr_t oxidation,
           uintptr_t occupancy, uintptr_t supercell, int64_t sites, double tolerance,
           uintptr_t orbit, int64_t first, int64_t last, uintptr_t offsets, uintptr_t ends,
           uintptr_t distance, uintptr_t multiplicity) {
            return sitenet::merge().fill_pairs(
                pair_input(cell, frac, numbers, oxidation, occupancy, supercell, sites, tolerance),
                at<int32_t>(orbit),
                {first, last, at<int64_t>(offsets), at<int32_t>(ends), at<double>(distance),
                 at<int32_t>(multiplicity)});
        },
        release());
}

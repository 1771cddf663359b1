// The list of what Python can call: addresses as uintptr_t, sizes, a thread count or a stream. All
// checks are in sitenet/ops and sitenet/pairs.py; nothing here allocates.
#include "attention.h"
#include "cpu/level.h"
#include "cpu/waiting.h"
#ifdef SITENET_WITH_CUDA
#include "cuda/bindings.h"
#endif
#include "geometry.h"
#include "merge.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;
using namespace pybind11::literals;
using sitenet::AttentionShape;
using sitenet::EmbeddingShape;
using sitenet::PairInput;

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

template <class T, auto Kernel>
int64_t distances_forward(uintptr_t cells, uintptr_t frac_i, uintptr_t frac_j, uintptr_t offsets_i,
                          uintptr_t offsets_j, int64_t crystals, int64_t sites_i, int64_t sites_j,
                          uintptr_t distance, int threads) {
    return (sitenet::geometry().*Kernel)({at<T>(cells), at<T>(frac_i), at<T>(frac_j),
                                          at<int64_t>(offsets_i), at<int64_t>(offsets_j), crystals,
                                          sites_i, sites_j},
                                         at<T>(distance), threads);
}

template <class T, auto Kernel>
int64_t distances_backward(uintptr_t cells, uintptr_t frac_i, uintptr_t frac_j, uintptr_t offsets_i,
                           uintptr_t offsets_j, int64_t crystals, int64_t sites_i, int64_t sites_j,
                           uintptr_t grad_distance, uintptr_t grad_cells, uintptr_t grad_frac_i,
                           uintptr_t grad_frac_j, int threads) {
    return (sitenet::geometry().*Kernel)(
        {at<T>(cells), at<T>(frac_i), at<T>(frac_j), at<int64_t>(offsets_i), at<int64_t>(offsets_j),
         crystals, sites_i, sites_j},
        {at<T>(grad_distance), at<T>(grad_cells), at<T>(grad_frac_i), at<T>(grad_frac_j)}, threads);
}

PairInput pair_input(uintptr_t cell, uintptr_t frac, uintptr_t numbers, uintptr_t oxidation,
                     uintptr_t occupancy, uintptr_t supercell, int64_t sites, double tolerance) {
    return {at<double>(cell),
            at<double>(frac),
            at<int64_t>(numbers),
            at<double>(oxidation),
            at<double>(occupancy),
            at<int64_t>(supercell),
            sites,
            tolerance};
}

int64_t supercell_matrix(uintptr_t cell, int64_t sites, int64_t max_sites, uintptr_t matrix) {
    return sitenet::merge().supercell_matrix(at<double>(cell), sites, max_sites,
                                             at<int64_t>(matrix));
}

int64_t find_orbits(const PairInput &input, uintptr_t orbit, uintptr_t leader) {
    return sitenet::merge().find_orbits(input, at<int32_t>(orbit), at<int32_t>(leader));
}

int64_t fill_pairs(const PairInput &input, uintptr_t orbit, int64_t first, int64_t last,
                   uintptr_t offsets, uintptr_t sites, uintptr_t distance, uintptr_t multiplicity) {
    return sitenet::merge().fill_pairs(input, at<int32_t>(orbit),
                                       {first, last, at<int64_t>(offsets), at<int32_t>(sites),
                                        at<double>(distance), at<int32_t>(multiplicity)});
}

int64_t count_sphere(const PairInput &input, double radius) {
    return sitenet::merge().count_sphere(input, radius);
}

int64_t find_sphere(const PairInput &input, double radius, bool merge, int64_t room,
                    uintptr_t orbit, uintptr_t leader, uintptr_t offsets, uintptr_t sites,
                    uintptr_t distance, uintptr_t multiplicity) {
    return sitenet::merge().find_sphere(input, radius, merge, room, at<int32_t>(orbit),
                                        at<int32_t>(leader),
                                        {0, input.sites, at<int64_t>(offsets), at<int32_t>(sites),
                                         at<double>(distance), at<int32_t>(multiplicity)});
}

} // namespace

PYBIND11_MODULE(_C, m) {
    m.attr("level") = sitenet::level_name();
    m.def("shorten_waiting", sitenet::shorten_waiting);
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
    using G = sitenet::GeometryKernels;
    m.def("minimum_image_distances_forward_f32_cpu", distances_forward<float, &G::forward_f32>,
          nogil());
    m.def("minimum_image_distances_forward_f64_cpu", distances_forward<double, &G::forward_f64>,
          nogil());
    m.def("minimum_image_distances_backward_f32_cpu", distances_backward<float, &G::backward_f32>,
          nogil());
    m.def("minimum_image_distances_backward_f64_cpu", distances_backward<double, &G::backward_f64>,
          nogil());
    py::class_<PairInput>(m, "PairInput")
        .def(py::init(&pair_input), "cell"_a, "frac"_a, "numbers"_a, "oxidation"_a, "occupancy"_a,
             "supercell"_a, "sites"_a, "tolerance"_a);
    m.def("supercell_matrix_cpu", supercell_matrix, nogil());
    m.def("find_orbits_cpu", find_orbits, nogil());
    m.def("fill_pairs_cpu", fill_pairs, nogil());
    m.def("count_sphere_cpu", count_sphere, nogil());
    m.def("find_sphere_cpu", find_sphere, nogil());
#ifdef SITENET_WITH_CUDA
    sitenet::cuda::bind(m);
    m.attr("with_cuda") = true;
#else
    m.attr("with_cuda") = false;
#endif
}

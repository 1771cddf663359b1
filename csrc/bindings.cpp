// The list of what Python can call: sitenet._C.
#include "bindings.h"

#include "cpu/simd_level.h"
#include "cpu/waiting.h"
#ifdef SITENET_WITH_CUDA
#include "cuda/bindings.h"
#endif

#include <pybind11/numpy.h>

#include <string>

namespace py = pybind11;
using namespace pybind11::literals;
using sitenet::Address;
using sitenet::Addresses;
using sitenet::DistanceInput;
using sitenet::PairInput;
using sitenet::SpherePairs;
using sitenet::WithoutGil;

namespace {

// -------------------------------------------------------------------------------------------------
// Attention, the embedding of pair features, and power spectra: name(shape, addresses, threads).

/// Binds one kernel; `table` returns the chosen level's kernels, of which `kernel` is a member.
template <class Table, class P>
void bind_kernel(py::module_ &m, const std::string &name, const Table &(*table)(),
                 void (*Table::*kernel)(const P &, int)) {
    const auto call = [=](const decltype(P::shape) &shape, const Addresses<P> &addresses,
                          int threads) {
        (table().*kernel)(sitenet::params<P>(shape, addresses), threads);
    };
    m.def(name.c_str(), call, WithoutGil());
}

template <class T, class E> void bind_attention(py::module_ &m, const std::string &suffix) {
    using Kernels = sitenet::AttentionKernels<T, E>;
    const auto table = &sitenet::attention<T, E>;
    bind_kernel(m, "attention_forward" + suffix, table, &Kernels::forward);
    bind_kernel(m, "attention_backward" + suffix, table, &Kernels::backward);
    bind_kernel(m, "pair_embedding_forward" + suffix, table, &Kernels::pair_embedding_forward);
    bind_kernel(m, "pair_embedding_backward" + suffix, table, &Kernels::pair_embedding_backward);
}

template <class T> void bind_power_spectrum(py::module_ &m, const std::string &suffix) {
    using Kernels = sitenet::PowerSpectrumKernels<T>;
    const auto table = &sitenet::power_spectrum<T>;
    bind_kernel(m, "power_spectrum_forward" + suffix, table, &Kernels::forward);
    bind_kernel(m, "power_spectrum_backward" + suffix, table, &Kernels::backward);
}

void bind_shapes(py::module_ &m) {
    using sitenet::AttentionShape, sitenet::PairEmbeddingShape, sitenet::PowerSpectrumShape;
    py::class_<AttentionShape>(m, "AttentionShape")
        .def(py::init<int64_t, int, int, int, int, int, int, int, int, int, double>(), "pairs"_a,
             "rows"_a, "sites"_a, "hidden"_a, "attention"_a, "interaction"_a, "width"_a, "heads"_a,
             "activation"_a, "norm"_a, "eps"_a);
    py::class_<PairEmbeddingShape>(m, "PairEmbeddingShape")
        .def(py::init<int64_t, int, int, int, int, double>(), "pairs"_a, "num_features"_a,
             "width"_a, "activation"_a, "norm"_a, "eps"_a);
    py::class_<PowerSpectrumShape>(m, "PowerSpectrumShape")
        .def(py::init<int64_t, int, int, int, int, int, int>(), "images"_a, "rows"_a, "sites"_a,
             "channels"_a, "radial"_a, "degrees"_a, "mixed"_a);
}

// -------------------------------------------------------------------------------------------------
// Minimum-image distances.

template <class T, auto Kernel>
int64_t distances_forward(uintptr_t cells, uintptr_t frac_i, uintptr_t frac_j, uintptr_t offsets_i,
                          uintptr_t offsets_j, int64_t crystals, int64_t sites_i, int64_t sites_j,
                          uintptr_t distance, int threads) {
    const DistanceInput<T> input = {
        Address{cells},     Address{frac_i}, Address{frac_j}, Address{offsets_i},
        Address{offsets_j}, crystals,        sites_i,         sites_j};
    return (sitenet::geometry().*Kernel)(input, Address{distance}, threads);
}

template <class T, auto Kernel>
int64_t distances_backward(uintptr_t cells, uintptr_t frac_i, uintptr_t frac_j, uintptr_t offsets_i,
                           uintptr_t offsets_j, int64_t crystals, int64_t sites_i, int64_t sites_j,
                           uintptr_t grad_distance, uintptr_t grad_cells, uintptr_t grad_frac_i,
                           uintptr_t grad_frac_j, int threads) {
    const DistanceInput<T> input = {
        Address{cells},     Address{frac_i}, Address{frac_j}, Address{offsets_i},
        Address{offsets_j}, crystals,        sites_i,         sites_j};
    return (sitenet::geometry().*Kernel)(
        input,
        {Address{grad_distance}, Address{grad_cells}, Address{grad_frac_i}, Address{grad_frac_j}},
        threads);
}

bool any_near(uintptr_t cell, uintptr_t frac, int64_t sites, double near) {
    return sitenet::geometry().any_near(Address{cell}, Address{frac}, sites, near);
}

void bind_geometry(py::module_ &m) {
    using G = sitenet::GeometryKernels;
    m.def("minimum_image_distances_forward_f32_cpu", distances_forward<float, &G::forward_f32>,
          WithoutGil());
    m.def("minimum_image_distances_forward_f64_cpu", distances_forward<double, &G::forward_f64>,
          WithoutGil());
    m.def("minimum_image_distances_backward_f32_cpu", distances_backward<float, &G::backward_f32>,
          WithoutGil());
    m.def("minimum_image_distances_backward_f64_cpu", distances_backward<double, &G::backward_f64>,
          WithoutGil());
    m.def("any_near_cpu", any_near, WithoutGil());
}

// -------------------------------------------------------------------------------------------------
// Pairs.

PairInput pair_input(uintptr_t cell, uintptr_t frac, uintptr_t numbers, uintptr_t oxidation,
                     uintptr_t occupancy, uintptr_t supercell, int64_t sites, double tolerance) {
    return {
        Address{cell},      Address{frac}, Address{numbers}, Address{oxidation}, Address{occupancy},
        Address{supercell}, sites,         tolerance};
}

int64_t supercell_matrix(uintptr_t cell, int64_t sites, int64_t max_sites, uintptr_t matrix) {
    return sitenet::pairs().supercell_matrix(Address{cell}, sites, max_sites, Address{matrix});
}

int64_t find_orbits(const PairInput &input, uintptr_t orbit, uintptr_t leader) {
    return sitenet::pairs().find_orbits(input, Address{orbit}, Address{leader});
}

int64_t fill_pairs(const PairInput &input, uintptr_t orbit, int64_t first, int64_t last,
                   uintptr_t offsets, uintptr_t sites, uintptr_t distance, uintptr_t multiplicity) {
    return sitenet::pairs().fill_pairs(
        input, Address{orbit},
        {first, last, Address{offsets}, Address{sites}, Address{distance}, Address{multiplicity}});
}

int64_t count_sphere(const PairInput &input, double radius) {
    return sitenet::pairs().count_sphere(input, radius);
}

int64_t find_sphere(const PairInput &input, double radius, bool merge, bool vectors,
                    double most_searched, SpherePairs &pairs) {
    return sitenet::pairs().find_sphere(input, {radius, merge, vectors, most_searched}, pairs);
}

/// Reads a member of SpherePairs as a new numpy array.
template <class T> auto array_of(std::vector<T> SpherePairs::*member) {
    return [=](const SpherePairs &pairs) {
        const std::vector<T> &values = pairs.*member;
        return py::array_t<T>(values.size(), values.data());
    };
}

void bind_pairs(py::module_ &m) {
    py::class_<PairInput>(m, "PairInput")
        .def(py::init(&pair_input), "cell"_a, "frac"_a, "numbers"_a, "oxidation"_a, "occupancy"_a,
             "supercell"_a, "sites"_a, "tolerance"_a);
    py::class_<SpherePairs>(m, "SpherePairs")
        .def(py::init<>())
        .def_property_readonly("orbit", array_of(&SpherePairs::orbit))
        .def_property_readonly("leader", array_of(&SpherePairs::leader))
        .def_property_readonly("offsets", array_of(&SpherePairs::offsets))
        .def_property_readonly("sites", array_of(&SpherePairs::sites))
        .def_property_readonly("distance", array_of(&SpherePairs::distance))
        .def_property_readonly("multiplicity", array_of(&SpherePairs::multiplicity))
        .def_property_readonly("vectors", array_of(&SpherePairs::vectors));
    m.def("supercell_matrix_cpu", supercell_matrix, WithoutGil());
    m.def("find_orbits_cpu", find_orbits, WithoutGil());
    m.def("fill_pairs_cpu", fill_pairs, WithoutGil());
    m.def("count_sphere_cpu", count_sphere, WithoutGil());
    m.def("find_sphere_cpu", find_sphere, WithoutGil());
}

} // namespace

PYBIND11_MODULE(_C, m) {
    m.attr("level") = sitenet::level_name();
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("shorten_waiting", sitenet::shorten_waiting);
    bind_shapes(m);
    bind_attention<float, float>(m, "_f32_cpu");
    bind_attention<double, double>(m, "_f64_cpu");
    bind_attention<float, uint16_t>(m, "_bf16_cpu");
    bind_power_spectrum<float>(m, "_f32_cpu");
    bind_power_spectrum<double>(m, "_f64_cpu");
    bind_geometry(m);
    bind_pairs(m);
#ifdef SITENET_WITH_CUDA
    sitenet::cuda::bind(m);
    m.attr("with_cuda") = true;
    m.attr("cuda_version") = SITENET_WITH_CUDA; // of nvcc, and so of the static runtime
#else
    m.attr("with_cuda") = false;
#endif
}

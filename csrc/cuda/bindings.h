// The list of CUDA functions that Python can call: as in ../bindings.cpp, with the address of
// scratch memory and a stream handle in place of a thread count. tests/kernels binds the emulated
// kernels through it too.
#pragma once

#include "../bindings.h"
#include "kernels.h"

#include <stdexcept>
#include <string>
#include <vector>

namespace sitenet::cuda {
namespace {

namespace py = pybind11;

/// Binds name_suffix(shape, addresses, scratch, stream) and name_scratch_suffix(shape).
template <class P>
void bind_kernel(py::module_ &m, const std::string &name, const std::string &suffix,
                 void (*kernel)(const P &, void *, void *),
                 int64_t (*scratch_bytes)(const decltype(P::shape) &)) {
    const auto call = [=](const decltype(P::shape) &shape, const Addresses<P> &addresses,
                          uintptr_t scratch, uintptr_t stream) {
        kernel(params<P>(shape, addresses), Address{scratch}, Address{stream});
    };
    m.def((name + suffix).c_str(), call, WithoutGil());
    m.def((name + "_scratch" + suffix).c_str(), scratch_bytes);
}

template <class T, class E> void bind_attention(py::module_ &m, const std::string &suffix) {
    bind_kernel(m, "attention_forward", suffix, attention_forward<T, E>,
                attention_forward_scratch<T, E>);
    bind_kernel(m, "attention_backward", suffix, attention_backward<T, E>,
                attention_backward_scratch<T, E>);
}

template <class T, class E> void bind_pair_embedding(py::module_ &m, const std::string &suffix) {
    bind_kernel(m, "pair_embedding_forward", suffix, pair_embedding_forward<T, E>,
                pair_embedding_forward_scratch<T, E>);
    bind_kernel(m, "pair_embedding_backward", suffix, pair_embedding_backward<T, E>,
                pair_embedding_backward_scratch<T, E>);
}

template <class T> void bind_power_spectrum(py::module_ &m, const std::string &suffix) {
    bind_kernel(m, "power_spectrum_forward", suffix, power_spectrum_forward<T>,
                power_spectrum_forward_scratch<T>);
    bind_kernel(m, "power_spectrum_backward", suffix, power_spectrum_backward<T>,
                power_spectrum_backward_scratch<T>);
}

template <class T>
void bound_distances_forward(uintptr_t cells, uintptr_t frac_i, uintptr_t frac_j,
                             uintptr_t offsets_i, uintptr_t offsets_j, int64_t crystals,
                             int64_t sites_i, int64_t sites_j, uintptr_t pair_offsets,
                             int64_t pairs, uintptr_t distance, uintptr_t usable, uintptr_t scratch,
                             uintptr_t stream) {
    distances_forward<T>({Address{cells}, Address{frac_i}, Address{frac_j}, Address{offsets_i},
                          Address{offsets_j}, crystals, sites_i, sites_j},
                         Address{pair_offsets}, pairs, Address{distance}, Address{usable},
                         Address{scratch}, Address{stream});
}

template <class T>
void bound_distances_backward(uintptr_t cells, uintptr_t frac_i, uintptr_t frac_j,
                              uintptr_t offsets_i, uintptr_t offsets_j, int64_t crystals,
                              int64_t sites_i, int64_t sites_j, uintptr_t pair_offsets,
                              uintptr_t grad_distance, uintptr_t grad_cells, uintptr_t grad_frac_i,
                              uintptr_t grad_frac_j, uintptr_t usable, uintptr_t scratch,
                              uintptr_t stream) {
    distances_backward<T>(
        {Address{cells}, Address{frac_i}, Address{frac_j}, Address{offsets_i}, Address{offsets_j},
         crystals, sites_i, sites_j},
        Address{pair_offsets},
        {Address{grad_distance}, Address{grad_cells}, Address{grad_frac_i}, Address{grad_frac_j}},
        Address{usable}, Address{scratch}, Address{stream});
}

/// The shapes are bound here and below, as no CPU kernel takes them.
inline void bind_pair_input_shapes(py::module_ &m) {
    const auto of_lists = [](int64_t pairs, int rows, int first_row, int basis, double reach,
                             const std::vector<int> &kinds, const std::vector<double> &powers,
                             const std::vector<double> &clips) {
        PairInputsShape shape = {pairs, rows, first_row, int(kinds.size()), basis, reach, {}};
        if (kinds.size() > kMostFeatures || powers.size() != kinds.size() ||
            clips.size() != kinds.size())
            throw std::invalid_argument("PairInputsShape: lists of one length, at most " +
                                        std::to_string(kMostFeatures));
        for (size_t k = 0; k < kinds.size(); ++k)
            shape.features[k] = {kinds[k], powers[k], clips[k]};
        return shape;
    };
    using py::arg;
    py::class_<PairInputsShape>(m, "PairInputsShape", py::module_local())
        .def(py::init(of_lists), arg("pairs"), arg("rows"), arg("first_row"), arg("basis"),
             arg("reach"), arg("kinds"), arg("powers"), arg("clips"));
    py::class_<LogMultiplicityShape>(m, "LogMultiplicityShape", py::module_local())
        .def(py::init<int64_t, int, double, double>(), arg("pairs"), arg("columns"), arg("cutoff"),
             arg("reach"));
}

template <class T, class D> void bind_pair_inputs(py::module_ &m, const std::string &suffix) {
    bind_kernel(m, "pair_inputs", suffix, pair_inputs<T, D>, pair_inputs_scratch<T, D>);
    bind_kernel(m, "log_multiplicity", suffix, log_multiplicity<T, D>,
                log_multiplicity_scratch<T, D>);
}

inline void bind_block_weights_shape(py::module_ &m) {
    py::class_<BlockWeightsShape>(m, "BlockWeightsShape", py::module_local())
        .def(py::init<int, int, int, int, int, int>(), py::arg("hidden"), py::arg("attention"),
             py::arg("interaction"), py::arg("sites"), py::arg("width"), py::arg("heads"));
}

template <class T, class S> void bind_block_weights(py::module_ &m, const std::string &suffix) {
    bind_kernel(m, "block_weights_forward", suffix, block_weights_forward<T, S>,
                block_weights_forward_scratch<T, S>);
    bind_kernel(m, "block_weights_backward", suffix, block_weights_backward<T, S>,
                block_weights_backward_scratch<T, S>);
}

inline void bind_padded_batch(py::module_ &m) {
    py::class_<PaddedBatchShape>(m, "PaddedBatchShape", py::module_local())
        .def(py::init<int64_t, int64_t, int, int>(), py::arg("pairs"), py::arg("images"),
             py::arg("places"), py::arg("rows"));
    bind_kernel(m, "padded_batch", "_f32_cuda", padded_batch, padded_batch_scratch);
}

template <class T> void bind_geometry(py::module_ &m, const std::string &suffix) {
    const std::string name = "minimum_image_distances";
    m.def((name + "_forward" + suffix).c_str(), bound_distances_forward<T>, WithoutGil());
    m.def((name + "_backward" + suffix).c_str(), bound_distances_backward<T>, WithoutGil());
    m.def((name + "_scratch" + suffix).c_str(), distances_scratch<T>);
}

inline void bind(py::module_ &m) {
    bind_attention<float, float>(m, "_f32_cuda");
    bind_attention<double, double>(m, "_f64_cuda");
    bind_attention<float, uint16_t>(m, "_bf16_cuda");
    bind_attention<float, Tf32>(m, "_tf32_cuda");
    bind_pair_embedding<float, float>(m, "_f32_cuda");
    bind_pair_embedding<double, double>(m, "_f64_cuda");
    bind_pair_embedding<float, uint16_t>(m, "_bf16_cuda");
    bind_power_spectrum<float>(m, "_f32_cuda");
    bind_power_spectrum<double>(m, "_f64_cuda");
    bind_block_weights_shape(m);
    bind_block_weights<float, float>(m, "_f32_cuda");
    bind_block_weights<double, double>(m, "_f64_cuda");
    bind_block_weights<float, uint16_t>(m, "_bf16_cuda");
    bind_pair_input_shapes(m);
    bind_pair_inputs<float, float>(m, "_f32_cuda");
    bind_pair_inputs<double, float>(m, "_f64_f32_cuda");
    bind_pair_inputs<double, double>(m, "_f64_cuda");
    bind_padded_batch(m);
    bind_geometry<float>(m, "_f32_cuda");
    bind_geometry<double>(m, "_f64_cuda");
}

} // namespace
} // namespace sitenet::cuda

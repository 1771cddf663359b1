// The list of what Python can call: addresses as uintptr_t, sizes, a thread count or a stream. All
// checks are in sitenet/ops and sitenet/pairs.py; nothing here allocates.
#include "attention.h"
#include "cpu/level.h"
#include "geometry.h"
#include "merge.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

template <class T> T *at(uintptr_t address) { return reinterpret_cast<T *>(address); }

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

// The list of what Python can call: addresses as uintptr_t, sizes, a thread count or a stream. All
// checks are in sitenet/ops and sitenet/pairs.py; nothing here allocates.
#include "attention.h"
#include "cpu/level.h"
#include "geometry.h"
#include "merge.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    m.attr("level") = sitenet::level_name();
#ifdef SITENET_WITH_CUDA
    m.attr("with_cuda") = true;
#else
    m.attr("with_cuda") = false;
#endif
}

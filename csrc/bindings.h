// What the bindings of the CPU and of the CUDA kernels share.
#pragma once

#include "addresses.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace sitenet {

using WithoutGil = pybind11::call_guard<pybind11::gil_scoped_release>;

} // namespace sitenet

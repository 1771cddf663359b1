// The CUDA kernels compiled for the CPU through cuda_emu.h, under the names that Python calls.
#include "../../csrc/cuda/attention.cu"
#include "../../csrc/cuda/attention_backward.cu"
#include "../../csrc/cuda/embedding.cu"
#include "../../csrc/cuda/geometry.cu"

#include "../../csrc/cuda/bindings.h"

PYBIND11_MODULE(emulated, m) { sitenet::cuda::bind(m); }

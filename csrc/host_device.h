// SITENET_HD marks an inline function that both the C++ compiler and nvcc compile.
#pragma once

#ifdef __CUDACC__
#define SITENET_HD __host__ __device__ __forceinline__
#else
#define SITENET_HD inline
#endif

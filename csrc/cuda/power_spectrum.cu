// Power spectra on the GPU (formulas and layouts: ../power_spectrum.h).
//
// A block takes one row at a time, and densities travel through scratch memory, which the
// second-level cache holds: 6.4 KB per row with 4 radial functions, 16 channels and l = 0 to 4 in
// float. So no size is limited by shared memory. The kernels:
//   density       stages up to 16 images, and each thread adds them to its entries of the density
//   mix           one entry of mixed per thread, then the norms; in the backward pass, its gradient
//   grad_density  grad_mixed mix^T, one entry per thread
//   grad_mix      one warp per eighth of the rows sums an entry of mix per lane
//   grad_values   one block per site walks through the images of the site in their order
//
// Operations per row of 40 images at these sizes: 0.13 M products forward and 0.36 M backward. No
// atomics; results are bitwise reproducible.
#include "kernels.h"
#include "launch.cuh"

namespace sitenet::cuda {
namespace {

constexpr int kRowThreads = 128;
constexpr int kMostStaged = 16; // images in shared memory at a time
constexpr int kRowGroups = 8;   // warps that share a sum over rows

/// Scratch memory; without a base address, it only measures.
template <class T> struct SpectrumScratch {
    T *density;      ///< (rows, harmonics, products)
    T *mixed;        ///< (rows, harmonics, mixed); in the backward pass, its gradient
    T *grad_density; ///< as density; only in the backward pass
    int64_t bytes;

    SpectrumScratch(const PowerSpectrumShape &s, bool backward, void *memory) {
        Scratch scratch(memory);
        const int64_t harmonics = int64_t(s.rows) * s.degrees * s.degrees;
        density = scratch.take<T>(harmonics * s.radial * s.channels);
        mixed = scratch.take<T>(harmonics * s.mixed);
        grad_density = scratch.take<T>(backward ? harmonics * s.radial * s.channels : 0);
        bytes = scratch.bytes();
    }
};

__device__ inline int degree_of(int lm) {
    int l = 0;
    while ((l + 1) * (l + 1) <= lm)
        ++l;
    return l;
}

/// Writes the harmonics of an image.
template <class T>
__device__ void image_harmonics(const PowerSpectrumInputs<T> &p, int64_t image, T *to) {
    const T *v = p.vectors + 3 * image;
    const T length = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    const bool has_direction = length > T(kNoDirection);
    const T scale = has_direction ? 1 / length : T(0);
    spherical_harmonics<T>(v[0] * scale, v[1] * scale, v[2] * scale, p.shape.degrees,
                           [&](int lm, T y) { to[lm] = lm == 0 || has_direction ? y : T(0); });
}

/// `staged` images at a time are in shared memory.
template <class T>
__global__ void density_kernel(PowerSpectrumInputs<T> p, int staged, T *density) {
    DYNAMIC_SHARED(T, shared);
    const PowerSpectrumShape &s = p.shape;
    const int harmonics = s.degrees * s.degrees, products = s.radial * s.channels;
    T *stage = shared, *radial = stage + staged * harmonics, *values = radial + staged * s.radial;
    T *row = density + int64_t(blockIdx.x) * harmonics * products;
    const int64_t end = p.offsets[blockIdx.x + 1];
    for (int e = threadIdx.x; e < harmonics * products; e += blockDim.x)
        row[e] = 0;
    for (int64_t first = p.offsets[blockIdx.x]; first < end; first += staged) {
        const int count = int(end - first < staged ? end - first : staged);
        __syncthreads();
        if (int(threadIdx.x) < count)
            image_harmonics(p, first + threadIdx.x, stage + threadIdx.x * harmonics);
        for (int i = threadIdx.x; i < count * s.radial; i += blockDim.x)
            radial[i] = p.radial[first * s.radial + i];
        for (int i = threadIdx.x; i < count * s.channels; i += blockDim.x)
            values[i] = p.values[int64_t(p.sites_of_image[first + i / s.channels]) * s.channels +
                                 i % s.channels];
        __syncthreads();
        for (int e = threadIdx.x; e < harmonics * products; e += blockDim.x) {
            const int lm = e / products, n = e % products / s.channels, c = e % s.channels;
            T sum = row[e];
            for (int k = 0; k < count; ++k)
                sum += stage[k * harmonics + lm] * radial[k * s.radial + n] *
                       values[k * s.channels + c];
            row[e] = sum;
        }
    }
}

/// Writes mixed and, where `out` is given, the spectrum; else replaces mixed by its gradient.
template <class T>
__global__ void mix_kernel(PowerSpectrumInputs<T> p, const T *density, T *mixed, T *out,
                           const T *grad_out) {
    const PowerSpectrumShape &s = p.shape;
    const int harmonics = s.degrees * s.degrees, products = s.radial * s.channels;
    const T *from = density + int64_t(blockIdx.x) * harmonics * products;
    T *to = mixed + int64_t(blockIdx.x) * harmonics * s.mixed;
    for (int e = threadIdx.x; e < harmonics * s.mixed; e += blockDim.x) {
        const int lm = e / s.mixed, q = e % s.mixed;
        const T *weights = p.mix + int64_t(degree_of(lm)) * products * s.mixed + q;
        T sum = 0;
        for (int nc = 0; nc < products; ++nc)
            sum += from[lm * products + nc] * weights[int64_t(nc) * s.mixed];
        to[e] = sum;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < s.degrees * s.mixed; e += blockDim.x) {
        const int l = e / s.mixed, q = e % s.mixed;
        const int64_t at = int64_t(blockIdx.x) * s.degrees * s.mixed + e;
        T square = T(kSoft * kSoft);
        for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm)
            square += to[lm * s.mixed + q] * to[lm * s.mixed + q];
        const T norm = sqrt(square);
        if (out)
            out[at] = l ? norm - T(kSoft) : to[q];
        else if (l == 0)
            to[q] = grad_out[at];
        else
            for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm)
                to[lm * s.mixed + q] *= grad_out[at] / norm;
    }
}

template <class T>
__global__ void grad_density_kernel(PowerSpectrumInputs<T> p, const T *grad_mixed,
                                    T *grad_density) {
    const PowerSpectrumShape &s = p.shape;
    const int harmonics = s.degrees * s.degrees, products = s.radial * s.channels;
    const T *from = grad_mixed + int64_t(blockIdx.x) * harmonics * s.mixed;
    T *to = grad_density + int64_t(blockIdx.x) * harmonics * products;
    for (int e = threadIdx.x; e < harmonics * products; e += blockDim.x) {
        const int lm = e / products, nc = e % products;
        const T *weights = p.mix + (int64_t(degree_of(lm)) * products + nc) * s.mixed;
        T sum = 0;
        for (int q = 0; q < s.mixed; ++q)
            sum += from[lm * s.mixed + q] * weights[q];
        to[e] = sum;
    }
}

/// A block per (degree, product); a lane per entry of that row of mix, 32 at a time.
template <class T>
__global__ void grad_mix_kernel(PowerSpectrumBackward<T> p, const T *density, const T *grad_mixed) {
    DYNAMIC_SHARED(T, sums); // (kRowGroups, kWarp)
    const PowerSpectrumShape &s = p.shape;
    const int harmonics = s.degrees * s.degrees, products = s.radial * s.channels;
    const int l = blockIdx.x / products, nc = blockIdx.x % products;
    const int lane = threadIdx.x % kWarp, group = threadIdx.x / kWarp;
    for (int first = 0; first < s.mixed; first += kWarp) {
        const int q = first + lane;
        T sum = 0;
        for (int r = group; q < s.mixed && r < s.rows; r += kRowGroups)
            for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm)
                sum += density[(int64_t(r) * harmonics + lm) * products + nc] *
                       grad_mixed[(int64_t(r) * harmonics + lm) * s.mixed + q];
        sums[group * kWarp + lane] = sum;
        __syncthreads();
        if (group == 0 && q < s.mixed) {
            for (int g = 1; g < kRowGroups; ++g)
                sum += sums[g * kWarp + lane];
            p.grad_mix[int64_t(blockIdx.x) * s.mixed + q] = sum;
        }
        __syncthreads();
    }
}

/// A block per site.
template <class T>
__global__ void grad_values_kernel(PowerSpectrumBackward<T> p, const T *grad_density) {
    DYNAMIC_SHARED(T, shared);
    const PowerSpectrumShape &s = p.shape;
    const int harmonics = s.degrees * s.degrees, products = s.radial * s.channels;
    T *y = shared, *sums = shared + harmonics; // (harmonics), (products)
    for (int nc = threadIdx.x; nc < products; nc += blockDim.x)
        sums[nc] = 0;
    const int64_t end = p.offsets_of_site[blockIdx.x + 1];
    for (int64_t k = p.offsets_of_site[blockIdx.x]; k < end; ++k) {
        const int64_t image = p.images_of_site[k];
        __syncthreads();
        if (threadIdx.x == 0)
            image_harmonics(p, image, y);
        int row = 0; // the last row that begins at or before the image
        for (int high = s.rows - 1; row < high;) {
            const int middle = row + (high - row + 1) / 2;
            if (p.offsets[middle] <= image)
                row = middle;
            else
                high = middle - 1;
        }
        __syncthreads();
        const T *from = grad_density + int64_t(row) * harmonics * products;
        for (int nc = threadIdx.x; nc < products; nc += blockDim.x) {
            T sum = 0;
            for (int lm = 0; lm < harmonics; ++lm)
                sum += y[lm] * from[lm * products + nc];
            sums[nc] += p.radial[image * s.radial + nc / s.channels] * sum;
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < s.channels; c += blockDim.x) {
        T sum = 0;
        for (int n = 0; n < s.radial; ++n)
            sum += sums[n * s.channels + c];
        p.grad_values[int64_t(blockIdx.x) * s.channels + c] = sum;
    }
}

/// Computes density and mixed, then the spectrum if `out` is given, or the gradient of mixed.
template <class T>
void mix_density(const char *op, const PowerSpectrumInputs<T> &p, const SpectrumScratch<T> &scratch,
                 T *out, const T *grad_out, cudaStream_t stream) {
    const PowerSpectrumShape &s = p.shape;
    const int bytes = (s.degrees * s.degrees + s.radial + s.channels) * int(sizeof(T));
    const int fitting = kSharedBytes / bytes; // 5 at least, as radial * channels <= 1024
    const int staged = fitting < kMostStaged ? fitting : kMostStaged;
    LAUNCH(op, density_kernel<T>, grid_of(s.rows), kRowThreads, staged * bytes, stream, p, staged,
           scratch.density);
    LAUNCH(op, mix_kernel<T>, grid_of(s.rows), kRowThreads, 0, stream, p, scratch.density,
           scratch.mixed, out, grad_out);
}

} // namespace

template <class T> int64_t power_spectrum_forward_scratch(const PowerSpectrumShape &s) {
    return SpectrumScratch<T>(s, false, nullptr).bytes;
}

template <class T>
void power_spectrum_forward(const PowerSpectrumForward<T> &p, void *memory, void *handle) {
    const SpectrumScratch<T> scratch(p.shape, false, memory);
    mix_density<T>("power_spectrum_forward", p, scratch, p.out, nullptr,
                   static_cast<cudaStream_t>(handle));
}

template <class T> int64_t power_spectrum_backward_scratch(const PowerSpectrumShape &s) {
    return SpectrumScratch<T>(s, true, nullptr).bytes;
}

template <class T>
void power_spectrum_backward(const PowerSpectrumBackward<T> &p, void *memory, void *handle) {
    const char *op = "power_spectrum_backward";
    const auto stream = static_cast<cudaStream_t>(handle);
    const PowerSpectrumShape &s = p.shape;
    const int products = s.radial * s.channels;
    const SpectrumScratch<T> scratch(s, true, memory);
    mix_density<T>(op, p, scratch, nullptr, p.grad_out, stream);
    LAUNCH(op, grad_density_kernel<T>, grid_of(s.rows), kRowThreads, 0, stream, p, scratch.mixed,
           scratch.grad_density);
    LAUNCH(op, grad_mix_kernel<T>, grid_of(s.degrees * products), kRowGroups * kWarp,
           kRowGroups * kWarp * int(sizeof(T)), stream, p, scratch.density, scratch.mixed);
    LAUNCH(op, grad_values_kernel<T>, grid_of(s.sites), kRowThreads,
           (s.degrees * s.degrees + products) * int(sizeof(T)), stream, p, scratch.grad_density);
}

#define INSTANTIATE(T)                                                                             \
    template int64_t power_spectrum_forward_scratch<T>(const PowerSpectrumShape &);                \
    template void power_spectrum_forward<T>(const PowerSpectrumForward<T> &, void *, void *);      \
    template int64_t power_spectrum_backward_scratch<T>(const PowerSpectrumShape &);               \
    template void power_spectrum_backward<T>(const PowerSpectrumBackward<T> &, void *, void *);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

} // namespace sitenet::cuda

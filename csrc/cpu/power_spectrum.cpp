// Power spectra on the CPU (formulas and layouts: ../power_spectrum.h).
//
// The rows are cut into parts with equal numbers of images; a free thread takes the next part, and
// kGroup rows of it at a time. All of these stay in the first two levels of cache:
//   1. For the images of a row, the harmonics of as many images at a time as a vector has lanes.
//   2. geometry[j] = the sum of harmonics * radial over the images of one site j, which follow each
//      other; then density = geometry * values, a matrix product over these sites.
//   3. Per degree, mixed = density * mix over all rows of the group, and the norms over m.
// The backward pass computes steps 1 to 3 again, and then
//      grad_density = grad_mixed * mix^T, grad_mix += density^T grad_mixed,
//      grad_values[j] += geometry[j]^T * grad_density.
//
// Memory traffic per image: its vector, radial functions and site, and the values of the site; the
// rest is arithmetic. With 8 radial functions, 16 channels, l = 0 to 4, 48 mixed channels and 40
// images of 20 sites per row, a row takes some 230,000 products forward and 600,000 backward. With
// AVX-512 and two multipliers, the products with mix take half of the time, at the rate of the
// multipliers; loads of factors bound the products with values.
//
// grad_values and grad_mix are summed per part and then over parts in order, so results are bitwise
// reproducible for a given number of threads.
#include "../power_spectrum.h"

#include "attention/tile.h"
#include "small_product.h"

namespace sitenet::SITENET_LEVEL {
namespace {

constexpr int kGroup = 8; ///< rows, whose densities are mixed together
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kGeometryRows = kMostHarmonics; ///< harmonics whose sums are in registers
#else
constexpr int kGeometryRows = 9;
#endif

/// Sizes padded to whole vectors.
template <class T> struct Padded {
    int channels, radial, products, mixed, harmonics;
    int geometry; ///< of one site; not padded

    explicit Padded(const PowerSpectrumShape &s)
        : channels(round_up(s.channels, kLanes<T>)), radial(round_up(s.radial, kLanes<T>)),
          products(s.radial * channels), mixed(round_up(s.mixed, kLanes<T>)),
          harmonics(s.degrees * s.degrees), geometry(harmonics * s.radial) {}
};

/// The learned weights, packed as (degrees, padded products, padded mixed) and, for the backward
/// pass, as (degrees, padded mixed, padded products).
template <class T> struct Mix {
    Buffer<T> forward, backward;

    Mix(const PowerSpectrumInputs<T> &p, const Padded<T> &padded, bool need_backward) {
        const PowerSpectrumShape &s = p.shape;
        const size_t size = size_t(s.degrees) * padded.products * padded.mixed;
        forward.resize(size);
        backward.resize(need_backward ? size : 0);
        const T *from = p.mix;
        for (int l = 0; l < s.degrees; ++l)
            for (int n = 0; n < s.radial; ++n)
                for (int c = 0; c < s.channels; ++c)
                    for (int q = 0; q < s.mixed; ++q, ++from) {
                        const int at = n * padded.channels + c;
                        forward[(size_t(l) * padded.products + at) * padded.mixed + q] = *from;
                        if (need_backward)
                            backward[(size_t(l) * padded.mixed + q) * padded.products + at] = *from;
                    }
    }
};

/// The images of a row, by their sites.
template <class T> struct RowImages {
    int number = 0;             ///< of sites, each once per run of images
    std::vector<int32_t> sites; ///< (number)
    Buffer<T> geometry;         ///< (number, harmonics, radial), and the rest of a vector
    Buffer<T> values;           ///< (number, padded channels)

    void reserve(int images, const Padded<T> &padded) {
        if (size_t(images) <= sites.size())
            return;
        sites.resize(images);
        geometry.resize(size_t(images) * padded.geometry + padded.radial);
        values.resize(size_t(images) * padded.channels);
    }
};

/// Sums harmonics * radial over the images from `begin` to `end`, for `count` harmonics and one
/// vector of radial functions. kLanes images lie side by side, `size` harmonics before the next.
template <class T, int count>
void sum_geometry(const T *harmonics, int size, const T *radial, int radial_step, int begin,
                  int end, T *to) {
    Vec<T> sum[count] = {};
    for (int k = begin; k < end; ++k) {
        const T *left = harmonics + k / kLanes<T> * size * kLanes<T> + k % kLanes<T>;
        const Vec<T> right = load(radial + k * radial_step);
#pragma GCC unroll 25
        for (int i = 0; i < count; ++i)
            sum[i] += left[i * kLanes<T>] * right;
    }
#pragma GCC unroll 25
    for (int i = 0; i < count; ++i)
        store(to + i * radial_step, sum[i]);
}

/// kGroup rows at a time, or as many as are left.
template <class T> struct Group {
    const PowerSpectrumInputs<T> &p;
    const PowerSpectrumShape &s;
    const Padded<T> &padded;
    const Mix<T> &mix;
    int rows = 0;
    RowImages<T> images[kGroup];
    Buffer<T> harmonics;     ///< (images of a row / kLanes, harmonics, kLanes)
    Buffer<T> radial;        ///< (images of a row, radial), and the rest of a vector
    Buffer<T> density;       ///< (harmonics, rows, padded products)
    std::vector<int> places; ///< (harmonics, radial), where their channels are in density
    Buffer<T> mixed;         ///< (harmonics, rows, padded mixed)
    Buffer<T> norms;         ///< (padded mixed)

    Group(const PowerSpectrumInputs<T> &p, const Padded<T> &padded, const Mix<T> &mix)
        : p(p), s(p.shape), padded(padded), mix(mix),
          density(size_t(padded.harmonics) * kGroup * padded.products),
          places(padded.harmonics * s.radial),
          mixed(size_t(padded.harmonics) * kGroup * padded.mixed), norms(padded.mixed) {}

    /// Fills the harmonics of a row's images; those past `count` are 0.
    void read_harmonics(int64_t first, int count) {
        for (int q = 0; q < count; q += kLanes<T>) {
            T axis[3][kLanes<T>] = {};
            for (int lane = 0; lane < std::min(kLanes<T>, count - q); ++lane)
                for (int k = 0; k < 3; ++k)
                    axis[k][lane] = p.vectors[3 * (first + q + lane) + k];
            Vec<T> x = load(axis[0]), y = load(axis[1]), z = load(axis[2]);
            const Vec<T> length = square_root(x * x + y * y + z * z);
            const auto short_ones = length <= splat(T(kNoDirection));
            const Vec<T> divisor = short_ones ? splat(T(1)) : length;
            const Vec<T> has_direction = short_ones ? Vec<T>{} : splat(T(1));
            x /= divisor, y /= divisor, z /= divisor;
            T *to = &harmonics[q * padded.harmonics];
            spherical_harmonics<T>(x, y, z, s.degrees, [&](int lm, Vec<T> value) {
                store(to + lm * kLanes<T>, lm ? value * has_direction : value);
            });
        }
    }
    /// Fills the geometry of a run of images of one site. A vector that ends beyond the radial
    /// functions of one harmonic is stored before those of the next.
    void read_geometry(int begin, int end, T *to) const {
        auto sum = [&](int lm, int n, auto count) {
            sum_geometry<T, count>(&harmonics[lm * kLanes<T>], padded.harmonics, &radial[n],
                                   s.radial, begin, end, to + lm * s.radial + n);
        };
        if (s.radial <= kLanes<T>)
            for (int lm = 0; lm < padded.harmonics; lm += kGeometryRows)
                with_constant<kGeometryRows>(padded.harmonics - lm,
                                             [&](auto count) { sum(lm, 0, count); });
        else
            for (int lm = 0; lm < padded.harmonics; ++lm)
                for (int n = 0; n < s.radial; n += kLanes<T>)
                    sum(lm, n, std::integral_constant<int, 1>());
    }
    /// Gathers the images of a row by their sites.
    void read_images(int row, RowImages<T> &to) {
        const int64_t first = p.offsets[row];
        const int count = int(p.offsets[row + 1] - first);
        const int whole = round_up(count, kLanes<T>);
        to.reserve(count, padded);
        to.number = 0;
        if (harmonics.size() < size_t(padded.harmonics) * whole) {
            harmonics.resize(size_t(padded.harmonics) * whole);
            radial.resize(size_t(whole) * s.radial + padded.radial);
        }
        read_harmonics(first, count);
        std::copy_n(p.radial + first * s.radial, count * s.radial, radial.get());
        const int32_t *site = p.sites_of_image + first;
        for (int k = 0; k < count; ++to.number) {
            int end = k + 1;
            while (end < count && site[end] == site[k])
                ++end;
            read_geometry(k, end, &to.geometry[size_t(to.number) * padded.geometry]);
            to.sites[to.number] = site[k];
            std::copy_n(p.values + size_t(site[k]) * s.channels, s.channels,
                        &to.values[to.number * padded.channels]);
            k = end;
        }
    }
    /// Computes `density` and `mixed` of some rows.
    void compute(int first_row, int number) {
        rows = number;
        for (int i = 0; i < int(places.size()); ++i)
            places[i] = i / s.radial * rows * padded.products + i % s.radial * padded.channels;
        for (int r = 0; r < rows; ++r) {
            const RowImages<T> &sites = images[r];
            read_images(first_row + r, images[r]);
            T *to = density_row(density, 0, r);
            product<T, true>({sites.geometry.get(), padded.geometry, sites.values.get(),
                              padded.channels, sites.number},
                             padded.geometry, padded.channels,
                             [this, to](int i) { return to + places[i]; });
        }
        for (int l = 0; l < s.degrees; ++l)
            product<T>({density_row(density, l * l, 0), padded.products,
                        &mix.forward[size_t(l) * padded.products * padded.mixed], padded.mixed,
                        padded.products},
                       (2 * l + 1) * rows, padded.mixed,
                       EvenRows<T>{mixed_row(l * l, 0), padded.mixed});
    }
    T *density_row(const Buffer<T> &x, int lm, int r) const {
        return x.get() + size_t(lm * rows + r) * padded.products;
    }
    T *mixed_row(int lm, int r) const { return &mixed[(lm * rows + r) * padded.mixed]; }
    /// Fills `norms` over m of row r, before kSoft is taken away.
    void read_norms(int l, int r) {
        for (int q = 0; q < padded.mixed; q += kLanes<T>) {
            Vec<T> sum = splat(T(kSoft * kSoft));
            for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm) {
                const Vec<T> x = load(mixed_row(lm, r) + q);
                sum += x * x;
            }
            store(&norms[q], square_root(sum));
        }
    }
    void write(int first_row, int number, T *out) {
        compute(first_row, number);
        for (int r = 0; r < rows; ++r) {
            T *to = out + size_t(first_row + r) * s.degrees * s.mixed;
            std::copy_n(mixed_row(0, r), s.mixed, to);
            for (int l = 1; l < s.degrees; ++l) {
                read_norms(l, r);
                for (int q = 0; q < s.mixed; ++q)
                    to[l * s.mixed + q] = norms[q] - T(kSoft);
            }
        }
    }
};

/// The sums over the rows of one part.
template <class T> struct SpectrumSums {
    Buffer<T> values; ///< (sites, padded channels)
    Buffer<T> mix;    ///< (degrees, padded products, padded mixed)
};

template <class T> struct BackwardGroup : Group<T> {
    using Group<T>::s;
    using Group<T>::padded;
    using Group<T>::density;
    using Group<T>::rows;
    const PowerSpectrumBackward<T> &gradients;
    SpectrumSums<T> &sums;
    Buffer<T> grad_density; ///< as density
    Buffer<T> grad_values;  ///< (sites of a row, padded channels)
    Buffer<T> factors;      ///< (padded mixed)

    BackwardGroup(const PowerSpectrumBackward<T> &p, const Padded<T> &padded, const Mix<T> &mix,
                  SpectrumSums<T> &sums)
        : Group<T>(p, padded, mix), gradients(p), sums(sums), grad_density(density.size()),
          factors(padded.mixed) {
        sums.values.resize(size_t(s.sites) * padded.channels);
        sums.mix.resize(mix.forward.size());
    }

    void run(int first_row, int number) {
        this->compute(first_row, number);
        for (int r = 0; r < rows; ++r)
            grade_mixed(r, gradients.grad_out + size_t(first_row + r) * s.degrees * s.mixed);
        for (int l = 0; l < s.degrees; ++l) {
            const size_t weights = size_t(l) * padded.products * padded.mixed;
            const int begin = l * l, height = (2 * l + 1) * rows;
            const T *grad_mixed = this->mixed_row(begin, 0);
            product<T, true>({this->density_row(density, begin, 0), padded.products, grad_mixed,
                              padded.mixed, height},
                             padded.products, padded.mixed,
                             EvenRows<T>{&sums.mix[weights], padded.mixed}, true);
            product<T>(
                {grad_mixed, padded.mixed, &this->mix.backward[weights], padded.products, s.mixed},
                height, padded.products,
                EvenRows<T>{this->density_row(grad_density, begin, 0), padded.products});
        }
        for (int r = 0; r < rows; ++r)
            add_values(r);
    }
    /// Replaces the `mixed` of row r by its gradient.
    void grade_mixed(int r, const T *grad_out) {
        std::copy_n(grad_out, s.mixed, this->mixed_row(0, r));
        for (int l = 1; l < s.degrees; ++l) {
            this->read_norms(l, r);
            std::copy_n(grad_out + l * s.mixed, s.mixed, factors.get());
            for (int q = 0; q < padded.mixed; q += kLanes<T>) {
                const Vec<T> factor = load(&factors[q]) / load(&this->norms[q]);
                for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm) {
                    T *x = this->mixed_row(lm, r) + q;
                    store(x, load(x) * factor);
                }
            }
        }
    }
    /// Adds the gradients of the values of a row's sites.
    void add_values(int r) {
        const RowImages<T> &images = this->images[r];
        if (grad_values.size() < size_t(images.number) * padded.channels)
            grad_values.resize(size_t(images.number) * padded.channels);
        product<T>({images.geometry.get(), padded.geometry, this->density_row(grad_density, 0, r),
                    padded.channels, s.radial, padded.harmonics, s.radial, rows * padded.products},
                   images.number, padded.channels, EvenRows<T>{grad_values.get(), padded.channels});
        for (int j = 0; j < images.number; ++j) {
            T *to = &sums.values[size_t(images.sites[j]) * padded.channels];
            for (int c = 0; c < padded.channels; c += kLanes<T>)
                store(to + c, load(to + c) + load(&grad_values[j * padded.channels + c]));
        }
    }
};

/// Products per image and row, which decide how many threads are worth waking.
template <class T> int64_t work(const PowerSpectrumShape &s, const Padded<T> &padded) {
    return int64_t(padded.harmonics) * padded.products * (s.images + int64_t(s.rows) * s.mixed);
}

template <class T> void forward(const PowerSpectrumForward<T> &p, int threads) {
    const Padded<T> padded(p.shape);
    threads = useful_threads(threads, work(p.shape, padded), kThreadProducts);
    const int parts = num_parts(threads);
    const Mix<T> mix(p, padded, false);
    const std::vector<int> first = shares(p.offsets, p.shape.rows, parts);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int i = 0; i < parts; ++i) {
        Group<T> group(p, padded, mix);
        for (int r = first[i]; r < first[i + 1]; r += kGroup)
            group.write(r, std::min(kGroup, first[i + 1] - r), p.out);
    }
}

template <class T>
void add_parts(const std::vector<SpectrumSums<T>> &sums, const PowerSpectrumBackward<T> &p,
               const Padded<T> &padded) {
    const PowerSpectrumShape &s = p.shape;
    for (int j = 0; j < s.sites; ++j)
        for (int c = 0; c < s.channels; ++c) {
            T total = 0;
            for (const SpectrumSums<T> &sum : sums)
                total += sum.values[size_t(j) * padded.channels + c];
            p.grad_values[size_t(j) * s.channels + c] = total;
        }
    T *to = p.grad_mix;
    for (int l = 0; l < s.degrees; ++l)
        for (int n = 0; n < s.radial; ++n)
            for (int c = 0; c < s.channels; ++c)
                for (int q = 0; q < s.mixed; ++q) {
                    const size_t row = size_t(l) * padded.products + n * padded.channels + c;
                    T total = 0;
                    for (const SpectrumSums<T> &sum : sums)
                        total += sum.mix[row * padded.mixed + q];
                    *to++ = total;
                }
}

template <class T> void backward(const PowerSpectrumBackward<T> &p, int threads) {
    const Padded<T> padded(p.shape);
    threads = useful_threads(threads, 3 * work(p.shape, padded), kThreadProducts);
    const int parts = num_parts(threads);
    const Mix<T> mix(p, padded, true);
    const std::vector<int> first = shares(p.offsets, p.shape.rows, parts);
    std::vector<SpectrumSums<T>> sums(parts);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int i = 0; i < parts; ++i) {
        BackwardGroup<T> group(p, padded, mix, sums[i]);
        for (int r = first[i]; r < first[i + 1]; r += kGroup)
            group.run(r, std::min(kGroup, first[i + 1] - r));
    }
    add_parts(sums, p, padded);
}

} // namespace

extern const PowerSpectrumKernels<float> power_spectrum_f32 = {forward<float>, backward<float>};
extern const PowerSpectrumKernels<double> power_spectrum_f64 = {forward<double>, backward<double>};

} // namespace sitenet::SITENET_LEVEL

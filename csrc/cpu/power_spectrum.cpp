// Power spectra on the CPU (formulas and layouts: ../power_spectrum.h).
//
// The rows are cut into parts with equal numbers of images; a free thread takes the next part, and
// kGroup rows of it at a time. All of these stay in the first two levels of cache:
//   1. For up to kChunk images of a row, the harmonics (harmonics, images) of as many images at a
//      time as a vector has lanes.
//   2. geometry[j] = the sum of harmonics * radial over the images of one site j, which follow each
//      other; then density += geometry * values, a matrix product over these sites.
//   3. Per degree, mixed = density * mix over all rows of the group, and the norms over m.
// The backward pass computes steps 1 to 3 again, and runs them in reverse:
//      grad_density = grad_mixed * mix^T, grad_mix += density^T grad_mixed,
//      grad_values[j] += geometry[j]^T * grad_density.
//
// Memory traffic per image: its vector, radial functions and site, and the values of the site; the
// rest is arithmetic. With 8 radial functions, 16 channels, l = 0 to 4, 48 mixed channels and 40
// images of 20 sites per row, a row takes some 230,000 products forward and 600,000 backward.
//
// grad_values and grad_mix are summed per part and then over parts in order, so results are bitwise
// reproducible for a given number of threads.
#include "../power_spectrum.h"

#include "attention/packing.h"
#include "attention/tile.h"

namespace sitenet::SITENET_LEVEL {
namespace {

constexpr int kChunk = 64; ///< images
constexpr int kGroup = 4;  ///< rows, whose densities are mixed together
#if defined(__AVX512F__)
constexpr int kProductVectors = 4;
#else
constexpr int kProductVectors = 2;
#endif

/// A matrix whose entries lie `row` and `column` numbers apart.
template <class T> struct Strided {
    const T *data;
    int row, column;
    T at(int r, int c) const { return data[r * row + c * column]; }
};

/// One tile of `product`: rows * vectors sums in registers.
template <class T, int rows, int vectors>
void product_tile(Strided<T> a, int depth, const T *b, int b_row, T *c, int c_row) {
    Vec<T> sum[rows][vectors];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v)
            sum[r][v] = load(c + r * c_row + v * kLanes<T>);
    for (int d = 0; d < depth; ++d)
        for (int v = 0; v < vectors; ++v) {
            const Vec<T> right = load(b + d * b_row + v * kLanes<T>);
            for (int r = 0; r < rows; ++r)
                sum[r][v] += a.at(r, d) * right;
        }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v)
            store(c + r * c_row + v * kLanes<T>, sum[r][v]);
}

/// `product` in tiles of `most_rows` rows and `most_vectors` vectors.
template <class T, int most_rows, int most_vectors>
void tiled_product(Strided<T> a, int rows, int depth, const T *b, int b_row, int columns, T *c,
                   int c_row) {
    constexpr int width = most_vectors * kLanes<T>;
    for (int r = 0; r < rows; r += most_rows)
        for (int k = 0; k < columns; k += width)
            with_constant<most_rows>(rows - r, [&](auto height) {
                with_constant<most_vectors>((columns - k) / kLanes<T>, [&](auto vectors) {
                    product_tile<T, height, vectors>({a.data + r * a.row, a.row, a.column}, depth,
                                                     b + k, b_row, c + r * c_row + k, c_row);
                });
            });
}

/// c (rows, columns) += a (rows, depth) b (depth, columns); columns fill whole vectors.
template <class T>
void product(Strided<T> a, int rows, int depth, const T *b, int b_row, int columns, T *c,
             int c_row) {
    if (columns == kLanes<T>) // enough sums to hide the latency of each
        tiled_product<T, 8, 1>(a, rows, depth, b, b_row, columns, c, c_row);
    else
        tiled_product<T, 4, kProductVectors>(a, rows, depth, b, b_row, columns, c, c_row);
}

/// Sizes padded to whole vectors.
template <class T> struct Padded {
    int channels, radial, products, mixed, harmonics;

    explicit Padded(const PowerSpectrumShape &s)
        : channels(round_up(s.channels, kLanes<T>)), radial(round_up(s.radial, kLanes<T>)),
          products(s.radial * channels), mixed(round_up(s.mixed, kLanes<T>)),
          harmonics(s.degrees * s.degrees) {}
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

/// kGroup rows at a time.
template <class T> struct Group {
    const PowerSpectrumInputs<T> &p;
    const PowerSpectrumShape &s;
    const Padded<T> &padded;
    const Mix<T> &mix;
    int32_t sites[kChunk]; ///< of the chunk's images, each once per run
    Buffer<T> harmonics;   ///< (harmonics, kChunk)
    Buffer<T> radial;      ///< (kChunk, padded radial)
    Buffer<T> geometry;    ///< (kChunk, harmonics, padded radial), by sites
    Buffer<T> values;      ///< (kChunk, padded channels), likewise
    Buffer<T> density;     ///< (harmonics, kGroup, padded products)
    Buffer<T> mixed;       ///< (harmonics, kGroup, padded mixed)
    Buffer<T> norms;       ///< (padded mixed)

    Group(const PowerSpectrumInputs<T> &p, const Padded<T> &padded, const Mix<T> &mix)
        : p(p), s(p.shape), padded(padded), mix(mix), harmonics(padded.harmonics * kChunk),
          radial(kChunk * padded.radial), geometry(kChunk * padded.harmonics * padded.radial),
          values(kChunk * padded.channels),
          density(size_t(padded.harmonics) * kGroup * padded.products),
          mixed(size_t(padded.harmonics) * kGroup * padded.mixed), norms(padded.mixed) {}

    /// Fills the harmonics of some images; those past `count` are 0.
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
            spherical_harmonics<T>(x, y, z, s.degrees, [&](int lm, Vec<T> value) {
                store(&harmonics[lm * kChunk + q], lm ? value * has_direction : value);
            });
        }
    }
    /// Fills the geometry of some images, and their sites. Returns the number of these.
    int read_geometry(int64_t first, int count) {
        read_harmonics(first, count);
        for (int k = 0; k < count; ++k)
            std::copy_n(p.radial + (first + k) * s.radial, s.radial, &radial[k * padded.radial]);
        const int size = padded.harmonics * padded.radial;
        int number = 0;
        for (int k = 0; k < count;) {
            const int32_t site = p.sites_of_image[first + k];
            int end = k + 1;
            while (end < count && p.sites_of_image[first + end] == site)
                ++end;
            std::fill_n(&geometry[number * size], size, T(0));
            product<T>({&harmonics[k], kChunk, 1}, padded.harmonics, end - k,
                       &radial[k * padded.radial], padded.radial, padded.radial,
                       &geometry[number * size], padded.radial);
            sites[number++] = site;
            k = end;
        }
        return number;
    }
    void read_values(int number) {
        for (int j = 0; j < number; ++j)
            std::copy_n(p.values + size_t(sites[j]) * s.channels, s.channels,
                        &values[j * padded.channels]);
    }
    /// Calls visit(first, count) for the images of a row, kChunk at a time.
    template <class Visit> void chunks(int row, const Visit &visit) const {
        for (int64_t at = p.offsets[row]; at < p.offsets[row + 1]; at += kChunk)
            visit(at, int(std::min<int64_t>(kChunk, p.offsets[row + 1] - at)));
    }
    /// Computes `density` and `mixed`; those of the rows past `rows` are 0.
    void compute(int first_row, int rows) {
        std::fill_n(density.get(), density.size(), T(0));
        std::fill_n(mixed.get(), mixed.size(), T(0));
        const int size = padded.harmonics * padded.radial;
        for (int r = 0; r < rows; ++r)
            chunks(first_row + r, [&](int64_t first, int count) {
                const int number = read_geometry(first, count);
                read_values(number);
                for (int lm = 0; lm < padded.harmonics; ++lm)
                    product<T>({&geometry[lm * padded.radial], 1, size}, s.radial, number,
                               values.get(), padded.channels, padded.channels,
                               &density[(lm * kGroup + r) * padded.products], padded.channels);
            });
        for (int l = 0; l < s.degrees; ++l)
            product<T>({&density[l * l * kGroup * padded.products], padded.products, 1},
                       (2 * l + 1) * kGroup, padded.products,
                       &mix.forward[size_t(l) * padded.products * padded.mixed], padded.mixed,
                       padded.mixed, mixed_row(l * l, 0), padded.mixed);
    }
    T *mixed_row(int lm, int r) const { return &mixed[(lm * kGroup + r) * padded.mixed]; }
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
    void write(int first_row, int rows, T *out) {
        compute(first_row, rows);
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
    using Group<T>::mixed;
    const PowerSpectrumBackward<T> &gradients;
    SpectrumSums<T> &sums;
    Buffer<T> grad_density; ///< as density
    Buffer<T> grad_values;  ///< as values
    Buffer<T> factors;      ///< (padded mixed)

    BackwardGroup(const PowerSpectrumBackward<T> &p, const Padded<T> &padded, const Mix<T> &mix,
                  SpectrumSums<T> &sums)
        : Group<T>(p, padded, mix), gradients(p), sums(sums), grad_density(density.size()),
          grad_values(this->values.size()), factors(padded.mixed) {
        sums.values.resize(size_t(s.sites) * padded.channels);
        sums.mix.resize(mix.forward.size());
    }

    void run(int first_row, int rows) {
        this->compute(first_row, rows);
        for (int r = 0; r < rows; ++r)
            grade_mixed(r, gradients.grad_out + size_t(first_row + r) * s.degrees * s.mixed);
        std::fill_n(grad_density.get(), grad_density.size(), T(0));
        for (int l = 0; l < s.degrees; ++l) {
            const size_t weights = size_t(l) * padded.products * padded.mixed;
            const int begin = l * l * kGroup, height = (2 * l + 1) * kGroup;
            const T *grad_mixed = &mixed[begin * padded.mixed];
            product<T>({&density[begin * padded.products], 1, padded.products}, padded.products,
                       height, grad_mixed, padded.mixed, padded.mixed, &sums.mix[weights],
                       padded.mixed);
            product<T>({grad_mixed, padded.mixed, 1}, height, s.mixed, &this->mix.backward[weights],
                       padded.products, padded.products, &grad_density[begin * padded.products],
                       padded.products);
        }
        for (int r = 0; r < rows; ++r)
            this->chunks(first_row + r, [&](int64_t first, int count) {
                add_values(r, this->read_geometry(first, count));
            });
    }
    /// Replaces the `mixed` of row r by its gradient.
    void grade_mixed(int r, const T *grad_out) {
        std::copy_n(grad_out, s.mixed, this->mixed_row(0, r));
        for (int l = 1; l < s.degrees; ++l) {
            this->read_norms(l, r);
            std::copy_n(grad_out + l * s.mixed, s.mixed, factors.get());
            for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm)
                for (int q = 0; q < padded.mixed; q += kLanes<T>) {
                    T *x = this->mixed_row(lm, r) + q;
                    store(x, load(x) * load(&factors[q]) / load(&this->norms[q]));
                }
        }
    }
    /// Adds the gradients of the values of a chunk's sites.
    void add_values(int r, int number) {
        const int size = padded.harmonics * padded.radial;
        std::fill_n(grad_values.get(), number * padded.channels, T(0));
        for (int lm = 0; lm < padded.harmonics; ++lm)
            product<T>({&this->geometry[lm * padded.radial], size, 1}, number, s.radial,
                       &grad_density[(lm * kGroup + r) * padded.products], padded.channels,
                       padded.channels, grad_values.get(), padded.channels);
        for (int j = 0; j < number; ++j) {
            T *to = &sums.values[size_t(this->sites[j]) * padded.channels];
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

// Power spectra on the CPU (formulas and layouts: ../power_spectrum.h).
//
// The rows are cut into parts with equal numbers of images; a free thread takes the next part. Per
// row, everything stays in the first two levels of cache:
//   1. For up to kChunk images, the harmonics (harmonics, images) of as many images at a time as a
//      vector has lanes, and the products radial x values (images, radial channels).
//   2. density += harmonics * products, a matrix product over the images.
//   3. Per degree, mixed = density * mix, and the norms over m.
// The backward pass computes steps 1 to 3 again, and runs them in reverse:
//      grad_density = grad_mixed * mix^T, grad_mix += density^T grad_mixed,
//      grad_products = harmonics^T * grad_density, summed with radial into grad_values.
//
// Memory traffic per image: its vector, radial functions and site, and the values of the site; the
// rest is arithmetic. With 4 radial functions, 16 channels, l = 0 to 4, 32 mixed channels and 40
// images per row, a row takes some 130,000 products forward and 360,000 backward.
//
// grad_values and grad_mix are summed per part and then over parts in order, so results are bitwise
// reproducible for a given number of threads.
#include "../power_spectrum.h"

#include "attention/packing.h"
#include "attention/tile.h"

namespace sitenet::SITENET_LEVEL {
namespace {

constexpr int kChunk = 64; ///< images
constexpr int kProductRows = 4;
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

/// c (rows, columns) += a (rows, depth) b (depth, columns); columns fill whole vectors.
template <class T>
void product(Strided<T> a, int rows, int depth, const T *b, int b_row, int columns, T *c,
             int c_row) {
    constexpr int width = kProductVectors * kLanes<T>;
    for (int r = 0; r < rows; r += kProductRows)
        for (int k = 0; k < columns; k += width)
            with_constant<kProductRows>(rows - r, [&](auto height) {
                with_constant<kProductVectors>((columns - k) / kLanes<T>, [&](auto vectors) {
                    product_tile<T, height, vectors>({a.data + r * a.row, a.row, a.column}, depth,
                                                     b + k, b_row, c + r * c_row + k, c_row);
                });
            });
}

/// Sizes padded to whole vectors.
template <class T> struct Padded {
    int channels, products, mixed, harmonics;

    explicit Padded(const PowerSpectrumShape &s)
        : channels(round_up(s.channels, kLanes<T>)), products(s.radial * channels),
          mixed(round_up(s.mixed, kLanes<T>)), harmonics(s.degrees * s.degrees) {}
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

/// One row at a time.
template <class T> struct Row {
    const PowerSpectrumInputs<T> &p;
    const PowerSpectrumShape &s;
    const Padded<T> &padded;
    const Mix<T> &mix;
    Buffer<T> harmonics; ///< (harmonics, kChunk)
    Buffer<T> products;  ///< (kChunk, padded products)
    Buffer<T> density;   ///< (harmonics, padded products)
    Buffer<T> mixed;     ///< (harmonics, padded mixed)

    Row(const PowerSpectrumInputs<T> &p, const Padded<T> &padded, const Mix<T> &mix)
        : p(p), s(p.shape), padded(padded), mix(mix), harmonics(padded.harmonics * kChunk),
          products(kChunk * padded.products), density(padded.harmonics * padded.products),
          mixed(padded.harmonics * padded.mixed) {}

    /// Fills the harmonics of some images; those past `count` are 0.
    void read_harmonics(int64_t first, int count) {
        T axis[3][kLanes<T>];
        for (int q = 0; q < count; q += kLanes<T>) {
            Vec<T> has_direction{};
            for (int lane = 0; lane < kLanes<T>; ++lane) {
                T v[3] = {};
                if (q + lane < count)
                    std::copy_n(p.vectors + 3 * (first + q + lane), 3, v);
                const T length = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
                has_direction[lane] = length > T(kNoDirection);
                for (int k = 0; k < 3; ++k)
                    axis[k][lane] = has_direction[lane] ? v[k] / length : T(0);
            }
            spherical_harmonics<T>(
                load(axis[0]), load(axis[1]), load(axis[2]), s.degrees, [&](int lm, Vec<T> y) {
                    store(&harmonics[lm * kChunk + q], lm ? y * has_direction : y);
                });
        }
    }
    void read_products(int64_t first, int count) {
        for (int k = 0; k < count; ++k) {
            const int64_t image = first + k;
            const T *values = p.values + size_t(p.sites_of_image[image]) * s.channels;
            T *to = &products[k * padded.products];
            for (int n = 0; n < s.radial; ++n, to += padded.channels) {
                const T radial = p.radial[image * s.radial + n];
                for (int c = 0; c < s.channels; ++c)
                    to[c] = radial * values[c];
            }
        }
    }
    /// Calls visit(first, count) for the images of a row, kChunk at a time.
    template <class Visit> void chunks(int row, const Visit &visit) const {
        for (int64_t at = p.offsets[row]; at < p.offsets[row + 1]; at += kChunk)
            visit(at, int(std::min<int64_t>(kChunk, p.offsets[row + 1] - at)));
    }
    /// Computes `density` and `mixed`.
    void compute(int row) {
        std::fill_n(density.get(), density.size(), T(0));
        std::fill_n(mixed.get(), mixed.size(), T(0));
        chunks(row, [&](int64_t first, int count) {
            read_harmonics(first, count);
            read_products(first, count);
            product<T>({harmonics.get(), kChunk, 1}, padded.harmonics, count, products.get(),
                       padded.products, padded.products, density.get(), padded.products);
        });
        for (int l = 0; l < s.degrees; ++l)
            product<T>({&density[l * l * padded.products], padded.products, 1}, 2 * l + 1,
                       padded.products, &mix.forward[size_t(l) * padded.products * padded.mixed],
                       padded.mixed, padded.mixed, &mixed[l * l * padded.mixed], padded.mixed);
    }
    /// Norm of one column of `mixed` over m, before kSoft is taken away.
    T soft_norm(int l, int q) const {
        T sum = T(kSoft * kSoft);
        for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm)
            sum += mixed[lm * padded.mixed + q] * mixed[lm * padded.mixed + q];
        return std::sqrt(sum);
    }
    void write(int row, T *out) {
        compute(row);
        out += size_t(row) * s.degrees * s.mixed;
        for (int q = 0; q < s.mixed; ++q)
            out[q] = mixed[q];
        for (int l = 1; l < s.degrees; ++l)
            for (int q = 0; q < s.mixed; ++q)
                out[l * s.mixed + q] = soft_norm(l, q) - T(kSoft);
    }
};

/// The sums over the rows of one part.
template <class T> struct SpectrumSums {
    Buffer<T> values; ///< (sites, padded channels)
    Buffer<T> mix;    ///< (degrees, padded products, padded mixed)
};

template <class T> struct BackwardRow : Row<T> {
    using Row<T>::s;
    using Row<T>::padded;
    using Row<T>::density;
    using Row<T>::mixed;
    const PowerSpectrumBackward<T> &gradients;
    SpectrumSums<T> &sums;
    Buffer<T> grad_density;  ///< as density
    Buffer<T> grad_products; ///< as products

    BackwardRow(const PowerSpectrumBackward<T> &p, const Padded<T> &padded, const Mix<T> &mix,
                SpectrumSums<T> &sums)
        : Row<T>(p, padded, mix), gradients(p), sums(sums), grad_density(density.size()),
          grad_products(this->products.size()) {
        sums.values.resize(size_t(s.sites) * padded.channels);
        sums.mix.resize(mix.forward.size());
    }

    void run(int row) {
        this->compute(row);
        grade_mixed(gradients.grad_out + size_t(row) * s.degrees * s.mixed);
        std::fill_n(grad_density.get(), grad_density.size(), T(0));
        for (int l = 0; l < s.degrees; ++l) {
            const size_t weights = size_t(l) * padded.products * padded.mixed;
            const T *grad_mixed = &mixed[l * l * padded.mixed];
            product<T>({&density[l * l * padded.products], 1, padded.products}, padded.products,
                       2 * l + 1, grad_mixed, padded.mixed, padded.mixed, &sums.mix[weights],
                       padded.mixed);
            product<T>({grad_mixed, padded.mixed, 1}, 2 * l + 1, s.mixed,
                       &this->mix.backward[weights], padded.products, padded.products,
                       &grad_density[l * l * padded.products], padded.products);
        }
        this->chunks(row, [&](int64_t first, int count) {
            this->read_harmonics(first, count);
            std::fill_n(grad_products.get(), count * padded.products, T(0));
            product<T>({this->harmonics.get(), 1, kChunk}, count, padded.harmonics,
                       grad_density.get(), padded.products, padded.products, grad_products.get(),
                       padded.products);
            add_values(first, count);
        });
    }
    /// Replaces `mixed` by its gradient.
    void grade_mixed(const T *grad_out) {
        for (int q = 0; q < s.mixed; ++q)
            mixed[q] = grad_out[q];
        for (int l = 1; l < s.degrees; ++l)
            for (int q = 0; q < s.mixed; ++q) {
                const T factor = grad_out[l * s.mixed + q] / this->soft_norm(l, q);
                for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm)
                    mixed[lm * padded.mixed + q] *= factor;
            }
    }
    void add_values(int64_t first, int count) {
        for (int k = 0; k < count; ++k) {
            const int64_t image = first + k;
            T *to = &sums.values[size_t(gradients.sites_of_image[image]) * padded.channels];
            for (int n = 0; n < s.radial; ++n) {
                const T radial = gradients.radial[image * s.radial + n];
                const T *from = &grad_products[k * padded.products + n * padded.channels];
                for (int c = 0; c < padded.channels; c += kLanes<T>)
                    store(to + c, load(to + c) + radial * load(from + c));
            }
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
        Row<T> row(p, padded, mix);
        for (int r = first[i]; r < first[i + 1]; ++r)
            row.write(r, p.out);
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
        BackwardRow<T> row(p, padded, mix, sums[i]);
        for (int r = first[i]; r < first[i + 1]; ++r)
            row.run(r);
    }
    add_parts(sums, p, padded);
}

} // namespace

extern const PowerSpectrumKernels<float> power_spectrum_f32 = {forward<float>, backward<float>};
extern const PowerSpectrumKernels<double> power_spectrum_f64 = {forward<double>, backward<double>};

} // namespace sitenet::SITENET_LEVEL

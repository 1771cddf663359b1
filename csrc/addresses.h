// How the arguments of a call reach a kernel: addresses travel as integers, and become the pointers of
// the kernel's params struct in the order of its members. Nothing is checked here; that happens in
// sitenet/ops and sitenet/pairs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

namespace sitenet {

/// Turns into a pointer of any type.
struct Address {
    uintptr_t value;
    template <class T> operator T *() const { return reinterpret_cast<T *>(value); }
};

/// One address per pointer of a params struct, which are all its members after the shape.
template <class P>
using Addresses = std::array<uintptr_t, (sizeof(P) - sizeof(P::shape)) / sizeof(void *)>;

template <class P, size_t... i>
P params(const decltype(P::shape) &shape, const Addresses<P> &addresses,
         std::index_sequence<i...>) {
    return {shape, Address{addresses[i]}...};
}
template <class P> P params(const decltype(P::shape) &shape, const Addresses<P> &addresses) {
    return params<P>(shape, addresses,
                     std::make_index_sequence<std::tuple_size<Addresses<P>>::value>());
}

} // namespace sitenet

// Memory that a kernel needs for itself, uninitialised.
#pragma once

#include <cstdint>

namespace sitenet {
namespace { // one copy a level: see simd_level.h

template <class T> struct Buffer {
    explicit Buffer(int64_t size) : data(new T[size]) {}
    ~Buffer() { delete[] data; }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    operator T *() const { return data; }
    T *data;
};

} // namespace
} // namespace sitenet

// Working memory of the CPU kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

namespace sitenet::SITENET_LEVEL {
namespace {

/// An array of zeros, aligned for the widest vectors. It moves but does not copy.
template <class T> class Buffer {
    static_assert(std::is_trivially_copyable_v<T>, "zero bytes must be a value");

  public:
    Buffer() = default;
    explicit Buffer(size_t count) { resize(count); }
    /// Replaces the contents by `count` zeros.
    void resize(size_t count) {
        memory.reset(
            static_cast<T *>(::operator new(std::max<size_t>(count, 1) * sizeof(T), kAlignment)));
        length = count;
        std::memset(static_cast<void *>(memory.get()), 0, count * sizeof(T));
    }
    T *get() const { return memory.get(); }
    size_t size() const { return length; }
    T &operator[](size_t i) const { return memory.get()[i]; }

  private:
    static constexpr std::align_val_t kAlignment{64};
    struct Free {
        void operator()(T *p) const { ::operator delete(p, kAlignment); }
    };
    std::unique_ptr<T, Free> memory;
    size_t length = 0;
};

} // namespace
} // namespace sitenet::SITENET_LEVEL

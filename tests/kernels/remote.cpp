// The CPU kernels as a program, for processors that Python does not run on here (test_arm64.py).
//
// It writes the name of its SIMD level and a newline. Then it answers requests on standard input:
//
//   request: name (64 bytes), shape (int64 size, bytes), buffers (int64 count, then per buffer an
//            int64 size, -1 for null, and the bytes)
//   answer:  the kernel's result (int64; 0 if it has none), then the bytes of every buffer
#include "../../csrc/addresses.h"
#include "../../csrc/cpu/simd_level.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using namespace sitenet;

namespace {

[[noreturn]] void fail(const std::string &why) {
    std::fprintf(stderr, "remote: %s\n", why.c_str());
    std::exit(1);
}

bool read(void *to, size_t size) { return std::fread(to, 1, size, stdin) == size; }
int64_t read_size() {
    int64_t size;
    if (!read(&size, sizeof size))
        fail("a request was cut short");
    return size;
}
std::vector<char> read_bytes(int64_t size) {
    std::vector<char> bytes(size);
    if (size && !read(bytes.data(), bytes.size()))
        fail("a request was cut short");
    return bytes;
}

struct Request {
    std::string name;
    std::vector<char> shape;
    std::vector<std::vector<char>> buffers;
    std::vector<uintptr_t> addresses;

    template <class S> S shape_as() const {
        if (shape.size() != sizeof(S))
            fail(name + ": expected a shape of " + std::to_string(sizeof(S)) + " bytes, got " +
                 std::to_string(shape.size()));
        S s;
        std::memcpy(&s, shape.data(), sizeof s);
        return s;
    }
    Address address(size_t i) const { return {addresses.at(i)}; }
};

template <class P, class Kernel> int64_t call(const Request &r, Kernel kernel) {
    Addresses<P> addresses;
    if (r.addresses.size() != addresses.size())
        fail(r.name + ": expected " + std::to_string(addresses.size()) + " buffers");
    std::copy(r.addresses.begin(), r.addresses.end(), addresses.begin());
    kernel(params<P>(r.shape_as<decltype(P::shape)>(), addresses), 1);
    return 0;
}

template <class T, class E> bool attention_kernel(const Request &r, const std::string &suffix) {
    const auto &table = attention<T, E>();
    if (r.name == "attention_forward" + suffix)
        call<AttentionForward<T, E>>(r, table.forward);
    else if (r.name == "attention_backward" + suffix)
        call<AttentionBackward<T, E>>(r, table.backward);
    else if (r.name == "pair_embedding_forward" + suffix)
        call<PairEmbeddingForward<T, E>>(r, table.pair_embedding_forward);
    else if (r.name == "pair_embedding_backward" + suffix)
        call<PairEmbeddingBackward<T, E>>(r, table.pair_embedding_backward);
    else
        return false;
    return true;
}

struct DistanceSizes {
    int64_t crystals, sites_i, sites_j;
};

template <class T, class Forward, class Backward>
int64_t distances(const Request &r, Forward forward, Backward backward) {
    const auto s = r.shape_as<DistanceSizes>();
    const DistanceInput<T> input = {r.address(0), r.address(1), r.address(2), r.address(3),
                                    r.address(4), s.crystals,   s.sites_i,    s.sites_j};
    if (r.addresses.size() == 6)
        return forward(input, r.address(5), 1);
    return backward(input, {r.address(5), r.address(6), r.address(7), r.address(8)}, 1);
}

int64_t answer(const Request &r) {
    const std::string geometry_name = "minimum_image_distances_";
    if (r.name.compare(0, geometry_name.size(), geometry_name) == 0) {
        const auto &g = geometry();
        if (r.name.find("_f32_") != std::string::npos)
            return distances<float>(r, g.forward_f32, g.backward_f32);
        return distances<double>(r, g.forward_f64, g.backward_f64);
    }
    if (!attention_kernel<float, float>(r, "_f32_cpu") &&
        !attention_kernel<double, double>(r, "_f64_cpu") &&
        !attention_kernel<float, uint16_t>(r, "_bf16_cpu"))
        fail("no kernel " + r.name);
    return 0;
}

} // namespace

int main() {
    std::printf("%s\n", level_name());
    std::fflush(stdout);
    char name[64];
    while (read(name, sizeof name)) {
        Request r;
        r.name = std::string(name, strnlen(name, sizeof name));
        r.shape = read_bytes(read_size());
        const int64_t count = read_size();
        for (int64_t i = 0; i < count; ++i) {
            const int64_t size = read_size();
            r.buffers.push_back(read_bytes(size < 0 ? 0 : size));
            r.addresses.push_back(size < 0 ? 0
                                           : reinterpret_cast<uintptr_t>(r.buffers.back().data()));
        }
        const int64_t result = answer(r);
        std::fwrite(&result, sizeof result, 1, stdout);
        for (const auto &buffer : r.buffers)
            std::fwrite(buffer.data(), 1, buffer.size(), stdout);
        std::fflush(stdout);
    }
}

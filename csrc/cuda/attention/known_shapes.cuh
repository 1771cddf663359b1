// The shapes whose kernels are compiled apart. Tests of the activation, the norm, the heads and the
// products in the loops over columns then happen when the kernel is compiled; everything else about
// a shape stays a variable. In bfloat16 only: in float the products take most of the time.
#pragma once

#include "numbers.cuh"

namespace sitenet::cuda {

/// Any shape.
struct AnyShape : AttentionShape {
    static constexpr int kProducts = 0; ///< products of 16 columns of e that cover it; 0: see width
    SITENET_HD explicit AnyShape(const AttentionShape &s) : AttentionShape(s) {}
};

/// A shape with Mish, norm, and so many heads and products of 16 columns of e. Its constants hide
/// the variables of AttentionShape.
template <int Heads, int Products> struct KnownShape : AttentionShape {
    static constexpr int activation = kMish, norm = 1, heads = Heads, kProducts = Products;
    SITENET_HD explicit KnownShape(const AttentionShape &s) : AttentionShape(s) {}
    static bool fits(const AttentionShape &s) {
        return s.activation == activation && s.norm && s.heads == heads &&
               s.width > 16 * (kProducts - 1) && s.width <= 16 * kProducts;
    }
};
using PaperShape = KnownShape<3, 3>;  ///< of the config `paper`
using SphereShape = KnownShape<4, 2>; ///< of the configs `sphere` and `density`

/// How a warp of the forward pass holds its shape. Variables stay among the arguments of the kernel:
/// as copies they took the registers of one block in four, in float.
template <class S>
using HeldShape = std::conditional_t<std::is_same_v<S, AnyShape>, const AttentionShape &, const S>;

/// Calls launch with the shape as the most special of these types.
template <class E, class F> void with_known_shape(const AttentionShape &s, F launch) {
    if constexpr (kBfloat16<E>) {
        if (PaperShape::fits(s))
            return launch(PaperShape(s));
        if (SphereShape::fits(s))
            return launch(SphereShape(s));
    }
    launch(AnyShape(s));
}

} // namespace sitenet::cuda

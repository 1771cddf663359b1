#pragma once
namespace sitenet {
struct GeometryKernels {
    int unused;
};
} // namespace sitenet

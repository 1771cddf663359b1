#pragma once
namespace sitenet {
struct MergeKernels {
    int unused;
};
} // namespace sitenet

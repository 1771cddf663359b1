#pragma once
namespace sitenet {
struct AttentionKernels {
    int unused;
};
} // namespace sitenet

#include "../merge.h"
namespace sitenet::SITENET_LEVEL {
extern const MergeKernels merge = {0};
} // namespace sitenet::SITENET_LEVEL

#include "../attention.h"
namespace sitenet::SITENET_LEVEL {
extern const AttentionKernels attention = {0};
} // namespace sitenet::SITENET_LEVEL

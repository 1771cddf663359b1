#include "../attention.h"
namespace sitenet::SITENET_LEVEL {
extern const AttentionKernels attention = {};
} // namespace sitenet::SITENET_LEVEL

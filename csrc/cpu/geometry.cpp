#include "../geometry.h"
namespace sitenet::SITENET_LEVEL {
extern const GeometryKernels geometry = {0};
} // namespace sitenet::SITENET_LEVEL

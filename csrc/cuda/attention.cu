#include "../attention.h"

// Compiled for aarch64 with -march=armv8.2-a+dotprod
#define KERNELS_STEPS
#include "neon_dot.h"

#include "../steps.h"

const kernels::Steps kernels::neon_dot::steps = kSteps;

// Compiled for aarch64 with -march=armv8.2-a+dotprod+i8mm
#define KERNELS_STEPS
#define KERNELS_I8MM
#include "neon_dot.h"

#include "../steps.h"

const kernels::Steps kernels::neon_i8mm::steps = kSteps;

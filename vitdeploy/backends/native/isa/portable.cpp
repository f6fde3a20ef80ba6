// Compiled for any with -O2
#define KERNELS_STEPS
#include "portable.h"

#include "../steps.h"

const kernels::Steps kernels::portable::steps = kSteps;

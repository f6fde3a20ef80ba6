// Compiled for x86_64 with -mavx2 -mfma -mtune=alderlake
#define KERNELS_STEPS
#define KERNELS_EVEX
#include "avxvnni.h"

#include "../steps.h"

const kernels::Steps kernels::avx512vl::steps = kSteps;

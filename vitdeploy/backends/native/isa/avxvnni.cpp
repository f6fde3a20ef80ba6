// Compiled for x86_64 with -mavx2 -mfma -mtune=alderlake
#define KERNELS_STEPS
#include "avxvnni.h"

#include "../steps.h"

const kernels::Steps kernels::avxvnni::steps = kSteps;

// Compiled for x86_64 with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mtune=cascadelake -Wno-uninitialized -Wno-maybe-uninitialized
#define KERNELS_STEPS
#include "avx512vnni.h"

#include "../steps.h"

const kernels::Steps kernels::avx512vnni::steps = kSteps;

// The instruction sets that are in this build, the fastest first; and what depends on the processor in other ways.

#pragma once

#include "portable.h"

#ifdef __x86_64__
#include "avx512vnni.h"
#include "avxvnni.h"
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include "neon_dot.h"
#endif

namespace {

#define ROW(isa, on_request) \
    kernels::InstructionSet { kernels::isa::kName, kernels::isa::missing(), on_request, kernels::isa::kTile, &kernels::isa::steps }

const kernels::InstructionSet* instruction_set(int number) {
    static const kernels::InstructionSet table[] = {
#ifdef __x86_64__
        ROW(avx512vnni, false),
        ROW(avxvnni, false),
        ROW(avx512vl, true),
#elif defined(__aarch64__)
        ROW(neon_i8mm, false),
        ROW(neon_dot, false),
#endif
        ROW(portable, true),
    };
    return number >= 0 && number < static_cast<int>(sizeof table / sizeof *table) ? table + number : nullptr;
}

#undef ROW

// For a thread that waits in a loop.
inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Denormals are zeros while it lives: a softmax has many, and each costs 150 cycles.
struct NoDenormals {
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();
    NoDenormals() { _mm_setcsr(before | 0x8040); }
    ~NoDenormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    NoDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" ::"r"(before | 1 << 24));
    }
    ~NoDenormals() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#endif
};

}  // namespace

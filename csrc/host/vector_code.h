// How the loops of motarfuse._host become vector instructions.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// Changes no value; lets a choice between two numbers become a vector instruction.
#pragma GCC optimize("no-trapping-math")
#endif

// One binary for every x86-64, with the wide loops where the machine has them. FMA is not asked for.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define MOTARFUSE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MOTARFUSE_CLONES
#endif
#define MOTARFUSE_RESTRICT __restrict__
#define MOTARFUSE_INLINE inline __attribute__((always_inline))
// On a lambda: part of the caller, and so of each of its clones.
#define MOTARFUSE_ALWAYS __attribute__((always_inline))

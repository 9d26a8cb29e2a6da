// Compiles MOTARFUSE_ROWS, a file with an operator's rows, for every instruction set.
#define MOTARFUSE_LOOPS loops_baseline
#define MOTARFUSE_TARGET
#define MOTARFUSE_BYTES 16
#include "row_norm_loops.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MOTARFUSE_LOOPS loops_avx2
#define MOTARFUSE_TARGET __attribute__((target("avx2,fma")))
#define MOTARFUSE_BYTES 32
#include "row_norm_loops.h"

#define MOTARFUSE_LOOPS loops_avx512
#define MOTARFUSE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define MOTARFUSE_BYTES 64
#include "row_norm_loops.h"
#endif

namespace motarfuse {
namespace {

// The loops that this processor runs best.
template <class C>
const auto& best_loops() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const auto& best = has_avx512() ? loops_avx512::kLoops<C>
                            : has_avx2() ? loops_avx2::kLoops<C>
                                         : loops_baseline::kLoops<C>;
  return best;
#else
  return loops_baseline::kLoops<C>;
#endif
}

}  // namespace
}  // namespace motarfuse

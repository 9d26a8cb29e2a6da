// Items over threads that end with the call: nobody waits in a loop for the next one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace motarfuse {

// make() gives a function(item), once a thread; at least `grain` items a thread.
template <class Make>
void share_out(int64_t items, int64_t grain, int threads, const Make& make) {
  std::atomic<int64_t> next{0};
  auto work = [&] {
    auto function = make();
    for (int64_t i = next.fetch_add(1); i < items; i = next.fetch_add(1)) function(i);
  };
  std::vector<std::thread> pool;
  const int64_t extra = std::min<int64_t>(threads, items / std::max<int64_t>(1, grain)) - 1;
  try {
    for (int64_t k = 0; k < extra; ++k) pool.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads to be had: those that are there do the work
  }
  work();
  for (std::thread& thread : pool) thread.join();
}

}  // namespace motarfuse

// What every CUDA operator needs around a launch: its device, its stream, the size of the machine, and the error.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

// Lives in libtorch_cuda. Weak, so that this library loads in a torch without CUDA too, where it is never called.
#pragma weak aoti_torch_get_current_cuda_stream

namespace motarfuse {

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int num_multiprocessors(int32_t device) {
  int count = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  STD_TORCH_CHECK(error == cudaSuccess, "motarfuse: ", cudaGetErrorString(error));
  return count;
}

// Bytes that a block may have, that a multiprocessor has, and that a multiprocessor keeps for itself of each block's.
struct SharedMemory {
  int block = 0, multiprocessor = 0, reserved = 0;
};

inline SharedMemory shared_memory_of(int32_t device) {
  SharedMemory memory;
  const auto ask = [&](int& value, auto attribute) {
    const cudaError_t error = cudaDeviceGetAttribute(&value, attribute, device);
    STD_TORCH_CHECK(error == cudaSuccess, "motarfuse: ", cudaGetErrorString(error));
  };
  ask(memory.block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(memory.multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  ask(memory.reserved, cudaDevAttrReservedSharedMemoryPerBlock);
  return memory;
}

// Lets a kernel's blocks have all that the device has. Of the function in this process: the same for every call, so that
// a thread cannot lower what another launches with.
template <class K>
void allow_shared_memory(K* kernel, const SharedMemory& memory) {
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, memory.block);
  STD_TORCH_CHECK(error == cudaSuccess, "motarfuse: ", cudaGetErrorString(error));
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "motarfuse: launching ", kernel, " failed: ", cudaGetErrorString(error));
}

}  // namespace motarfuse

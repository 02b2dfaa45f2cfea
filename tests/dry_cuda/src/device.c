/* The device itself, streams, events and graphs: enough for onnxruntime to go on. Nothing runs, so nothing waits. */
#include "dry.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#undef cudaGetDeviceProperties

enum { MAJOR = 8, MINOR = 0, PROCESSORS = 108, BLOCK_SHARED = 166912, PROCESSOR_SHARED = 167936, CUDA_VERSION_ = 13000 };

static cudaError_t create(void *handle) {
  *(void **)handle = calloc(1, 256);
  return cudaSuccess;
}

static cudaError_t destroy(void *handle) {
  free(handle);
  return cudaSuccess;
}

/* What every question about the device is answered with: 0, or an error code that a test wants to see. */
static cudaError_t state(void) {
  const char *failure = getenv("DRY_CUDA_FAILURE");
  return failure ? (cudaError_t)atoi(failure) : cudaSuccess;
}

static cudaError_t wait_for(const char *what) {
  dry_log("Y\t%s", what);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  size_t free_bytes;
  if (state()) return state();
  if (device) return cudaErrorInvalidDevice;
  memset(found, 0, sizeof *found);
  strcpy(found->name, "Dry CUDA");
  cudaMemGetInfo(&free_bytes, &found->totalGlobalMem);
  found->major = MAJOR;
  found->minor = MINOR;
  found->multiProcessorCount = PROCESSORS;
  found->maxThreadsPerBlock = 1024;
  found->maxThreadsPerMultiProcessor = 2048;
  found->warpSize = 32;
  found->sharedMemPerBlock = 49152;
  found->sharedMemPerBlockOptin = BLOCK_SHARED;
  found->sharedMemPerMultiprocessor = PROCESSOR_SHARED;
  found->regsPerBlock = found->regsPerMultiprocessor = 65536;
  found->l2CacheSize = 40 << 20;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->concurrentKernels = found->unifiedAddressing = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  (void)device;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = MAJOR; break;
    case cudaDevAttrComputeCapabilityMinor: *value = MINOR; break;
    case cudaDevAttrMultiProcessorCount: *value = PROCESSORS; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = BLOCK_SHARED; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = PROCESSOR_SHARED; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 1;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) { return *count = !state(), state(); }
cudaError_t cudaGetDevice(int *device) { return *device = 0, state(); }
cudaError_t cudaSetDevice(int device) { return state() ? state() : device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDA_VERSION_, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDA_VERSION_, cudaSuccess; }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
const char *cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "dry CUDA error";
}
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "dry CUDA error";
}

cudaError_t cudaDeviceSynchronize(void) { return wait_for("device"); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return (void)stream, wait_for("stream"); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return (void)event, wait_for("event"); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return (void)stream, (void)event, (void)flags, cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return create(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return (void)flags, create(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return destroy(stream); }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return create(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return (void)flags, create(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return destroy(event); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return (void)event, (void)stream, cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return (void)event, (void)stream, (void)flags, cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
  return (void)start, (void)end, *ms = 0, cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  (void)stream;
  function(data);
  return cudaSuccess;
}

/* Graph capture cannot be stood in for by doing nothing: say so instead of counting wrong. */
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  (void)stream, (void)mode;
  dry_log("E\tCUDA graphs are not modelled");
  return cudaErrorNotSupported;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  return (void)stream, *status = cudaStreamCaptureStatusNone, cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
  (void)function;
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 32;
  found->binaryVersion = found->ptxVersion = 10 * MAJOR + MINOR;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                                   size_t shared, unsigned flags) {
  (void)function, (void)threads, (void)shared, (void)flags;
  *blocks = 8;
  return cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *wanted) {
  return (void)wanted, create(pool);
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) { return destroy(pool); }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) {
  (void)pool, (void)attribute;
  memset(value, 0, sizeof(unsigned long long));
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
  (void)symbol, (void)version, (void)flags;
  *function = NULL;
  if (result) *result = cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

/* The driver's own interface, as far as a program asks it what devices there are. */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags) {
  const char *failure = getenv("DRY_CUDA_FAILURE");
  return (void)flags, failure ? atoi(failure) : 0;
}

int cuDriverGetVersion(int *version) { return cudaDriverGetVersion(version); }
int cuDeviceGetCount(int *count) { return cudaGetDeviceCount(count); }
int cuDeviceGet(int *handle, int number) { return *handle = number, number ? cudaErrorInvalidDevice : 0; }
int cuDeviceGetName(char *name, int size, int handle) {
  struct cudaDeviceProp found;
  int failure = cudaGetDeviceProperties(&found, handle);
  if (!failure) strncpy(name, found.name, size);
  return failure;
}
int cuDeviceGetAttribute(int *value, int attribute, int handle) {
  return cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, handle);
}
int cuDeviceTotalMem_v2(size_t *bytes, int handle) {
  size_t free_bytes;
  return handle ? cudaErrorInvalidDevice : cudaMemGetInfo(&free_bytes, bytes);
}

/* The memory that is free is that of a context: asking without one is an error, as on a device. */
static int current = 0, contexts = 0;
int cuDevicePrimaryCtxRetain(void **context, int handle) {
  return ++contexts, *context = &contexts, handle ? cudaErrorInvalidDevice : 0;
}
int cuDevicePrimaryCtxRelease_v2(int handle) { return (void)handle, contexts-- > 0 ? 0 : 201; }
int cuCtxPushCurrent_v2(void *context) { return context == &contexts ? (++current, 0) : 201; }
int cuCtxPopCurrent_v2(void **context) { return *context = &contexts, current-- > 0 ? 0 : 201; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *bytes) {
  return current > 0 ? (int)cudaMemGetInfo(free_bytes, bytes) : 201;
}
int cuGetErrorString(int code, const char **text) { return *text = code == 100 ? "no device is here" : "dry failure", 0; }

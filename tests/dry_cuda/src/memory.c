/* Device memory is host memory, kept account of: what belongs to the device, how much there is, what crosses. */
#include "dry.h"
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  char *start;
  size_t bytes;
} Range;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Range *ranges; /* by address */
static size_t count, room, in_use, total = (size_t)16 << 30;

/* How much memory the device has; what is taken stays taken. */
void dry_set_memory(size_t bytes) { total = bytes; }

/* The number of ranges that start at or before the pointer. */
static size_t position(const char *pointer) {
  size_t low = 0, high = count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (ranges[middle].start <= pointer)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* The bytes of device memory from the pointer to the end of its piece, or -1 if it is none. */
static long long device_bytes(const void *pointer) {
  pthread_mutex_lock(&lock);
  size_t at = position(pointer);
  long long left = -1;
  if (at) {
    Range range = ranges[at - 1];
    size_t offset = (size_t)((const char *)pointer - range.start);
    if (offset < range.bytes) left = (long long)(range.bytes - offset);
  }
  pthread_mutex_unlock(&lock);
  return left;
}

int dry_is_device(const void *pointer, size_t bytes) {
  long long left = device_bytes(pointer);
  return left >= 0 && (size_t)left >= bytes;
}

int dry_need_device(const void *pointer, size_t bytes, const char *who, const char *what) {
  if (!pointer || !bytes) return 1;
  long long left = device_bytes(pointer);
  if (left < 0)
    dry_log("E\t%s: %s is %p, not device memory", who, what, pointer);
  else if ((size_t)left < bytes)
    dry_log("E\t%s: %s needs %zu bytes of device memory, there are %lld", who, what, bytes, left);
  return left >= 0 && (size_t)left >= bytes;
}

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  pthread_mutex_lock(&lock);
  *pointer = NULL;
  char *start = in_use + bytes > total ? NULL : calloc(1, bytes ? bytes : 1);
  if (start) {
    if (count == room) {
      room = 2 * room + 64;
      ranges = realloc(ranges, room * sizeof *ranges);
      if (!ranges) abort();
    }
    size_t at = position(start);
    memmove(ranges + at + 1, ranges + at, (count - at) * sizeof *ranges);
    ranges[at] = (Range){start, bytes};
    count++;
    in_use += bytes;
    *pointer = start;
  }
  pthread_mutex_unlock(&lock);
  if (!start) return cudaErrorMemoryAllocation;
  dry_log("M\t%zu", bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void *pointer) {
  if (!pointer) return cudaSuccess;
  pthread_mutex_lock(&lock);
  size_t at = position(pointer);
  int known = at && ranges[at - 1].start == (char *)pointer;
  size_t bytes = known ? ranges[at - 1].bytes : 0;
  if (known) {
    memmove(ranges + at - 1, ranges + at, (count - at) * sizeof *ranges);
    count--;
    in_use -= bytes;
    free(pointer);
  }
  pthread_mutex_unlock(&lock);
  if (!known) {
    dry_log("E\tcudaFree: %p was not allocated", pointer);
    return cudaErrorInvalidValue;
  }
  dry_log("F\t%zu", bytes);
  return cudaSuccess;
}

cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  (void)pool, (void)stream;
  return cudaMalloc(pointer, bytes);
}

cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) {
  (void)stream;
  return cudaFree(pointer);
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) {
  (void)flags;
  *pointer = calloc(1, bytes ? bytes : 1);
  dry_log("H\t%zu", bytes);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMallocHost(void **pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }

cudaError_t cudaFreeHost(void *pointer) {
  free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all_bytes) {
  *all_bytes = total;
  *free_bytes = total > in_use ? total - in_use : 0;
  return cudaSuccess;
}

/* Logs a copy of rows of `width` bytes that begin `pitch` bytes apart; whether both sides are what `kind` says. */
static int log_copy(const char *who, const void *target, size_t target_pitch, const void *source, size_t source_pitch,
                    size_t width, size_t height, enum cudaMemcpyKind kind) {
  static const char *const names[] = {"h2h", "h2d", "d2h", "d2d"};
  int to = dry_is_device(target, 1), from = dry_is_device(source, 1), fine = 1;
  if (!width || !height) return 1;
  if (to) fine &= dry_need_device(target, target_pitch * (height - 1) + width, who, "the target");
  if (from) fine &= dry_need_device(source, source_pitch * (height - 1) + width, who, "the source");
  int found = 2 * from + to;
  if (kind != cudaMemcpyDefault && found != (int)kind) {
    dry_log("E\t%s: the copy is called %s but is %s", who, kind <= 3 ? names[kind] : "?", names[found]);
    fine = 0;
  }
  dry_log("C\t%s\t%zu", names[found], width * height);
  return fine;
}

static cudaError_t copy(const char *who, void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind) {
  if (!log_copy(who, target, bytes, source, bytes, bytes, 1, kind)) return cudaErrorInvalidValue;
  memmove(target, source, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind) {
  return copy("cudaMemcpy", target, source, bytes, kind);
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s) {
  (void)s;
  return copy("cudaMemcpyAsync", target, source, bytes, kind);
}

cudaError_t cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
  (void)stream;
  if (!log_copy("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, height, kind))
    return cudaErrorInvalidValue;
  for (size_t row = 0; row < height; row++)
    memmove((char *)target + row * target_pitch, (const char *)source + row * source_pitch, width);
  return cudaSuccess;
}

cudaError_t cudaMemcpyFromSymbol(void *target, const void *symbol, size_t bytes, size_t offset,
                                 enum cudaMemcpyKind kind) {
  (void)symbol, (void)offset, (void)kind;
  memset(target, 0, bytes); /* variables on the device have no values here */
  dry_log("C\td2h\t%zu", bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *target, int value, size_t bytes, cudaStream_t stream) {
  (void)stream;
  dry_log("Z\t%zu", bytes);
  if (!dry_need_device(target, bytes, "cudaMemset", "the target")) return cudaErrorInvalidValue;
  memset(target, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemset(void *target, int value, size_t bytes) { return cudaMemsetAsync(target, value, bytes, 0); }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = dry_is_device(pointer, 1) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->devicePointer = attributes->hostPointer = (void *)pointer;
  return cudaSuccess;
}

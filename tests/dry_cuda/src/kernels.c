/* Kernels: who they are, and whether the pointers they are launched with belong to the device.
 *
 * A kernel's name holds the types of its parameters, so that the pointers among its arguments can be told apart. A
 * parameter that is a structure is not looked into, but for one: onnxruntime's TArray of pointers.
 */
#include "dry.h"
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PARAMETERS = 64, SLOTS = 1 << 19 };

typedef struct {
  const void *host;           /* what launches name */
  const char *mangled;        /* as registered, never freed */
  char *name;                 /* demangled, at the first launch */
  char kinds[MAX_PARAMETERS]; /* 'p' a pointer, 'a' a TArray of pointers, '-' anything else */
  int parameters;
} Kernel;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Kernel *kernels;
static int count, room;
static int slots[SLOTS]; /* by host address, open addressing; a kernel's number plus one */

static size_t slot_of(const void *host) {
  size_t at = ((size_t)host * 0x9E3779B97F4A7C15u) >> 45;
  while (slots[at % SLOTS] && kernels[slots[at % SLOTS] - 1].host != host) at++;
  return at % SLOTS;
}

void __cudaRegisterFunction(void **module, const char *host, char *device, const char *name, int limit, void *thread_id,
                            void *block_id, void *block, void *grid, int *warp) {
  (void)module, (void)device, (void)limit, (void)thread_id, (void)block_id, (void)block, (void)grid, (void)warp;
  pthread_mutex_lock(&lock);
  size_t slot = slot_of(host);
  if (!slots[slot]) {
    if (count == room) {
      room = 2 * room + 4096;
      kernels = realloc(kernels, (size_t)room * sizeof *kernels);
    }
    if (!kernels || count > SLOTS / 2) abort();
    memset(&kernels[count], 0, sizeof *kernels);
    kernels[count].host = host;
    kernels[count].mangled = name;
    slots[slot] = ++count;
  }
  pthread_mutex_unlock(&lock);
}

static char *demangled(const char *name) {
  typedef char *(*Demangle)(const char *, char *, size_t *, int *);
  static Demangle demangle;
  if (!demangle) { /* onnxruntime needs this library itself; to link it would take a C++ compiler */
    void *library = dlopen("libstdc++.so.6", RTLD_LAZY);
    if (library) demangle = (Demangle)dlsym(library, "__cxa_demangle");
  }
  int status = -1;
  char *text = demangle ? demangle(name, NULL, NULL, &status) : NULL;
  return text ? text : strdup(name);
}

/* The kind of a parameter from its type, the text in [start, end). */
static char kind_of(const char *start, const char *end) {
  static const char array[] = "TArray<";
  while (end > start && end[-1] == ' ') end--;
  if (end > start && end[-1] == '*') return 'p';
  const char *found = strstr(start, array);
  if (found && found < end && end[-1] == '>') {
    const char *comma = memchr(found, ',', (size_t)(end - found));
    if (comma && comma[-1] == '*') return 'a';
  }
  return '-';
}

/* Reads the parameter list, which ends the name: from the parenthesis that matches the last one. */
static void read_parameters(Kernel *kernel) {
  const char *last = kernel->name + strlen(kernel->name) - 1, *open = last;
  if (*last != ')') return;
  for (int depth = 0; open > kernel->name; open--) {
    depth += *open == ')' ? 1 : *open == '(' ? -1 : 0;
    if (!depth) break;
  }
  const char *start = open + 1;
  int depth = 0;
  for (const char *at = start; at <= last && kernel->parameters < MAX_PARAMETERS; at++) {
    if (at == last || (*at == ',' && !depth)) {
      if (at > start) kernel->kinds[kernel->parameters++] = kind_of(start, at);
      start = at + 1;
    }
    depth += strchr("(<[{", *at) ? 1 : strchr(")>]}", *at) ? -1 : 0;
  }
}

static void check_argument(const Kernel *kernel, int index, const void *argument) {
  char what[32];
  snprintf(what, sizeof what, "argument %d", index);
  if (kernel->kinds[index] == 'p') dry_need_device(*(void *const *)argument, 1, kernel->name, what);
  if (kernel->kinds[index] == 'a') { /* int size, then the elements at the next multiple of a pointer's size */
    int size = *(const int *)argument;
    void *const *pointers = (void *const *)((const char *)argument + sizeof(void *));
    for (int at = 0; at < size; at++) dry_need_device(pointers[at], 1, kernel->name, what);
  }
}

static cudaError_t launch(const void *host, void **arguments) {
  pthread_mutex_lock(&lock);
  int number = slots[slot_of(host)] - 1;
  Kernel kernel = {0};
  if (number >= 0) {
    if (!kernels[number].name) {
      kernels[number].name = demangled(kernels[number].mangled);
      read_parameters(&kernels[number]);
    }
    kernel = kernels[number];
  }
  pthread_mutex_unlock(&lock);
  if (number < 0) {
    dry_log("E\ta kernel was launched that was never registered");
    return cudaErrorInvalidDeviceFunction;
  }
  dry_log("K\t%d", number);
  for (int index = 0; arguments && index < kernel.parameters; index++)
    if (arguments[index]) check_argument(&kernel, index, arguments[index]);
  return cudaSuccess;
}

/* The demangled name of a kernel that was launched. */
const char *dry_kernel_name(int number) { return kernels[number].name; }

cudaError_t cudaLaunchKernel(const void *host, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
  (void)grid, (void)block, (void)shared, (void)s;
  return launch(host, arguments);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
  (void)grid, (void)block, (void)shared, (void)stream;
  return launch((const void *)kernel, arguments);
}

cudaError_t cudaLaunchCooperativeKernel(const void *host, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t stream) {
  (void)grid, (void)block, (void)shared, (void)stream;
  return launch(host, arguments);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *host, void **arguments) {
  (void)config;
  return launch(host, arguments);
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) {
  *kernel = (cudaKernel_t)host;
  return cudaSuccess;
}

/* `kernel<<<grid, block, shared, stream>>>(…)` pushes its configuration, and the kernel's host side pops it. */
static __thread struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *(void **)stream = pushed.stream;
  return cudaSuccess;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *module;
  (void)binary;
  return &module;
}

/* A libcuda.so.1 to go with runtime.c: one device, whose calls succeed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#define SUCCESS(name) int name(void) { return 0; }

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  if (flags) *flags = 0;
  if (active) *active = 1;
  return 0;
}
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGetUuid(char *uuid, int device) { memset(uuid, 7, 16); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { /* numbered as the runtime numbers them */
  int (*of_runtime)(int *, int, int) = (int (*)(int *, int, int))dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute");
  return of_runtime ? of_runtime(value, attribute, device) : 1;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 0; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)64; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuMemGetAllocationGranularity(size_t *bytes, void *properties, int option) { *bytes = (size_t)2 << 20; return 0; }
static size_t next = 0x120000000000ULL;
int cuMemAddressReserve(size_t *p, size_t n, size_t alignment, size_t at, unsigned long long flags) {
  *p = next;
  next += n + ((size_t)2 << 20);
  return 0;
}
/* A handle is its own size, in MiB, below a number. */
static unsigned long long handles;
static int (*stub_take)(size_t);
static void (*stub_give)(size_t);
int cuMemCreate(unsigned long long *handle, size_t n, void *properties, unsigned long long flags) {
  if (!stub_take) stub_take = (int (*)(size_t))dlsym(RTLD_DEFAULT, "stub_take");
  if (stub_take && stub_take(n)) return 2; /* CUDA_ERROR_OUT_OF_MEMORY */
  *handle = ++handles << 32 | n >> 20;
  return 0;
}
int cuMemRelease(unsigned long long handle) {
  if (!stub_give) stub_give = (void (*)(size_t))dlsym(RTLD_DEFAULT, "stub_give");
  if (stub_give) stub_give((size_t)(handle & 0xffffffff) << 20);
  return 0;
}

#include "driver_rest.inc"

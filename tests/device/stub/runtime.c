/* A CUDA runtime with one device that has memory addresses and nothing else.
 *
 * Preloaded before a CUDA build of PyTorch, it answers what libcudart, cuBLAS, cuDNN and the like are asked for: device
 * queries with those of one GPU, allocations with addresses out of thin air, launches and library calls with success.
 * So all of PyTorch's own host code runs as on that GPU (which kernel is chosen, what is saved for backward, what the
 * caching allocator does), and no kernel does. Values are garbage; what is read back from the device is zero, but a single
 * byte, which is 1: where a model reads one, it asks whether a condition holds for all of a mask, and for the cases it does.
 *
 * STUB_BYTES        the device's memory (default: that of an H200)
 * STUB_SM           its compute capability, as 90 (default), 89, 80, 75
 * STUB_PROCESSORS   its multiprocessors (default: as many as the first card of that capability has)
 * STUB_THREADS      threads that a multiprocessor has room for (default: those of the capability)
 * STUB_LOG          1: every cudaMalloc and cudaFree is written to standard error
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <driver_types.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector_types.h>

#define SUCCESS(name) int name(void) { return 0; }
#define MAKES(name) int name(void **made) { *made = calloc(1, 256); return 0; }

/* -- the device */

static size_t asked(const char *name, size_t otherwise) {
  const char *s = getenv(name);
  return s && *s ? strtoull(s, 0, 10) : otherwise;
}
static size_t capacity(void) { return asked("STUB_BYTES", 150754820096ULL); }
static int sm(void) { return (int)asked("STUB_SM", 90); }
static int processors(void) {
  int n = sm() >= 100 ? 148 : sm() >= 90 ? 132 : sm() == 89 ? 128 : sm() == 86 ? 82 : sm() >= 80 ? 108 : sm() == 75 ? 40 : 80;
  return (int)asked("STUB_PROCESSORS", n);
}
static int threads(void) {
  int n = sm() == 75 ? 1024 : sm() == 86 || sm() == 89 || sm() == 120 ? 1536 : 2048;
  return (int)asked("STUB_THREADS", n);
}
static size_t shared_memory(void) { /* of a block that asks for all that it may have */
  switch (sm()) {
    case 70: return 98304;
    case 75: return 65536;
    case 80: return 166912;
    case 86: case 89: case 120: return 101376;
    default: return 232448;
  }
}

int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }

int cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "Stub sm_%d", sm());
  p->totalGlobalMem = capacity();
  p->sharedMemPerBlock = 49152;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = sm() / 10, p->minor = sm() % 10;
  p->multiProcessorCount = processors();
  p->maxThreadsPerMultiProcessor = threads();
  p->sharedMemPerBlockOptin = shared_memory(), p->sharedMemPerMultiprocessor = shared_memory() + 1024;
  p->l2CacheSize = 62914560;
  p->totalConstMem = 65536;
  p->textureAlignment = 512;
  p->maxBlocksPerMultiProcessor = 32;
  p->memoryBusWidth = 6144;
  return 0;
}

int cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = sm() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = sm() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = processors(); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)shared_memory(); break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = threads(); break;
    default: *value = 1;
  }
  return 0;
}

int cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return 0; }
int cudaDeviceGetPCIBusId(char *s, int n, int device) { strncpy(s, "0000:00:00.0", n); return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; return 0; }

/* -- its memory: addresses that nothing is behind */

#define FIRST 0x100000000000ULL
#define LAST 0x200000000000ULL
#define STEP ((size_t)2 << 20)

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct { uintptr_t at; size_t bytes; } blocks[1 << 17];
static int count;
static size_t used;
static uintptr_t next = FIRST;

static int on_device(const void *p) { return (uintptr_t)p >= FIRST && (uintptr_t)p < LAST; }

int stub_take(size_t n) { /* for the driver's half */
  pthread_mutex_lock(&mutex);
  int failed = used + n > capacity();
  if (!failed) used += n;
  pthread_mutex_unlock(&mutex);
  return failed;
}
void stub_give(size_t n) {
  pthread_mutex_lock(&mutex);
  used -= n;
  pthread_mutex_unlock(&mutex);
}

int cudaMalloc(void **p, size_t n) {
  int failed = 2; /* cudaErrorMemoryAllocation */
  *p = 0;
  pthread_mutex_lock(&mutex);
  if (used + n <= capacity()) {
    *p = (void *)next;
    next += (n + STEP - 1) / STEP * STEP + STEP;
    blocks[count].at = (uintptr_t)*p, blocks[count++].bytes = n;
    used += n, failed = 0;
  }
  pthread_mutex_unlock(&mutex);
  if (getenv("STUB_LOG")) fprintf(stderr, "cudaMalloc %zu%s\n", n, failed ? " failed" : "");
  return failed;
}

int cudaFree(void *p) {
  pthread_mutex_lock(&mutex);
  for (int i = 0; p && i < count; i++)
    if (blocks[i].at == (uintptr_t)p) {
      if (getenv("STUB_LOG")) fprintf(stderr, "cudaFree %zu\n", blocks[i].bytes);
      used -= blocks[i].bytes, blocks[i] = blocks[--count];
      break;
    }
  pthread_mutex_unlock(&mutex);
  return 0;
}

int cudaMemGetInfo(size_t *unused, size_t *total) { *total = capacity(), *unused = capacity() - used; return 0; }
int cudaHostAlloc(void **p, size_t n, unsigned flags) { *p = malloc(n); return 0; }
int cudaFreeHost(void *p) { free(p); return 0; }

static int copied(void *to, const void *from, size_t n) {
  if (!on_device(to)) on_device(from) ? memset(to, n == 1, n) : memmove(to, from, n);
  return 0;
}
int cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) { return copied(to, from, n); }
int cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, void *s) { return copied(to, from, n); }
int cudaMemset(void *p, int value, size_t n) { return 0; }
int cudaMemsetAsync(void *p, int value, size_t n, void *stream) { return 0; }

int cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = on_device(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  a->devicePointer = (void *)p;
  return 0;
}

/* -- streams, events, launches */

static uintptr_t handle = 0x1000;
int cudaStreamCreateWithPriority(void **s, unsigned flags, int priority) { *s = (void *)(handle += 16); return 0; }
int cudaStreamCreateWithFlags(void **s, unsigned flags) { *s = (void *)(handle += 16); return 0; }
int cudaEventCreateWithFlags(void **e, unsigned flags) { *e = (void *)(handle += 16); return 0; }
int cudaEventCreate(void **e) { *e = (void *)(handle += 16); return 0; }
int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = 1; return 0; }
int cudaStreamIsCapturing(void *s, int *status) { *status = 0; return 0; }
int cudaStreamGetCaptureInfo(void *s, int *status, unsigned long long *id, ...) { *status = 0; if (id) *id = 0; return 0; }
int cudaThreadExchangeStreamCaptureMode(void *mode) { return 0; }

int cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->ptxVersion = a->binaryVersion = sm();
  a->maxDynamicSharedSizeBytes = (int)shared_memory();
  return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned flags) { *n = 2; return 0; }

const char *cudaGetErrorString(int e) { return e == 2 ? "out of memory" : "an error of the stub"; }
const char *cudaGetErrorName(int e) { return e == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorStub"; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
static int succeeds(void) { return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned v, unsigned long long flags, int *found) {
  static void *driver;
  if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW);
  *f = driver ? dlsym(driver, name) : 0;
  if (!*f) *f = (void *)succeeds;
  if (found) *found = 0; /* cudaDriverEntryPointSuccess */
  return 0;
}

void **__cudaRegisterFatBinary(void *p) { static void *module[4]; return module; }
void __cudaRegisterFatBinaryEnd(void **p) {}
void __cudaUnregisterFatBinary(void **p) {}
void __cudaRegisterFunction(void **a, const char *b, char *c, const char *d, int e, void *f, void *g, void *h, void *i, int *j) {}
void __cudaRegisterVar(void **a, char *b, char *c, const char *d, int e, size_t f, int g, int h) {}
char __cudaInitModule(void **p) { return 0; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) { return 0; }
int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  if (grid) grid->x = grid->y = grid->z = 1;
  if (block) block->x = block->y = block->z = 1;
  if (shared) *shared = 0;
  if (stream) *(void **)stream = 0;
  return 0;
}

/* -- cuBLAS: no workspace of its own beside what PyTorch gives it */

MAKES(cublasCreate_v2)
int cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *h, int *mode) { *mode = 0; return 0; }
size_t cublasLtGetVersion(void) { return 130101; }
int cublasLtMatmulDescCreate(void **d, int a, int b) { *d = calloc(1, 256); return 0; }
int cublasLtMatmulDescDestroy(void *d) { free(d); return 0; }
int cublasLtMatrixLayoutCreate(void **d, int t, uint64_t r, uint64_t c, int64_t ld) { *d = calloc(1, 256); return 0; }
int cublasLtMatrixLayoutDestroy(void *d) { free(d); return 0; }
MAKES(cublasLtMatmulPreferenceCreate)
int cublasLtMatmulPreferenceDestroy(void *d) { free(d); return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *a, void *b, void *c, void *d, void *e, void *f, void *g, int n, void *results, int *found) {
  memset(results, 0, 96);
  *found = 1;
  return 0;
}

/* -- cuDNN: every convolution has one engine, which needs no workspace */

size_t cudnnGetVersion(void) { return 92400; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int s) { return "an error of the stub"; }
void cudnnGetLastErrorString(char *m, size_t n) { if (n) m[0] = 0; }
int cudnnGetProperty(int part, int *value) { *value = part == 0 ? 9 : part == 1 ? 24 : 0; return 0; }
int cudnnGetStream(void *h, void **s) { *s = 0; return 0; }
MAKES(cudnnCreate)
MAKES(cudnnCreateActivationDescriptor)
MAKES(cudnnCreateCTCLossDescriptor)
MAKES(cudnnCreateConvolutionDescriptor)
MAKES(cudnnCreateDropoutDescriptor)
MAKES(cudnnCreateFilterDescriptor)
MAKES(cudnnCreatePoolingDescriptor)
MAKES(cudnnCreateRNNDataDescriptor)
int cudnnSetRNNDataDescriptor(size_t *d, int type, int layout, int steps, int batch, int size, void *lengths, void *fill) {
  *d = (size_t)steps * batch;
  return 0;
}
MAKES(cudnnCreateRNNDescriptor)
MAKES(cudnnCreateSpatialTransformerDescriptor)
MAKES(cudnnCreateTensorDescriptor)
int cudnnDropoutGetStatesSize(void *h, size_t *s) { *s = 2228224; return 0; }
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int m, int o, void *a, void *x, size_t *s) { *s = 0; return 0; }
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *h, int m, int o, void *a, void *b, void *c, void *d, void *e, size_t *s) { *s = 0; return 0; }
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *h, int m, int o, void *a, void *b, void *c, void *d, void *e, void *f, void *g, size_t *s) { *s = 0; return 0; }

/* cuDNN's recurrent layers: weights lie as their cells ask for them, all biases behind; no workspace. What is reserved is
 * as many numbers as memback takes it to be (device/recurrent.py), which was published for LSTM and GRU. */
struct cells { int gates, biases, directions, type, in, hidden, layers; };
struct matrix { int type, rows, columns; };
int cudnnSetRNNDescriptor_v8(struct cells *d, int algorithm, int mode, int bias, int both, int skip, int type, int precision,
                             int math, int in, int hidden, int projection, int layers, void *dropout, unsigned flags) {
  *d = (struct cells){mode == 2 ? 4 : mode == 3 ? 3 : 1, bias == 2 ? 2 : bias ? 1 : 0, both ? 2 : 1, type, in, hidden, layers};
  return 0;
}
static size_t bytes_of(int type) { return type == 1 ? 8 : type == 2 || type == 9 ? 2 : 4; }
static size_t inputs(struct cells *d, int pseudo_layer) {
  return pseudo_layer < d->directions ? d->in : (size_t)d->hidden * d->directions;
}
static size_t of_matrices(struct cells *d, int pseudo_layers) {
  size_t n = 0;
  for (int i = 0; i < pseudo_layers; i++) n += d->gates * d->hidden * (inputs(d, i) + d->hidden);
  return n;
}
static size_t of_biases(struct cells *d, int pseudo_layers) { return (size_t)pseudo_layers * d->biases * d->gates * d->hidden; }
int cudnnGetRNNWeightSpaceSize(void *h, struct cells *d, size_t *bytes) {
  int all = d->layers * d->directions;
  *bytes = (of_matrices(d, all) + of_biases(d, all)) * bytes_of(d->type);
  return 0;
}
int cudnnGetRNNWeightParams(void *h, struct cells *d, int layer, size_t n, char *weights, int id, struct matrix *m, void **at,
                            struct matrix *bias, void **bias_at) {
  int all = d->layers * d->directions, recurrent = id >= d->gates, columns = recurrent ? d->hidden : (int)inputs(d, layer);
  size_t offset = of_matrices(d, layer);
  offset += recurrent ? d->gates * d->hidden * inputs(d, layer) + (size_t)(id - d->gates) * d->hidden * d->hidden : (size_t)id * d->hidden * columns;
  if (m) *m = (struct matrix){d->type, d->hidden, columns};
  if (at) *at = weights + offset * bytes_of(d->type);
  if (bias) *bias = (struct matrix){d->type, d->hidden, 1};
  if (bias_at) *bias_at = d->biases ? weights + (of_matrices(d, all) + of_biases(d, layer) + (size_t)id * d->hidden) * bytes_of(d->type) : 0;
  return 0;
}
int cudnnGetTensorNdDescriptor(struct matrix *m, int room, int *type, int *n, int *sizes, int *strides) {
  *type = m->type, *n = 3;
  sizes[0] = 1, sizes[1] = m->rows, sizes[2] = m->columns;
  strides[0] = m->rows * m->columns, strides[1] = m->columns, strides[2] = 1;
  return 0;
}
int cudnnGetRNNTempSpaceSizes(void *h, struct cells *d, int training, size_t *inputs, size_t *work, size_t *reserve) {
  size_t kept = d->gates == 4 ? 5 : d->gates == 3 ? 6 : 1, numbers = kept * d->layers + d->layers - 1;
  if (work) *work = 0;
  if (reserve) *reserve = training ? *inputs * d->hidden * d->directions * numbers * bytes_of(d->type) : 0;
  return 0;
}

int cudnnBackendCreateDescriptor(int type, void **made) { int *d = calloc(1, 256); d[0] = type, *made = d; return 0; }
int cudnnBackendGetAttribute(void *d, int name, int type, int64_t room, int64_t *n, void *values) {
  if (name == 202) { if (n) *n = 1; return 0; }                 /* the heuristics' engine configurations */
  if (name == 1303 || name == 1305) { if (n) *n = 0; return 0; } /* an engine's notes */
  if (n) *n = room < 1 ? 0 : 1;
  if (values && room > 0 && (type == 1 || type == 2 || type == 3)) memset(values, 0, 8);
  if (values && room > 0 && type == 23) memset(values, 0, 4);
  return 0;
}

#include "rest.inc" /* everything else that PyTorch asks of these libraries: success */

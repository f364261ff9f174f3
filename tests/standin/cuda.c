// A machine with NVIDIA cards, without any: what onnxruntime-gpu's CUDA provider calls of the CUDA runtime, the driver, cuBLAS and cuRAND.
// Memory is the host's and copies are real; kernels and products do nothing. What crosses, what is launched and what is held is counted and
// written as JSON to $STANDIN_REPORT when the process ends. There is no cuDNN: what asks for it fails.
//
// Compiled once for each library: -DCUDART, -DDRIVER, -DCUBLAS, -DCUBLASLT, -DCURAND, each with its soname and its symbols' version
// (tests/standin/build.sh).
//
//   STANDIN_CARDS        how many there are (1)
//   STANDIN_NAME         their name (NVIDIA H100 80GB HBM3)
//   STANDIN_CAPABILITY   their compute capability (9.0)
//   STANDIN_MEMORY       bytes of each (85899345920); cudaMalloc refuses what is beyond
//   STANDIN_TAKEN        bytes of it that are another program's (0)
//   STANDIN_UNRECORDED   1: no stream can be recorded (0)
//   STANDIN_REPORT       the file that is written
//   STANDIN_FATBINS      a file for the fat binaries whose kernels were launched: offset in the provider, in hex
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAYBE __attribute__((unused)) static
MAYBE long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text && *text ? atol(text) : otherwise;
}
MAYBE const char *card_name(void) {
  const char *name = getenv("STANDIN_NAME");
  return name && *name ? name : "NVIDIA H100 80GB HBM3";
}
MAYBE int capability(int part) {
  const char *text = getenv("STANDIN_CAPABILITY");
  int major = 9, minor = 0;
  if (text && *text) sscanf(text, "%d.%d", &major, &minor);
  return part ? minor : major;
}
MAYBE size_t card_memory(void) { return (size_t)setting("STANDIN_MEMORY", 85899345920L); }

#ifdef DRIVER
int cuInit(unsigned flags) { (void)flags; return setting("STANDIN_CARDS", 1) > 0 ? 0 : 100; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = (int)setting("STANDIN_CARDS", 1); return 0; }
int cuDeviceGet(int *device, int number) {
  *device = number;
  return number >= 0 && number < setting("STANDIN_CARDS", 1) ? 0 : 101;
}
int cuDeviceGetName(char *name, int length, int device) { (void)device; snprintf(name, (size_t)length, "%s", card_name()); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = card_memory(); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  *value = attribute == 75 ? capability(0) : attribute == 76 ? capability(1) : 0;
  return 0;
}
int cuGetErrorString(int error, const char **text) { (void)error; *text = "an error of the stand-in"; return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
#endif

#ifdef CURAND
int curandGetVersion(int *version) { *version = 10400; return 0; }
#endif

#ifdef CUDART
enum { MAX_CARDS = 16, OK = 0, NO_MEMORY = 2, CAPTURING = 900, INVALID = 1, NO_DEVICE = 100, INVALID_DEVICE = 101, NO_KERNEL_IMAGE = 209, UNSUPPORTED = 801 };
enum { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, BY_ADDRESS };

typedef struct Block { uintptr_t at; size_t bytes, mapped; int card, pinned; struct Block *next; } Block;
typedef struct Binary { const char *data; int used; struct Binary *next; } Binary;
typedef struct Kernel { const void *function; const char *name; Binary *binary; long launches; struct Kernel *next; } Kernel;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block *blocks;
static Binary *binaries;
static Kernel *kernels[4096];
static size_t held[MAX_CARDS], peak[MAX_CARDS];
static long long up_bytes, down_bytes, pageable_bytes, inside_bytes, ups, downs, insides, launches, products, captures, replays, waits;
static long long card_launches[MAX_CARDS], largest_up, largest_down;
static __thread int card;
static __thread int last_error;
// What a real stream refuses while it is recorded: allocations and waits, which end the recording; and what it takes, but plays back from where the
// numbers are no longer: copies from the host.
static int capturing;
static long long captured_ups, captured_downs, captured_refusals;

static int fails(int error) { last_error = error; return error; }
static int refused(void) {
  if (!__atomic_load_n(&capturing, __ATOMIC_RELAXED)) return 0;
  __atomic_add_fetch(&captured_refusals, 1, __ATOMIC_RELAXED);
  return 1;
}

void standin_product(void) { __atomic_add_fetch(&products, 1, __ATOMIC_RELAXED); __atomic_add_fetch(&card_launches[card], 1, __ATOMIC_RELAXED); }

static Block *find(const void *pointer) {
  uintptr_t at = (uintptr_t)pointer;
  for (Block *b = blocks; b; b = b->next) if (at >= b->at && at < b->at + b->bytes) return b;
  return NULL;
}
static int take(void **pointer, size_t bytes, int on_card, int pinned) {
  if (refused()) { *pointer = NULL; return fails(CAPTURING); }
  if (bytes == 0) { *pointer = NULL; return OK; }
  pthread_mutex_lock(&lock);
  if (!pinned && held[on_card] + bytes + (size_t)setting("STANDIN_TAKEN", 0) > card_memory()) { pthread_mutex_unlock(&lock); *pointer = NULL; return fails(NO_MEMORY); }
  size_t mapped = (bytes + 4095) & ~(size_t)4095;
  void *got = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (got == MAP_FAILED) { pthread_mutex_unlock(&lock); return fails(NO_MEMORY); }
  Block *b = malloc(sizeof *b);
  *b = (Block){(uintptr_t)got, bytes, mapped, on_card, pinned, blocks};
  blocks = b;
  if (!pinned) { held[on_card] += bytes; if (held[on_card] > peak[on_card]) peak[on_card] = held[on_card]; }
  pthread_mutex_unlock(&lock);
  *pointer = got;
  return OK;
}
static int give(void *pointer) {
  if (!pointer) return OK;
  pthread_mutex_lock(&lock);
  for (Block **at = &blocks; *at; at = &(*at)->next) {
    Block *b = *at;
    if (b->at != (uintptr_t)pointer) continue;
    *at = b->next;
    if (!b->pinned) held[b->card] -= b->bytes;
    munmap(pointer, b->mapped);
    free(b);
    pthread_mutex_unlock(&lock);
    return OK;
  }
  pthread_mutex_unlock(&lock);
  return fails(INVALID);
}
static void count_copy(const void *to, const void *from, size_t bytes, int kind) {
  pthread_mutex_lock(&lock);
  Block *target = find(to), *source = find(from);
  int up = kind == HOST_TO_DEVICE || (kind == BY_ADDRESS && target && !target->pinned && (!source || source->pinned));
  int down = kind == DEVICE_TO_HOST || (kind == BY_ADDRESS && source && !source->pinned && (!target || target->pinned));
  if (up || down) {
    const Block *host = up ? source : target;
    if (!host) pageable_bytes += (long long)bytes;
  }
  if (up) captured_ups += capturing;
  if (down) captured_downs += capturing;
  if (up) { up_bytes += (long long)bytes; ups++; if ((long long)bytes > largest_up) largest_up = (long long)bytes; }
  else if (down) { down_bytes += (long long)bytes; downs++; if ((long long)bytes > largest_down) largest_down = (long long)bytes; }
  else { inside_bytes += (long long)bytes; insides++; }
  pthread_mutex_unlock(&lock);
}
static int copy(void *to, const void *from, size_t bytes, int kind) {
  if (bytes) { count_copy(to, from, bytes, kind); memmove(to, from, bytes); }
  return OK;
}

// Devices
int cudaGetDeviceCount(int *count) { *count = (int)setting("STANDIN_CARDS", 1); return *count ? OK : fails(NO_DEVICE); }
int cudaGetDevice(int *number) { *number = card; return OK; }
int cudaSetDevice(int number) {
  if (number < 0 || number >= setting("STANDIN_CARDS", 1) || number >= MAX_CARDS) return fails(INVALID_DEVICE);
  card = number;
  return OK;
}
int cudaRuntimeGetVersion(int *version) { *version = 13000; return OK; }
int cudaDriverGetVersion(int *version) { *version = 13000; return OK; }
int cudaDeviceSynchronize(void) { if (refused()) return fails(CAPTURING); __atomic_add_fetch(&waits, 1, __ATOMIC_RELAXED); return OK; }
int cudaMemGetInfo(size_t *unused, size_t *total) { *total = card_memory(); *unused = *total - held[card] - (size_t)setting("STANDIN_TAKEN", 0); return OK; }

// CUDA 13's layout.
struct Properties {
  char name[256]; char uuid[16]; char luid[8]; unsigned luid_mask; size_t memory, shared_per_block; int registers_per_block, warp; size_t pitch;
  int threads_per_block, threads_dim[3], grid[3]; size_t constants; int major, minor; size_t texture_alignment, texture_pitch; int processors,
  integrated, maps_host, texture_1d, texture_1d_mip, texture_2d[2], texture_2d_mip[2], texture_2d_linear[3], texture_2d_gather[2], texture_3d[3],
  texture_3d_alt[3], cube, layered_1d[2], layered_2d[3], cube_layered[2], surface_1d, surface_2d[2], surface_3d[3], surface_1d_layered[2],
  surface_2d_layered[3], surface_cube, surface_cube_layered[2]; size_t surface_alignment; int concurrent, ecc, bus, slot, domain, tcc, copy_engines,
  unified, bus_width, l2, persisting, threads_per_processor, priorities, l1_global, l1_local; size_t shared_per_processor; int
  registers_per_processor, managed, multi, group, atomics, pageable, concurrent_managed, preemption, registered, cooperative; size_t
  shared_optin; int page_tables, direct, blocks_per_processor, window; size_t reserved_shared; int host_register, sparse, read_only, semaphore,
  pools, rdma; unsigned rdma_writes; int rdma_order; unsigned pool_handles; int deferred, ipc, cluster, function_pointers, numa, numa_id, mps,
  host_numa; unsigned pci_id, subsystem; int numa_ipc, reserved[56];
};
int cudaGetDeviceProperties(struct Properties *p, int number) {
  if (number < 0 || number >= setting("STANDIN_CARDS", 1)) return fails(INVALID_DEVICE);
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "%s", card_name());
  p->memory = card_memory(); p->shared_per_block = 49152; p->registers_per_block = 65536; p->warp = 32; p->pitch = 2147483647;
  p->threads_per_block = 1024; p->threads_dim[0] = p->threads_dim[1] = 1024; p->threads_dim[2] = 64;
  p->grid[0] = 2147483647; p->grid[1] = p->grid[2] = 65535; p->constants = 65536; p->major = capability(0); p->minor = capability(1);
  p->texture_alignment = 512; p->texture_pitch = 32; p->processors = 132; p->maps_host = 1; p->concurrent = 1; p->bus = number + 1;
  p->copy_engines = 3; p->unified = 1; p->bus_width = 5120; p->l2 = 52428800; p->threads_per_processor = 2048; p->priorities = 1;
  p->shared_per_processor = 233472; p->registers_per_processor = 65536; p->managed = 1; p->cooperative = 1; p->shared_optin = 232448;
  p->blocks_per_processor = 32; p->reserved_shared = 1024; p->pools = 1; p->function_pointers = 1; p->cluster = 1;
  return OK;
}
int cudaDeviceGetAttribute(int *value, int attribute, int number) {
  struct Properties p;
  if (cudaGetDeviceProperties(&p, number)) return INVALID_DEVICE;
  switch (attribute) {
    case 1: *value = 1024; break;
    case 8: *value = (int)p.shared_per_block; break;
    case 10: *value = 32; break;
    case 12: *value = 65536; break;
    case 16: *value = p.processors; break;
    case 38: *value = p.l2; break;
    case 39: *value = 2048; break;
    case 75: *value = p.major; break;
    case 76: *value = p.minor; break;
    case 81: *value = (int)p.shared_per_processor; break;
    case 82: *value = 65536; break;
    case 95: *value = 1; break;
    case 97: *value = (int)p.shared_optin; break;
    case 106: *value = 32; break;
    case 111: *value = 1024; break;
    case 115: case 120: *value = 1; break;
    default: *value = 0;
  }
  return OK;
}

// Memory
int cudaMalloc(void **pointer, size_t bytes) { return take(pointer, bytes, card, 0); }
int cudaMallocFromPoolAsync(void **pointer, size_t bytes, void *pool, void *stream) { (void)pool; (void)stream; return take(pointer, bytes, card, 0); }
int cudaFree(void *pointer) { return give(pointer); }
int cudaFreeAsync(void *pointer, void *stream) { (void)stream; return give(pointer); }
int cudaMallocHost(void **pointer, size_t bytes) { return take(pointer, bytes, card, 1); }
int cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) { (void)flags; return take(pointer, bytes, card, 1); }
int cudaFreeHost(void *pointer) { return give(pointer); }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { return copy(to, from, bytes, kind); }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) { (void)stream; return copy(to, from, bytes, kind); }
int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows, int kind, void *stream) {
  (void)stream;
  for (size_t row = 0; row < rows; row++) memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  count_copy(to, from, width * rows, kind);
  return OK;
}
int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes, size_t offset, int kind) {
  (void)symbol; (void)offset; (void)kind;
  memset(to, 0, bytes);
  return OK;
}
int cudaMemset(void *to, int value, size_t bytes) { memset(to, value, bytes); return OK; }
int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream) { (void)stream; memset(to, value, bytes); return OK; }
struct PointerAttributes { int type, device; void *on_device, *on_host; long reserved[8]; };
int cudaPointerGetAttributes(struct PointerAttributes *a, const void *pointer) {
  memset(a, 0, sizeof *a);
  pthread_mutex_lock(&lock);
  Block *b = find(pointer);
  a->type = b ? (b->pinned ? 1 : 2) : 0;
  a->device = b ? b->card : 0;
  pthread_mutex_unlock(&lock);
  a->on_device = b ? (void *)pointer : NULL;
  a->on_host = !b || b->pinned ? (void *)pointer : NULL;
  return OK;
}
int cudaMemPoolCreate(void **pool, const void *p) { (void)p; *pool = (void *)1; return OK; }
int cudaMemPoolDestroy(void *pool) { (void)pool; return OK; }
int cudaMemPoolGetAttribute(void *pool, int a, void *value) { (void)pool; (void)a; memset(value, 0, 8); return OK; }
int cudaMemPoolSetAttribute(void *pool, int a, void *value) { (void)pool; (void)a; (void)value; return OK; }
int cudaMemPoolTrimTo(void *pool, size_t bytes) { (void)pool; (void)bytes; return OK; }

// Streams, events, graphs
static long handles = 16;
static void *handle(void) { return (void *)__atomic_add_fetch(&handles, 16, __ATOMIC_RELAXED); }
int cudaStreamCreate(void **stream) { *stream = handle(); return OK; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { (void)flags; *stream = handle(); return OK; }
int cudaStreamDestroy(void *stream) { (void)stream; return OK; }
int cudaStreamSynchronize(void *stream) { (void)stream; if (refused()) return fails(CAPTURING); __atomic_add_fetch(&waits, 1, __ATOMIC_RELAXED); return OK; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { (void)stream; (void)event; (void)flags; return OK; }
int cudaStreamBeginCapture(void *stream, int mode) { (void)stream; (void)mode; if (setting("STANDIN_UNRECORDED", 0)) return fails(UNSUPPORTED); __atomic_store_n(&capturing, 1, __ATOMIC_RELAXED); return OK; }
int cudaStreamEndCapture(void *stream, void **graph) { (void)stream; __atomic_store_n(&capturing, 0, __ATOMIC_RELAXED); *graph = handle(); __atomic_add_fetch(&captures, 1, __ATOMIC_RELAXED); return OK; }
int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = capturing; return OK; }
int cudaEventCreate(void **event) { *event = handle(); return OK; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { (void)flags; *event = handle(); return OK; }
int cudaEventDestroy(void *event) { (void)event; return OK; }
int cudaEventRecord(void *event, void *stream) { (void)event; (void)stream; return OK; }
int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) { (void)event; (void)stream; (void)flags; return OK; }
int cudaEventSynchronize(void *event) { (void)event; return OK; }
int cudaEventElapsedTime(float *ms, void *a, void *b) { (void)a; (void)b; *ms = 0.01f; return OK; }
int cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) { (void)graph; (void)flags; *executable = handle(); return OK; }
int cudaGraphLaunch(void *executable, void *stream) { (void)executable; (void)stream; __atomic_add_fetch(&replays, 1, __ATOMIC_RELAXED); return OK; }
int cudaGraphDestroy(void *graph) { (void)graph; return OK; }
int cudaGraphExecDestroy(void *executable) { (void)executable; return OK; }
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) { (void)stream; function(data); return OK; }

// Kernels
static unsigned slot(const void *function) { return (unsigned)(((uintptr_t)function >> 4) * 2654435761u) % 4096; }
static Kernel *kernel_of(const void *function) {
  for (Kernel *k = kernels[slot(function)]; k; k = k->next) if (k->function == function) return k;
  return NULL;
}
// Whether a fat binary has an image for this card: the same generation, and no newer one, that was not cut out. There is no PTX in the provider.
static int fits(const char *data) {
  uint16_t header; uint64_t length;
  memcpy(&header, data + 6, 2); memcpy(&length, data + 8, 8);
  for (const char *image = data + header; image < data + header + length;) {
    uint32_t head, arch; uint64_t payload;
    memcpy(&head, image + 4, 4); memcpy(&payload, image + 8, 8); memcpy(&arch, image + 28, 4);
    int is_there = 0;
    for (uint64_t i = 0; i < payload && i < 256; i++) is_there |= image[head + i];
    if (is_there && (int)(arch / 10) == capability(0) && (int)(arch % 10) <= capability(1)) return 1;
    image += head + payload;
  }
  return 0;
}
static int launch(const void *function) {
  Kernel *k = kernel_of(function);
  if (k) {
    if (!k->binary->used) k->binary->used = fits(k->binary->data) ? 1 : 2;
    if (k->binary->used == 2) return fails(NO_KERNEL_IMAGE);
    __atomic_add_fetch(&k->launches, 1, __ATOMIC_RELAXED);
  }
  __atomic_add_fetch(&launches, 1, __ATOMIC_RELAXED);
  __atomic_add_fetch(&card_launches[card], 1, __ATOMIC_RELAXED);
  return OK;
}
struct Wrapper { int magic, version; const char *data; void *rest; };
void **__cudaRegisterFatBinary(struct Wrapper *wrapper) {
  Binary *b = calloc(1, sizeof *b);
  b->data = wrapper->data;
  pthread_mutex_lock(&lock);
  b->next = binaries;
  binaries = b;
  pthread_mutex_unlock(&lock);
  return (void **)b;
}
void __cudaRegisterFatBinaryEnd(void **binary) { (void)binary; }
void __cudaUnregisterFatBinary(void **binary) { (void)binary; }
void __cudaRegisterFunction(void **binary, const char *function, char *device, const char *name, int limit, void *a, void *b, void *c, void *d, int *e) {
  (void)device; (void)limit; (void)a; (void)b; (void)c; (void)d; (void)e;
  Kernel *k = calloc(1, sizeof *k);
  *k = (Kernel){function, name, (Binary *)binary, 0, NULL};
  pthread_mutex_lock(&lock);
  k->next = kernels[slot(function)];
  kernels[slot(function)] = k;
  pthread_mutex_unlock(&lock);
}
void __cudaRegisterVar(void **a, char *b, char *c, const char *d, int e, size_t f, int g, int h) { (void)a; (void)b; (void)c; (void)d; (void)e; (void)f; (void)g; (void)h; }
typedef struct { unsigned x, y, z; } Dim3;
static __thread struct { Dim3 grid, block; size_t shared; void *stream; } pushed;
unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void *stream) {
  pushed.grid = grid; pushed.block = block; pushed.shared = shared; pushed.stream = stream;
  return 0;
}
int __cudaPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *shared, void *stream) {
  *grid = pushed.grid; *block = pushed.block; *shared = pushed.shared; *(void **)stream = pushed.stream;
  return OK;
}
int __cudaGetKernel(const void **kernel, const void *function) { *kernel = function; return OK; }
int __cudaLaunchKernel(const void *kernel, Dim3 grid, Dim3 block, void **arguments, size_t shared, void *stream) {
  (void)grid; (void)block; (void)arguments; (void)shared; (void)stream;
  return launch(kernel);
}
int cudaLaunchKernel(const void *f, Dim3 grid, Dim3 block, void **arguments, size_t shared, void *stream) { return __cudaLaunchKernel(f, grid, block, arguments, shared, stream); }
int cudaLaunchCooperativeKernel(const void *f, Dim3 grid, Dim3 block, void **arguments, size_t shared, void *stream) { return __cudaLaunchKernel(f, grid, block, arguments, shared, stream); }
int cudaLaunchKernelExC(const void *configuration, const void *f, void **arguments) { (void)configuration; (void)arguments; return launch(f); }
struct FunctionAttributes { size_t shared, constants, local; int threads, registers, ptx, binary, cache, dynamic, carveout, rest[24]; };
int cudaFuncGetAttributes(struct FunctionAttributes *a, const void *f) {
  (void)f;
  memset(a, 0, sizeof(size_t) * 3 + sizeof(int) * 7);
  a->threads = 1024; a->registers = 32; a->ptx = a->binary = capability(0) * 10 + capability(1); a->dynamic = 49152;
  return OK;
}
int cudaFuncSetAttribute(const void *f, int a, int value) { (void)f; (void)a; (void)value; return OK; }
int cudaKernelSetAttributeForDevice(void *k, int a, int value, int device) { (void)k; (void)a; (void)value; (void)device; return OK; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int size, size_t shared, unsigned flags) { (void)f; (void)size; (void)shared; (void)flags; *n = 2; return OK; }
int cudaLibraryLoadData(void **library, const void *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f) { (void)code; (void)a; (void)b; (void)c; (void)d; (void)e; (void)f; *library = handle(); return OK; }
int cudaLibraryGetKernel(void **kernel, void *library, const char *name) { (void)library; (void)name; *kernel = handle(); return OK; }
int cudaLibraryUnload(void *library) { (void)library; return OK; }
static int nothing(void) { return OK; }
int cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long flags, int *status) {
  (void)symbol; (void)version; (void)flags;
  *function = (void *)nothing;
  if (status) *status = 0;
  return OK;
}

// Errors
int cudaGetLastError(void) { int error = last_error; last_error = OK; return error; }
int cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorName(int error) {
  return error == OK ? "cudaSuccess" : error == NO_MEMORY ? "cudaErrorMemoryAllocation" : error == NO_KERNEL_IMAGE ? "cudaErrorNoKernelImageForDevice"
       : error == INVALID_DEVICE ? "cudaErrorInvalidDevice" : error == NO_DEVICE ? "cudaErrorNoDevice" : "cudaErrorInvalidValue";
}
const char *cudaGetErrorString(int error) {
  return error == OK ? "no error" : error == NO_MEMORY ? "out of memory" : error == NO_KERNEL_IMAGE ? "no kernel image is available for execution on the device"
       : error == INVALID_DEVICE ? "invalid device ordinal" : error == NO_DEVICE ? "no CUDA-capable device is detected" : "invalid argument";
}

// Where an address of a loaded library lies in its file.
static size_t offset_in_file(const void *address) {
  Dl_info info;
  if (!dladdr(address, &info)) return 0;
  const ElfW(Ehdr) *head = info.dli_fbase;
  const ElfW(Phdr) *part = (const void *)((const char *)head + head->e_phoff);
  uintptr_t at = (uintptr_t)address - (uintptr_t)head;
  for (int i = 0; i < head->e_phnum; i++)
    if (part[i].p_type == PT_LOAD && at >= part[i].p_vaddr && at < part[i].p_vaddr + part[i].p_memsz) return at - part[i].p_vaddr + part[i].p_offset;
  return 0;
}
__attribute__((destructor)) static void report(void) {
  const char *path = getenv("STANDIN_FATBINS");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (file) {
    for (Binary *b = binaries; b; b = b->next) if (b->used == 1) fprintf(file, "%zx\n", offset_in_file(b->data));
    fclose(file);
  }
  path = getenv("STANDIN_REPORT");
  file = path && binaries ? fopen(path, "w") : NULL;
  if (!file) return;
  fprintf(file, "{\"up\": {\"bytes\": %lld, \"copies\": %lld, \"largest\": %lld}, \"down\": {\"bytes\": %lld, \"copies\": %lld, \"largest\": %lld}, ",
          up_bytes, ups, largest_up, down_bytes, downs, largest_down);
  fprintf(file, "\"pageable_bytes\": %lld, \"inside\": {\"bytes\": %lld, \"copies\": %lld}, \"launches\": %lld, \"products\": %lld, \"waits\": %lld, ",
          pageable_bytes, inside_bytes, insides, launches, products, waits);
  fprintf(file, "\"captures\": %lld, \"replays\": %lld, \"captured\": {\"up\": %lld, \"down\": %lld, \"refused\": %lld}, \"cards\": [", captures, replays,
          captured_ups, captured_downs, captured_refusals);
  int cards = (int)setting("STANDIN_CARDS", 1);
  for (int i = 0; i < cards && i < MAX_CARDS; i++) fprintf(file, "%s{\"peak\": %zu, \"launches\": %lld}", i ? ", " : "", peak[i], card_launches[i]);
  fprintf(file, "], \"kernels\": {");
  const char *comma = "";
  for (int i = 0; i < 4096; i++)
    for (Kernel *k = kernels[i]; k; k = k->next)
      if (k->launches) { fprintf(file, "%s\"%s\": %ld", comma, k->name, k->launches); comma = ", "; }
  fprintf(file, "}}\n");
  fclose(file);
}
#endif

#if defined(CUBLAS) || defined(CUBLASLT)
extern void standin_product(void);
#define HANDLE(name) int name(void **handle) { *handle = (void *)64; return 0; }
#define NOTHING(name) int name(void) { return 0; }
#define PRODUCT(name) int name(void) { standin_product(); return 0; }
#endif
#ifdef CUBLAS
HANDLE(cublasCreate_v2) NOTHING(cublasDestroy_v2) NOTHING(cublasSetMathMode) NOTHING(cublasSetStream_v2)
int cublasGetMathMode(void *handle, int *mode) { (void)handle; *mode = 0; return 0; }
const char *cublasGetStatusName(int status) { return status ? "CUBLAS_STATUS_INTERNAL_ERROR" : "CUBLAS_STATUS_SUCCESS"; }
const char *cublasGetStatusString(int status) { return cublasGetStatusName(status); }
PRODUCT(cublasDgeam) PRODUCT(cublasDgemmBatched) PRODUCT(cublasDgemmStridedBatched) PRODUCT(cublasDgemm_v2) PRODUCT(cublasDgetrfBatched)
PRODUCT(cublasDgetriBatched) PRODUCT(cublasGemmBatchedEx) PRODUCT(cublasGemmEx) PRODUCT(cublasGemmStridedBatchedEx) PRODUCT(cublasScopy_v2)
PRODUCT(cublasSgeam) PRODUCT(cublasSgemmBatched) PRODUCT(cublasSgemmStridedBatched) PRODUCT(cublasSgemm_v2) PRODUCT(cublasSgetrfBatched)
PRODUCT(cublasSgetriBatched) PRODUCT(cublasSscal_v2)
#endif
#ifdef CUBLASLT
HANDLE(cublasLtCreate) NOTHING(cublasLtDestroy) HANDLE(cublasLtMatmulDescCreate) NOTHING(cublasLtMatmulDescDestroy) NOTHING(cublasLtMatmulDescSetAttribute)
HANDLE(cublasLtMatmulPreferenceCreate) NOTHING(cublasLtMatmulPreferenceDestroy) NOTHING(cublasLtMatmulPreferenceSetAttribute)
HANDLE(cublasLtMatrixLayoutCreate) NOTHING(cublasLtMatrixLayoutDestroy) NOTHING(cublasLtMatrixLayoutSetAttribute)
HANDLE(cublasLtMatrixTransformDescCreate) NOTHING(cublasLtMatrixTransformDescDestroy) NOTHING(cublasLtMatmulAlgoInit)
NOTHING(cublasLtMatmulAlgoConfigSetAttribute) PRODUCT(cublasLtMatmul) PRODUCT(cublasLtMatrixTransform)
int cublasLtMatmulAlgoGetHeuristic(void *h, void *op, void *a, void *b, void *c, void *d, void *preference, int wanted, void *results, int *found) {
  (void)h; (void)op; (void)a; (void)b; (void)c; (void)d; (void)preference;
  memset(results, 0, 96);
  *found = wanted > 0;
  return 0;
}
#endif

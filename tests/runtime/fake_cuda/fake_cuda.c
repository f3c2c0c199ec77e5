/* A CUDA driver without a GPU: it writes down what it is asked, one line for each call, to FAKE_CUDA_LOG, and refuses
 * what a driver would refuse, or what would not do on a GPU, with a line `wrong: ...` that says why.
 *
 * Whoever is in the same process can run the launches: `fake_cuda_on_launch` takes a function that is called with each.
 *
 * The environment decides what it shows: FAKE_CUDA_CAPABILITY (80), FAKE_CUDA_DEVICES (1), FAKE_CUDA_DEVICE (0),
 * FAKE_CUDA_DRIVER (12040), FAKE_CUDA_MEMORY (bytes, 1 GiB), FAKE_CUDA_CAPTURING (0), FAKE_CUDA_NO_CONTEXT (threads
 * begin without a context, 0), and FAKE_CUDA_FAIL ("cuLaunchKernel=701": this function fails so; "kernel=700": launches
 * succeed, and from then on everything fails so). Loading takes FAKE_CUDA_LOAD_MILLISECONDS (0).
 */
#define _GNU_SOURCE
#include "image.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_HANDLES = 4096, FIRST_MODULE = 2001, FIRST_KERNEL = 13001, MOST_CONTEXTS = 32 };
enum { DEFAULT_SHARED = 48 * 1024, PORTABLE_CLUSTER = 8, MAP_MARK = 0x7a };

typedef struct Loaded {
    Kernel kernel;
    const unsigned char *image;
    int shared;   /* as asked for */
    int any_size; /* of a cluster */
    int ready;    /* to be launched in a capture */
} Loaded;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned char *images[MOST_HANDLES];
static Loaded *kernels[MOST_HANDLES];
static unsigned int image_count, kernel_count;
static int lost; /* the status after a kernel failed */

/* Called with a launch: the image, grid, block and cluster and the dynamic shared memory, and the arguments' bytes. */
typedef int (*LaunchHook)(int handle, const char *name, const unsigned char *image, const unsigned int *dims,
                          void *stream, const unsigned char *arguments, const unsigned int *sizes, unsigned int count);
static LaunchHook launch_hook;

void fake_cuda_on_launch(LaunchHook hook) { launch_hook = hook; }

static int number(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text != NULL ? atoi(text) : otherwise;
}

static void note(const char *line) {
    const char *path = getenv("FAKE_CUDA_LOG");
    FILE *file = path != NULL ? fopen(path, "a") : NULL;
    if (file == NULL) return;
    fputs(line, file);
    fputc('\n', file);
    fclose(file);
}

/* Say what is wrong, and return the status for it. */
static CUresult wrong(CUresult status, const char *format, ...) {
    char line[512] = "wrong: ";
    va_list values;
    va_start(values, format);
    vsnprintf(line + 7, sizeof line - 7, format, values);
    va_end(values);
    note(line);
    return status;
}

static CUresult result_of(const char *function) {
    const char *text = getenv("FAKE_CUDA_FAIL");
    size_t length = strlen(function);
    if (lost) return (CUresult)lost;
    if (text != NULL && strncmp(text, function, length) == 0 && text[length] == '=')
        return (CUresult)atoi(text + length + 1);
    return CUDA_SUCCESS;
}

/* A hash of the PTX, or of a cubin up to its section headers, whose place is in the ELF header at byte 40. */
static unsigned int image_hash(const unsigned char *code) {
    unsigned int hash = 2166136261u;
    uint64_t headers = 0;
    size_t i, size;
    if (code[0] == 0x7f) memcpy(&headers, code + 40, 8);
    size = code[0] == 0x7f ? (size_t)headers : strlen((const char *)code);
    for (i = 0; i < size; ++i) hash = (hash ^ code[i]) * 16777619u;
    return hash;
}

CUresult cuInit(unsigned int flags) {
    (void)flags;
    return result_of("cuInit");
}

CUresult cuDriverGetVersion(int *version) {
    *version = number("FAKE_CUDA_DRIVER", 12040);
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text) {
    (void)error;
    *text = "CUDA_ERROR_OF_THE_FAKE";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    switch ((int)error) {
    case 1: *text = "invalid argument, says the fake"; return CUDA_SUCCESS;
    case 2: *text = "out of memory, says the fake"; return CUDA_SUCCESS;
    case 200: *text = "invalid image, says the fake"; return CUDA_SUCCESS;
    case 201: *text = "invalid context, says the fake"; return CUDA_SUCCESS;
    case 209: *text = "no kernel image, says the fake"; return CUDA_SUCCESS;
    case 222: *text = "unsupported PTX, says the fake"; return CUDA_SUCCESS;
    case 700: *text = "illegal address, says the fake"; return CUDA_SUCCESS;
    case 701: *text = "too many resources, says the fake"; return CUDA_SUCCESS;
    case 912: *text = "invalid cluster, says the fake"; return CUDA_SUCCESS;
    default: *text = NULL; return CUDA_ERROR_INVALID_VALUE;
    }
}

/* Devices and contexts. */

CUresult cuDeviceGetCount(int *count) {
    *count = number("FAKE_CUDA_DEVICES", 1);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal < number("FAKE_CUDA_DEVICES", 1) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    snprintf(name, (size_t)length, "Fake GPU %d", device);
    return CUDA_SUCCESS;
}

static int capability(void) { return number("FAKE_CUDA_CAPABILITY", 80); }

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    (void)device;
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? capability() / 10 : capability() % 10;
    return CUDA_SUCCESS;
}

/* Most dynamic shared memory of a block, from the CUDA programming guide's table of compute capabilities. */
static int most_shared(void) {
    switch (capability()) {
    case 75: return 64 * 1024;
    case 80:
    case 87: return 163 * 1024;
    case 90:
    case 100: return 227 * 1024;
    default: return 99 * 1024;
    }
}

static __thread uintptr_t contexts[MOST_CONTEXTS];
static __thread int context_count;
static __thread int context_begun;

/* The number of the current context's device, or -1. Threads begin with that of device 0, as torch leaves them. */
static int context_device(void) {
    if (!context_begun) {
        context_begun = 1;
        if (!number("FAKE_CUDA_NO_CONTEXT", 0)) contexts[context_count++] = 1000;
    }
    return context_count > 0 ? (int)contexts[context_count - 1] - 1000 : -1;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = number("FAKE_CUDA_DEVICE", 0);
    return result_of("cuCtxGetDevice");
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = (CUcontext)(uintptr_t)(1000 + device);
    return result_of("cuDevicePrimaryCtxRetain");
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    char line[64];
    snprintf(line, sizeof line, "push %d", (int)(uintptr_t)context);
    note(line);
    (void)context_device();
    if (context_count == MOST_CONTEXTS) return wrong(CUDA_ERROR_INVALID_CONTEXT, "contexts are pushed and never popped");
    contexts[context_count++] = (uintptr_t)context;
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    note("pop");
    if (context_device() < 0) return wrong(CUDA_ERROR_INVALID_CONTEXT, "a context is popped where there is none");
    *context = (CUcontext)contexts[--context_count];
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    (void)context_device();
    if (context_count == 0) ++context_count;
    contexts[context_count - 1] = (uintptr_t)context;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void) { return result_of("cuCtxSynchronize"); }

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    (void)stream;
    *status = (CUstreamCaptureStatus)number("FAKE_CUDA_CAPTURING", 0);
    return CUDA_SUCCESS;
}

/* Code. */

static CUresult load(const char *what, const void *code, void **handle) {
    char line[64];
    CUresult result = result_of(what);
    struct timespec pause = {0, 1000000L * number("FAKE_CUDA_LOAD_MILLISECONDS", 0)};
    nanosleep(&pause, NULL);
    if (result == CUDA_SUCCESS) result = image_status(code, capability(), number("FAKE_CUDA_DRIVER", 12040));
    snprintf(line, sizeof line, "load %s %08x", ((const unsigned char *)code)[0] == 0x7f ? "cubin" : "ptx",
             image_hash(code));
    note(line);
    pthread_mutex_lock(&lock);
    if (result == CUDA_SUCCESS && image_count == MOST_HANDLES) result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS) {
        const size_t size = image_size(code);
        images[image_count] = malloc(size);
        memcpy(images[image_count], code, size);
        *handle = (void *)(uintptr_t)(FIRST_MODULE + image_count++);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CUresult cuModuleLoadData(CUmodule *module, const void *code) {
    if (context_device() < 0) return wrong(CUDA_ERROR_INVALID_CONTEXT, "code is loaded without a current context");
    return load("cuModuleLoadData", code, (void **)module);
}

CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *options, void **values,
                           unsigned int count, CUlibraryOption *library_options, void **library_values,
                           unsigned int library_count) {
    (void)options, (void)values, (void)count, (void)library_options, (void)library_values, (void)library_count;
    return load("cuLibraryLoadData", code, (void **)library);
}

CUresult cuLibraryUnload(CUlibrary library) {
    (void)library;
    note("unload");
    return CUDA_SUCCESS;
}

static CUresult find(const char *what, void *handle, const char *name, void **found) {
    const uintptr_t module = (uintptr_t)handle - FIRST_MODULE;
    char line[300];
    CUresult result = result_of(what);
    snprintf(line, sizeof line, "find %s", name);
    note(line);
    if (result != CUDA_SUCCESS) return result;
    if (module >= image_count) return wrong(CUDA_ERROR_INVALID_HANDLE, "%s is looked for in no module", name);
    pthread_mutex_lock(&lock);
    if (kernel_count == MOST_HANDLES) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        Loaded *made = calloc(1, sizeof *made);
        made->shared = DEFAULT_SHARED;
        made->image = images[module];
        result = image_kernel(images[module], name, &made->kernel);
        made->ready = strcmp(what, "cuModuleGetFunction") == 0;
        if (result == CUDA_SUCCESS) {
            kernels[kernel_count] = made;
            *found = (void *)(uintptr_t)(FIRST_KERNEL + kernel_count++);
        } else {
            free(made);
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    return find("cuModuleGetFunction", module, name, (void **)function);
}

CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name) {
    return find("cuLibraryGetKernel", library, name, (void **)kernel);
}

static Loaded *loaded(const void *handle) {
    const uintptr_t index = (uintptr_t)handle - FIRST_KERNEL;
    return index < kernel_count ? kernels[index] : NULL;
}

/* Loading of a kernel is put off until this, or its first launch, and must not happen while a graph is captured. */
CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
    Loaded *found = loaded(kernel);
    if (found == NULL) return wrong(CUDA_ERROR_INVALID_HANDLE, "a function is asked for of no kernel");
    found->ready = 1;
    *function = (CUfunction)kernel;
    return result_of("cuKernelGetFunction");
}

static CUresult set_attribute(const void *handle, CUfunction_attribute attribute, int value) {
    Loaded *kernel = loaded(handle);
    if (kernel == NULL) return wrong(CUDA_ERROR_INVALID_HANDLE, "an attribute is set of no kernel");
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        if (value < 0 || value + (int)kernel->kernel.static_shared > most_shared())
            return wrong(CUDA_ERROR_INVALID_VALUE, "%s asks for %d bytes of shared memory of %d", kernel->kernel.name,
                         value, most_shared());
        kernel->shared = value;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: kernel->any_size = value; return CUDA_SUCCESS;
    default: return wrong(CUDA_ERROR_INVALID_VALUE, "attribute %d cannot be set", (int)attribute);
    }
}

CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice device) {
    char line[128];
    CUresult result = result_of("cuKernelSetAttribute");
    snprintf(line, sizeof line, "attribute %d of %d is %d on device %d", (int)attribute, (int)(uintptr_t)kernel, value,
             device);
    note(line);
    return result == CUDA_SUCCESS ? set_attribute(kernel, attribute, value) : result;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    char line[128];
    CUresult result = result_of("cuFuncSetAttribute");
    snprintf(line, sizeof line, "attribute %d of %d is %d", (int)attribute, (int)(uintptr_t)function, value);
    note(line);
    return result == CUDA_SUCCESS ? set_attribute(function, attribute, value) : result;
}

/* Tensor maps. What the driver's documentation of cuTensorMapEncodeTiled asks of types that are not packed. */

static const unsigned int element_sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};

/* What a map of the fake holds, in place of the opaque 128 bytes. */
typedef struct Map {
    uint64_t number, address;
    uint64_t strides[4];
    uint32_t last[5]; /* extents less one */
    uint16_t box[5];
    uint8_t mark, type, rank, swizzle;
} Map;

static CUresult check_map(const CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, const void *address,
                          const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                          const cuuint32_t *steps, CUtensorMapSwizzle swizzle) {
    const CUresult bad = CUDA_ERROR_INVALID_VALUE;
    const unsigned int spans[] = {256, 32, 64, 128};
    unsigned int size, inner;
    cuuint32_t i;
    if (capability() < 90) return wrong(bad, "tensor maps begin with compute capability 9.0");
    if ((uintptr_t)map % 64) return wrong(bad, "the tensor map is at no multiple of 64 bytes");
    if ((unsigned int)type >= sizeof element_sizes / sizeof *element_sizes)
        return wrong(bad, "type %d of a tensor map", (int)type);
    if (rank < 1 || rank > 5) return wrong(bad, "a tensor map of rank %u", rank);
    if (address == NULL || (uintptr_t)address % 16) return wrong(bad, "a tensor map of a tensor at %p", address);
    if ((unsigned int)swizzle > CU_TENSOR_MAP_SWIZZLE_128B) return wrong(bad, "swizzle %d", (int)swizzle);
    size = element_sizes[type];
    inner = box[0] * size;
    if (inner % 16) return wrong(bad, "an inner box of %u bytes", inner);
    if (swizzle != CU_TENSOR_MAP_SWIZZLE_NONE && inner > spans[swizzle])
        return wrong(bad, "an inner box of %u bytes for a swizzle of %u", inner, spans[swizzle]);
    for (i = 0; i < rank; ++i) {
        if (dims[i] == 0 || dims[i] > 1ull << 32) return wrong(bad, "extent %llu", (unsigned long long)dims[i]);
        if (box[i] == 0 || box[i] > 256) return wrong(bad, "a box of %u elements along dimension %u", box[i], i);
        if (steps[i] == 0 || steps[i] > 8) return wrong(bad, "a step of %u elements", steps[i]);
        if (i + 1 < rank && (strides[i] % 16 || strides[i] >= 1ull << 40))
            return wrong(bad, "a stride of %llu bytes", (unsigned long long)strides[i]);
    }
    return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    static cuuint64_t maps;
    Map made;
    char line[512];
    int used;
    cuuint32_t i;
    CUresult result = result_of("cuTensorMapEncodeTiled");
    used = snprintf(line, sizeof line, "map %d type %d at %llx", (int)++maps, (int)type,
                    (unsigned long long)(uintptr_t)address);
    for (i = 0; i < rank && i < 5; ++i)
        used += snprintf(line + used, sizeof line - (size_t)used, " [%llu step %llu box %u by %u]",
                         (unsigned long long)dims[i], i > 0 ? (unsigned long long)strides[i - 1] : 0ull, box[i],
                         steps[i]);
    snprintf(line + used, sizeof line - (size_t)used, " %d %d %d %d", (int)interleave, (int)swizzle, (int)promotion,
             (int)fill);
    note(line);
    if (result == CUDA_SUCCESS) result = check_map(map, type, rank, address, dims, strides, box, steps, swizzle);
    if (result != CUDA_SUCCESS) return result;
    if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || (unsigned int)promotion > 3 || (unsigned int)fill > 1)
        return wrong(CUDA_ERROR_INVALID_VALUE, "interleave %d, promotion %d, fill %d", (int)interleave, (int)promotion,
                     (int)fill);
    memset(&made, 0, sizeof made);
    made.number = maps;
    made.address = (uint64_t)(uintptr_t)address;
    made.mark = MAP_MARK;
    made.type = (uint8_t)type;
    made.rank = (uint8_t)rank;
    made.swizzle = (uint8_t)swizzle;
    for (i = 0; i < rank; ++i) {
        made.last[i] = (uint32_t)(dims[i] - 1);
        made.box[i] = (uint16_t)box[i];
        if (i > 0) made.strides[i - 1] = strides[i - 1];
    }
    memset(map, 0, sizeof *map);
    memcpy(map, &made, sizeof made);
    return CUDA_SUCCESS;
}

/* Launches. */

static CUresult check_launch(const Loaded *kernel, const unsigned int *dims, const unsigned int *cluster,
                             unsigned int shared) {
    const CUresult bad = CUDA_ERROR_INVALID_VALUE;
    const char *name = kernel->kernel.name;
    const unsigned int blocks = cluster[0] * cluster[1] * cluster[2];
    const uint64_t threads = (uint64_t)dims[3] * dims[4] * dims[5];
    int i;
    if (dims[0] - 1 >= 0x7fffffffu || dims[1] - 1 >= 65535u || dims[2] - 1 >= 65535u)
        return wrong(bad, "%s is launched on %u x %u x %u blocks", name, dims[0], dims[1], dims[2]);
    if (threads == 0 || threads > 1024 || (kernel->kernel.most_threads && threads > kernel->kernel.most_threads))
        return wrong(bad, "%s is launched with %llu threads, and made for %u", name, (unsigned long long)threads,
                     kernel->kernel.most_threads);
    if ((int)shared > kernel->shared)
        return wrong(bad, "%s is launched with %u bytes of shared memory of %d", name, shared, kernel->shared);
    for (i = 0; i < 3 && blocks; ++i)
        if (dims[i] % cluster[i])
            return wrong(CUDA_ERROR_INVALID_CLUSTER_SIZE, "%s is launched on %u blocks along dimension %d, with clusters of %u",
                         name, dims[i], i, cluster[i]);
    if (blocks > PORTABLE_CLUSTER && !kernel->any_size)
        return wrong(CUDA_ERROR_INVALID_CLUSTER_SIZE, "%s has clusters of %u blocks and did not ask", name, blocks);
    return CUDA_SUCCESS;
}

static CUresult launch(const char *what, CUfunction function, const unsigned int *dims, const unsigned int *given,
                       unsigned int shared, CUstream stream, void **arguments, void **extra) {
    const Loaded *kernel = loaded(function);
    const unsigned int *cluster = given;
    unsigned char values[16384];
    char line[1024];
    int used = snprintf(line, sizeof line, "launch %d grid %u %u %u block %u %u %u shared %u stream %d extra %d args",
                        (int)(uintptr_t)function, dims[0], dims[1], dims[2], dims[3], dims[4], dims[5], shared,
                        (int)(uintptr_t)stream, extra != NULL);
    CUresult result = result_of(what);
    unsigned int i, bytes = 0;
    if (kernel == NULL) return wrong(CUDA_ERROR_INVALID_HANDLE, "no kernel is launched");
    if (kernel->kernel.cluster[0]) {
        cluster = kernel->kernel.cluster;
        if (given[0] && memcmp(given, cluster, 3 * sizeof *given) != 0)
            return wrong(CUDA_ERROR_INVALID_CLUSTER_SIZE, "%s has clusters of another shape", kernel->kernel.name);
    }
    for (i = 0; arguments != NULL && i < kernel->kernel.parameters; ++i) {
        const unsigned int size = kernel->kernel.sizes[i];
        uint64_t value = 0;
        if (bytes + size > sizeof values || arguments[i] == NULL)
            return wrong(CUDA_ERROR_INVALID_VALUE, "no value of parameter %u of %s", i, kernel->kernel.name);
        memcpy(values + bytes, arguments[i], size);
        memcpy(&value, arguments[i], size < 8 ? size : 8);
        if (size == 128) {
            Map map;
            static const Map nothing;
            memcpy(&map, arguments[i], sizeof map);
            if (map.mark != MAP_MARK && memcmp(&map, &nothing, sizeof map) != 0)
                return wrong(CUDA_ERROR_INVALID_VALUE, "parameter %u of %s is no tensor map", i, kernel->kernel.name);
        }
        bytes += size;
        used += snprintf(line + used, sizeof line - (size_t)used, " %llx", (unsigned long long)value);
    }
    note(line);
    if (result != CUDA_SUCCESS) return result;
    if (context_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (!kernel->ready && number("FAKE_CUDA_CAPTURING", 0))
        return wrong(CUDA_ERROR_INVALID_VALUE, "%s is loaded in a capture", kernel->kernel.name);
    if (extra != NULL || (arguments == NULL && kernel->kernel.parameters > 0))
        return wrong(CUDA_ERROR_INVALID_VALUE, "%s is launched without arguments", kernel->kernel.name);
    result = check_launch(kernel, dims, cluster, shared);
    if (result == CUDA_SUCCESS && launch_hook != NULL) {
        unsigned int all[10];
        memcpy(all, dims, 6 * sizeof *all);
        memcpy(all + 6, cluster, 3 * sizeof *all);
        all[9] = shared;
        result = (CUresult)launch_hook((int)(uintptr_t)function, kernel->kernel.name, kernel->image, all, stream, values,
                                       kernel->kernel.sizes, kernel->kernel.parameters);
    }
    if (getenv("FAKE_CUDA_FAIL") != NULL && strncmp(getenv("FAKE_CUDA_FAIL"), "kernel=", 7) == 0)
        lost = atoi(getenv("FAKE_CUDA_FAIL") + 7);
    return result;
}

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                        CUstream stream, void **arguments, void **extra) {
    const unsigned int dims[6] = {grid_x, grid_y, grid_z, block_x, block_y, block_z};
    static const unsigned int none[3];
    return launch("cuLaunchKernel", function, dims, none, shared_bytes, stream, arguments, extra);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
    const unsigned int dims[6] = {config->gridDimX,  config->gridDimY,  config->gridDimZ,
                                  config->blockDimX, config->blockDimY, config->blockDimZ};
    unsigned int cluster[3] = {0, 0, 0}, i;
    char line[128];
    for (i = 0; i < config->numAttrs; ++i) {
        const CUlaunchAttribute *given = config->attrs + i;
        if (capability() < 90) return wrong(CUDA_ERROR_INVALID_VALUE, "such launches begin with 9.0");
        switch (given->id) {
        case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
            cluster[0] = given->value.clusterDim.x;
            cluster[1] = given->value.clusterDim.y;
            cluster[2] = given->value.clusterDim.z;
            break;
        case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
            snprintf(line, sizeof line, "with %d is %d", (int)given->id,
                     given->value.programmaticStreamSerializationAllowed);
            note(line);
            break;
        default: return wrong(CUDA_ERROR_INVALID_VALUE, "launch attribute %d", (int)given->id);
        }
    }
    return launch("cuLaunchKernel", function, dims, cluster, config->sharedMemBytes, config->hStream, arguments, extra);
}

/* Events and memory. */

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    (void)flags;
    *event = malloc(1);
    return result_of("cuEventCreate");
}

CUresult cuEventDestroy_v2(CUevent event) {
    free(event);
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    (void)event, (void)stream;
    return result_of("cuEventRecord");
}

CUresult cuEventQuery(CUevent event) {
    (void)event;
    return result_of("cuEventQuery");
}

CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    (void)start, (void)end;
    *milliseconds = 1000.0f;
    return result_of("cuEventElapsedTime");
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

static struct {
    uintptr_t start;
    size_t size;
} blocks[MOST_HANDLES];

/* Find the allocation that an address lies in; 0 where there is none. */
int fake_cuda_block(uintptr_t address, uintptr_t *start, size_t *size) {
    int i;
    for (i = 0; i < MOST_HANDLES; ++i)
        if (blocks[i].size && address >= blocks[i].start && address < blocks[i].start + blocks[i].size) {
            *start = blocks[i].start;
            *size = blocks[i].size;
            return 1;
        }
    return 0;
}

static void remember(uintptr_t start, size_t size) {
    int i;
    pthread_mutex_lock(&lock);
    for (i = 0; i < MOST_HANDLES; ++i)
        if (size ? !blocks[i].size : blocks[i].start == start) {
            blocks[i].start = start;
            blocks[i].size = size;
            break;
        }
    pthread_mutex_unlock(&lock);
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    void *made = NULL;
    if (size == 0) return wrong(CUDA_ERROR_INVALID_VALUE, "no bytes are allocated");
    if (size > (size_t)number("FAKE_CUDA_MEMORY", 1 << 30)) return CUDA_ERROR_OUT_OF_MEMORY;
    if (posix_memalign(&made, 256, size) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = (CUdeviceptr)made;
    remember(*address, size);
    return result_of("cuMemAlloc");
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    remember(address, 0);
    free((void *)address);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size) {
    memcpy((void *)to, from, size);
    return result_of("cuMemcpyHtoD");
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size) {
    memcpy(to, (const void *)from, size);
    return result_of("cuMemcpyDtoH");
}

/* cuda-bindings finds everything through this; what is not above, it must not call. */
CUresult cuGetProcAddress_v2(const char *symbol, void **found, int version, cuuint64_t flags, int *status) {
    char name[128];
    void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    (void)version, (void)flags;
    snprintf(name, sizeof name, "%s_v2", symbol);
    *found = self != NULL ? dlsym(self, name) : NULL;
    if (*found == NULL) *found = self != NULL ? dlsym(self, symbol) : NULL;
    if (status != NULL) *status = *found == NULL;
    return *found != NULL ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

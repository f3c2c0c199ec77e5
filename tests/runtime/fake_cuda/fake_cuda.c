/* A CUDA driver that does nothing but write down what it is asked, one line for each call, to FAKE_CUDA_LOG.
 *
 * The environment decides what it shows: FAKE_CUDA_CAPABILITY (80), FAKE_CUDA_DEVICES (1), FAKE_CUDA_DEVICE (0),
 * FAKE_CUDA_CAPTURING (0), FAKE_CUDA_FAIL ("cuLaunchKernel=701": this function fails so), and FAKE_CUDA_LAYOUT, the
 * kinds of a launch's arguments: 1, 2, 4 and 8 for their sizes in bytes and m for a tensor map. Loading takes
 * FAKE_CUDA_LOAD_MILLISECONDS (0).
 */
#define _GNU_SOURCE
#include "cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

static CUresult result_of(const char *function) {
    const char *text = getenv("FAKE_CUDA_FAIL");
    size_t length = strlen(function);
    if (text != NULL && strncmp(text, function, length) == 0 && text[length] == '=')
        return (CUresult)atoi(text + length + 1);
    return CUDA_SUCCESS;
}

/* A hash of the PTX, or of a cubin up to its section headers, whose place is in the ELF header at byte 40. */
static unsigned int image_hash(const unsigned char *code) {
    unsigned int hash = 2166136261u;
    uint64_t headers;
    size_t i, size;
    memcpy(&headers, code + 40, 8);
    size = code[0] == 0x7f ? (size_t)headers : strlen((const char *)code);
    for (i = 0; i < size; ++i) hash = (hash ^ code[i]) * 16777619u;
    return hash;
}

CUresult cuInit(unsigned int flags) {
    (void)flags;
    return result_of("cuInit");
}

CUresult cuDriverGetVersion(int *version) {
    *version = 12040;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text) {
    (void)error;
    *text = "CUDA_ERROR_OF_THE_FAKE";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    switch ((int)error) {
    case 2: *text = "out of memory, says the fake"; return CUDA_SUCCESS;
    case 201: *text = "invalid context, says the fake"; return CUDA_SUCCESS;
    case 701: *text = "too many resources, says the fake"; return CUDA_SUCCESS;
    default: *text = NULL; return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuDeviceGetCount(int *count) {
    *count = number("FAKE_CUDA_DEVICES", 1);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    snprintf(name, (size_t)length, "Fake GPU %d", device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    int capability = number("FAKE_CUDA_CAPABILITY", 80);
    (void)device;
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? capability / 10 : capability % 10;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = number("FAKE_CUDA_DEVICE", 0);
    return result_of("cuCtxGetDevice");
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = (CUcontext)(uintptr_t)(1000 + device);
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    char line[64];
    snprintf(line, sizeof line, "push %d", (int)(uintptr_t)context);
    note(line);
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    *context = NULL;
    note("pop");
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    (void)stream;
    *status = (CUstreamCaptureStatus)number("FAKE_CUDA_CAPTURING", 0);
    return CUDA_SUCCESS;
}

static CUresult load(const char *what, const void *code, void **handle) {
    static int loads;
    char line[64];
    CUresult result = result_of(what);
    struct timespec pause = {0, 1000000L * number("FAKE_CUDA_LOAD_MILLISECONDS", 0)};
    nanosleep(&pause, NULL);
    snprintf(line, sizeof line, "load %s %08x", ((const unsigned char *)code)[0] == 0x7f ? "cubin" : "ptx",
             image_hash((const unsigned char *)code));
    note(line);
    *handle = (void *)(uintptr_t)(2000 + ++loads);
    return result;
}

CUresult cuModuleLoadData(CUmodule *module, const void *code) {
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
    char line[128];
    snprintf(line, sizeof line, "find %s", name);
    note(line);
    *found = (void *)((uintptr_t)handle + 1000);
    return result_of(what);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    return find("cuModuleGetFunction", module, name, (void **)function);
}

CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name) {
    return find("cuLibraryGetKernel", library, name, (void **)kernel);
}

CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice device) {
    char line[128];
    snprintf(line, sizeof line, "attribute %d of %d is %d on device %d", (int)attribute, (int)(uintptr_t)kernel, value,
             device);
    note(line);
    return result_of("cuKernelSetAttribute");
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    char line[128];
    snprintf(line, sizeof line, "attribute %d of %d is %d", (int)attribute, (int)(uintptr_t)function, value);
    note(line);
    return result_of("cuFuncSetAttribute");
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    static cuuint64_t maps;
    char line[512];
    int used;
    cuuint32_t i;
    memset(map, 0, sizeof *map);
    map->opaque[0] = ++maps;
    used = snprintf(line, sizeof line, "map %d type %d at %llx", (int)maps, (int)type,
                    (unsigned long long)(uintptr_t)address);
    for (i = 0; i < rank; ++i)
        used += snprintf(line + used, sizeof line - (size_t)used, " [%llu step %llu box %u by %u]",
                         (unsigned long long)dims[i], i > 0 ? (unsigned long long)strides[i - 1] : 0ull, box[i],
                         steps[i]);
    snprintf(line + used, sizeof line - (size_t)used, " %d %d %d %d", (int)interleave, (int)swizzle, (int)promotion,
             (int)fill);
    note(line);
    return result_of("cuTensorMapEncodeTiled");
}

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                        CUstream stream, void **arguments, void **extra) {
    const char *layout = getenv("FAKE_CUDA_LAYOUT");
    char line[1024];
    int used = snprintf(line, sizeof line, "launch %d grid %u %u %u block %u %u %u shared %u stream %d extra %d args",
                        (int)(uintptr_t)function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
                        (int)(uintptr_t)stream, extra != NULL);
    int i;
    for (i = 0; layout != NULL && layout[i] != 0; ++i) {
        uint64_t value = 0;
        memcpy(&value, arguments[i], layout[i] == 'm' ? 8 : (size_t)(layout[i] - '0'));
        used += snprintf(line + used, sizeof line - (size_t)used, " %llx", (unsigned long long)value);
    }
    note(line);
    return result_of("cuLaunchKernel");
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
    char line[128];
    unsigned int i;
    for (i = 0; i < config->numAttrs; ++i) {
        snprintf(line, sizeof line, "with %d is %d", (int)config->attrs[i].id,
                 config->attrs[i].value.programmaticStreamSerializationAllowed);
        note(line);
    }
    return cuLaunchKernel(function, config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
                          config->blockDimY, config->blockDimZ, config->sharedMemBytes, config->hStream, arguments,
                          extra);
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

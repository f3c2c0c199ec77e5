"""The fixed parts of the C source of a kernel that is compiled ahead of time."""

from __future__ import annotations

ATOMICS = """\
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
typedef volatile long tilus_flag;
#define FLAG_READ(flag) ((long)_InterlockedOr(&(flag), 0))
#define FLAG_SET(flag, value) ((void)_InterlockedExchange(&(flag), (value)))
#define FLAG_SWAP(flag, value) ((long)_InterlockedExchange(&(flag), (value)))
#elif defined(__GNUC__) || defined(__clang__)
typedef long tilus_flag;
#define FLAG_READ(flag) __atomic_load_n(&(flag), __ATOMIC_ACQUIRE)
#define FLAG_SET(flag, value) __atomic_store_n(&(flag), (value), __ATOMIC_RELEASE)
#define FLAG_SWAP(flag, value) __atomic_exchange_n(&(flag), (value), __ATOMIC_ACQUIRE)
#else
#error "this compiler's atomic operations are not known; use GCC, Clang or MSVC"
#endif
"""

STATE = """\
enum {{ TILUS_IMAGES = {images}, TILUS_VARIANTS = {variants}, TILUS_DEVICES = 128 }};

typedef struct tilus_image_entry {{
    const unsigned char *data;
    int first_capability, last_capability;
    unsigned int threads, shared_bytes, cluster_blocks;
    int overlaps;
}} tilus_image_entry;

static const tilus_image_entry tilus_image_table[TILUS_IMAGES] = {{
{rows}
}};

/* Images of variant v: tilus_first_image[v] up to tilus_first_image[v + 1]. */
static const int tilus_first_image[TILUS_VARIANTS + 1] = {{{firsts}}};

static tilus_flag tilus_load_lock;
static CUlibrary tilus_libraries[TILUS_IMAGES];
static CUkernel tilus_kernels[TILUS_IMAGES];
/* For each variant and device, 1 + the image that is loaded and set up there, or 0. */
static tilus_flag tilus_loaded_image[TILUS_VARIANTS][TILUS_DEVICES];
"""

LOAD = """\
static {name}_status tilus_driver_status(CUresult result) {{
    return result == CUDA_SUCCESS ? {upper}_OK : ({name}_status)({upper}_DRIVER_ERROR + (int)result);
}}

static {name}_status tilus_load_locked(int variant, CUdevice device) {{
    int major, minor, capability, i;
    CUfunction function;
    CUresult result;
    result = cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    if (result == CUDA_SUCCESS)
        result = cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
    if (result != CUDA_SUCCESS) return tilus_driver_status(result);
    capability = 10 * major + minor;
    for (i = tilus_first_image[variant]; i < tilus_first_image[variant + 1]; ++i) {{
        const tilus_image_entry *image = &tilus_image_table[i];
        if (capability < image->first_capability || capability > image->last_capability) continue;
        if (tilus_libraries[i] == NULL) {{
            CUlibrary library;
            result = cuLibraryLoadData(&library, image->data, NULL, NULL, 0, NULL, NULL, 0);
            if (result != CUDA_SUCCESS) return tilus_driver_status(result);
            result = cuLibraryGetKernel(&tilus_kernels[i], library, "{entry}");
            if (result != CUDA_SUCCESS) {{
                (void)cuLibraryUnload(library);
                return tilus_driver_status(result);
            }}
            tilus_libraries[i] = library;
        }}
        if (image->shared_bytes > {shared}u) {{
            result = cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)image->shared_bytes,
                                          tilus_kernels[i], device);
            if (result != CUDA_SUCCESS) return tilus_driver_status(result);
        }}
        if (image->cluster_blocks > {portable}u) {{
            result = cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1, tilus_kernels[i],
                                          device);
            if (result != CUDA_SUCCESS) return tilus_driver_status(result);
        }}
        /* Drivers load kernels when they are first asked for, which must not be in a capture. */
        result = cuKernelGetFunction(&function, tilus_kernels[i]);
        if (result != CUDA_SUCCESS) return tilus_driver_status(result);
        FLAG_SET(tilus_loaded_image[variant][device], i + 1);
        return {upper}_OK;
    }}
    return {upper}_DEVICE_NOT_SUPPORTED;
}}

static {name}_status tilus_load(int variant, CUdevice device) {{
    {name}_status status = {upper}_OK;
    while (FLAG_SWAP(tilus_load_lock, 1)) {{
    }}
    if (!FLAG_READ(tilus_loaded_image[variant][device])) status = tilus_load_locked(variant, device);
    FLAG_SET(tilus_load_lock, 0);
    return status;
}}

static {name}_status tilus_current_device(CUdevice *device) {{
    CUresult result = cuCtxGetDevice(device);
    if (result != CUDA_SUCCESS) return tilus_driver_status(result);
    return *device >= 0 && *device < TILUS_DEVICES ? {upper}_OK : {upper}_DEVICE_NOT_SUPPORTED;
}}

{name}_status {name}_prepare(void) {{
    CUdevice device;
    int variant;
    {name}_status status = tilus_current_device(&device);
    for (variant = 0; status == {upper}_OK && variant < TILUS_VARIANTS; ++variant)
        if (!FLAG_READ(tilus_loaded_image[variant][device])) status = tilus_load(variant, device);
    return status;
}}

/* Check the grid and find the image for the current device; without blocks there is none, and nothing to do. */
static {name}_status tilus_ready(int variant, CUstream stream, const int64_t grid[3], int invalid, long *chosen) {{
    CUdevice device;
    {name}_status status;
    *chosen = 0;
    if (invalid || grid[0] < 0 || grid[1] < 0 || grid[2] < 0) return {upper}_INVALID_GRID;
    if (grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535) return {upper}_INVALID_GRID;
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return {upper}_OK;
    status = tilus_current_device(&device);
    if (status != {upper}_OK) return status;
    *chosen = FLAG_READ(tilus_loaded_image[variant][device]);
    if (!*chosen) {{
        CUstreamCaptureStatus capture;
        CUresult result = cuStreamIsCapturing(stream, &capture);
        if (result != CUDA_SUCCESS) return tilus_driver_status(result);
        if (capture != CU_STREAM_CAPTURE_STATUS_NONE) return {upper}_NOT_PREPARED;
        status = tilus_load(variant, device);
        if (status != {upper}_OK) return status;
        *chosen = FLAG_READ(tilus_loaded_image[variant][device]);
    }}
    return {upper}_OK;
}}
"""

LAUNCH = """\
static {name}_status tilus_launch(long chosen, CUstream stream, const int64_t grid[3], void **arguments) {{
    const tilus_image_entry *image = &tilus_image_table[chosen - 1];
    CUfunction kernel = (CUfunction)tilus_kernels[chosen - 1];
{overlapping}    return tilus_driver_status(cuLaunchKernel(kernel, (unsigned int)grid[0], (unsigned int)grid[1],
                                              (unsigned int)grid[2], image->threads, 1, 1, image->shared_bytes,
                                              stream, arguments, NULL));
}}
"""

LAUNCH_OVERLAPPING = """\
    if (image->overlaps) {
        /* It may begin before the launch before it in the stream has ended; the kernel waits for that. */
        CUlaunchAttribute attribute;
        CUlaunchConfig config;
        attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        config.gridDimX = (unsigned int)grid[0];
        config.gridDimY = (unsigned int)grid[1];
        config.gridDimZ = (unsigned int)grid[2];
        config.blockDimX = image->threads;
        config.blockDimY = 1;
        config.blockDimZ = 1;
        config.sharedMemBytes = image->shared_bytes;
        config.hStream = stream;
        config.attrs = &attribute;
        config.numAttrs = 1;
        return tilus_driver_status(cuLaunchKernelEx(&config, kernel, arguments, NULL));
    }
"""

HELPERS = {
    "tilus_floor_divide": """\
/* Division and remainder that round to minus infinity. */
static int64_t tilus_floor_divide(int64_t a, int64_t b, int *invalid) {
    int64_t quotient;
    if (b == 0) {
        *invalid = 1;
        return 0;
    }
    quotient = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}
""",
    "tilus_floor_modulo": """\
static int64_t tilus_floor_modulo(int64_t a, int64_t b, int *invalid) {
    int64_t remainder;
    if (b == 0) {
        *invalid = 1;
        return 0;
    }
    remainder = a % b;
    return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}
""",
    "tilus_minimum": "static int64_t tilus_minimum(int64_t a, int64_t b) { return a < b ? a : b; }\n",
    "tilus_maximum": "static int64_t tilus_maximum(int64_t a, int64_t b) { return a > b ? a : b; }\n",
}

USES = {
    "floordiv": "tilus_floor_divide",
    "mod": "tilus_floor_modulo",
    "min": "tilus_minimum",
    "max": "tilus_maximum",
    "abs": "tilus_maximum",
}

NORMALISE = """\
/* Check a tensor; give a dimension of one element, whose stride means nothing, the row-major one. */
static int tilus_check_tensor(const void *data, int rank, const int64_t *shape, const int64_t *strides,
                              int64_t *normal) {
    int64_t product = 1;
    int axis;
    for (axis = rank - 1; axis >= 0; --axis) {
        if (shape[axis] < 0 || shape[axis] > INT32_MAX || strides[axis] < 0) return 2;
        normal[axis] = shape[axis] <= 1 ? product : strides[axis];
        product = shape[axis] != 0 && product > INT64_MAX / shape[axis] ? INT64_MAX : product * shape[axis];
    }
    return data == NULL && product != 0 ? 1 : 0;
}
"""

ENCODE = """\
/* Make a tensor map; of an empty tensor, from which nothing can be copied, one of zeros. */
static int tilus_encode(CUtensorMap *map, CUtensorMapDataType type, unsigned int rank, int64_t size, void *data,
                        const int64_t *shape, const int64_t *strides, const int *axes, const cuuint32_t *box,
                        CUtensorMapSwizzle swizzle) {
    cuuint64_t dims[5], steps[5];
    cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    unsigned int i;
    memset(map, 0, sizeof *map);
    for (i = 0; i < rank; ++i) {
        dims[i] = (cuuint64_t)shape[axes[i]];
        if (dims[i] == 0) return 0;
        if (i > 0) steps[i - 1] = (cuuint64_t)(strides[axes[i]] * size);
    }
    return (int)cuTensorMapEncodeTiled(map, type, rank, data, dims, steps, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                       swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}
"""

STRERROR = """\
const char *{name}_strerror({name}_status status) {{
    const char *text;
    switch (status) {{
    case {upper}_OK: return "success";
    case {upper}_NULL_ARGUMENT: return "an argument is null";
    case {upper}_INVALID_SHAPE: return "a size is negative or larger than 2147483647, or a stride is negative";
    case {upper}_SHAPE_MISMATCH: return "sizes of one name differ, or a size is not the one that was compiled for";
    case {upper}_NO_VARIANT: return "no variant was compiled for such strides, alignments, sizes or scalars";
    case {upper}_INVALID_GRID: return "the grid is negative, too large, no multiple of the cluster, or divides by zero";
    case {upper}_DEVICE_NOT_SUPPORTED: return "nothing was compiled for this device";
    case {upper}_NOT_PREPARED: return "a CUDA graph is being captured and {name}_prepare was not called before";
    default: break;
    }}
    if ((int)status >= {upper}_DRIVER_ERROR && (int)status <= {upper}_DRIVER_ERROR_LAST &&
        cuGetErrorString((CUresult)((int)status - {upper}_DRIVER_ERROR), &text) == CUDA_SUCCESS && text != NULL)
        return text;
    return "unknown status";
}}
"""

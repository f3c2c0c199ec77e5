/* What a driver reads off the code that it loads: kernels, their parameters and limits. */
#ifndef FAKE_IMAGE_H
#define FAKE_IMAGE_H

#include "cuda.h"

#include <stddef.h>

enum { MOST_PARAMETERS = 64 };

typedef struct Kernel {
    char name[256];
    unsigned int parameters; /* 0 where they are unknown */
    unsigned int sizes[MOST_PARAMETERS], offsets[MOST_PARAMETERS];
    unsigned int most_threads;
    unsigned int cluster[3]; /* zeros where a launch has none */
    unsigned int static_shared;
} Kernel;

/* Tell whether a device of a compute capability (such as 90) and a driver (such as 13000) take an image. */
CUresult image_status(const unsigned char *code, int capability, int driver);
/* Find a kernel; CUDA_ERROR_NOT_FOUND where the image has none of that name. */
CUresult image_kernel(const unsigned char *code, const char *name, Kernel *kernel);
/* Bytes of an image, the final zero of PTX included. */
size_t image_size(const unsigned char *code);

#endif

/* Reads cubins, which are ELF files, and PTX.
 *
 * A cubin's section `.nv.info.<kernel>` is a list of attributes: a byte of format, one of kind, and two of value, or of
 * the length of the value that follows (format 4). The kinds that are read here are named as cuobjdump -elf names them.
 */
#include "image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 0x05, REQNTID = 0x10, KPARAM_INFO = 0x17, CTA_PER_CLUSTER = 0x3d };
enum { RESERVED_SHARED = 1024 };

static uint64_t read(const unsigned char *from, unsigned int bytes) {
    uint64_t value = 0;
    memcpy(&value, from, bytes);
    return value;
}

typedef struct Section {
    const char *name;
    uint32_t type;
    const unsigned char *data;
    uint64_t size;
} Section;

static int is_elf(const unsigned char *code) { return memcmp(code, "\177ELF", 4) == 0; }

static unsigned int sections(const unsigned char *code) { return (unsigned int)read(code + 60, 2); }

static Section section(const unsigned char *code, unsigned int number) {
    const unsigned char *headers = code + read(code + 40, 8), *header = headers + 64 * (size_t)number;
    const unsigned char *names = headers + 64 * (size_t)read(code + 62, 2);
    Section made;
    made.name = (const char *)code + read(names + 24, 8) + read(header, 4);
    made.type = (uint32_t)read(header + 4, 4);
    made.data = code + read(header + 24, 8);
    made.size = read(header + 32, 8);
    return made;
}

size_t image_size(const unsigned char *code) {
    size_t end;
    unsigned int i;
    if (!is_elf(code)) return strlen((const char *)code) + 1;
    /* The end of section headers, program headers or sections, whichever comes last. */
    end = (size_t)read(code + 32, 8) + 56 * (size_t)read(code + 56, 2);
    if (end < (size_t)read(code + 40, 8) + 64 * (size_t)sections(code))
        end = (size_t)read(code + 40, 8) + 64 * (size_t)sections(code);
    for (i = 0; i < sections(code); ++i) {
        Section found = section(code, i);
        const size_t last = (size_t)(found.data - code) + (found.type == 8 ? 0 : (size_t)found.size);
        if (last > end) end = last;
    }
    return end;
}

/* CUDA 11.x takes PTX 7.x, CUDA 12.x 8.x but from 12.7 on one less (there was no 12.6 of PTX), and CUDA 13.x 9.x. */
static int ptx_of(int driver) {
    const int major = driver / 1000, minor = driver % 1000 / 10;
    return (major - 4) * 10 + (major == 12 && minor > 5 ? minor - 1 : minor);
}

CUresult image_status(const unsigned char *code, int capability, int driver) {
    if (is_elf(code)) {
        /* Assemblers before CUDA 13 write version 7 of the format, with the architecture in the lowest byte. */
        const int made_for = (int)(read(code + 48, 4) >> (code[8] < 8 ? 0 : 8) & 0xff);
        if (read(code + 18, 2) != 190 || sections(code) == 0) return CUDA_ERROR_INVALID_IMAGE;
        /* Machine code runs on its own generation, from its own member on. */
        return made_for / 10 == capability / 10 && made_for <= capability ? CUDA_SUCCESS
                                                                         : CUDA_ERROR_NO_BINARY_FOR_GPU;
    } else {
        const char *version = strstr((const char *)code, ".version "), *target;
        int major, minor;
        if (version == NULL || sscanf(version + 9, "%d.%d", &major, &minor) != 2) return CUDA_ERROR_INVALID_IMAGE;
        target = strstr(version, ".target sm_");
        if (target == NULL) return CUDA_ERROR_INVALID_IMAGE;
        if (major * 10 + minor > ptx_of(driver)) return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
        return atoi(target + 11) <= capability ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
}

static CUresult cubin_kernel(const unsigned char *code, const char *name, Kernel *kernel) {
    char wanted[300];
    unsigned int i;
    int found = 0;
    for (i = 0; i < sections(code); ++i) {
        const Section at = section(code, i);
        snprintf(wanted, sizeof wanted, ".nv.shared.%s", name);
        if (strcmp(at.name, wanted) == 0)
            kernel->static_shared = at.size > RESERVED_SHARED ? (unsigned int)at.size - RESERVED_SHARED : 0;
        snprintf(wanted, sizeof wanted, ".nv.info.%s", name);
        if (strcmp(at.name, wanted) == 0) {
            const unsigned char *p = at.data, *end = at.data + at.size;
            found = 1;
            while (p + 4 <= end) {
                const unsigned int value = (unsigned int)read(p + 2, 2);
                const unsigned char *body = p + 4;
                if (p[0] != 4) {
                    p += 4;
                    continue;
                }
                switch (p[1]) {
                case MAX_THREADS:
                case REQNTID:
                    kernel->most_threads = (unsigned int)(read(body, 4) * read(body + 4, 4) * read(body + 8, 4));
                    break;
                case CTA_PER_CLUSTER:
                    kernel->cluster[0] = (unsigned int)read(body, 4);
                    kernel->cluster[1] = (unsigned int)read(body + 4, 4);
                    kernel->cluster[2] = (unsigned int)read(body + 8, 4);
                    break;
                case KPARAM_INFO: {
                    /* Index, ordinal, offset, then flags with the size in the upper 14 bits. */
                    const unsigned int ordinal = (unsigned int)read(body + 4, 2);
                    if (ordinal >= MOST_PARAMETERS) break;
                    kernel->offsets[ordinal] = (unsigned int)read(body + 6, 2);
                    kernel->sizes[ordinal] = (unsigned int)(read(body + 8, 4) >> 18);
                    if (ordinal + 1 > kernel->parameters) kernel->parameters = ordinal + 1;
                    break;
                }
                default: break;
                }
                p = body + value;
            }
        }
    }
    return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

static CUresult ptx_kernel(const unsigned char *code, const char *name, Kernel *kernel) {
    char wanted[300];
    const char *at, *body, *end, *entry;
    snprintf(wanted, sizeof wanted, ".entry %s", name);
    at = entry = strstr((const char *)code, wanted);
    if (at == NULL || strchr("( \t\n{", at[strlen(wanted)]) == NULL) return CUDA_ERROR_NOT_FOUND;
    body = strchr(at, '{');
    if (body == NULL) return CUDA_ERROR_INVALID_IMAGE;
    end = memchr(at, ')', (size_t)(body - at));
    for (; end != NULL && (at = strstr(at, ".param ")) != NULL && at < end; ++at) {
        const char *dot, *stop = at, *bracket;
        unsigned int size = 0;
        while (*stop != ',' && stop < end) ++stop;
        /* Among .u64 .ptr .global .align, the first that ends in bits is the type. */
        for (dot = at + 6; size == 0 && dot != NULL && dot < stop; dot = strchr(dot + 1, '.'))
            if (*dot == '.' && strchr("bsuf", dot[1]) != NULL) size = (unsigned int)atoi(dot + 2) / 8;
        bracket = memchr(at, '[', (size_t)(stop - at));
        if (bracket != NULL) size *= (unsigned int)atoi(bracket + 1);
        if (kernel->parameters < MOST_PARAMETERS) kernel->sizes[kernel->parameters++] = size;
    }
    at = strstr(entry, ".maxntid ");
    if (at != NULL && at < body) kernel->most_threads = (unsigned int)atoi(at + 9);
    at = strstr(entry, ".reqnctapercluster ");
    if (at != NULL && at < body) {
        kernel->cluster[1] = kernel->cluster[2] = 1;
        sscanf(at + 19, "%u, %u, %u", &kernel->cluster[0], &kernel->cluster[1], &kernel->cluster[2]);
    }
    return CUDA_SUCCESS;
}

CUresult image_kernel(const unsigned char *code, const char *name, Kernel *kernel) {
    memset(kernel, 0, sizeof *kernel);
    snprintf(kernel->name, sizeof kernel->name, "%s", name);
    return is_elf(code) ? cubin_kernel(code, name, kernel) : ptx_kernel(code, name, kernel);
}

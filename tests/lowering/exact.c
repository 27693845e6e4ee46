/* Calls compiled functions with tensors that are exactly as large as they say, for memcheck.
 *
 *   exact LIBRARY WEIGHTS CALLS
 *
 * Each line of CALLS: a function, the bytes of its workspace, the number of inputs and their bytes,
 * the number of outputs and theirs. Inputs are small random floats; the workspace and the outputs
 * are undefined before the call. Every byte of every output decides about a branch, which memcheck
 * reports where the byte is undefined.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef int32_t (*function_t)(const int64_t *, int32_t, int32_t, void *);

static void *exactly(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1)) abort();
    return memory;
}

static void *weights_of(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) abort();
    size_t bytes = (size_t)ftell(file);
    rewind(file);
    char *memory = exactly(bytes);
    if (fread(memory, 1, bytes, file) != bytes) abort();
    fclose(file);
    return memory;
}

int main(int count, char **arguments) {
    char symbol[256];
    long long workspace;
    unsigned state = 1, ones = 0, calls = 0;
    void *library = count == 4 ? dlopen(arguments[1], RTLD_NOW) : NULL;
    FILE *list = library ? fopen(arguments[3], "r") : NULL;
    if (!list) return 2;
    void *weights = weights_of(arguments[2]);
    while (fscanf(list, "%255s %lld", symbol, &workspace) == 2) {
        int64_t frame[32], bytes[32];
        int places = 3, inputs = 0, outputs = 0;
        frame[0] = 1;
        frame[1] = (int64_t)weights;
        frame[2] = (int64_t)exactly((size_t)workspace);
        if (fscanf(list, "%d", &inputs) != 1) return 2;
        for (int i = 0; i < inputs; i++, places++) {
            if (fscanf(list, "%ld", &bytes[places]) != 1) return 2;
            float *values = exactly((size_t)bytes[places]);
            for (int64_t k = 0; k < bytes[places] / 4; k++) {
                state = state * 1664525u + 1013904223u;
                values[k] = (float)(state >> 16) / 32768.0f - 1.0f;
            }
            frame[places] = (int64_t)values;
        }
        if (fscanf(list, "%d", &outputs) != 1) return 2;
        for (int i = 0; i < outputs; i++, places++) {
            if (fscanf(list, "%ld", &bytes[places]) != 1) return 2;
            frame[places] = (int64_t)exactly((size_t)bytes[places]);
        }
        function_t function = (function_t)dlsym(library, symbol);
        if (!function || function(frame, 0, 1, NULL)) return 3;
        for (int i = places - outputs; i < places; i++)
            for (int64_t k = 0; k < bytes[i]; k++)
                if (((const unsigned char *)frame[i])[k] & 1) ones++;
        for (int i = 2; i < places; i++) free((void *)frame[i]);
        calls++;
    }
    free(weights);
    printf("%u calls, %u odd bytes\n", calls, ones);
    return 0;
}

/* What tests ask of files.c and sha256.c. The sources are included so that each of the ways to hash
 * can be called. */

#include "sha256.c"

#undef BLOCK
#include "files.c"

#include <stdio.h>

const char *said(void) { return latest_message(); }

void portable(const void *bytes, size_t count, unsigned char digest[32]) {
    digest_by(blocks_anywhere, bytes, count, digest);
}

int has_fast(void) { return fastest() != blocks_anywhere; }

/* Status, and of plan and weights each: bytes, SHA-256. Everything is read and closed again. */
typedef struct {
    uint64_t plan_bytes, weights_bytes, misaligned;
    unsigned char plan[32], weights[32];
} seen_t;

static int seen(ee_status status, files_t *files, seen_t *to) {
    if (!status) {
        to->plan_bytes = files->plan_bytes;
        to->weights_bytes = files->weights_bytes;
        to->misaligned = (uintptr_t)files->weights % ALIGNMENT;
        sha256(files->plan, files->plan_bytes, to->plan);
        sha256(files->weights, files->weights_bytes, to->weights);
    }
    files_close(files);
    files_close(files); /* twice does no harm */
    return (int)status;
}

int opened(const char *path, seen_t *to) {
    files_t files;
    ee_status status = files_open(&files, path);
    return seen(status, &files, to);
}

/* A copy of the bytes that ends where its block ends, `shift` beside a multiple of 64. */
int opened_memory(const void *bytes, size_t count, size_t shift, seen_t *to) {
    files_t files;
    uint8_t *block = NULL;
    if (posix_memalign((void **)&block, ALIGNMENT, count + shift + !count)) return -1;
    if (count) memcpy(block + shift, bytes, count);
    ee_status status = files_open_memory(&files, block + shift, count);
    int result = seen(status, &files, to);
    free(block);
    return result;
}

/* The file is cut off after it was opened, before it is read. */
int cut_off(const char *path, uint64_t size) {
    source_t from = {.file = open(path, FLAGS), .size = size, .path = path};
    files_t files = {.plan = NULL};
    ee_status status = take_plan(&files, &from, 0, size);
    close(from.file);
    files_close(&files);
    return (int)status;
}

const char *shown_path(const char *path) { return shown(path); }

#ifdef FUZZ
/* Mutations of a packed file: none does harm, and none but of data and checksums goes unseen. */
static uint64_t state = 88172645463325252u;

static uint64_t any(uint64_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % below;
}

int main(int count, char **arguments) {
    static uint8_t good[1 << 20], bad[1 << 20];
    seen_t to;
    FILE *file = fopen(arguments[1], "rb");
    size_t bytes = fread(good, 1, sizeof good, file);
    fclose(file);
    long accepted = 0, rounds = count > 2 ? strtol(arguments[2], NULL, 10) : 0;
    for (long i = 0; i < rounds; i++) {
        size_t length = bytes;
        memcpy(bad, good, bytes);
        for (uint64_t changes = 1 + any(3); changes; changes--) {
            uint64_t at = any(4) ? bytes - 1 - any(bytes < 800 ? bytes : 800) : any(bytes);
            static const uint8_t telling[] = {0, 1, 0x7f, 0x80, 0xff, 'P', '/', '.'};
            bad[at] = any(2) ? telling[any(sizeof telling)] : (uint8_t)any(256);
            if (!any(16)) length = any(bytes + 1);
        }
        accepted += !opened_memory(bad, length, 0, &to);
    }
    printf("%ld\n", accepted);
    return opened_memory(good, bytes, 0, &to) || opened(arguments[1], &to);
}
#endif

/* Answers many samples, and counts what is allocated and how the process grows: nothing and not at
 * all. Prints what went wrong, and ends with 1 then.
 *
 *     session_steady FOLDER RUNS
 *
 * To be linked with --wrap for each function that allocates.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "eecompile.h"

enum { SAMPLES = 16, CLASSES = 3, WIDTH = 4, THREADS = 3 };

extern const ee_library ee_library_tiny, ee_library_gated;

static _Atomic uint64_t allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void __real_free(void *memory);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void __wrap_free(void *memory);

void *__wrap_malloc(size_t size) {
    allocations++;
    return __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size) {
    allocations++;
    return __real_calloc(count, size);
}
void *__wrap_realloc(void *memory, size_t size) {
    allocations++;
    return __real_realloc(memory, size);
}
void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    allocations++;
    return __real_aligned_alloc(alignment, size);
}
void __wrap_free(void *memory) {
    allocations++;
    __real_free(memory);
}

static float samples[SAMPLES][WIDTH];
static int wrong;

/* Pages of memory in use. */
static long resident(void) {
    long all = 0, found = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &all, &found) != 2) exit(2);
    fclose(file);
    return found;
}

static void expect_none(const char *what, const char *policy, uint64_t before) {
    uint64_t found = allocations - before;
    if (!found) return;
    printf("%s by `%s`: %llu allocations\n", what, policy, (unsigned long long)found);
    wrong = 1;
}

static void run(ee_session *session, const char *policy, uint64_t count) {
    uint64_t before = allocations;
    for (uint64_t i = 0; i < count; i++) {
        const void *inputs[] = {samples[i % SAMPLES]};
        ee_answer answer = EE_ANSWER;
        ee_status status = i % 64 ? ee_run(session, inputs, &answer)
                                  : ee_run_whole(session, inputs, &answer);
        if (status) exit(2);
    }
    expect_none("ee_run", policy, before);
}

static void run_batches(ee_session *session, const char *policy, uint64_t count) {
    const ee_answer empty = EE_ANSWER;
    const void *inputs[] = {samples};
    ee_answer answers[SAMPLES];
    float logits[SAMPLES][CLASSES];
    uint64_t before = 0;
    for (uint64_t i = 0; i <= count; i++) {
        for (int k = 0; k < SAMPLES; k++) answers[k] = empty;
        if (ee_run_batch(session, inputs, SAMPLES, logits[0], answers)) exit(2);
        if (!i) before = allocations; /* the first allocates */
    }
    expect_none("ee_run_batch", policy, before);
}

static void limit(ee_session *session, const char *policy) {
    uint64_t before = allocations;
    for (int i = 1; i <= 40; i++) {
        ee_set_halt(session, i / 20.0, i % 2 ? NAN : 1e3, NAN);
        const void *inputs[] = {samples[i % SAMPLES]};
        ee_answer answer = EE_ANSWER;
        if (ee_run(session, inputs, &answer)) exit(2);
    }
    ee_set_halt(session, NAN, NAN, NAN);
    expect_none("ee_set_halt", policy, before);
}

static void use(const ee_library *library, const char *path, uint64_t runs) {
    ee_network *network;
    ee_network_info about = EE_NETWORK_INFO;
    if (ee_open(library, path, &network) || ee_network_about(network, &about)) exit(2);
    for (uint32_t p = 0; p <= about.policies; p++) {
        ee_options options = EE_OPTIONS;
        ee_session *session;
        options.policy = p < about.policies ? ee_policy_name(network, p) : "";
        options.threads = p % 2 ? THREADS : 1;
        if (ee_session_open(network, &options, &session)) exit(2);
        run(session, options.policy, runs / (2 * (about.policies + 1)) + 1);
        run_batches(session, options.policy, 20);
        limit(session, options.policy);
        ee_session_close(session);
    }
    ee_close(network);
}

int main(int count, char **arguments) {
    char path[2][4096];
    if (count != 3) return 2;
    snprintf(path[0], sizeof path[0], "%s/tiny", arguments[1]);
    snprintf(path[1], sizeof path[1], "%s/gated", arguments[1]);
    uint64_t runs = strtoull(arguments[2], NULL, 10);
    for (int i = 0; i < SAMPLES * WIDTH; i++)
        samples[i / WIDTH][i % WIDTH] = (float)(i * 37 % 41) / 10 - 2.5f;
    long before = 0;
    for (int round = 0; round < 3; round++) { /* the first warms up */
        uint64_t own = round ? runs / 2 : 5000;
        use(&ee_library_tiny, path[0], own);
        use(&ee_library_gated, path[1], own);
        if (!round) before = resident();
    }
    long grown = resident() - before;
    if (grown > 64) { /* pages: what the system's allocator keeps may move a little */
        printf("the process has grown by %ld pages\n", grown);
        wrong = 1;
    }
    return wrong;
}

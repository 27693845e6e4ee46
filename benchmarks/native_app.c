/* The app that benchmarks/native.py times.
 *
 *     native_app turns DATA POLICY IMAGES CLOCK OFFSET
 *         reads "FIRST COUNT" by the line, answers these images in three ways, each in turn, and
 *         writes a record for each
 *     native_app first DATA POLICY IMAGES CLOCK
 *         seconds from ee_open to the first answer, then what memory is resident
 *
 * bare.h is generated: the network's functions in a row, without the runtime.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "resnet56.h"
#include "bare.h"

enum { BARE, WHOLE, EXITS, WAYS };

typedef struct {
    double seconds[WAYS];
    float logits[WAYS][EE_RESNET56_CLASSES];
    uint32_t exit, label;
} record_t;

static clockid_t clock_id;

static void check(ee_status status) {
    if (!status) return;
    fprintf(stderr, "%s: %s\n", ee_status_name(status), ee_message());
    exit(1);
}

static double now(clockid_t id) {
    struct timespec time;
    clock_gettime(id, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static const unsigned char *mapped(const char *path) {
    struct stat about;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &about)) return perror(path), exit(1), NULL;
    void *found = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (found == MAP_FAILED) return perror(path), exit(1), NULL;
    return found;
}

/* kB that are resident: of memory of its own, of mapped files. */
static void resident(long *own, long *files) {
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        sscanf(line, "RssAnon: %ld", own);
        sscanf(line, "RssFile: %ld", files);
    }
    if (status) fclose(status);
}

static void answer_in_turn(
    ee_session *session, const unsigned char *weights, const void *image, int turn,
    record_t *record) {
    const void *const inputs[] = {image};
    for (int i = 0; i < WAYS; i++) {
        int way = (turn + i) % WAYS;
        ee_answer answer = EE_ANSWER;
        double begun = now(clock_id);
        if (way == BARE) run_bare(weights, image);
        else check((way == WHOLE ? ee_run_whole : ee_run)(session, inputs, &answer));
        record->seconds[way] = now(clock_id) - begun;
        const float *logits = way == BARE ? (const float *)bare_output : answer.logits;
        memcpy(record->logits[way], logits, sizeof record->logits[way]);
        if (way == EXITS) record->exit = answer.exit, record->label = answer.label;
    }
}

static void turns(ee_session *session, const unsigned char *images, const unsigned char *weights) {
    size_t first, count;
    while (scanf("%zu %zu", &first, &count) == 2) {
        for (size_t i = first; i < first + count; i++) {
            record_t record;
            const void *image = images + i * EE_RESNET56_INPUT_IMAGE_BYTES;
            answer_in_turn(session, weights, image, (int)(i % WAYS), &record);
            fwrite(&record, sizeof record, 1, stdout);
        }
        fflush(stdout);
    }
}

int main(int count, char **given) {
    ee_network *network;
    ee_session *session;
    ee_options options = EE_OPTIONS;
    ee_network_info about = EE_NETWORK_INFO;
    ee_answer answer = EE_ANSWER;
    if (count < 6) return 2;
    clock_id = strcmp(given[5], "cpu") ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
    static unsigned char image[EE_RESNET56_INPUT_IMAGE_BYTES];
    const void *const inputs[] = {image};
    FILE *file = fopen(given[4], "rb");
    if (!file || fread(image, sizeof image, 1, file) != 1) return perror(given[4]), 1;
    fclose(file);
    options.policy = given[3];
    options.threads = 1;
    long before[2] = {0}, after[2] = {0};
    resident(&before[0], &before[1]);
    double begun = now(CLOCK_MONOTONIC);
    check(ee_open(&ee_library_resnet56, given[2], &network));
    double opened = now(CLOCK_MONOTONIC);
    check(ee_session_open(network, &options, &session));
    check(ee_run(session, inputs, &answer));
    double answered = now(CLOCK_MONOTONIC);
    if (!strcmp(given[1], "turns")) {
        turns(session, mapped(given[4]), mapped(given[2]) + strtoul(given[6], NULL, 10));
    } else {
        for (int i = 0; i < 50; i++) check(ee_run_whole(session, inputs, &answer));
        resident(&after[0], &after[1]);
        check(ee_network_about(network, &about));
        printf(
            "%.9f %.9f %ld %ld %ld %ld %llu %llu\n", opened - begun, answered - begun, before[0],
            before[1], after[0], after[1], (unsigned long long)about.weights_bytes,
            (unsigned long long)about.session_bytes);
    }
    ee_session_close(session);
    ee_close(network);
    return 0;
}

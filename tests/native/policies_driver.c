/* Policies for tests: one by one from Python, and, as a program, damaged ones that must do no harm.
 *
 * The program reads a file of cases: u32 exits, classes, bytes; u8[exits] what exits have; a rule.
 * It ends with 0 where each was refused, or decided within its exits whatever the logits were, and
 * prints how many were refused and how many were not.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    arena_t arena;
    deciding_t deciding;
} opened_t;

/* NULL, and `why`, where it is refused. Bytes that are left over are refused here. */
opened_t *driver_open(
    const uint8_t *bytes, size_t count, uint32_t exits, const uint8_t *has, uint32_t classes,
    const char **why) {
    opened_t *opened = calloc(1, sizeof *opened);
    opened->arena.most = 1 << 20;
    reader_t reader = {bytes, bytes + count, false, NULL, &opened->arena};
    deciding_t *deciding = &opened->deciding;
    deciding->policy = policy_read(&reader, exits, has, classes);
    if (deciding->policy && expect(&reader, reader.at == reader.end, "bytes are left over")) {
        size_t learned = policy_learned_bytes(deciding->policy);
        deciding->state = malloc(policy_state_bytes(deciding->policy)); /* whatever lies there */
        deciding->learned = learned ? malloc(learned) : NULL;
        policy_reset(deciding);
        return opened;
    }
    *why = reader.what;
    arena_free(&opened->arena);
    free(opened);
    return NULL;
}

void driver_close(opened_t *opened) {
    free(opened->deciding.state);
    free(opened->deciding.learned);
    arena_free(&opened->arena);
    free(opened);
}

uint32_t driver_first(opened_t *opened) { return policy_first(&opened->deciding); }

int32_t driver_decide(
    opened_t *opened, uint32_t exit, const float *logits, const float *class_means) {
    exit_outputs_t outputs = {logits, class_means};
    return policy_decide(&opened->deciding, exit, &outputs);
}

const float *driver_answer(opened_t *opened, const float *logits, const float *class_means) {
    exit_outputs_t outputs = {logits, class_means};
    return policy_answer(opened->deciding.policy, &outputs);
}

void driver_learn(opened_t *opened, const float *final, int here) {
    policy_learn(&opened->deciding, final, here != 0);
}

void *driver_learned(opened_t *opened, size_t *bytes) {
    *bytes = policy_learned_bytes(opened->deciding.policy);
    return opened->deciding.learned;
}

int driver_is_sound(opened_t *opened, const void *learned) {
    return policy_learned_is_sound(opened->deciding.policy, learned);
}

void driver_reset(opened_t *opened) { policy_reset(&opened->deciding); }

double driver_about(opened_t *opened, int *forecasts, int *offloads) {
    *forecasts = policy_forecasts(opened->deciding.policy);
    *offloads = policy_offloads(opened->deciding.policy);
    return policy_gate_shift(opened->deciding.policy);
}

/* -- the program ------------------------------------------------------------------------------- */

static uint32_t next_random(uint32_t *seed) { return *seed = *seed * 1664525u + 1013904223u; }

static void fill(float *logits, uint32_t classes, uint32_t *seed) {
    static const float odd[] = {NAN, INFINITY, -INFINITY, 3e38F, -3e38F, 0, 1e-40F, -0.0F};
    int wild = next_random(seed) >> 30;
    for (uint32_t i = 0; i < classes; i++) {
        uint32_t drawn = next_random(seed);
        logits[i] = ((float)(drawn >> 8) / (1 << 23) - 1) * 8;
        if (wild == 0 || (wild == 1 && drawn >> 29 == 0)) logits[i] = odd[drawn >> 16 & 7];
    }
}

static void check(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void sample(
    opened_t *opened, uint32_t exits, const uint8_t *has, uint32_t classes, uint32_t *seed) {
    float *logits = malloc(classes * sizeof(float)), *means = malloc(classes * sizeof(float));
    int every = next_random(seed) >> 31;
    uint32_t at = policy_first(&opened->deciding);
    check(at <= exits, "the first exit is none");
    for (at = every ? 0 : at; at < exits;) {
        fill(logits, classes, seed);
        fill(means, classes, seed);
        int32_t due = driver_decide(opened, at, logits, has[at] & 2 ? means : NULL);
        check(due != OFFLOAD || policy_offloads(opened->deciding.policy), "it offloads");
        check(due == LEAVE || due == OFFLOAD || due > (int64_t)at, "it goes back");
        check(due <= (int64_t)exits, "it goes too far");
        if (!every && due < 0) break;
        at = every ? at + 1 : (uint32_t)due;
    }
    fill(logits, classes, seed);
    policy_learn(&opened->deciding, next_random(seed) >> 31 ? logits : NULL, next_random(seed) >> 31);
    free(logits);
    free(means);
}

int main(int count, char **arguments) {
    FILE *file = count > 1 ? fopen(arguments[1], "rb") : NULL;
    check(file != NULL, "no file of cases");
    uint32_t header[3], seed = 1;
    size_t refused = 0, taken = 0;
    while (fread(header, sizeof header, 1, file) == 1) {
        uint8_t *has = malloc(header[0] + !header[0]), *bytes = malloc(header[2] + !header[2]);
        check(fread(has, 1, header[0], file) == header[0], "a case is cut off");
        check(fread(bytes, 1, header[2], file) == header[2], "a case is cut off");
        const char *why = NULL;
        opened_t *opened = driver_open(bytes, header[2], header[0], has, header[1], &why);
        check(opened || why, "refused without a reason");
        for (int i = 0; opened && i < 8; i++) sample(opened, header[0], has, header[1], &seed);
        refused += !opened;
        taken += opened != NULL;
        if (opened) {
            driver_is_sound(opened, opened->deciding.learned);
            driver_close(opened);
        }
        free(has);
        free(bytes);
    }
    fclose(file);
    printf("%zu %zu\n", refused, taken);
    return 0;
}

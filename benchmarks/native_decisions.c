/* What a decision takes in the native runtime: nanoseconds each, the best of many rounds.
 *
 *     native_decisions RULE EXITS CLASSES LOGITS
 *
 * RULE is a policy as plan.bin has it, LOGITS are float32[samples][EXITS][CLASSES]. Linked with the
 * runtime's policies.c, policy_reading.c and reader.c.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 200 };

static void *content(const char *path, size_t *count) {
    FILE *file = fopen(path, "rb");
    if (!file) return perror(path), exit(1), NULL;
    fseek(file, 0, SEEK_END);
    *count = (size_t)ftell(file);
    rewind(file);
    void *bytes = malloc(*count + 1);
    if (!bytes || fread(bytes, 1, *count, file) != *count) exit(1);
    fclose(file);
    return bytes;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Decides on every sample; returns how many decisions that took. */
static size_t decide_all(
    const deciding_t *deciding, const float *logits, size_t samples, uint32_t exits,
    uint32_t classes) {
    size_t decisions = 0;
    for (size_t i = 0; i < samples; i++) {
        const float *rows = logits + i * exits * classes;
        int32_t at = (int32_t)policy_first(deciding);
        while (at >= 0 && (uint32_t)at < exits) {
            exit_outputs_t outputs = {rows + (size_t)at * classes, NULL};
            at = policy_decide(deciding, (uint32_t)at, &outputs);
            decisions++;
        }
    }
    return decisions;
}

int main(int count, char **given) {
    if (count != 5) return 2;
    uint32_t exits = (uint32_t)atoi(given[2]), classes = (uint32_t)atoi(given[3]);
    size_t rule_bytes, bytes, decisions = 0;
    const uint8_t *rule = content(given[1], &rule_bytes);
    const float *logits = content(given[4], &bytes);
    arena_t arena = {NULL, 0, 1 << 20};
    reader_t reader = {rule, rule + rule_bytes, false, NULL, &arena};
    uint8_t has[64];
    memset(has, 1, sizeof has);
    deciding_t deciding = {policy_read(&reader, exits, has, classes), NULL, NULL};
    if (!deciding.policy) return fprintf(stderr, "%s\n", reader.what), 1;
    deciding.state = calloc(1, policy_state_bytes(deciding.policy) + 1);
    size_t learned = policy_learned_bytes(deciding.policy);
    deciding.learned = learned ? calloc(1, learned) : NULL;
    policy_reset(&deciding);
    size_t samples = bytes / sizeof(float) / classes / exits;
    double best_s = INFINITY;
    for (int round = 0; round < ROUNDS; round++) {
        double begun_s = now();
        decisions = decide_all(&deciding, logits, samples, exits, classes);
        best_s = fmin(best_s, now() - begun_s);
    }
    printf("%.2f %zu\n", best_s / (double)decisions * 1e9, decisions);
    return 0;
}

/* Many calls of a team of threads, with random phases, pauses, callers and teams: every result is
 * compared with the one of a single thread. Arguments: threads, rounds, seed. Silent if all is well.
 *
 * Compiled with team.c, plain and with ThreadSanitizer, and with SPIN_NS 0, where threads sleep at
 * every opportunity. Plain memory is handed from phase to phase, so that the sanitizer sees it.
 */

#define _GNU_SOURCE /* sched_setaffinity */

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int32_t (*function_t)(const int64_t *frame, int32_t thread, int32_t threads, void *team);
void *eecompile_team_open(int32_t threads);
void eecompile_team_close(void *team);
int32_t eecompile_team_wait(void *team);
int32_t eecompile_team_run(void *team, int32_t threads, function_t f, const int64_t *frame);
int32_t eecompile_team_samples(void *team, int32_t threads, function_t f, const int64_t *frame,
                               const int64_t *strides, int64_t places);

#define CELLS 37
#define MOST_THREADS 8
#define SAMPLES 11
#define CALLERS 3

typedef struct {
    int64_t a[CELLS], b[CELLS], own[MOST_THREADS][8];
} workspace_t;

static uint64_t mixed(uint64_t x) { /* splitmix64 */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static void dawdle(uint64_t seed) {
    uint64_t dice = mixed(seed);
    for (volatile uint64_t i = dice % 200; i; i--) continue;
    if (dice % 1009 == 0) usleep(100);
    if (dice % 101 == 0) sched_yield();
}

/* Phases of CELLS units each, as compiled functions have them. Frame: n, weights, workspace, in,
 * out, phases, seed. */
static int32_t phases(const int64_t *frame, int32_t thread, int32_t threads, void *team) {
    const int64_t *weights = (const int64_t *)frame[1];
    workspace_t *w = (workspace_t *)frame[2];
    int64_t begin = CELLS * thread / threads, end = CELLS * (thread + 1) / threads;
    for (int64_t sample = 0; sample < frame[0]; sample++) {
        const int64_t *in = (const int64_t *)frame[3] + sample * CELLS;
        int64_t *out = (int64_t *)frame[4] + sample * CELLS, *from = w->a, *to = w->b;
        for (int64_t u = begin; u < end; u++) from[u] = in[u] * weights[u];
        if (threads > 1) eecompile_team_wait(team);
        for (int64_t phase = 0; phase < weights[CELLS]; phase++) {
            int64_t *own = w->own[thread];
            dawdle((uint64_t)(phase * 1000 + thread * 10 + sample) ^ (uint64_t)weights[0]);
            for (int64_t u = begin; u < end; u++) {
                own[0] = from[(u + 1) % CELLS];
                own[1] = from[(u + 20) % CELLS];
                to[u] = own[0] * 3 + own[1] + phase;
            }
            if (threads > 1) eecompile_team_wait(team);
            int64_t *other = from;
            from = to, to = other;
        }
        for (int64_t u = begin; u < end; u++) out[u] = from[u];
        if (threads > 1) eecompile_team_wait(team);
    }
    return 0;
}

/* Fails with 5 on every thread but the first. */
static int32_t failing(const int64_t *frame, int32_t thread, int32_t threads, void *team) {
    int32_t status = phases(frame, thread, threads, team);
    return thread ? 5 : status;
}

static void *team;
static int threads;

typedef struct {
    uint64_t seed;
    long rounds;
    int wrong;
} caller_t;

static void *call(void *given) {
    caller_t *caller = given;
    uint64_t dice = caller->seed;
    int64_t weights[CELLS + 1], in[SAMPLES * CELLS], out[SAMPLES * CELLS], right[SAMPLES * CELLS];
    static const int64_t strides[] = {0, sizeof(workspace_t), 8 * CELLS, 8 * CELLS};
    workspace_t *workspaces = calloc(MOST_THREADS, sizeof(workspace_t));
    for (long round = 0; round < caller->rounds; round++) {
        int64_t n = (int64_t)((dice = mixed(dice)) % (SAMPLES + 1));
        int32_t active = 1 + (int32_t)(mixed(dice + 1) % MOST_THREADS);
        int by_samples = mixed(dice + 2) % 2;
        for (int i = 0; i < CELLS; i++) weights[i] = (int64_t)(mixed(dice + 3) % 100) + i;
        weights[CELLS] = (int64_t)(mixed(dice + 4) % 20);
        for (int i = 0; i < n * CELLS; i++) in[i] = (int64_t)(mixed(dice + (uint64_t)i) % 1000);
        int64_t frame[] = {n, (int64_t)weights, (int64_t)workspaces, (int64_t)in, (int64_t)right};
        phases(frame, 0, 1, NULL);
        memset(out, 0x55, sizeof out);
        frame[4] = (int64_t)out;
        function_t function = mixed(dice + 5) % 10 ? phases : failing;
        int32_t status =
            by_samples ? eecompile_team_samples(team, active, function, frame, strides, 4)
                       : eecompile_team_run(team, active, function, frame);
        if (status && (status != 5 || function != failing)) caller->wrong++;
        if (memcmp(out, right, (size_t)n * CELLS * 8)) caller->wrong++;
        if (mixed(dice + 6) % 50 == 0) usleep(300); /* longer than SPIN_NS: the others sleep */
    }
    free(workspaces);
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    threads = atoi(arguments[1]);
    uint64_t seed = strtoull(arguments[3], NULL, 10);
    int wrong = 0;
    for (int turn = 0; turn < 20; turn++) { /* opened and closed, mostly before they begin */
        team = eecompile_team_open(threads);
        if (!team) return 3;
        if (turn % 4 == 0) usleep(200);
        eecompile_team_close(team);
    }
    team = eecompile_team_open(threads);
    for (int callers = 1; callers <= CALLERS; callers += CALLERS - 1) {
        pthread_t ids[CALLERS];
        caller_t given[CALLERS];
        for (int i = 0; i < callers; i++) {
            given[i] = (caller_t){mixed(seed + (uint64_t)i), atol(arguments[2]) / callers, 0};
            if (pthread_create(&ids[i], NULL, call, &given[i])) return 3;
        }
        for (int i = 0; i < callers; i++) {
            pthread_join(ids[i], NULL);
            wrong += given[i].wrong;
        }
    }
    eecompile_team_close(team);
    if (eecompile_team_open(0) || eecompile_team_open(1025)) wrong++;
    if (wrong) printf("%d wrong results\n", wrong);
    return wrong != 0;
}

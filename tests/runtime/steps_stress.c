/* Random programs of steps for samples of all numbers, on teams of all sizes: every value and every
 * count is compared with what a plain loop gives. Arguments: threads, rounds, seed. Silent if all
 * is well.
 *
 * Compiled with team.c, with AddressSanitizer and UndefinedBehaviorSanitizer, and with
 * ThreadSanitizer: each value lies in memory of exactly its size, and functions hand plain memory
 * from thread to thread.
 */
#include "steps.c"

#include <stdio.h>
#include <stdlib.h>


#define CELLS 13
#define GROUPS 3
#define STEPS 12
#define SAMPLES 7

static uint64_t state;
static uint64_t mixed(uint64_t x) { /* splitmix64 */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
static uint64_t dice(uint64_t sides) { return mixed(state++) % sides; }
static float scored(float x, uint64_t salt) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return mixed(bits + salt) % 2 ? 1.0f : -1.0f;
}

/* What a step computes of one cell; sums stay small, so that they are exact. */
static float cell(float x, float next, const float *scores, int j) {
    return scores && !(scores[j % GROUPS] > 0) ? 0 : (float)(((int)x + 3 * (int)next + 1) % 1000);
}

/* Frame: n, weights (salt), workspace, in, out, scores or 0. Two phases, through the workspace. */
static int32_t computed(const int64_t *frame, int32_t thread, int32_t threads, void *team) {
    float *own = AT(float, frame[2]), *out = AT(float, frame[4]);
    const float *in = AT(float, frame[3]), *scores = AT(float, frame[5]);
    for (int j = thread; j < CELLS; j += threads) own[j] = in[(j + 1) % CELLS];
    if (threads > 1) eecompile_team_wait(team);
    for (int j = thread; j < CELLS; j += threads) out[j] = cell(in[j], own[j], scores, j);
    return frame[0] != 1;
}
/* Frame: n, salt, workspace, in, score, groups. */
static int32_t gate(const int64_t *frame, int32_t thread, int32_t threads, void *team) {
    (void)threads, (void)team;
    const float *in = AT(float, frame[3]);
    if (thread) return 0;
    *AT(float, frame[4]) = scored(in[0], (uint64_t)frame[1]);
    for (int g = 0; g < GROUPS; g++)
        AT(float, frame[5])[g] = scored(in[1 + g], (uint64_t)frame[1]);
    return 0;
}

static void *fresh(size_t count) {
    float *found = malloc(SAMPLES * count * sizeof *found);
    for (size_t i = 0; i < SAMPLES * count; i++) found[i] = 1;
    return found;
}
static int64_t place(const void *p) { return (int64_t)(intptr_t)p; }

static step_t steps[STEPS];
static float *values[STEPS + 1], *keeps[STEPS], *groups[STEPS], *workspaces;
static int64_t frames[STEPS][6], strides[STEPS][5];

/* A chain: each step reads the value before it, a gate the same and leaves it. */
static void draw(int threads) {
    workspaces = calloc((size_t)threads * CELLS, sizeof(float));
    values[0] = fresh(CELLS);
    for (int i = 0, last = -1; i < STEPS; i++) {
        int is_gate = last < 0 || dice(3) == 0;
        values[i + 1] = is_gate ? values[i] : fresh(CELLS);
        keeps[i] = is_gate ? fresh(1) : NULL;
        groups[i] = is_gate ? fresh(GROUPS) : NULL;
        int keep = !is_gate && dice(2), split = !is_gate && dice(2);
        int64_t scores = split ? place(groups[last]) : 0;
        int64_t frame[] = {1, i, place(workspaces), place(values[i]),
                           place(is_gate ? keeps[i] : values[i + 1]),
                           is_gate ? place(groups[i]) : scores};
        int64_t bytes[] = {0, CELLS * 4, CELLS * 4, is_gate ? 4 : CELLS * 4,
                           is_gate || split ? GROUPS * 4 : 0};
        memcpy(frames[i], frame, sizeof frame), memcpy(strides[i], bytes, sizeof bytes);
        steps[i] = (step_t){
            .code = (int64_t)(intptr_t)(is_gate ? gate : computed), .frame = place(frames[i]),
            .strides = place(strides[i]), .places = 5, .gate = is_gate,
            .keep = keep ? place(keeps[last]) : 0, .output = is_gate ? 0 : place(values[i + 1]),
            .otherwise = dice(2) ? place(values[i]) : 0, .bytes = CELLS * 4, .channels = scores,
            .groups = split ? GROUPS : 0, .macs = 1000 + i, .group_macs = split ? 10 : 0,
            .block = keep, .cost = 1, .group_cost = split ? 0.25 : 0, .need = 1};
        if (is_gate) last = i;
    }
}

/* The same for one sample by a plain loop: its last value and what it took. */
static tally_t expected(const float *input, int gates, double budget, float *value) {
    tally_t found = {0};
    float keep[STEPS], group[STEPS][GROUPS], next[CELLS];
    memcpy(value, input, CELLS * sizeof *value);
    for (int i = 0, last = -1; i < STEPS; i++) {
        const step_t *s = &steps[i];
        if (s->gate) last = i, keep[i] = group[i][0] = group[i][1] = group[i][2] = 1;
        if (s->gate && !gates) continue;
        if (s->keep && !(keep[last] > 0)) {
            if (!s->otherwise) memset(value, 0, CELLS * sizeof *value);
            continue;
        }
        if (found.spent + s->need > budget) {
            found.stopped = i + 1;
            return found;
        }
        int off = 0;
        for (int g = 0; s->groups && g < GROUPS; g++) off += !(group[last][g] > 0);
        found.macs += s->macs - off * s->group_macs;
        found.spent += s->cost - off * s->group_cost;
        found.blocks += s->block;
        if (s->gate) {
            keep[i] = scored(value[0], (uint64_t)i);
            for (int g = 0; g < GROUPS; g++) group[i][g] = scored(value[1 + g], (uint64_t)i);
            continue;
        }
        for (int j = 0; j < CELLS; j++)
            next[j] = cell(value[j], value[(j + 1) % CELLS], s->groups ? group[last] : NULL, j);
        memcpy(value, next, sizeof next);
    }
    return found;
}

static int run(void *team, int threads) {
    tally_t *tallies = calloc(SAMPLES, sizeof *tallies);
    int32_t *kept = malloc(SAMPLES * STEPS * sizeof *kept), word = 0;
    int gates = dice(4) > 0, limited = dice(2);
    double budget = limited ? (double)dice(STEPS) : 1e9;
    int64_t n = 1 + (int64_t)dice(SAMPLES), cut = (int64_t)dice(STEPS + 1);
    for (int i = 0; i < SAMPLES * CELLS; i++) values[0][i] = (float)dice(1000);
    for (int i = 0; i < STEPS && !gates; i++)
        for (int s = 0; steps[i].gate && s < SAMPLES * GROUPS; s++)
            groups[i][s] = 1, keeps[i][s / GROUPS] = 1;
    memset(kept, 0xff, SAMPLES * STEPS * sizeof *kept);
    program_t program = {
        .steps = place(steps), .count = STEPS, .tallies = place(tallies), .kept = place(kept),
        .gates = gates, .stop = dice(2) ? place(&word) : 0, .limit = limited ? COUNTED : UNLIMITED,
        .budget = budget};
    int64_t first[] = {n, place(&program), 0, cut}, second[] = {n, place(&program), cut, STEPS};
    int bad = eecompile_team_run(team, threads, eecompile_steps, first);
    bad |= eecompile_team_run(team, threads, eecompile_steps, second);
    for (int64_t s = 0; s < n; s++) {
        float value[CELLS];
        tally_t e = expected(values[0] + s * CELLS, gates, budget, value), *f = &tallies[s];
        bad |= e.macs != f->macs || e.blocks != f->blocks || e.spent != f->spent;
        bad |= e.stopped != f->stopped;
        for (int i = 0; i < STEPS; i++)
            bad |= e.stopped && i + 1 >= e.stopped && kept[s * STEPS + i] != -1;
        if (!e.stopped) bad |= memcmp(value, values[STEPS] + s * CELLS, sizeof value) != 0;
    }
    word = 1;
    memset(tallies, 0, SAMPLES * sizeof *tallies);
    if (program.stop) {
        bad |= eecompile_team_run(team, threads, eecompile_steps, first);
        for (int64_t s = 0; s < n; s++) bad |= tallies[s].macs != 0;
    }
    free(tallies), free(kept);
    return bad;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    int threads = atoi(arguments[1]), rounds = atoi(arguments[2]);
    state = (uint64_t)atoi(arguments[3]) << 32;
    void *team = threads > 1 ? eecompile_team_open(threads) : NULL;
    for (int round = 0; round < rounds; round++) {
        draw(threads);
        for (int again = 0; again < 5; again++)
            if (run(team, threads)) return printf("round %d is wrong\n", round), 1;
        free(values[0]), free(workspaces);
        for (int i = 0; i < STEPS; i++) {
            if (values[i + 1] != values[i]) free(values[i + 1]);
            free(keeps[i]), free(groups[i]);
        }
    }
    if (team) eecompile_team_close(team);
    return 0;
}

/* halting.c with a clock and a decimal point that the test sets, and plans made of plain arrays. */

#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t clock_ns;
static int64_t clock_told(void) { return clock_ns; }

static char point[8] = ".";

void point_set(const char *now) { snprintf(point, sizeof point, "%s", now); }

/* As snprintf where the app has set a locale. */
static void print_locally(char *text, size_t room, const char *format, double number) {
    char told[64];
    size_t length = 0;
    snprintf(told, sizeof told, format, number);
    for (const char *at = told; *at; at++)
        length += (size_t)snprintf(
            text + length, room - length, "%.*s", *at == '.' ? 7 : 1, *at == '.' ? point : at);
}

#define monotonic_ns clock_told
#define snprintf print_locally
#include "halting.c"
#undef snprintf
#undef monotonic_ns

void clock_set(int64_t now_ns) { clock_ns = now_ns; }

const char *said(void) { return latest_message(); }

double pace(const halting_t *halting) { return halting->factor[halting->gates]; }

/* Segments, exits and steps as rows of numbers; tables of costs may be NULL. */
plan_t *plan_make(
    const uint32_t *counts, const int64_t *segments, const int64_t *exits, const int64_t *steps,
    const char *const *names, const double *latency_s, const double *energy_j, double hertz) {
    plan_t *plan = calloc(1, sizeof *plan);
    plan->segments = counts[0];
    plan->exits = counts[1];
    plan->steps = counts[2];
    segment_t *segment = calloc(counts[0], sizeof *segment);
    exit_t *exit = calloc(counts[1] + 1, sizeof *exit);
    step_plan_t *step = calloc(counts[2] + 1, sizeof *step);
    for (uint32_t i = 0; i < counts[0]; i++, segments += 5) {
        segment[i].first = (uint32_t)segments[0];
        segment[i].end = (uint32_t)segments[1];
        segment[i].macs = segments[2];
        segment[i].gates_macs = segments[3];
        segment[i].gated = segments[4] != 0;
        plan->gated |= segment[i].gated;
        plan->macs += segments[2];
    }
    for (uint32_t i = 0; i < counts[1]; i++) {
        exit[i].name = names[i];
        exit[i].macs = exits[i];
    }
    for (uint32_t i = 0; i < counts[2]; i++, steps += 5) {
        step[i].call.macs = steps[0];
        step[i].gate = steps[1] != 0;
        step[i].keep = steps[2] ? 0 : NONE;
        step[i].groups = steps[3];
        step[i].group_macs = steps[4];
    }
    plan->segment = segment;
    plan->exit = exit;
    plan->step = step;
    if (!latency_s) return plan;
    costs_t *costs = calloc(1, sizeof *costs);
    state_t *state = calloc(counts[3], sizeof *state);
    for (uint32_t i = 0; i < counts[3]; i++) state[i].frequency_hz = hertz;
    costs->states = counts[3];
    costs->segments = counts[0];
    costs->exits = counts[1];
    costs->steps = counts[4];
    costs->state = state;
    costs->latency_s = latency_s;
    costs->energy_j = energy_j;
    plan->costs = costs;
    return plan;
}

void plan_drop(plan_t *plan) {
    if (plan->costs) free((void *)plan->costs->state);
    free((void *)plan->costs);
    free((void *)plan->step);
    free((void *)plan->exit);
    free((void *)plan->segment);
    free(plan);
}

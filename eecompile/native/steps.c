/* The steps of a network, one after the other, some of them left out: asked for once, whatever is
 * decided on the way.
 *
 * The structures, in internal.h, hold 8-byte fields alone, so that they are the same on every
 * machine; addresses are int64_t, 0 for none. Those of values are of the first sample, the others'
 * follow, each as large.
 *
 * A step with a score runs where that is above 0. Left out, its output is a copy of another value,
 * or zeros. Scores are what gates compute, where gates run; elsewhere what lies in their memory.
 */

#include "internal.h"

#include <string.h>

#define AT(type, address) ((type *)(intptr_t)(address))

static int is_over(const program_t *program, const step_t *step, const tally_t *tally) {
    atomic_int *stop = AT(atomic_int, program->stop);
    if (stop && atomic_load_explicit(stop, memory_order_relaxed)) return 1;
    if (program->limit == UNLIMITED) return 0;
    double spent = tally->spent;
    if (program->limit == TIMED) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        spent = ((int64_t)now.tv_sec * 1000000000 + now.tv_nsec - program->start_ns) * 1e-9;
    }
    return spent + step->need > program->budget;
}

static void leave_out(const step_t *step, int64_t sample) {
    if (!step->output) return;
    char *output = AT(char, step->output) + sample * step->bytes;
    if (step->otherwise)
        memcpy(output, AT(char, step->otherwise) + sample * step->bytes, (size_t)step->bytes);
    else
        memset(output, 0, (size_t)step->bytes);
}

static void count(program_t *program, int64_t place, int64_t sample) {
    const step_t *step = AT(step_t, program->steps) + place;
    tally_t *tally = AT(tally_t, program->tallies) + sample;
    const float *scores = AT(float, step->channels);
    int64_t kept = 0;
    if (scores)
        for (int64_t i = 0; i < step->groups; i++) kept += scores[sample * step->groups + i] > 0;
    int64_t off = step->groups - kept;
    tally->macs += step->macs - off * step->group_macs;
    tally->spent += step->cost - (double)off * step->group_cost;
    tally->blocks += step->block;
    if (program->kept) AT(int32_t, program->kept)[sample * program->count + place] = (int32_t)kept;
}

/* A step of a sample as the call of `thread` out of `threads`, in the workspace number `own`. */
static int32_t run_step(
    program_t *program, int64_t place, int64_t sample, int64_t own, int32_t thread,
    int32_t threads, void *team) {
    const step_t *step = AT(step_t, program->steps) + place;
    tally_t *tally = AT(tally_t, program->tallies) + sample;
    const float *score = AT(float, step->keep);
    int64_t stopped = atomic_load_explicit(&tally->stopped, memory_order_relaxed);
    if (step->gate && !program->gates) return 0;
    if (stopped && stopped <= place) return 0; /* Not by this step: another thread may be ahead. */
    if (score && !(score[sample] > 0)) {
        if (!thread) leave_out(step, sample);
        return 0;
    }
    if (program->stop || program->limit != UNLIMITED) {
        if (!thread && is_over(program, step, tally))
            atomic_store_explicit(&tally->stopped, place + 1, memory_order_relaxed);
        if (threads > 1) eecompile_team_wait(team);
        if (atomic_load_explicit(&tally->stopped, memory_order_relaxed)) return 0;
    }
    if (!thread) count(program, place, sample);
    const int64_t *first = AT(int64_t, step->frame), *strides = AT(int64_t, step->strides);
    int64_t frame[1 + step->places];
    frame[0] = 1;
    for (int64_t i = 0; i < step->places; i++)
        frame[1 + i] = first[1 + i] + (i == 1 ? own : sample) * strides[i];
    return ((code_t)(intptr_t)step->code)(frame, thread, threads, threads > 1 ? team : NULL);
}

/* Some of a program's steps, for samples that lie side by side; as a function. Frame: how many
 * samples, the program, the first step and the one behind the last.
 *
 * All samples take a step before one takes the next, as their values may lie where earlier ones of
 * other samples were. Threads share the samples where each gets some, and the phases of the rest.
 * Returns the first status that is not 0. */
int32_t eecompile_steps(const int64_t *frame, int32_t thread, int32_t threads, void *team) {
    program_t *program = AT(program_t, frame[1]);
    int64_t n = frame[0], whole = n - n % threads, taken = 0;
    int32_t status = 0, found;
    for (int64_t place = frame[2]; place < frame[3]; place++) {
        const step_t *step = AT(step_t, program->steps) + place;
        if (step->gate && !program->gates) continue;
        int64_t sample = 0;
        while (whole) {
            if (threads > 1) sample = atomic_fetch_add(&program->next, 1) - taken;
            if (sample >= whole) break;
            found = run_step(program, place, sample++, thread, 0, 1, NULL);
            if (!status) status = found;
        }
        taken += whole ? whole + threads : 0; /* Each thread has asked once in vain. */
        if (whole && whole < n) eecompile_team_wait(team); /* Workspaces are shared now. */
        for (sample = whole; sample < n; sample++) {
            found = run_step(program, place, sample, 0, thread, threads, team);
            if (!status) status = found;
            if (threads > 1) eecompile_team_wait(team);
        }
        if (threads > 1 && whole == n) eecompile_team_wait(team);
    }
    if (!thread) atomic_store(&program->next, 0);
    return status;
}

/* Chooses the clock of each stretch between exits, has it set, and tells what that cost.
 *
 * As eecompile/runtime/scheduler.py and clock.py, which say what is chosen and why. A decision is a
 * binary search in a front that was made beforehand, see clock_fronts.c.
 *
 * Where the governor can set no clock, or none any more, and in a forked process, the fastest state
 * alone is known: deadlines are looked after as if the machine ran there, and neither clock nor
 * energy are told. Nor are they for an answer one of whose clocks was not reached.
 *
 * Where gates leave something out, clocks are chosen as if nothing to come was left out, and
 * energies are of what ran: see eecompile/runtime/paid.py.
 */

#include "clocks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of one session's fronts, most of which is never touched: three times what 87 clocks, the most
 * that a shipped board has, take of it with 64 exits. */
#define MOST_BYTES ((size_t)512 << 20)

struct clocks {
    arena_t arena;
    const costs_t *costs; /* what samples pay at most */
    const plan_t *gated;  /* with its own costs, of each step too; NULL: no gate decides */
    clock_rule_t rule;
    const ee_governor *governor;
    fronts_t fronts;
    placement_t placement;
    bool *offered;   /* [the table's states] */
    bool sets;       /* whether there is a choice of clocks, and somebody to set them */
    bool touched;    /* whether any was set */
    bool lost;       /* fewer are offered than were planned with */
    bool holds;      /* the clock is the one that was set last */
    unsigned forks;  /* before it was opened */
    uint32_t state;  /* at hand */
    uint32_t from;   /* the first segment that is not in `energy_j` */
    double energy_j; /* of the sample; NAN: not known */
    uint64_t transitions;
    pid_t placed; /* the caller whose threads are on `cluster`'s CPUs; 0: nobody's */
    uint32_t cluster;
    char reason[200];
};

/* What to do next: an exit, LEAVE or the end; at which state. */
typedef struct {
    stretch_t stretch;
    uint32_t state;
} choice_t;

/* -- deciding ---------------------------------------------------------------------------------- */

static choice_t go(uint32_t due, uint32_t state) {
    return (choice_t){{(int32_t)due, false}, state};
}

static choice_t answer(uint32_t due, uint32_t state) {
    return (choice_t){{(int32_t)due, true}, state};
}

/* How many of them `left` is enough for. */
static uint32_t fitting(const double *needs, uint32_t count, double left) {
    uint32_t low = 0;
    while (low < count) {
        uint32_t middle = low + (count - low) / 2;
        if (left < needs[middle])
            count = middle;
        else
            low = middle + 1;
    }
    return low;
}

static front_t stretch_front(const fronts_t *f, uint32_t from, uint32_t due, uint32_t at) {
    return f->stretches[((size_t)from * (f->last + 1) + due) * f->states + at];
}

/* No clock keeps the deadline as it should be kept, but an answer must be there in time. */
static choice_t last_resort(
    const fronts_t *f, uint32_t from, uint32_t due, double left, uint32_t at) {
    front_t front = stretch_front(f, from, due, at);
    if (f->needs[front.first] <= left) return go(due, f->choices[front.first]);
    size_t row = (size_t)from * f->states + at, exits = (size_t)f->last + 1;
    const double *soonest = f->soonest + row * exits;
    const uint16_t *by = f->by + row * exits;
    uint32_t count = fitting(f->reach_needs + row * exits, f->reached[row], left);
    uint32_t deepest = count ? f->reach_exits[row * exits + count - 1] : NONE;
    if (f->rule.safe && from && deepest == f->last) return answer(deepest, by[deepest]);
    if (soonest[due] <= left) return go(due, by[due]);
    if (deepest != NONE) return answer(deepest, by[deepest]);
    if (from) return (choice_t){{LEAVE, false}, at};
    uint32_t quickest = 0;
    for (uint32_t exit = 1; exit <= f->last; exit++)
        if (soonest[exit] < soonest[quickest]) quickest = exit;
    return answer(quickest, by[quickest]);
}

/* The cheapest state that fits into the time left. */
static choice_t chosen(
    const fronts_t *f, front_t front, uint32_t from, uint32_t due, double left, uint32_t at) {
    uint32_t count = fitting(f->needs + front.first, front.count, left);
    if (count) return go(due, f->choices[front.first + count - 1]);
    if (f->rule.safe || f->rule.hard) return last_resort(f, from, due, left, at);
    return go(due, f->choices[front.first]);
}

static choice_t first_choice(const fronts_t *f, uint32_t first, uint32_t at) {
    at = f->enters[at];
    if (f->entry_s[(size_t)first * f->states + at] <= f->limit_s) return go(first, f->home);
    return chosen(f, f->ways[at], 0, first, f->limit_s, at);
}

/* The clock to wait at: another one only when racing to idle, if going there and back takes less
 * time than the answer did, and no more than is left until the deadline. */
static uint32_t rest(const fronts_t *f, double elapsed_s, uint32_t at) {
    double time = f->there_and_back_s[at];
    bool worth = f->rule.objective == RACE_TO_IDLE && time < elapsed_s &&
                 time <= f->limit_s - elapsed_s;
    return worth ? f->lowest[at] : at;
}

/* -- choosing among the clocks there are ------------------------------------------------------- */

static void say(clocks_t *clocks, const char *what, const char *detail) {
    snprintf(clocks->reason, sizeof clocks->reason, "%s%s", what, detail);
}

/* By the clocks that are offered; false: they do not do. */
static bool plan_offered(clocks_t *clocks) {
    fronts_t *f = &clocks->fronts;
    clock_rule_t rule = clocks->rule;
    rule.start = NONE;
    f->states = 0;
    for (uint32_t k = 0; k < clocks->costs->states; k++) {
        if (!clocks->offered[k]) continue;
        if (k == clocks->rule.start) rule.start = f->states;
        f->of[f->states++] = (uint16_t)k;
    }
    if (!f->states) {
        bool asked = clocks->governor && rule.objective != UNCHANGED;
        if (asked && !clocks->reason[0]) say(clocks, "the governor offers none of the clocks", "");
        return false;
    }
    const char *wrong = fronts_make(f, &rule);
    if (wrong) say(clocks, "clocks are left alone: of those that can be set here, ", wrong);
    return !wrong;
}

/* Over all states, whatever clocks there are here: NULL, or what is wrong with the artifact. */
static const char *plan_all(clocks_t *clocks, const clock_rule_t *rule) {
    fronts_t *f = &clocks->fronts;
    f->states = clocks->costs->states;
    for (uint32_t k = 0; k < f->states; k++) f->of[k] = (uint16_t)k;
    return fronts_make(f, rule);
}

/* As if the machine ran at its fastest clock, which nobody sets. */
static void plan_none(clocks_t *clocks) {
    fronts_t *f = &clocks->fronts;
    clock_rule_t rule = clocks->rule;
    rule.objective = UNCHANGED;
    rule.frequency_hz = NAN;
    rule.start = NONE;
    plan_all(clocks, &rule);
    f->of[0] = f->of[f->fastest];
    f->states = 1;
    fronts_make(f, &rule);
}

/* Choose among the clocks there are from now on. */
static void plan(clocks_t *clocks) {
    clocks->sets = plan_offered(clocks);
    if (!clocks->sets) plan_none(clocks);
    clocks->state = clocks->fronts.home;
    clocks->holds = clocks->lost = false;
    clocks->placed = 0;
}

static void ask_what_is_offered(clocks_t *clocks) {
    const ee_governor *governor = clocks->governor;
    bool asks = governor && clocks->rule.objective != UNCHANGED;
    for (uint32_t k = 0; k < clocks->costs->states; k++) {
        const state_t *state = &clocks->costs->state[k];
        clocks->offered[k] = asks && !isnan(state->frequency_hz) &&
            governor->offers(governor->context, state->cluster, state->frequency_hz);
    }
}

/* -- setting ----------------------------------------------------------------------------------- */

static const state_t *state_of(const clocks_t *clocks, uint32_t state) {
    return &clocks->costs->state[clocks->fronts.of[state]];
}

static uint32_t cluster_of(const clocks_t *clocks, uint32_t state) {
    return clocks->fronts.cluster[clocks->fronts.of[state]];
}

/* A cluster's clock is left alone from now on; NONE: all are. */
static void give_up(clocks_t *clocks, uint32_t cluster, const char *why) {
    for (uint32_t k = 0; k < clocks->costs->states; k++)
        if (cluster == NONE || clocks->fronts.cluster[k] == cluster) clocks->offered[k] = false;
    say(clocks, why, cluster == NONE ? "" : clocks->costs->cluster[cluster].name);
    clocks->lost = true;
}

static bool is_forked(const clocks_t *clocks) { return clocks->forks != forks_so_far(); }

static void place(clocks_t *clocks, uint32_t cluster) {
    if (clocks->costs->cluster[cluster].cpus)
        placement_move(&clocks->placement, &clocks->costs->cluster[cluster]);
    clocks->cluster = cluster;
    clocks->placed = this_thread();
}

static void set(clocks_t *clocks, uint32_t state) {
    const ee_governor *governor = clocks->governor;
    uint32_t cluster = cluster_of(clocks, state);
    clocks->state = state;
    if (!clocks->placed || clocks->cluster != cluster) place(clocks, cluster);
    const state_t *wanted = state_of(clocks, state);
    int refused = 1; /* what was given up is not asked for again */
    if (clocks->offered[clocks->fronts.of[state]])
        refused = governor->set(governor->context, wanted->cluster, wanted->frequency_hz);
    clocks->touched = true;
    clocks->holds = !refused;
    if (refused < 0) give_up(clocks, cluster, "its clock cannot be set any more: cluster ");
    if (refused) clocks->energy_j = NAN;
}

static void change(clocks_t *clocks, uint32_t state) {
    if (state == clocks->state) return;
    const fronts_t *f = &clocks->fronts;
    clocks->energy_j += f->change_j[(size_t)clocks->state * f->states + state];
    set(clocks, state);
    clocks->transitions++;
}

/* Between samples: see to it that the clock at hand is known, `fastest` or `home` if it is not. */
static void settle(clocks_t *clocks, bool fastest) {
    if (!clocks->sets) return;
    if (is_forked(clocks)) {
        give_up(clocks, NONE, "clocks are set by the process this one was forked from");
        plan(clocks);
    } else if (!clocks->holds) {
        bool anew = clocks->lost;
        if (anew) plan(clocks);
        if (!clocks->sets) {
            placement_restore(&clocks->placement);
            return;
        }
        set(clocks, fastest && !anew ? clocks->fronts.fastest : clocks->fronts.home);
    } else if (clocks->placed && clocks->placed != this_thread()) {
        place(clocks, clocks->cluster);
    }
}

/* Energy from one exit to another one and its head, of what ran at the clock at hand. */
static double paid_j(const clocks_t *clocks, uint32_t exit, const int32_t *kept) {
    const plan_t *plan = clocks->gated;
    const costs_t *costs = plan->costs;
    const double *energy = costs->energy_j + clocks->fronts.of[clocks->state];
    size_t states = costs->states, row = costs->segments + costs->exits;
    double found = 0;
    for (uint32_t i = 0; i <= exit; i++) {
        const segment_t *segment = &plan->segment[i];
        bool counts = i >= clocks->from;
        if (!segment->gated && counts) found += energy[i * states];
        for (uint32_t k = segment->first; segment->gated && k < segment->end; k++, row++) {
            double share = kept[k] < 0 ? 0 : step_share(&plan->step[k], kept[k]);
            if (counts) found += share * energy[row * states];
        }
    }
    return found + (exit < costs->exits ? energy[(costs->segments + exit) * states] : 0);
}

/* Counts the energy up to the answer at `exit`. */
static void spend(clocks_t *clocks, uint32_t exit, const int32_t *kept) {
    if (exit < clocks->from) return;
    const fronts_t *f = &clocks->fronts;
    size_t way = (size_t)clocks->from * (f->last + 1) + exit;
    double energy_j = f->stretch_j[way * f->states + clocks->state];
    if (kept && clocks->gated) energy_j = paid_j(clocks, exit, kept);
    clocks->energy_j += clocks->holds ? energy_j : NAN;
    clocks->from = exit + 1;
}

/* -- a sample ---------------------------------------------------------------------------------- */

stretch_t clocks_begin(clocks_t *clocks, uint32_t first) {
    clocks->from = 0;
    clocks->energy_j = 0;
    settle(clocks, false);
    choice_t choice = first_choice(&clocks->fronts, first, clocks->state);
    change(clocks, choice.state);
    return choice.stretch;
}

stretch_t clocks_after(
    clocks_t *clocks, uint32_t exit, uint32_t due, double elapsed_s, bool forecasts,
    const int32_t *kept) {
    const fronts_t *f = &clocks->fronts;
    uint32_t from = exit + 1, at = clocks->state;
    if (clocks->sets) spend(clocks, exit, kept);
    front_t front = forecasts ? stretch_front(f, from, due, at)
                              : f->ways[(size_t)from * f->states + at];
    choice_t choice = chosen(f, front, from, due, f->limit_s - elapsed_s, at);
    change(clocks, choice.state);
    return choice.stretch;
}

void clocks_finish(
    clocks_t *clocks, uint32_t exit, double elapsed_s, const int32_t *kept, double *frequency_hz,
    double *energy_j, bool *late) {
    *late = elapsed_s > clocks->rule.deadline_s; /* never, where there is none */
    *frequency_hz = *energy_j = NAN;
    if (!clocks->sets) return;
    spend(clocks, exit, kept);
    if (clocks->holds) *frequency_hz = state_of(clocks, clocks->state)->frequency_hz;
    change(clocks, rest(&clocks->fronts, elapsed_s, clocks->state));
    *energy_j = clocks->energy_j;
}

void clocks_full_speed(clocks_t *clocks) {
    settle(clocks, true);
    change(clocks, clocks->fronts.fastest);
}

uint64_t clocks_transitions(const clocks_t *clocks) { return clocks->transitions; }

const char *clocks_reason(const clocks_t *clocks) { return clocks->reason; }

/* -- opening and closing ----------------------------------------------------------------------- */

/* NULL, or what makes no sense in a rule. */
static const char *check_rule(const clock_rule_t *rule) {
    if (rule->objective > UNCHANGED) return "it has an unknown objective";
    if (!isnan(rule->deadline_s) && !(rule->deadline_s > 0 && isfinite(rule->deadline_s)))
        return "its deadline is none";
    if (rule->safe && rule->hard) return "its deadline is both safe and hard";
    if ((rule->safe || rule->hard) && isnan(rule->deadline_s)) return "its deadline is missing";
    if ((rule->objective == FIXED) != (rule->frequency_hz > 0 && isfinite(rule->frequency_hz)))
        return "a fixed frequency belongs to the objective `fixed`";
    if (rule->start != NONE && rule->objective != LOWEST_ENERGY)
        return "a start belongs to the objective `lowest_energy`";
    return NULL;
}

/* Costs of which those of segments with gates are of all their steps, the gates' too; or NULL. */
static const double *as_run(arena_t *arena, const plan_t *plan, const double *table) {
    const costs_t *costs = plan->costs;
    size_t states = costs->states, row = costs->segments + costs->exits;
    double *found = arena_take(arena, row * states, sizeof(double));
    if (!found) return NULL;
    memcpy(found, table, row * states * sizeof(double));
    for (uint32_t i = 0; i < costs->segments; i++) {
        const segment_t *segment = &plan->segment[i];
        if (!segment->gated) continue;
        for (size_t k = 0; k < states; k++) found[i * states + k] = 0;
        for (uint32_t step = segment->first; step < segment->end; step++, row++)
            for (size_t k = 0; k < states; k++) found[i * states + k] += table[row * states + k];
    }
    return found;
}

static bool take_gates(clocks_t *clocks, const plan_t *plan) {
    costs_t *costs = arena_take(&clocks->arena, 1, sizeof(costs_t));
    if (!costs) return false;
    *costs = *plan->costs;
    costs->latency_s = as_run(&clocks->arena, plan, plan->costs->latency_s);
    costs->energy_j = as_run(&clocks->arena, plan, plan->costs->energy_j);
    clocks->gated = plan;
    clocks->costs = costs;
    return costs->latency_s && costs->energy_j;
}

static const char *open_parts(clocks_t *clocks, const int32_t *threads, uint32_t thread_count) {
    const char *wrong = fronts_open(&clocks->fronts, &clocks->arena, clocks->costs);
    if (wrong) return wrong;
    clocks->offered = arena_take(&clocks->arena, clocks->costs->states, sizeof(bool));
    if (!clocks->offered ||
        !placement_open(&clocks->placement, &clocks->arena, threads, thread_count))
        return "there is no memory for it";
    /* Whatever clocks there are here, the artifact must be sound. */
    return plan_all(clocks, &clocks->rule);
}

ee_status clocks_open(
    clocks_t **opened, const costs_t *costs, const plan_t *gated, const clock_rule_t *rule,
    const ee_governor *governor, const int32_t *threads, uint32_t thread_count) {
    *opened = NULL;
    const char *wrong = check_rule(rule);
    if (wrong) return fail(EE_BAD_ARTIFACT, "how clocks are chosen makes no sense: %s", wrong);
    if (!costs) return fail(EE_BAD_ARTIFACT, "the artifact has no costs to choose its clocks by");
    clocks_t *clocks = calloc(1, sizeof *clocks);
    if (!clocks) return fail(EE_NO_MEMORY, "there is no memory to choose clocks in");
    clocks->arena.most = MOST_BYTES;
    clocks->costs = costs;
    clocks->rule = *rule;
    clocks->governor = governor;
    wrong = "there is no memory for it";
    if (!gated || take_gates(clocks, gated)) wrong = open_parts(clocks, threads, thread_count);
    if (wrong) {
        clocks_close(clocks);
        return fail(EE_BAD_ARTIFACT, "clocks cannot be chosen: %s", wrong);
    }
    clocks->forks = forks_so_far();
    ask_what_is_offered(clocks);
    plan(clocks);
    *opened = clocks;
    return EE_OK;
}

void clocks_close(clocks_t *clocks) {
    if (!clocks) return;
    if (clocks->touched && !is_forked(clocks)) {
        clocks->governor->restore(clocks->governor->context);
        placement_restore(&clocks->placement);
    }
    arena_free(&clocks->arena);
    free(clocks);
}

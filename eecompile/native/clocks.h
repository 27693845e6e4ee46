/* What clocks.c is made of: the fronts it decides by, and where threads run. */
#ifndef EECOMPILE_CLOCKS_H
#define EECOMPILE_CLOCKS_H

#include "internal.h"

#include <sched.h>

/* -- fronts (clock_fronts.c), as eecompile/runtime/clock_costs.py and clock_fronts.py ---------- */

/* Ways are named by their first segment, `from`: 0 is the start of a sample, i + 1 exit i. States
 * are indices of those chosen among, which the governor offers; `of` leads to the table's. */

/* Clocks worth choosing for one way from one clock at hand: by rising need, each state cheaper. */
typedef struct {
    uint32_t first, count; /* of `needs` and `choices`; at least one */
} front_t;

/* Sums of consecutive pieces at each state. */
typedef struct {
    double *below; /* [last + 2][states]: the first k segments */
    double *heads; /* [last + 1][states]: the first k heads */
} sums_t;

typedef struct {
    const costs_t *costs;
    clock_rule_t rule;
    uint32_t states, last; /* `last`: the number of exits */
    uint16_t *of;          /* [states] */
    uint32_t *cluster;     /* of each of the table's states */
    double limit_s;        /* the deadline, with room for rounding; INFINITY: none */
    double idle_w;
    bool by_energy;
    uint16_t home, fastest;
    uint16_t *enters; /* [states]: the clock a sample is thought to begin at */
    bool *usable, *has_energy, *allowed;
    sums_t latency, energy;
    double *power_w;             /* [states], NAN: not known */
    double *change_s, *change_j; /* [at hand][to]: INFINITY, NAN: not known */
    double *entry_s;             /* [exits + 1][at hand]: to begin at `home` */
    double *stretch_j;           /* [from][due][state], NAN: not known */
    front_t *stretches;          /* [from][due][at hand] */
    front_t *ways;               /* [from][at hand]: to the end with every head */
    double *needs;
    uint16_t *choices;
    /* What can be reached how soon: [from][at hand][exits + 1]. */
    double *soonest;
    uint16_t *by;
    /* By rising need: the deepest exit that can answer; the same shape, `reached` of them. */
    double *reach_needs;
    uint32_t *reach_exits, *reached; /* the latter [from][at hand] */
    /* To wait at after an answer, [at hand], and the time to go there and back. */
    uint16_t *lowest;
    double *there_and_back_s;
    /* While they are made. */
    double *time_s, *cost_j, *reserve_s, *bounds, *prices;
    uint16_t *order;
    uint32_t filled;
} fronts_t;

/* Memory for fronts over all states of the costs. NULL, or what is wrong. */
const char *fronts_open(fronts_t *fronts, arena_t *arena, const costs_t *costs);
/* Fronts over the states in `of`, of which there are `states`; allocates nothing. NULL, or what
 * does not fit together: then nothing but another making may follow. */
const char *fronts_make(fronts_t *fronts, const clock_rule_t *rule);

/* -- placement (placement.c), as eecompile/runtime/affinity.py --------------------------------- */

enum { MOST_CALLERS = 16 };

typedef struct {
    pid_t thread; /* 0: none */
    bool moved;
    cpu_set_t had, given;
} placed_t;

/* Where threads run by our wish, and where they were allowed to run before. */
typedef struct {
    uint32_t workers, next;
    placed_t *place; /* [workers + MOST_CALLERS] */
} placement_t;

bool placement_open(
    placement_t *placement, arena_t *arena, const int32_t *workers, uint32_t count);
/* Runs the caller and the workers on these CPUs from now on, as far as they may. */
void placement_move(placement_t *placement, const cluster_t *cluster);
/* Gives every thread the CPUs it had, but where somebody else has moved it since. */
void placement_restore(placement_t *placement);
/* The calling thread's number. */
pid_t this_thread(void);

/* How often this process was forked from another since it was looked at first. */
unsigned forks_so_far(void);

#endif

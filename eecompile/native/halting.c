/* Budgets for every sample while it is computed: what was spent, what the rest may take.
 *
 * The same rule as eecompile/runtime/halting.py and piece_costs.py. Multiply-accumulates are
 * counted and energies are the cost table's. Time is read from the clock wherever there is a
 * decision; what the rest takes is the cost table's, times the pace of this process: the machine
 * may be slower today than when it was measured. Of the table the fastest clock counts: what clocks
 * are left at.
 */

#include "internal.h"

#include <stdio.h>
#include <string.h>

/* Seconds of the session's own work around a piece, and for making the answer. */
static const double AROUND_S = 10e-6, ANSWER_S = 5e-6;
/* Of the times of a segment, this share is to be within what was reserved for it. What is reserved
 * follows in steps of so much of what the table says, from so much more than that on. */
static const double WITHIN = 0.98, STEP = 0.02, FIRST_FACTOR = 1.1, LEAST = 0.5, MOST = 100.0;

enum { MACS, ENERGY, LATENCY, QUANTITIES };

static const struct {
    const char *name, *unit;
    double scale;
} WORDS[QUANTITIES] = {{"macs", "%", 1e2}, {"energy", "mJ", 1e3}, {"latency", "ms", 1e3}};

/* What a sample may spend of one quantity, and what pieces take of it at most; in one unit. */
typedef struct {
    int quantity;
    double limit;
    double *segments, *heads;
} limit_t;

typedef struct {
    limit_t one[QUANTITIES]; /* that of time is the last */
    uint32_t count, counted; /* all, and those that need no clock */
    uint32_t exits;
    bool tries;    /* whether steps may be limited, and `needs` are known */
    double *needs; /* of each step: what it takes at most, and what must follow in its segment */
} limits_t;

struct halting {
    const plan_t *plan;
    limits_t limits;
    double spent[QUANTITIES]; /* time in seconds of the table, of which a slow machine has fewer */
    int64_t start_ns, last_ns;
    /* What is reserved for a piece, of what the table says; without gates and with them, where
     * samples that take less because of gates make nothing faster. */
    double factor[2];
    int gates;        /* which of them */
    int half;         /* of `numbers`, in use: the other is for a rule that may be refused yet */
    double numbers[]; /* [2][see `numbers_of`] */
};

/* Where costs are from. */
typedef struct {
    const plan_t *plan;
    const costs_t *costs; /* NULL: macs alone are known */
    uint32_t state;
    bool gates;
} pieces_t;

/* -- what pieces cost -------------------------------------------------------------------------- */

static size_t numbers_of(const plan_t *plan) {
    return QUANTITIES * ((size_t)plan->segments + plan->exits) + plan->steps;
}

size_t halting_bytes(const plan_t *plan) {
    return sizeof(halting_t) + 2 * numbers_of(plan) * sizeof(double);
}

/* The state at which the full depth is fastest, or NONE. */
static uint32_t fastest(const costs_t *costs) {
    uint32_t found = NONE;
    double least = INFINITY;
    for (uint32_t state = 0; state < costs->states; state++) {
        double way = 0;
        for (uint32_t i = 0; i < costs->segments; i++)
            way += costs->latency_s[(size_t)i * costs->states + state];
        if (!(way < least)) continue; /* Not known is not below anything. */
        least = way;
        found = state;
    }
    return found;
}

static pieces_t pieces_of(const plan_t *plan, bool gates) {
    pieces_t found = {plan, plan->costs, NONE, gates};
    if (found.costs) found.state = fastest(found.costs);
    if (found.state == NONE) found.costs = NULL;
    return found;
}

/* What the table says of a row; NAN: not known. */
static double listed(const pieces_t *pieces, int quantity, uint32_t row) {
    size_t place = (size_t)row * pieces->costs->states + pieces->state;
    double seconds = pieces->costs->latency_s[place];
    return quantity == LATENCY || isnan(seconds) ? seconds : pieces->costs->energy_j[place];
}

/* The steps of a segment with gates, the first of which has that row. */
static double stepwise(
    const pieces_t *pieces, int quantity, const segment_t *segment, uint32_t row) {
    double found = 0;
    for (uint32_t i = segment->first; i < segment->end; i++, row++)
        if (pieces->gates || !pieces->plan->step[i].gate) found += listed(pieces, quantity, row);
    return found;
}

/* Fills in what pieces cost of a quantity. Returns whether all of it is known. */
static bool look_up(limit_t *one, const pieces_t *pieces) {
    const plan_t *plan = pieces->plan;
    if (one->quantity != MACS && !pieces->costs) return false;
    uint32_t row = plan->segments + plan->exits;
    for (uint32_t i = 0; i < plan->segments; i++) {
        const segment_t *segment = &plan->segment[i];
        if (one->quantity == MACS)
            one->segments[i] = (double)segment->macs + pieces->gates * (double)segment->gates_macs;
        else if (!segment->gated)
            one->segments[i] = listed(pieces, one->quantity, i);
        else
            one->segments[i] = stepwise(pieces, one->quantity, segment, row);
        if (segment->gated) row += segment->end - segment->first;
        if (!isfinite(one->segments[i])) return false;
    }
    for (uint32_t i = 0; i < plan->exits; i++) {
        one->heads[i] = one->quantity == MACS ? (double)plan->exit[i].macs
                                              : listed(pieces, one->quantity, plan->segments + i);
        if (!isfinite(one->heads[i])) return false;
    }
    return true;
}

/* Of a step's cost, what any sample pays. */
static double least_share(const step_plan_t *step) {
    return step->keep != NONE ? 0 : step_share(step, 0);
}

static void look_up_needs(double *needs, const pieces_t *pieces, int quantity) {
    const plan_t *plan = pieces->plan;
    uint32_t row = plan->segments + plan->exits;
    for (uint32_t i = 0; i < plan->segments; i++) {
        const segment_t *segment = &plan->segment[i];
        for (uint32_t place = segment->first; place < segment->end; place++) {
            if (quantity == MACS)
                needs[place] = (double)plan->step[place].call.macs;
            else if (segment->gated)
                needs[place] = listed(pieces, quantity, row++);
            else /* One step is all of it. */
                needs[place] = place == segment->first ? listed(pieces, quantity, i) : 0;
        }
        double follows = 0;
        for (uint32_t place = segment->end; place-- > segment->first;) {
            double cost = needs[place];
            needs[place] += follows;
            follows += least_share(&plan->step[place]) * cost;
        }
    }
}

/* -- what fits --------------------------------------------------------------------------------- */

/* Index of the exit whose answer costs least, the number of exits for the network's own. */
static uint32_t cheapest_answer(const limit_t *one, uint32_t exits, double *cost) {
    uint32_t found = exits;
    double way = 0;
    *cost = INFINITY;
    for (uint32_t i = 0; i <= exits; i++) {
        way += one->segments[i];
        double all = way + (i < exits ? one->heads[i] : 0);
        if (!(all < *cost)) continue;
        *cost = all;
        found = i;
    }
    return found;
}

/* The same for one limit, most often asked; `next` is the segment after the exit. */
static bool one_can_go_on(const limit_t *one, uint32_t exits, double spent, uint32_t next) {
    double left = one->limit - spent;
    for (uint32_t after = next; after < exits; after++) {
        left -= one->segments[after];
        if (one->heads[after] <= left) return true;
        if (left < 0) return false;
    }
    return one->segments[exits] <= left;
}

/* Whether an answer from segment `next` or beyond it fits into what is left of all limits. */
static bool can_go_on(const limits_t *limits, const double *spent, uint32_t next) {
    if (limits->count == 1) return one_can_go_on(limits->one, limits->exits, spent[0], next);
    double ways[QUANTITIES];
    memcpy(ways, spent, sizeof ways);
    for (uint32_t after = next; after <= limits->exits; after++) {
        bool all = true;
        for (uint32_t k = 0; k < limits->count; k++) {
            const limit_t *one = &limits->one[k];
            ways[k] += one->segments[after];
            all &= ways[k] + (after < limits->exits ? one->heads[after] : 0) <= one->limit;
        }
        if (all) return true;
    }
    return false;
}

/* -- what is wrong, in words ------------------------------------------------------------------- */

typedef struct {
    char text[400];
    size_t length;
} words_t;

static void say(words_t *words, const char *text) {
    size_t room = sizeof words->text - 1 - words->length, length = strlen(text);
    if (length > room) length = room;
    memcpy(words->text + words->length, text, length);
    words->length += length;
    words->text[words->length] = 0;
}

/* A number with a point in it, whatever the app's locale has there. */
static void say_number(words_t *words, double number) {
    char told[32], found[32], *end = found;
    snprintf(told, sizeof told, "%g", number);
    for (const char *at = told; *at; at++) {
        if (strchr("+-0123456789aefin", *at))
            *end++ = *at;
        else if (end == found || end[-1] != '.')
            *end++ = '.';
    }
    *end = 0;
    say(words, found);
}

/* As people write it: what is counted as a share of the network's, the rest in thousandths. */
static void say_cost(words_t *words, int quantity, double cost) {
    say_number(words, cost * WORDS[quantity].scale);
    say(words, " ");
    say(words, WORDS[quantity].unit);
}

/* The rule as the language writes it, and the cheapest answer for each of its limits. */
static ee_status out_of_reach(
    const char *what, const limits_t *limits, const pieces_t *pieces, const double *given) {
    words_t rule = {"", 0}, notes = {"", 0};
    const plan_t *plan = pieces->plan;
    for (uint32_t k = 0; k < limits->count; k++) {
        int quantity = limits->one[k].quantity;
        double cost, unit = quantity == MACS ? (double)plan->macs : 1;
        uint32_t exit = cheapest_answer(&limits->one[k], plan->exits, &cost);
        say(&rule, k ? ", " : "");
        say(&rule, WORDS[quantity].name);
        say(&rule, " <= ");
        say_cost(&rule, quantity, given[quantity]);
        say(&notes, k ? ", and " : "");
        say(&notes, exit < plan->exits ? "exit `" : "the network's own answer");
        say(&notes, exit < plan->exits ? plan->exit[exit].name : "");
        say(&notes, exit < plan->exits ? "` with " : " with ");
        say_cost(&notes, quantity, cost / unit);
        if (quantity == MACS || !(pieces->costs->state[pieces->state].frequency_hz > 0)) continue;
        say(&notes, " at ");
        say_number(&notes, pieces->costs->state[pieces->state].frequency_hz * 1e-6);
        say(&notes, " MHz");
    }
    return fail(EE_INFEASIBLE, "%s `%s`: the cheapest is %s", what, rule.text, notes.text);
}

static ee_status not_known(int quantity, const pieces_t *pieces) {
    const char *name = WORDS[quantity].name;
    return fail(
        EE_BAD_ARGUMENT, "what every segment and head takes of %s is not known%s%s", name,
        pieces->plan->costs ? "" : ": the artifact has no costs",
        quantity == ENERGY && pieces->costs ? "; halt by macs or latency" : "; halt by macs");
}

/* -- a rule ------------------------------------------------------------------------------------ */

static ee_status add_limit(
    limits_t *limits, const pieces_t *pieces, int quantity, const double *given) {
    const plan_t *plan = pieces->plan;
    limit_t *one = &limits->one[limits->count];
    double cost;
    if (!isfinite(given[quantity]) || given[quantity] <= 0)
        return fail(
            EE_BAD_ARGUMENT, "a limit of %s must be a finite number above 0",
            WORDS[quantity].name);
    one->quantity = quantity;
    one->limit = given[quantity];
    if (quantity == MACS) /* A whole number of them, whatever a fraction is rounded to. */
        one->limit = floor(one->limit * (double)plan->macs + 1e-3);
    if (!look_up(one, pieces)) return not_known(quantity, pieces);
    cheapest_answer(one, plan->exits, &cost);
    if (cost > one->limit) {
        limits_t alone = {.one = {*one}, .count = 1};
        return out_of_reach("not even the cheapest answer keeps", &alone, pieces, given);
    }
    limits->count++;
    limits->counted += quantity != LATENCY;
    return EE_OK;
}

/* Time that is reserved for the session's own work, too. */
static void reserve(limit_t *one, uint32_t exits) {
    one->limit -= ANSWER_S;
    for (uint32_t i = 0; i <= exits; i++) one->segments[i] += AROUND_S;
    for (uint32_t i = 0; i < exits; i++) one->heads[i] += AROUND_S;
}

ee_status halting_set(
    halting_t *halting, const plan_t *plan, const halt_rule_t *rule, bool gates) {
    const double given[QUANTITIES] = {rule->macs, rule->energy_j, rule->latency_s};
    static const double none[QUANTITIES];
    size_t pieces_count = (size_t)plan->segments + plan->exits;
    double *numbers = halting->numbers + !halting->half * numbers_of(plan);
    limits_t next = {.exits = plan->exits, .needs = numbers + QUANTITIES * pieces_count};
    pieces_t pieces = pieces_of(plan, gates);
    for (int quantity = 0; quantity < QUANTITIES; quantity++, numbers += pieces_count) {
        if (isnan(given[quantity])) continue;
        next.one[next.count].segments = numbers;
        next.one[next.count].heads = numbers + plan->segments;
        ee_status status = add_limit(&next, &pieces, quantity, given);
        if (status) return status;
    }
    if (!next.count) return fail(EE_BAD_ARGUMENT, "there must be a limit");
    if (!can_go_on(&next, none, 0))
        return out_of_reach("no answer keeps all of", &next, &pieces, given);
    bool gated = gates && plan->gated;
    next.tries = gated && next.count == 1 && next.one[0].quantity != ENERGY;
    if (next.tries) look_up_needs(next.needs, &pieces, next.one[0].quantity);
    if (next.counted < next.count) reserve(&next.one[next.counted], plan->exits);
    if (halting->plan != plan) halting->factor[0] = halting->factor[1] = FIRST_FACTOR;
    halting->plan = plan;
    halting->limits = next;
    halting->gates = gated;
    halting->half = !halting->half;
    return EE_OK;
}

/* -- a sample ---------------------------------------------------------------------------------- */

/* Looks at the clock, where there is a limit of time. */
static void tick(halting_t *halting) {
    const limits_t *limits = &halting->limits;
    if (limits->counted == limits->count) return;
    double limit = limits->one[limits->counted].limit;
    halting->last_ns = monotonic_ns();
    double left = limit - (double)(halting->last_ns - halting->start_ns) / 1e9;
    halting->spent[limits->counted] = limit - left / halting->factor[halting->gates];
}

/* A segment took that long: reserve more from now on, or less. */
static void saw(halting_t *halting, double in_table_s, double seconds) {
    double *factor = &halting->factor[halting->gates];
    double least = halting->gates ? FIRST_FACTOR : LEAST;
    *factor += STEP * (seconds > *factor * in_table_s ? WITHIN : WITHIN - 1);
    *factor = fmin(fmax(*factor, least), MOST);
}

void halting_begin(halting_t *halting, int64_t start_ns) {
    memset(halting->spent, 0, sizeof halting->spent);
    halting->start_ns = start_ns;
    tick(halting);
}

void halting_segment(halting_t *halting, uint32_t segment, int64_t macs) {
    const limits_t *limits = &halting->limits;
    for (uint32_t k = 0; k < limits->counted; k++) {
        const limit_t *one = &limits->one[k];
        halting->spent[k] += one->quantity == MACS ? (double)macs : one->segments[segment];
    }
    if (limits->counted == limits->count) return;
    int64_t before_ns = halting->last_ns;
    tick(halting);
    double seconds = (double)(halting->last_ns - before_ns) / 1e9;
    saw(halting, limits->one[limits->counted].segments[segment], seconds);
}

void halting_head(halting_t *halting, uint32_t exit) {
    const limits_t *limits = &halting->limits;
    for (uint32_t k = 0; k < limits->counted; k++)
        halting->spent[k] += limits->one[k].heads[exit];
    tick(halting);
}

bool halting_affords(const halting_t *halting, uint32_t exit) {
    const limits_t *limits = &halting->limits;
    for (uint32_t k = 0; k < limits->count; k++)
        if (halting->spent[k] + limits->one[k].heads[exit] > limits->one[k].limit) return false;
    return true;
}

bool halting_goes_on(const halting_t *halting, uint32_t exit) {
    return can_go_on(&halting->limits, halting->spent, exit + 1);
}

/* What an answer takes at least once segment `next` has run. */
static double least_after(const limit_t *one, uint32_t exits, uint32_t next) {
    double least = next < exits ? one->heads[next] : 0, ahead = 0;
    for (uint32_t due = next + 1; due <= exits; due++) {
        ahead += one->segments[due];
        least = fmin(least, ahead + (due < exits ? one->heads[due] : 0));
    }
    return least;
}

bool halting_tries(halting_t *halting, uint32_t exit, program_t *program) {
    const limits_t *limits = &halting->limits;
    if (!program || !limits->tries) return false;
    const limit_t *one = &limits->one[0];
    const segment_t *segment = &halting->plan->segment[exit + 1];
    step_t *steps = (step_t *)(intptr_t)program->steps;
    bool timed = one->quantity == LATENCY;
    double factor = timed ? halting->factor[halting->gates] : 1;
    double after = least_after(one, limits->exits, exit + 1);
    for (uint32_t place = segment->first; place < segment->end; place++)
        steps[place].need = (limits->needs[place] + after) * factor;
    program->limit = timed ? TIMED : COUNTED;
    program->budget = one->limit;
    program->start_ns = timed ? halting->start_ns : 0;
    if (!timed) { /* Steps count what they take; heads are not among them. */
        const tally_t *tally = (const tally_t *)(intptr_t)program->tallies;
        program->budget -= halting->spent[0] - (double)tally->macs;
    }
    return true;
}

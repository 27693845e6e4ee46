/* What the scheduler looks up: for each way and clock at hand, the clocks worth choosing, sorted.
 *
 * As eecompile/runtime/clock_costs.py and clock_fronts.py, in the same order of operations, so that
 * sums round alike. All of it is made beforehand, over the states that can be set. Where that are
 * fewer later it is made again, in the same memory: room is for the longest fronts there can be,
 * and fronts lie one behind the other, so that what they do not need is never touched.
 */

#include "clocks.h"

#include <string.h>

/* Share of a deadline that sums of costs may lie above it by the rounding of floats. */
#define TOLERANCE 1e-9
/* Costs nearer than this share of them are the same, and the faster clock is taken. */
#define ALIKE 1e-9
/* Linux counts clocks in kilohertz: nearer than half of one is the same. */
#define SAME_HZ 500.0
/* So that indices fit into 16 bits and counts of fronts into 32. */
#define MOST_STATES 1024
#define MOST_EXITS 1024
/* So that fronts are made within seconds whatever the costs: exits squared, states cubed. */
#define MOST_WORK 4e9
/* So that no sum of times is infinite. */
#define MOST_SECONDS 1e100

/* -- costs ------------------------------------------------------------------------------------- */

static double cost(const fronts_t *f, const double *table, uint32_t row, uint32_t state) {
    return table[(size_t)row * f->costs->states + f->of[state]];
}

static uint32_t rows(const fronts_t *f) { return 2 * f->last + 1; }

static bool all_known(const fronts_t *f, const double *table, uint32_t state) {
    for (uint32_t row = 0; row < rows(f); row++)
        if (isnan(cost(f, table, row, state))) return false;
    return true;
}

static void add_up(const fronts_t *f, const sums_t *sums, const double *table, const bool *known) {
    for (uint32_t k = 0; k < f->states; k++) {
        double below = 0, heads = 0;
        for (uint32_t row = 0; row <= f->last + 1; row++) {
            sums->below[row * f->states + k] = below;
            if (known[k] && row <= f->last) below += cost(f, table, row, k);
        }
        for (uint32_t exit = 0; exit <= f->last; exit++) {
            sums->heads[exit * f->states + k] = heads;
            if (known[k] && exit < f->last) heads += cost(f, table, f->last + 1 + exit, k);
        }
    }
}

/* From one exit to another one and its head; the network's own answer has none. */
static double stretch(
    const fronts_t *f, const sums_t *sums, const double *table, uint32_t from, uint32_t due,
    uint32_t k) {
    double segments = sums->below[(due + 1) * f->states + k] - sums->below[from * f->states + k];
    return segments + (due < f->last ? cost(f, table, f->last + 1 + due, k) : 0.0);
}

/* From one exit to the end with every head on the way. */
static double way(const fronts_t *f, const sums_t *sums, uint32_t from, uint32_t k) {
    uint32_t n = f->states;
    double segments = sums->below[(f->last + 1) * n + k] - sums->below[from * n + k];
    return segments + sums->heads[f->last * n + k] - sums->heads[from * n + k];
}

static double stretch_s(const fronts_t *f, uint32_t from, uint32_t due, uint32_t k) {
    return f->usable[k] ? stretch(f, &f->latency, f->costs->latency_s, from, due, k) : INFINITY;
}

static double stretch_j(const fronts_t *f, uint32_t from, uint32_t due, uint32_t k) {
    return f->has_energy[k] ? stretch(f, &f->energy, f->costs->energy_j, from, due, k) : NAN;
}

static double way_s(const fronts_t *f, uint32_t from, uint32_t k) {
    return f->usable[k] ? way(f, &f->latency, from, k) : INFINITY;
}

static double way_j(const fronts_t *f, uint32_t from, uint32_t k) {
    return f->has_energy[k] ? way(f, &f->energy, from, k) : NAN;
}

static double frequency_of(const fronts_t *f, uint32_t k) {
    return f->costs->state[f->of[k]].frequency_hz;
}

static uint32_t cluster_of(const fronts_t *f, uint32_t k) { return f->cluster[f->of[k]]; }

/* From changing the clock of a state's cluster to running at it; INFINITY: not known. */
static double transition_s(const fronts_t *f, uint32_t k) {
    uint32_t clocks = 0;
    for (uint32_t other = 0; other < f->states; other++)
        clocks += cluster_of(f, other) == cluster_of(f, k);
    double found = f->costs->cluster[cluster_of(f, k)].transition_s;
    if (!isnan(found)) return found;
    return clocks == 1 ? 0.0 : INFINITY; /* its only clock is the one it is at */
}

static void make_changes(fronts_t *f) {
    uint32_t n = f->states;
    double migration_s = isnan(f->costs->migration_s) ? INFINITY : f->costs->migration_s;
    for (uint32_t to = 0; to < n; to++) {
        double transition = transition_s(f, to);
        for (uint32_t at = 0; at < n; at++) {
            bool same = cluster_of(f, at) == cluster_of(f, to);
            /* The other cluster's clock is wherever it was left: it may have to change as well. */
            double time = at == to ? 0.0 : same ? transition : migration_s + transition;
            f->change_s[at * n + to] = time;
            double energy = isfinite(time) ? time * fmax(f->power_w[at], f->power_w[to]) : NAN;
            f->change_j[at * n + to] = at == to ? 0.0 : energy;
        }
    }
}

static const char *make_costs(fronts_t *f) {
    bool any = false;
    for (uint32_t k = 0; k < f->states; k++) {
        f->usable[k] = all_known(f, f->costs->latency_s, k);
        f->has_energy[k] = f->usable[k] && all_known(f, f->costs->energy_j, k);
        any |= f->usable[k];
    }
    if (!any) return "the cost table has no clock at which every latency is known";
    add_up(f, &f->latency, f->costs->latency_s, f->usable);
    add_up(f, &f->energy, f->costs->energy_j, f->has_energy);
    for (uint32_t k = 0; k < f->states; k++) {
        size_t full = (size_t)(f->last + 1) * f->states + k;
        bool known = f->has_energy[k] && f->latency.below[full] > 0;
        f->power_w[k] = known ? f->energy.below[full] / f->latency.below[full] : NAN;
    }
    make_changes(f);
    for (uint32_t from = 0; from <= f->last; from++)
        for (uint32_t due = from; due <= f->last; due++)
            for (uint32_t k = 0; k < f->states; k++)
                f->stretch_j[((size_t)from * (f->last + 1) + due) * f->states + k] =
                    stretch_j(f, from, due, k);
    return NULL;
}

/* -- what the rule leaves ---------------------------------------------------------------------- */

/* State at which the full depth, every head included, is fastest. */
static uint16_t fastest(const fronts_t *f) {
    uint16_t found = 0;
    for (uint32_t k = 1; k < f->states; k++)
        if (way_s(f, 0, k) < way_s(f, 0, found)) found = (uint16_t)k;
    return found;
}

/* Of the clocks at `asked`, or of all, the one of the cluster that is fastest; NONE: no such. */
static uint32_t fastest_at(const fronts_t *f, double asked) {
    uint32_t found = NONE;
    for (uint32_t k = 0; k < f->states; k++) {
        bool fits = isnan(asked) || fabs(frequency_of(f, k) - asked) <= SAME_HZ;
        if (!fits || !f->usable[k]) continue;
        if (found == NONE || way_s(f, 0, k) < way_s(f, 0, found)) found = k;
    }
    return found;
}

static const char *allow(fronts_t *f) {
    if (f->rule.start != NONE && !(f->rule.start < f->states && f->usable[f->rule.start]))
        return "no latencies are known at the rule's start";
    bool all = f->rule.objective != FIXED && f->rule.objective != UNCHANGED;
    uint32_t only = fastest_at(f, f->rule.objective == FIXED ? f->rule.frequency_hz : NAN);
    if (only == NONE) return "the cost table has no clock of the fixed frequency";
    f->by_energy = false;
    for (uint32_t k = 0; k < f->states; k++) {
        f->allowed[k] = f->usable[k] && (all || k == only);
        f->by_energy |= f->allowed[k] && f->has_energy[k];
    }
    f->by_energy &= f->rule.objective == LOWEST_ENERGY;
    return NULL;
}

static bool in_time(const fronts_t *f, uint32_t k) {
    return f->allowed[k] && f->has_energy[k] && way_s(f, 0, k) <= f->limit_s;
}

/* The best for the whole way with every head, if each sample took it. */
static uint16_t best_home(const fronts_t *f) {
    double least = INFINITY;
    for (uint32_t k = 0; k < f->states && f->by_energy; k++)
        if (in_time(f, k)) least = fmin(least, way_j(f, 0, k) - f->idle_w * way_s(f, 0, k));
    uint16_t found = 0;
    double soonest = INFINITY;
    for (uint32_t k = 0; k < f->states; k++) {
        double time = f->allowed[k] ? way_s(f, 0, k) : INFINITY;
        if (isfinite(least)) {
            double price = way_j(f, 0, k) - f->idle_w * time;
            if (!in_time(f, k) || price > least + ALIKE * fabs(least)) continue;
        }
        if (time < soonest) {
            soonest = time;
            found = (uint16_t)k;
        }
    }
    return found;
}

/* -- fronts ------------------------------------------------------------------------------------ */

/* What going on at each state asks for, from one at hand: the change of clock and what is run then.
 * Where nobody knows how long any change takes, it goes on at `home`. */
static void needs_of(const fronts_t *f, const double *time_s, uint32_t at, double *needs) {
    bool stuck = true;
    for (uint32_t k = 0; k < f->states; k++) {
        needs[k] = f->change_s[at * f->states + k] + (f->allowed[k] ? time_s[k] : INFINITY);
        stuck &= !isfinite(needs[k]);
    }
    if (stuck) needs[f->home] = time_s[f->home];
}

static uint32_t least(const double *values, uint32_t count) {
    uint32_t found = 0;
    for (uint32_t k = 1; k < count; k++)
        if (values[k] < values[found]) found = k;
    return found;
}

/* By the state of the stretch to `due`: time to keep for the rest, if it must be safe. */
static void reserve(fronts_t *f, uint32_t due) {
    for (uint32_t k = 0; k < f->states; k++) f->reserve_s[k] = 0;
    if (!f->rule.safe || due == f->last) return;
    for (uint32_t k = 0; k < f->states; k++) f->time_s[k] = stretch_s(f, due + 1, f->last, k);
    for (uint32_t k = 0; k < f->states; k++) {
        needs_of(f, f->time_s, k, f->bounds);
        f->reserve_s[k] = f->bounds[least(f->bounds, f->states)];
    }
}

static void price(fronts_t *f, uint32_t at) {
    for (uint32_t k = 0; k < f->states; k++) {
        double back = f->change_j[k * f->states + f->home];
        double found = f->change_j[at * f->states + k] + f->cost_j[k] + (isnan(back) ? 0.0 : back);
        found = found - f->idle_w * (isfinite(f->bounds[k]) ? f->bounds[k] : 0.0);
        if (!f->by_energy) found = f->bounds[k];
        f->prices[k] = isfinite(f->bounds[k]) && !isnan(found) ? found : INFINITY;
    }
}

static bool sorts_before(const fronts_t *f, uint32_t a, uint32_t b) {
    if (f->bounds[a] != f->bounds[b]) return f->bounds[a] < f->bounds[b];
    if (f->prices[a] != f->prices[b]) return f->prices[a] < f->prices[b];
    return a < b;
}

/* By insertion: from one clock at hand to the next the order hardly changes. */
static void sort(fronts_t *f) {
    for (uint32_t i = 1; i < f->states; i++) {
        uint16_t moved = f->order[i];
        uint32_t place = i;
        for (; place && sorts_before(f, moved, f->order[place - 1]); place--)
            f->order[place] = f->order[place - 1];
        f->order[place] = moved;
    }
}

static front_t front(fronts_t *f) {
    front_t found = {f->filled, 0};
    double cheapest = INFINITY;
    sort(f);
    for (uint32_t i = 0; i < f->states; i++) {
        uint16_t k = f->order[i];
        if (!isfinite(f->bounds[k])) break;
        double room = isinf(cheapest) ? 0.0 : ALIKE * fabs(cheapest);
        if (found.count && !(f->prices[k] < cheapest - room)) {
            cheapest = fmin(cheapest, f->prices[k]);
            continue;
        }
        cheapest = fmin(cheapest, f->prices[k]);
        f->needs[f->filled] = f->bounds[k];
        f->choices[f->filled++] = k;
        found.count++;
    }
    return found;
}

/* Of one way, whose `time_s`, `cost_j` and `reserve_s` are filled in. */
static void make_fronts(fronts_t *f, front_t *fronts) {
    for (uint32_t at = 0; at < f->states; at++) {
        needs_of(f, f->time_s, at, f->bounds);
        price(f, at);
        for (uint32_t k = 0; k < f->states; k++) f->bounds[k] += f->reserve_s[k];
        fronts[at] = front(f);
    }
}

static void make_stretches(fronts_t *f, uint32_t from) {
    for (uint32_t due = from; due <= f->last; due++) {
        reserve(f, due);
        for (uint32_t k = 0; k < f->states; k++) {
            f->time_s[k] = stretch_s(f, from, due, k);
            f->cost_j[k] = stretch_j(f, from, due, k);
        }
        make_fronts(f, f->stretches + ((size_t)from * (f->last + 1) + due) * f->states);
    }
}

static void make_way(fronts_t *f, uint32_t from) {
    for (uint32_t k = 0; k < f->states; k++) {
        f->time_s[k] = way_s(f, from, k);
        f->cost_j[k] = way_j(f, from, k);
        f->reserve_s[k] = 0;
    }
    make_fronts(f, f->ways + (size_t)from * f->states);
}

/* The deepest exits, by the time they need. */
static void make_reach(fronts_t *f, uint32_t from, uint32_t at) {
    uint32_t exits = f->last + 1, count = 0;
    size_t row = (size_t)from * f->states + at;
    const double *soonest = f->soonest + row * exits;
    double *needs = f->reach_needs + row * exits;
    uint32_t *found = f->reach_exits + row * exits;
    for (uint32_t exit = exits; exit-- > 0;) {
        if (!(soonest[exit] < (count ? needs[count - 1] : INFINITY))) continue;
        needs[count] = soonest[exit];
        found[count++] = exit;
    }
    for (uint32_t i = 0; i < count / 2; i++) {
        double need = needs[i];
        uint32_t exit = found[i];
        needs[i] = needs[count - 1 - i];
        found[i] = found[count - 1 - i];
        needs[count - 1 - i] = need;
        found[count - 1 - i] = exit;
    }
    f->reached[row] = count;
}

static void make_reaches(fronts_t *f, uint32_t from) {
    for (uint32_t due = 0; due <= f->last; due++) {
        for (uint32_t k = 0; k < f->states && due >= from; k++)
            f->time_s[k] = stretch_s(f, from, due, k);
        for (uint32_t at = 0; at < f->states; at++) {
            size_t place = ((size_t)from * f->states + at) * (f->last + 1) + due;
            f->soonest[place] = INFINITY;
            f->by[place] = 0;
            if (due < from) continue;
            needs_of(f, f->time_s, at, f->bounds);
            f->by[place] = (uint16_t)least(f->bounds, f->states);
            f->soonest[place] = f->bounds[f->by[place]];
        }
    }
    for (uint32_t at = 0; at < f->states; at++) make_reach(f, from, at);
}

static void make_entries(fronts_t *f) {
    uint32_t n = f->states;
    for (uint32_t exit = 0; exit <= f->last; exit++) {
        double run = way_s(f, 0, f->home);
        if (f->rule.start != NONE) {
            reserve(f, exit);
            run = stretch_s(f, 0, exit, f->home) + f->reserve_s[f->home];
        }
        for (uint32_t at = 0; at < n; at++)
            f->entry_s[exit * n + at] = f->change_s[at * n + f->home] + run;
    }
    for (uint32_t at = 0; at < n; at++)
        f->enters[at] = (uint16_t)(isinf(f->change_s[at * n + f->home]) ? f->home : at);
}

/* The clock of lowest power in each state's cluster. Clusters list their states by rising
 * frequency, and power rises with it: where one is not known the first is taken. */
static void make_rests(fronts_t *f) {
    for (uint32_t at = 0; at < f->states; at++) {
        uint32_t first = NONE, lowest = NONE;
        bool known = true;
        for (uint32_t k = 0; k < f->states; k++) {
            if (cluster_of(f, k) != cluster_of(f, at)) continue;
            if (first == NONE) first = lowest = k;
            if (f->power_w[k] < f->power_w[lowest]) lowest = k;
            known &= !isnan(f->power_w[k]);
        }
        f->lowest[at] = (uint16_t)(known ? lowest : first);
        f->there_and_back_s[at] = 2 * f->change_s[at * f->states + f->lowest[at]];
    }
}

const char *fronts_make(fronts_t *f, const clock_rule_t *rule) {
    f->rule = *rule;
    f->filled = 0;
    const char *wrong = f->states ? make_costs(f) : "the cost table has no clocks";
    if (!wrong) wrong = allow(f);
    if (wrong) return wrong;
    f->limit_s = isnan(rule->deadline_s) ? INFINITY : rule->deadline_s * (1 + TOLERANCE);
    /* Time not needed is waited for at idle power: the longer a way takes, the less of that. */
    bool waits = f->limit_s < INFINITY && !isnan(f->costs->idle_power_w);
    f->idle_w = waits ? f->costs->idle_power_w : 0.0;
    f->fastest = fastest(f);
    f->home = (uint16_t)(rule->start != NONE ? rule->start : best_home(f));
    for (uint32_t k = 0; k < f->states; k++) f->order[k] = (uint16_t)k;
    for (uint32_t from = 0; from <= f->last; from++) {
        make_way(f, from);
        make_stretches(f, from);
        make_reaches(f, from);
    }
    make_entries(f);
    make_rests(f);
    return NULL;
}

/* -- memory ------------------------------------------------------------------------------------ */

static bool is_cost(double value) {
    return isnan(value) || (value >= 0 && value <= MOST_SECONDS);
}

static bool are_costs(const double *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!is_cost(values[i])) return false;
    return true;
}

static const char *check(const costs_t *costs) {
    if (!costs->states || costs->segments != (uint64_t)costs->exits + 1)
        return "the cost table does not fit a network with exits";
    if (costs->states > MOST_STATES || costs->exits > MOST_EXITS)
        return "the cost table has too many clocks or exits";
    if (pow(costs->segments, 2) * pow(costs->states, 3) > MOST_WORK)
        return "the cost table has too many clocks for so many exits";
    size_t count = ((size_t)costs->segments + costs->exits) * costs->states;
    bool good = are_costs(costs->latency_s, count) && are_costs(costs->energy_j, count) &&
                is_cost(costs->migration_s) && is_cost(costs->idle_power_w);
    for (uint32_t i = 0; i < costs->clusters; i++) good &= is_cost(costs->cluster[i].transition_s);
    for (uint32_t i = 0; i < costs->states; i++) good &= is_cost(costs->state[i].frequency_hz);
    return good ? NULL : "the cost table has a cost that is none";
}

static bool find_clusters(fronts_t *f) {
    for (uint32_t k = 0; k < f->costs->states; k++) {
        uint32_t found = 0;
        while (found < f->costs->clusters &&
               strcmp(f->costs->cluster[found].name, f->costs->state[k].cluster))
            found++;
        if (found == f->costs->clusters) return false;
        f->cluster[k] = found;
    }
    return true;
}

static double *doubles(arena_t *arena, size_t rows, size_t columns, bool *enough) {
    double *found = arena_take(arena, rows * columns, sizeof(double));
    *enough &= found != NULL;
    return found;
}

static uint32_t *wholes(arena_t *arena, size_t rows, size_t columns, bool *enough) {
    uint32_t *found = arena_take(arena, rows * columns, sizeof(uint32_t));
    *enough &= found != NULL;
    return found;
}

static uint16_t *indices(arena_t *arena, size_t rows, size_t columns, bool *enough) {
    uint16_t *found = arena_take(arena, rows * columns, sizeof(uint16_t));
    *enough &= found != NULL;
    return found;
}

static bool *flags(arena_t *arena, size_t count, bool *enough) {
    bool *found = arena_take(arena, count, sizeof(bool));
    *enough &= found != NULL;
    return found;
}

static front_t *fronts(arena_t *arena, size_t rows, size_t columns, bool *enough) {
    front_t *found = arena_take(arena, rows * columns, sizeof(front_t));
    *enough &= found != NULL;
    return found;
}

static bool take_costs(fronts_t *f, arena_t *arena, size_t n, size_t exits) {
    bool enough = true;
    f->of = indices(arena, 1, n, &enough);
    f->cluster = wholes(arena, 1, n, &enough);
    f->usable = flags(arena, n, &enough);
    f->has_energy = flags(arena, n, &enough);
    f->allowed = flags(arena, n, &enough);
    f->latency.below = doubles(arena, exits + 1, n, &enough);
    f->latency.heads = doubles(arena, exits, n, &enough);
    f->energy.below = doubles(arena, exits + 1, n, &enough);
    f->energy.heads = doubles(arena, exits, n, &enough);
    f->power_w = doubles(arena, 1, n, &enough);
    f->change_s = doubles(arena, n, n, &enough);
    f->change_j = doubles(arena, n, n, &enough);
    f->stretch_j = doubles(arena, exits * exits, n, &enough);
    return enough;
}

static bool take_fronts(fronts_t *f, arena_t *arena, size_t n, size_t exits) {
    bool enough = true;
    size_t ways = exits * (exits + 1) / 2 + exits; /* stretches, and ways to the end */
    f->enters = indices(arena, 1, n, &enough);
    f->entry_s = doubles(arena, exits, n, &enough);
    f->stretches = fronts(arena, exits * exits, n, &enough);
    f->ways = fronts(arena, exits, n, &enough);
    f->needs = doubles(arena, ways, n * n, &enough);
    f->choices = indices(arena, ways, n * n, &enough);
    f->soonest = doubles(arena, exits * n, exits, &enough);
    f->by = indices(arena, exits * n, exits, &enough);
    f->reach_needs = doubles(arena, exits * n, exits, &enough);
    f->reach_exits = wholes(arena, exits * n, exits, &enough);
    f->reached = wholes(arena, exits, n, &enough);
    f->lowest = indices(arena, 1, n, &enough);
    f->there_and_back_s = doubles(arena, 1, n, &enough);
    f->time_s = doubles(arena, 1, n, &enough);
    f->cost_j = doubles(arena, 1, n, &enough);
    f->reserve_s = doubles(arena, 1, n, &enough);
    f->bounds = doubles(arena, 1, n, &enough);
    f->prices = doubles(arena, 1, n, &enough);
    f->order = indices(arena, 1, n, &enough);
    return enough;
}

const char *fronts_open(fronts_t *f, arena_t *arena, const costs_t *costs) {
    const char *wrong = check(costs);
    if (wrong) return wrong;
    size_t exits = (size_t)costs->exits + 1;
    f->costs = costs;
    f->last = costs->exits;
    if (!take_costs(f, arena, costs->states, exits) || !take_fronts(f, arena, costs->states, exits))
        return "there are too many clocks and exits for the memory there is";
    return find_clusters(f) ? NULL : "the cost table has a clock of no cluster";
}

/* Rules of the policies, from bytes that nobody has checked.
 *
 * A rule, as eecompile/native_policies.py writes it: u8 kind, f64 gate_shift, and by kind
 *
 *     0 threshold      u8 measure below 3, limits
 *     1 class_means    limits
 *     2 patience       u32 exits, u32 confirmations wanted, at least 1
 *     3 either         u32 rules, at least 1; the rules
 *     4 never          u32 exits
 *     5 predicted      limits from 0, u32 start, u32 window (1 .. exits), bool surprise, u8
 *                      forecast (0 class_order, 1 sorted, 2 fitted); fitted: f64[exits]
 *                      [window - 1], not rising
 *     6 learned_score  limits; of each exit, bool: it has weights, and if so: u32 0 or the number
 *                      of shares a score looks at, f64[] their weights; f64[5] of the measures; u32
 *                      0 or the exit's index, f64[] of earlier scores
 *     7 split          u8 measure below 3, or 5: class means; u32 exits; u32 arms, u32[arms] their
 *                      exits, rising; f64[arms] limits; bool: it learns. If not: u32 the arm. If
 *                      so: bool side observations, bool imputes, f64 discount, exploration, weight,
 *                      price, f64[arms + 1] costs up to an arm, f64[arms + 1] of ending alone
 *
 * where limits are u32 exits, f64[exits]: one for each exit, INFINITY where nothing can leave.
 * Limits may be infinite; every other number is finite. Measures are numbered as `measure_t`.
 */

#include "policies.h"

#include <float.h>

enum { DEEPEST = 8 }; /* rules within rules */

typedef struct {
    reader_t *reader;
    uint32_t exits, classes;
    const uint8_t *has;
    size_t room, memory;
    int depth;
} reading_t;

static policy_t *read_rule(reading_t *from);

/* As numpy's: too large is infinite. */
static float narrow(double value) {
    if (fabs(value) > FLT_MAX) return value > 0 ? INFINITY : -INFINITY;
    return (float)value;
}

/* Numbers, infinite ones too. */
static const double *read_levels(reader_t *reader, uint32_t count) {
    const double *found = read_numbers(reader, count, false);
    for (uint32_t i = 0; found && i < count; i++)
        expect(reader, !isnan(found[i]), "a limit is no number");
    return found;
}

static const float *read_weights(reader_t *reader, uint32_t count) {
    const double *found = read_numbers(reader, count, true);
    float *weights = take(reader, count, sizeof(float));
    for (uint32_t i = 0; found && weights && i < count; i++) {
        weights[i] = narrow(found[i]);
        expect(reader, isfinite(weights[i]), "a number is not finite");
    }
    return weights;
}

static double read_from_zero(reader_t *reader) {
    double value = read_f64(reader);
    expect(reader, value >= 0 && isfinite(value), "what a policy weighs with is below 0");
    return value;
}

static void expect_exits(reading_t *from) {
    expect(
        from->reader, read_u32(from->reader) == from->exits,
        "a policy is for another number of exits");
}

static const double *read_limits(reading_t *from) {
    expect_exits(from);
    return read_levels(from->reader, from->exits);
}

/* What is behind `state`'s room that all share: memory for a rule of its own. */
static size_t remember(reading_t *from, size_t bytes) {
    size_t at = from->memory;
    from->memory += (bytes + 7) / 8 * 8;
    return at;
}

/* Limits as they are compared with, and the exits that can be taken. */
static const stop_t *stops_of(reading_t *from, const double *limits, uint32_t *first) {
    stop_t *stops = take(from->reader, from->exits, sizeof(stop_t));
    if (!limits || !stops) return NULL;
    uint32_t after = from->exits;
    for (uint32_t k = from->exits; k-- > 0;) {
        stops[k] = (stop_t){narrow(limits[k]), (int32_t)after};
        if (limits[k] < INFINITY) after = k;
    }
    *first = after;
    return stops;
}

static measure_t read_measure(reading_t *from, bool means) {
    uint8_t found = read_u8(from->reader);
    expect(
        from->reader, found <= MARGIN || (means && found == MEANS),
        "there is no such measure of confidence");
    expect(from->reader, found != MARGIN || from->classes > 1, "a margin is between two classes");
    return (measure_t)found;
}

static void read_threshold(reading_t *from, policy_t *policy) {
    threshold_t *rule = &policy->threshold;
    rule->measure = policy->kind == THRESHOLD ? read_measure(from, false) : MAX_SOFTMAX;
    rule->stop = stops_of(from, read_limits(from), &rule->first);
}

static void read_patience(reading_t *from, policy_t *policy) {
    expect_exits(from);
    policy->wanted = read_u32(from->reader);
    expect(from->reader, policy->wanted > 0, "patience wants no confirmation");
    policy->own = remember(from, sizeof(confirmed_t));
}

static void read_either(reading_t *from, policy_t *policy) {
    uint32_t count = read_count(from->reader, 9);
    expect(from->reader, count > 0, "a choice between rules has none");
    expect(from->reader, from->depth < DEEPEST, "rules are nested too deeply");
    const policy_t **rules = take(from->reader, count, sizeof(policy_t *));
    if (!rules) return;
    policy->either = (either_t){count, rules};
    from->depth++;
    for (uint32_t i = 0; i < count && !from->reader->failed; i++) {
        const policy_t *rule = rules[i] = read_rule(from);
        if (rule) policy->offloads |= rule->offloads;
    }
    from->depth--;
}

static const double *read_table(reading_t *from, uint32_t window) {
    uint64_t each = window - 1, count = each * from->exits;
    if (!expect(from->reader, count < NONE, "it ends too early")) return NULL;
    const double *table = read_levels(from->reader, (uint32_t)count);
    for (uint64_t i = 1; table && i < count; i++)
        expect(from->reader, i % each == 0 || table[i] <= table[i - 1], "a forecast's limits rise");
    return table;
}

static const uint32_t *live_of(reading_t *from, const double *limits, uint32_t *last) {
    uint32_t *live = take(from->reader, (size_t)from->exits + 1, sizeof(uint32_t));
    if (!live || !limits) return NULL;
    *last = NONE;
    live[from->exits] = from->exits;
    for (uint32_t k = from->exits; k-- > 0;) {
        expect(from->reader, limits[k] >= 0, "what a policy compares with is below 0");
        live[k] = limits[k] < INFINITY ? k : live[k + 1];
        if (live[k] == k && *last == NONE) *last = k;
    }
    return live;
}

static void read_predicted(reading_t *from, policy_t *policy) {
    reader_t *reader = from->reader;
    predicted_t *rule = &policy->predicted;
    rule->limit = read_limits(from);
    rule->live = live_of(from, rule->limit, &rule->last);
    rule->start = read_index(reader, from->exits);
    rule->window = read_u32(reader);
    rule->surprise = read_bool(reader);
    rule->forecast = (forecast_t)read_u8(reader);
    expect(reader, rule->forecast < FORECASTS, "there is no such forecast");
    bool fits = rule->window > 0 && rule->window <= from->exits;
    if (!expect(reader, fits, "a forecast reaches nowhere, or past the last exit")) return;
    expect(reader, rule->limit[rule->start] < INFINITY, "nothing can leave at the start");
    if (rule->forecast == FITTED) {
        rule->table = read_table(from, rule->window);
    } else {
        size_t bytes = from->classes * sizeof(double);
        from->room = bytes > from->room ? bytes : from->room;
    }
}

static void read_row(reading_t *from, uint32_t exit, row_t *row, uint32_t most) {
    reader_t *reader = from->reader;
    row->any = true;
    uint32_t shares = read_u32(reader);
    expect(reader, !shares || shares == most, "weights are of another number of classes");
    if (shares) row->shares = read_weights(reader, shares);
    const float *own = read_weights(reader, MEASURES);
    for (int i = 0; own && i < MEASURES; i++) {
        row->measure[i] = own[i];
        bool second = i == MARGIN || i == SURENESS || i == LEAD;
        expect(
            reader, own[i] == 0 || !second || from->classes > 1, "a margin is between two classes");
    }
    uint32_t before = read_u32(reader);
    expect(reader, !before || before == exit, "weights look at scores that are not there yet");
    if (before) row->before = read_weights(reader, before);
}

static void read_score(reading_t *from, policy_t *policy) {
    score_t *rule = &policy->score;
    const double *limits = read_limits(from);
    rule->stop = stops_of(from, limits, &rule->first);
    rule->sorted = from->classes > FEW_CLASSES;
    row_t *rows = take(from->reader, from->exits, sizeof(row_t));
    rule->row = rows;
    if (!rule->stop || !rows) return;
    for (uint32_t k = 0; k < from->exits && !from->reader->failed; k++) {
        if (read_bool(from->reader))
            read_row(from, k, rows + k, rule->sorted ? LARGEST : from->classes);
        else
            expect(from->reader, !isfinite(limits[k]), "an exit has a limit and no weights");
        rule->remembers |= rows[k].before != NULL;
    }
    if (rule->remembers) policy->own = remember(from, from->exits * sizeof(float));
}

/* Where samples may be split, by exit. */
static void read_arms(reading_t *from, split_t *rule) {
    reader_t *reader = from->reader;
    uint32_t *place = take(reader, (size_t)rule->arms + 1, sizeof(uint32_t));
    uint32_t *arm = take(reader, from->exits, sizeof(uint32_t));
    stop_t *stop = take(reader, from->exits, sizeof(stop_t));
    if (!place || !arm || !stop) return;
    for (uint32_t i = 0; i < rule->arms; i++) {
        place[i] = read_index(reader, from->exits);
        expect(reader, !i || place[i] > place[i - 1], "exits are not in order");
        expect(
            reader, rule->measure != MEANS || reader->failed || from->has[place[i]] & 2,
            "an exit has no class means to split by");
    }
    const double *limits = read_levels(reader, rule->arms);
    if (!limits || reader->failed) return;
    place[rule->arms] = from->exits;
    for (uint32_t k = from->exits, i = rule->arms; k-- > 0;) {
        stop[k].after = (int32_t)place[i];
        bool splits = i > 0 && place[i - 1] == k;
        arm[k] = splits ? --i : NONE;
        if (splits) stop[k].limit = narrow(limits[i]);
    }
    rule->place = place;
    rule->arm = arm;
    rule->stop = stop;
}

static const double *read_split_costs(reading_t *from, uint32_t arms) {
    const double *costs = read_numbers(from->reader, arms + 1, true);
    for (uint32_t i = 0; costs && i <= arms; i++)
        expect(from->reader, costs[i] >= 0, "a cost is below 0");
    return costs;
}

static void read_split(reading_t *from, policy_t *policy) {
    reader_t *reader = from->reader;
    split_t *rule = &policy->split;
    policy->offloads = true;
    rule->measure = read_measure(from, true);
    expect_exits(from);
    rule->arms = read_count(reader, 12);
    expect(reader, rule->arms <= from->exits, "more splits than exits");
    read_arms(from, rule);
    rule->learns = read_bool(reader);
    if (!rule->learns) {
        rule->fixed = read_index(reader, rule->arms);
    } else {
        rule->side = read_bool(reader);
        rule->imputes = read_bool(reader);
        rule->discount = read_from_zero(reader);
        bool discounts = rule->discount > 0 && rule->discount <= 1;
        expect(reader, discounts, "a discount is above 0 and at most 1");
        rule->exploration = read_from_zero(reader);
        rule->weight = read_from_zero(reader);
        rule->price = read_from_zero(reader);
        rule->spent = read_split_costs(from, rule->arms);
        rule->alone = read_split_costs(from, rule->arms);
    }
    policy->own = remember(from, sizeof(split_state_t) + rule->arms * sizeof(seen_t));
}

static policy_t *read_rule(reading_t *from) {
    policy_t *policy = take(from->reader, 1, sizeof(policy_t));
    if (!policy) return NULL;
    policy->exits = from->exits;
    policy->classes = from->classes;
    policy->most_information = (float)log(from->classes);
    policy->kind = (kind_t)read_u8(from->reader);
    policy->gate_shift = read_f64(from->reader);
    expect(from->reader, isfinite(policy->gate_shift), "gates cannot be shifted by no number");
    bool compares = policy->kind != NEVER && policy->kind != EITHER;
    expect(
        from->reader, from->classes || !compares, "a policy compares classes, and there are none");
    switch (policy->kind) {
    case THRESHOLD:
    case CLASS_MEANS: read_threshold(from, policy); break;
    case PATIENCE: read_patience(from, policy); break;
    case EITHER: read_either(from, policy); break;
    case NEVER: expect_exits(from); break;
    case PREDICTED: read_predicted(from, policy); break;
    case LEARNED_SCORE: read_score(from, policy); break;
    case SPLIT: read_split(from, policy); break;
    default: expect(from->reader, false, "there is no such kind of policy");
    }
    return from->reader->failed ? NULL : policy;
}

const policy_t *policy_read(
    reader_t *reader, uint32_t exits, const uint8_t *has, uint32_t classes) {
    expect(reader, exits < INT32_MAX, "there are too many exits");
    reading_t from = {reader, exits, classes, has, 0, 0, 0};
    policy_t *policy = read_rule(&from);
    if (!policy) return NULL;
    policy->room = (from.room + 7) / 8 * 8;
    policy->memory = from.memory;
    return policy;
}

/* Who leaves where: the rules of eecompile/policies, one sample at a time. What they do with logits
 * that are no numbers, or infinite, is what those do; scores may differ in their last bits.
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
 *
 * What is remembered of a sample lies in `state`: first room to compute in, that all rules share,
 * then what each rule remembers.
 */

#include "internal.h"

#include <float.h>
#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* rewards are added up to the bit alike, here and in Python */
#endif

enum { DEEPEST = 8 };                     /* rules within rules */
enum { FEW_CLASSES = 128, LARGEST = 16 }; /* of more classes, so many shares are looked at */
#define SUREST 11.5F                      /* where sureness and lead end */
#define ROUNDING 1e-5                     /* by which confidences may leave 0 .. 1 */
#define LEAST_SURPRISE 0x1p-64

typedef enum {
    THRESHOLD, CLASS_MEANS, PATIENCE, EITHER, NEVER, PREDICTED, LEARNED_SCORE, SPLIT, KINDS
} kind_t;

/* MEANS: of a split, the largest softmax of the class means. */
typedef enum { MAX_SOFTMAX, ENTROPY, MARGIN, SURENESS, LEAD, MEANS } measure_t;
enum { MEASURES = 5 }; /* of one head's logits */

typedef enum { CLASS_ORDER, SORTED, FITTED, FORECASTS } forecast_t;

/* An exit of a rule with one limit for each. */
typedef struct {
    float limit;
    int32_t after; /* the next exit that is evaluated */
} stop_t;

typedef struct {
    measure_t measure;
    const stop_t *stop;
    uint32_t first;
} threshold_t;

typedef struct {
    uint32_t last, confirmed;
} confirmed_t;

typedef struct {
    uint32_t count;
    const policy_t *const *rule;
} either_t;

typedef struct {
    const double *limit;
    const uint32_t *live; /* [exits + 1]: from there on the next exit that is evaluated */
    const double *table;  /* [exits][window - 1] */
    uint32_t start, last, window;
    bool surprise;
    forecast_t forecast;
} predicted_t;

typedef struct {
    bool any;
    const float *shares, *before; /* NULL: none counts */
    float measure[MEASURES];
} row_t;

typedef struct {
    const stop_t *stop;
    const row_t *row;
    uint32_t first;
    bool sorted, remembers;
} score_t;

typedef struct {
    measure_t measure;
    uint32_t arms; /* but the network's end */
    const uint32_t *place; /* [arms + 1]: exits */
    const stop_t *stop;    /* of all exits; limits are those of arms */
    const uint32_t *arm;   /* of all exits; NONE: nothing is split there */
    bool learns, side, imputes;
    uint32_t fixed;
    double discount, exploration, weight, price;
    const double *spent, *alone; /* [arms + 1] */
} split_t;

typedef struct {
    float confidence;
    bool known;
} seen_t;

typedef struct {
    uint32_t arm;
    seen_t seen[];
} split_state_t;

/* See eecompile/policies/split_bandit.py. Of n arms and the end: counts [n + 1], sums [n + 1], and
 * the network's confidences in samples unsure at an arm: counts [n], sums [n]. */
typedef struct {
    double rounds, asked, vain;
    double values[];
} learned_t;

struct policy {
    kind_t kind;
    double gate_shift;
    uint32_t exits, classes;
    float most_information; /* ln(classes) */
    size_t own;             /* where in `state` its memory is, behind the room that is shared */
    size_t room, memory;    /* of the outermost rule: both in bytes */
    bool offloads;
    union {
        threshold_t threshold; /* of class means too */
        uint32_t wanted;
        either_t either;
        predicted_t predicted;
        score_t score;
        split_t split;
    };
};

/* -- measures ---------------------------------------------------------------------------------- */

/* Sums over the classes of e^(logit - largest). */
typedef struct {
    float total, rest; /* rest: all but the largest one's */
    float information; /* of each, times logit - largest */
    float behind;      /* the second largest logit less the largest */
    float shares;      /* of each, divided by the total, times its weight */
} known_t;

/* Keeps the largest ones, in falling order. */
static void keep(float kept[LARGEST], float value) {
    if (!(value > kept[LARGEST - 1])) return;
    uint32_t at = LARGEST - 1;
    for (; at > 0 && kept[at - 1] < value; at--) kept[at] = kept[at - 1];
    kept[at] = value;
}

/* `weights`: of shares; NULL: none. `sorted`: they are those of the LARGEST. */
static known_t known_of(const float *logits, uint32_t classes, const float *weights, bool sorted) {
    float top = logits[0], second = -INFINITY;
    bool numbers = logits[0] == logits[0];
    uint32_t at = 0;
    for (uint32_t i = 1; i < classes; i++) {
        float logit = logits[i];
        numbers &= logit == logit;
        if (logit > top) {
            second = top;
            top = logit;
            at = i;
        } else if (logit > second) {
            second = logit;
        }
    }
    if (!numbers) top = NAN;
    double rest = 0, information = 0, shares = 0;
    float largest = 1, kept[LARGEST] = {0};
    for (uint32_t i = 0; i < classes; i++) {
        float shifted = logits[i] - top, weight = expf(shifted);
        if (i == at)
            largest = weight;
        else
            rest += weight;
        information += (double)(weight * shifted);
        if (weights && sorted)
            keep(kept, weight);
        else if (weights)
            shares += (double)weight * weights[i];
    }
    if (weights && sorted)
        for (uint32_t i = 0; i < LARGEST; i++) shares += (double)kept[i] * weights[i];
    double total = rest + largest;
    return (known_t){
        (float)total, (float)rest, (float)information, second - top, (float)(shares / total)};
}

/* The smaller one; where the first is no number, that. */
static float at_most(float value, float most) { return value > most ? most : value; }

static float measured(measure_t measure, const known_t *known, float most_information) {
    switch (measure) {
    case ENTROPY:
        return (known->information / known->total - logf(known->total)) / most_information + 1;
    case MARGIN:
        return expm1f(known->behind) / -known->total;
    case SURENESS:
        return at_most(logf(known->total) - logf(known->rest), SUREST);
    case LEAD:
        return at_most(-known->behind, SUREST);
    default:
        return 1 / known->total;
    }
}

static float confidence_of(const policy_t *policy, measure_t measure, const float *logits) {
    known_t known = known_of(logits, policy->classes, NULL, false);
    return measured(measure == MEANS ? MAX_SOFTMAX : measure, &known, policy->most_information);
}

/* -- reading ----------------------------------------------------------------------------------- */

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

size_t policy_state_bytes(const policy_t *policy) { return policy->room + policy->memory; }

static bool learns(const policy_t *policy) {
    return policy->kind == SPLIT && policy->split.learns;
}

size_t policy_learned_bytes(const policy_t *policy) {
    if (!learns(policy)) return 0;
    return sizeof(learned_t) + (4 * (size_t)policy->split.arms + 2) * sizeof(double);
}

bool policy_forecasts(const policy_t *policy) { return policy->kind == PREDICTED; }

bool policy_offloads(const policy_t *policy) { return policy->offloads; }

double policy_gate_shift(const policy_t *policy) { return policy->gate_shift; }

/* -- splits ------------------------------------------------------------------------------------ */

static double *counts_of(learned_t *learned) { return learned->values; }
static double *sums_of(const split_t *rule, learned_t *learned) {
    return learned->values + rule->arms + 1;
}
static double *known_counts(const split_t *rule, learned_t *learned) {
    return learned->values + 2 * ((size_t)rule->arms + 1);
}
static double *known_sums(const split_t *rule, learned_t *learned) {
    return known_counts(rule, learned) + rule->arms;
}

/* The arm of the next sample. Within other rules nothing is learned. */
static uint32_t choose(const split_t *rule, learned_t *learned) {
    if (!rule->learns) return rule->fixed;
    if (!learned) return 0;
    const double *counts = counts_of(learned), *sums = sums_of(rule, learned);
    double explored = learned->rounds > 1 ? log(learned->rounds) : 0, most = -INFINITY;
    uint32_t best = 0;
    for (uint32_t arm = 0; arm <= rule->arms; arm++) {
        if (counts[arm] <= 0) return arm;
        double index = sums[arm] / counts[arm] + rule->exploration * sqrt(explored / counts[arm]);
        if (index > most) {
            best = arm;
            most = index;
        }
    }
    return best;
}

static uint32_t first_split(const split_t *rule, split_state_t *state, learned_t *learned) {
    state->arm = choose(rule, learned);
    for (uint32_t i = 0; i < rule->arms; i++) state->seen[i].known = false;
    return rule->place[rule->learns && rule->side ? 0 : state->arm];
}

static int32_t decide_split(
    const policy_t *policy, uint32_t exit, const exit_outputs_t *outputs, split_state_t *state) {
    const split_t *rule = &policy->split;
    const stop_t *stop = rule->stop + exit;
    uint32_t arm = rule->arm[exit];
    if (arm == NONE) return stop->after;
    const float *logits = rule->measure == MEANS ? outputs->class_means : outputs->logits;
    float confidence = confidence_of(policy, rule->measure, logits);
    state->seen[arm] = (seen_t){confidence, true};
    if (arm < state->arm) return stop->after;
    return confidence >= stop->limit ? LEAVE : OFFLOAD;
}

static void forget(const split_t *rule, learned_t *learned) {
    if (!(rule->discount < 1)) return;
    learned->rounds *= rule->discount;
    learned->asked *= rule->discount;
    learned->vain *= rule->discount;
    for (size_t i = 0; i < 4 * (size_t)rule->arms + 2; i++) learned->values[i] *= rule->discount;
}

/* Whether a sample is sent where it is split at an arm; one that is no number is. */
static bool unsure(const split_t *rule, const split_state_t *state, uint32_t arm) {
    if (arm == rule->arms || !state->seen[arm].known) return false;
    return !(state->seen[arm].confidence >= rule->stop[rule->place[arm]].limit);
}

/* The network's confidence in a sample that is unsure at an arm; NAN: not known. */
static double known_or_imputed(
    const split_t *rule, learned_t *learned, uint32_t arm, bool computed, double last) {
    double *count = known_counts(rule, learned) + arm, *sum = known_sums(rule, learned) + arm;
    if (!computed) return rule->imputes && *count > 0 ? *sum / *count : NAN;
    if (isfinite(last)) {
        *count += 1;
        *sum += last;
    }
    return last;
}

/* What an arm is worth for a sample; NAN: not known. */
static double reward_of(
    const split_t *rule, const split_state_t *state, uint32_t arm, double last, double here) {
    if (arm == rule->arms) return last - rule->weight * rule->spent[arm];
    if (!state->seen[arm].known) return NAN;
    if (!unsure(rule, state, arm))
        return state->seen[arm].confidence - rule->weight * rule->spent[arm];
    double computed = here * rule->alone[arm] + (1 - here) * rule->spent[arm];
    return last - rule->weight * (computed + rule->price);
}

static void learn_split(
    const split_t *rule, const split_state_t *state, learned_t *learned, bool computed, double last,
    bool here) {
    double alone = here;
    forget(rule, learned);
    learned->rounds += 1;
    if (unsure(rule, state, state->arm)) {
        learned->asked += 1;
        learned->vain += alone;
    } else if (learned->asked > 0) {
        alone = learned->vain / learned->asked;
    }
    for (uint32_t arm = rule->side ? 0 : state->arm; arm <= state->arm; arm++) {
        bool sent = unsure(rule, state, arm);
        double known = sent ? known_or_imputed(rule, learned, arm, computed, last) : last;
        double reward = reward_of(rule, state, arm, known, alone);
        /* Logits that are no numbers say nothing, and would be remembered for ever. */
        if (!isfinite(reward)) continue;
        counts_of(learned)[arm] += 1;
        sums_of(rule, learned)[arm] += reward;
    }
}

/* No reward is further from 0. */
static double bound_of(const split_t *rule) {
    double most = 0;
    for (uint32_t arm = 0; arm <= rule->arms; arm++)
        most = fmax(most, fmax(rule->spent[arm], rule->alone[arm]));
    return 1 + ROUNDING + rule->weight * (most + rule->price);
}

static bool sums_fit(
    const char *counts, const char *sums, uint32_t count, double each, double most) {
    for (uint32_t i = 0; i < count; i++) {
        double number, sum;
        memcpy(&number, counts + i * sizeof number, sizeof number);
        memcpy(&sum, sums + i * sizeof sum, sizeof sum);
        if (!(number >= 0 && number <= most && isfinite(number))) return false;
        if (!(isfinite(sum) && fabs(sum) <= number * each * (1 + 1e-9))) return false;
    }
    return true;
}

bool policy_learned_is_sound(const policy_t *policy, const void *learned) {
    if (!learns(policy)) return true;
    const split_t *rule = &policy->split;
    learned_t found;
    memcpy(&found, learned, sizeof found); /* an app's bytes lie anywhere */
    if (!isfinite(found.rounds) || !isfinite(found.asked) || !isfinite(found.vain)) return false;
    double most = found.rounds * (1 + 1e-9);
    if (!(found.vain >= 0 && found.vain <= found.asked && found.asked <= most)) return false;
    size_t arms = rule->arms, row = sizeof(double);
    const char *counts = (const char *)learned + sizeof found;
    const char *known = counts + 2 * (arms + 1) * row;
    return sums_fit(counts, counts + (arms + 1) * row, rule->arms + 1, bound_of(rule), most) &&
           sums_fit(known, known + arms * row, rule->arms, 1 + ROUNDING, most);
}

/* -- forecasts --------------------------------------------------------------------------------- */

/* Of being wrong about a class of this probability. */
static double surprise_of(double probability) {
    double wrong = 1 - probability;
    return -log(wrong < LEAST_SURPRISE ? LEAST_SURPRISE : wrong);
}

/* The largest activation, and, where there is room for them, what each class's comes from. */
static double peak_of_logits(const float *logits, uint32_t classes, double *seen) {
    double peak = 0;
    bool numbers = true;
    for (uint32_t i = 0; i < classes; i++) {
        double logit = logits[i], size = fabs(logit);
        numbers &= logit == logit;
        if (seen) seen[i] = logit;
        if (size > peak) peak = size;
    }
    return numbers ? peak : NAN;
}

static double peak_of_surprise(const float *logits, uint32_t classes, double *seen, double *total) {
    double top = logits[0], sum = 0;
    for (uint32_t i = 1; i < classes; i++)
        if (logits[i] > top) top = logits[i];
    for (uint32_t i = 0; i < classes; i++) {
        double weight = exp(logits[i] - top);
        if (seen) seen[i] = weight;
        sum += weight;
    }
    *total = sum;
    return surprise_of(1 / sum);
}

/* Largest first. Shell's way: without memory, and fast enough for thousands. */
static void sort_falling(double *values, uint32_t count) {
    uint32_t gap = 1;
    while (gap < count / 3) gap = 3 * gap + 1;
    for (; gap > 0; gap /= 3)
        for (uint32_t i = gap; i < count; i++) {
            double value = values[i];
            uint32_t at = i;
            for (; at >= gap && values[at - gap] < value; at -= gap) values[at] = values[at - gap];
            values[at] = value;
        }
}

/* In how many exits the convolved activations exceed a limit. */
static uint32_t convolved(
    const predicted_t *rule, uint32_t exit, double *seen, uint32_t classes) {
    for (uint32_t jump = 1; jump < rule->window; jump++) {
        double before = 0, largest = 0;
        for (uint32_t i = 0; i < classes; i++) {
            double own = seen[i], after = i + 1 < classes ? seen[i + 1] : 0;
            seen[i] = own + before + after;
            before = own;
            if (fabs(seen[i]) > largest) largest = fabs(seen[i]);
        }
        uint32_t ahead = rule->last - exit > jump && rule->last > exit ? exit + jump : rule->last;
        if (largest > rule->limit[ahead]) return jump;
    }
    return rule->window; /* whatever has not passed before */
}

static uint32_t looked_up(const predicted_t *rule, uint32_t exit, double peak) {
    const double *limit = rule->table + (size_t)exit * (rule->window - 1);
    uint32_t jump = 1;
    while (jump < rule->window && !(limit[jump - 1] <= peak)) jump++;
    return jump;
}

static int32_t decide_predicted(
    const policy_t *policy, uint32_t exit, const float *logits, double *room) {
    const predicted_t *rule = &policy->predicted;
    uint32_t classes = policy->classes;
    double total = 1, *seen = rule->forecast == FITTED ? NULL : room;
    double peak = rule->surprise ? peak_of_surprise(logits, classes, seen, &total)
                                 : peak_of_logits(logits, classes, seen);
    if (peak >= rule->limit[exit]) return LEAVE;
    uint32_t jump = rule->window;
    if (!seen) {
        jump = looked_up(rule, exit, peak);
    } else if (rule->window > 1 && !isnan(peak)) {
        for (uint32_t i = 0; rule->surprise && i < classes; i++)
            seen[i] = surprise_of(seen[i] / total);
        if (rule->forecast == SORTED) sort_falling(seen, classes);
        jump = convolved(rule, exit, seen, classes);
    }
    uint32_t due = jump < policy->exits - exit ? exit + jump : policy->exits;
    if (rule->forecast != FITTED && due > rule->last) due = rule->last;
    return (int32_t)rule->live[due > exit ? due : exit + 1];
}

/* -- scores ------------------------------------------------------------------------------------ */

static float score_of(
    const policy_t *policy, uint32_t exit, const float *logits, const float *scores) {
    const row_t *row = policy->score.row + exit;
    known_t known = known_of(logits, policy->classes, row->shares, policy->score.sorted);
    float score = 0;
    for (int i = 0; i < MEASURES; i++) /* what does not count may be no number */
        if (row->measure[i] != 0)
            score += row->measure[i] * measured((measure_t)i, &known, policy->most_information);
    if (row->shares) score += known.shares;
    double before = 0;
    for (uint32_t k = 0; row->before && k < exit; k++) before += (double)scores[k] * row->before[k];
    return row->before ? score + (float)before : score;
}

static int32_t decide_score(
    const policy_t *policy, uint32_t exit, const float *logits, float *scores) {
    const score_t *rule = &policy->score;
    const stop_t *stop = rule->stop + exit;
    if (!rule->row[exit].any) return stop->after; /* another rule wanted this exit */
    float score = score_of(policy, exit, logits, scores);
    if (rule->remembers) scores[exit] = at_most(score < 0 ? 0 : score, 1);
    return score >= stop->limit ? LEAVE : stop->after;
}

/* -- samples ----------------------------------------------------------------------------------- */

/* As numpy's: the first of the largest, and what is no number is larger. */
static uint32_t label_of(const float *logits, uint32_t classes) {
    uint32_t best = 0;
    for (uint32_t i = 0; i < classes; i++) {
        if (isnan(logits[i])) return i;
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static int32_t decide_patience(
    const policy_t *policy, uint32_t exit, const float *logits, confirmed_t *state) {
    uint32_t label = label_of(logits, policy->classes);
    state->confirmed = label == state->last ? state->confirmed + 1 : 0;
    state->last = label;
    return state->confirmed >= policy->wanted ? LEAVE : (int32_t)exit + 1;
}

/* `memory`: of all rules. */
static uint32_t begin(const policy_t *policy, char *memory, learned_t *learned) {
    void *own = memory + policy->own;
    switch (policy->kind) {
    case THRESHOLD:
    case CLASS_MEANS: return policy->threshold.first;
    case PATIENCE: *(confirmed_t *)own = (confirmed_t){NONE, 0}; return 0;
    case PREDICTED: return policy->predicted.start;
    case LEARNED_SCORE:
        if (policy->score.remembers) memset(own, 0, policy->exits * sizeof(float));
        return policy->score.first;
    case SPLIT: return first_split(&policy->split, own, learned);
    case EITHER: {
        uint32_t first = policy->exits;
        for (uint32_t i = 0; i < policy->either.count; i++) {
            uint32_t wanted = begin(policy->either.rule[i], memory, NULL);
            if (wanted < first) first = wanted;
        }
        return first;
    }
    default: return policy->exits;
    }
}

static int32_t decide(
    const policy_t *policy, uint32_t exit, const exit_outputs_t *outputs, char *memory,
    double *room) {
    void *own = memory + policy->own;
    switch (policy->kind) {
    case THRESHOLD:
    case CLASS_MEANS: {
        const threshold_t *rule = &policy->threshold;
        const stop_t *stop = rule->stop + exit;
        const float *logits = policy->kind == THRESHOLD ? outputs->logits : outputs->class_means;
        if (!logits) return stop->after;
        return confidence_of(policy, rule->measure, logits) >= stop->limit ? LEAVE : stop->after;
    }
    case PATIENCE: return decide_patience(policy, exit, outputs->logits, own);
    case PREDICTED: return decide_predicted(policy, exit, outputs->logits, room);
    case LEARNED_SCORE: return decide_score(policy, exit, outputs->logits, own);
    case SPLIT: return decide_split(policy, exit, outputs, own);
    case EITHER: {
        /* LEAVE is below every exit and OFFLOAD below that, so the least says all. */
        int32_t least = (int32_t)policy->exits;
        for (uint32_t i = 0; i < policy->either.count; i++) {
            int32_t found = decide(policy->either.rule[i], exit, outputs, memory, room);
            if (found < least) least = found;
        }
        return least;
    }
    default: return (int32_t)policy->exits;
    }
}

void policy_reset(const deciding_t *deciding) {
    size_t bytes = policy_learned_bytes(deciding->policy);
    if (bytes) memset(deciding->learned, 0, bytes);
}

uint32_t policy_first(const deciding_t *deciding) {
    const policy_t *policy = deciding->policy;
    return begin(policy, (char *)deciding->state + policy->room, deciding->learned);
}

int32_t policy_decide(const deciding_t *deciding, uint32_t exit, const exit_outputs_t *outputs) {
    const policy_t *policy = deciding->policy;
    return decide(
        policy, exit, outputs, (char *)deciding->state + policy->room, deciding->state);
}

const float *policy_answer(const policy_t *policy, const exit_outputs_t *outputs) {
    bool means = policy->kind == CLASS_MEANS ||
                 (policy->kind == SPLIT && policy->split.measure == MEANS);
    return means && outputs->class_means ? outputs->class_means : outputs->logits;
}

void policy_learn(const deciding_t *deciding, const float *final, bool here) {
    const policy_t *policy = deciding->policy;
    if (!learns(policy)) return;
    const split_t *rule = &policy->split;
    double last = final ? confidence_of(policy, rule->measure, final) : NAN;
    const char *memory = (const char *)deciding->state + policy->room;
    learn_split(
        rule, (const split_state_t *)(memory + policy->own), deciding->learned, final != NULL, last,
        here);
}

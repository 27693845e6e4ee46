/* Who leaves where: the rules of eecompile/policies, one sample at a time. What they do with logits
 * that are no numbers, or infinite, is what those do; scores may differ in their last bits.
 *
 * What is remembered of a sample lies in `state`: first room to compute in, that all rules share,
 * then what each rule remembers.
 */

#include "policies.h"

#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* rewards are added up to the bit alike, here and in Python */
#endif

#define SUREST 11.5F /* where sureness and lead end */
#define ROUNDING 1e-5 /* by which confidences may leave 0 .. 1 */
#define LEAST_SURPRISE 0x1p-64

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

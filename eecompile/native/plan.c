/* The plan: what a network consists of, read in one go and checked on the way.
 *
 * The order is that of eecompile/native_plan.py. What a plan says of the code is compared with what
 * the library itself says of its functions: no call reads or writes beyond the memory that is laid
 * out for it, whatever the plan claims. What is left to trust is that the library's code keeps to
 * its own sizes.
 */

#include "internal.h"

#include <string.h>

static const unsigned char MAGIC[8] = {0x89, 'E', 'E', 'P', '\r', '\n', 0x1a, '\n'};
enum { VERSION = 1, HEAD = 8 + 4 + 4 + 32 };

/* Limits that only a damaged or hostile plan passes. */
#define MOST_BYTES ((int64_t)1 << 40) /* of a value or workspace */
#define MOST_MACS ((int64_t)1 << 52)  /* so that sums stay exact as doubles */
#define MOST_RANK 32
#define MOST_EXITS 1024
#define MOST_UNREAD ((int64_t)1 << 28) /* bytes of inputs that nothing reads */
#define MOST_MEMORY ((size_t)1 << 30) /* of a plan that was read */

static const int64_t DTYPE_BYTES[] = {4, 8, 4, 2, 1, 2, 1, 1};

typedef struct {
    reader_t in;
    plan_t *plan;
    const ee_library *library;
    bool *known; /* [values]: computed by now */
    bool *used;  /* [values]: functions read or compute them, which says how large they are */
    int64_t gates_macs;
} build_t;

static int64_t read_macs(reader_t *in) {
    int64_t macs = read_i64(in);
    bool fits = expect(in, macs <= MOST_MACS, "a number of multiply-accumulates is too large");
    return fits ? macs : 0;
}

/* -- values ------------------------------------------------------------------------------------ */

static void read_value(reader_t *in, value_t *value) {
    value->name = read_text(in);
    uint8_t dtype = read_u8(in);
    value->rank = read_count(in, 4);
    uint32_t *shape = take(in, value->rank, sizeof(uint32_t));
    if (!expect(in, dtype < 8 && value->rank <= MOST_RANK, "a value has no such type")) return;
    value->dtype = (ee_dtype)dtype;
    value->bytes = DTYPE_BYTES[dtype];
    for (uint32_t i = 0; i < value->rank; i++) {
        shape[i] = read_u32(in);
        bool large = __builtin_mul_overflow(value->bytes, (int64_t)shape[i], &value->bytes);
        if (!expect(in, !large && shape[i] && value->bytes <= MOST_BYTES, "a value is too large"))
            return;
    }
    value->shape = shape;
    value->lasting = read_bool(in);
}

static void read_values(build_t *build) {
    plan_t *plan = build->plan;
    plan->values = read_count(&build->in, 10);
    value_t *values = take(&build->in, plan->values, sizeof(value_t));
    for (uint32_t i = 0; !build->in.failed && i < plan->values; i++)
        read_value(&build->in, &values[i]);
    plan->value = values;
    build->known = take(&build->in, plan->values, sizeof(bool));
    build->used = take(&build->in, plan->values, sizeof(bool));
    for (uint32_t i = 0; !build->in.failed && i < plan->values; i++)
        build->known[i] = values[i].lasting;
}

/* Which of a value's dimensions has so many channels, as runtime/inputs.py has it. */
static bool has_channels(const value_t *value, uint32_t channels) {
    uint32_t lead = value->rank && value->shape[0] == 1;
    return value->rank > lead &&
           (value->shape[lead] == channels || value->shape[value->rank - 1] == channels);
}

static void read_input(build_t *build, input_t *input) {
    reader_t *in = &build->in;
    input->value = read_index(in, build->plan->values);
    input->normalizes = read_bool(in);
    if (in->failed) return;
    const value_t *value = &build->plan->value[input->value];
    expect(in, !build->known[input->value], "an input is named twice");
    build->known[input->value] = true;
    if (!input->normalizes) return;
    input->scale = read_f64(in);
    input->channels = read_count(in, 16);
    input->mean = read_numbers(in, input->channels, true);
    input->std = read_numbers(in, input->channels, true);
    bool fits = input->channels == 1 || has_channels(value, input->channels);
    expect(in, fits && value->dtype == EE_FLOAT32, "an input cannot be normalised like that");
    expect(in, input->scale > 0 && isfinite(input->scale), "an input's scale is not above 0");
    for (uint32_t i = 0; !in->failed && i < input->channels; i++)
        expect(in, input->std[i] > 0, "an input's standard deviation is not above 0");
}

static void read_inputs(build_t *build) {
    plan_t *plan = build->plan;
    plan->inputs = read_count(&build->in, 5);
    input_t *inputs = take(&build->in, plan->inputs, sizeof(input_t));
    for (uint32_t i = 0; !build->in.failed && i < plan->inputs; i++) read_input(build, &inputs[i]);
    plan->input = inputs;
}

static const uint32_t *read_indices(reader_t *in, uint32_t *count, uint32_t below) {
    *count = read_count(in, 4);
    uint32_t *found = take(in, *count, sizeof(uint32_t));
    for (uint32_t i = 0; !in->failed && i < *count; i++) found[i] = read_index(in, below);
    return found;
}

/* -- calls ------------------------------------------------------------------------------------- */

static uint32_t find_function(const ee_library *library, const char *symbol) {
    uint32_t low = 0, high = library->function_count; /* sorted by symbol */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = strcmp(library->functions[middle].symbol, symbol);
        if (!order) return middle;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NONE;
}

static void read_call(build_t *build, call_t *call) {
    reader_t *in = &build->in;
    uint32_t values = build->plan->values;
    call->function = find_function(build->library, read_text(in));
    if (!expect(in, call->function != NONE, "it calls a function the library has not")) return;
    const function_t *function = &build->library->functions[call->function];
    uint32_t *all = take(in, (size_t)function->inputs + function->outputs, sizeof(uint32_t));
    call->inputs = read_count(in, 4);
    if (!expect(in, call->inputs == function->inputs, "a function has other inputs")) return;
    for (uint32_t i = 0; i < call->inputs; i++) all[i] = read_index(in, values);
    call->outputs = read_count(in, 4);
    if (!expect(in, call->outputs == function->outputs, "a function has other outputs")) return;
    for (uint32_t i = 0; i < call->outputs; i++) all[call->inputs + i] = read_index(in, values);
    call->values = all;
    call->macs = read_macs(in);
    for (uint32_t i = 0; !in->failed && i < call->inputs + call->outputs; i++) {
        const value_t *value = &build->plan->value[all[i]];
        expect(in, value->bytes == function->bytes[i], "a function's values have other sizes");
        bool known = build->known[all[i]];
        if (i < call->inputs)
            expect(in, known, "a function reads what is not there yet");
        else
            expect(in, !known || value->lasting, "a value is computed twice");
        if (i >= call->inputs) build->known[all[i]] = true;
        build->used[all[i]] = true;
    }
}

/* A value that no function knows may be of any size; inputs that are not read may be there. */
static void check_used(build_t *build) {
    const plan_t *plan = build->plan;
    int64_t unread = 0;
    for (uint32_t i = 0; i < plan->inputs; i++) {
        uint32_t value = plan->input[i].value;
        if (build->used[value]) continue;
        build->used[value] = true;
        unread += plan->value[value].bytes;
        bool fits = unread <= MOST_UNREAD;
        if (!expect(&build->in, fits, "inputs that nothing reads are large")) return;
    }
    for (uint32_t i = 0; i < plan->values; i++)
        expect(&build->in, build->used[i], "a value is neither read nor computed");
}

static bool is_score(const plan_t *plan, uint32_t value, int64_t groups) {
    const value_t *found = &plan->value[value];
    return found->lasting && found->dtype == EE_FLOAT32 && found->bytes == 4 * groups;
}

static bool is_output(const call_t *call, uint32_t value) {
    for (uint32_t i = 0; i < call->outputs; i++)
        if (call->values[call->inputs + i] == value) return true;
    return false;
}

static void read_step(build_t *build, step_plan_t *step) {
    reader_t *in = &build->in;
    const plan_t *plan = build->plan;
    read_call(build, &step->call);
    step->gate = read_bool(in);
    step->block = read_bool(in);
    step->keep = read_index_or_none(in, plan->values);
    step->otherwise = read_index_or_none(in, plan->values);
    step->channels = read_index_or_none(in, plan->values);
    step->output = read_index_or_none(in, plan->values);
    step->groups = read_i64(in);
    step->group_macs = read_macs(in);
    if (in->failed) return;
    bool scored = (step->keep == NONE || is_score(plan, step->keep, 1)) &&
                  step->groups <= MOST_BYTES && (step->channels == NONE) == !step->groups &&
                  (step->channels == NONE || is_score(plan, step->channels, step->groups));
    expect(in, scored, "a step asks for what is no score");
    expect(in, step->groups * (double)step->group_macs <= step->call.macs, "groups save too much");
    expect(in, step->keep != NONE || step->output == NONE, "what always runs is not left out");
    expect(in, step->output == NONE || is_output(&step->call, step->output), "no such output");
    if (!in->failed && step->otherwise != NONE) {
        bool alike = step->output == NONE || plan->value[step->otherwise].bytes ==
                                                 plan->value[step->output].bytes;
        expect(in, alike && build->known[step->otherwise], "what stands for a step does not fit");
    }
}

static void read_segment(build_t *build, segment_t *segment, step_plan_t *steps, uint32_t first) {
    reader_t *in = &build->in;
    uint32_t count = read_count(in, 48);
    expect(in, count > 0, "a segment is empty");
    *segment = (segment_t){.first = first, .end = first + count, .threads = 1};
    for (uint32_t i = 0; !in->failed && i < count; i++) {
        step_plan_t *step = &steps[first + i];
        read_step(build, step);
        if (in->failed) return;
        int32_t threads = build->library->functions[step->call.function].threads;
        if (threads > segment->threads) segment->threads = threads;
        if (step->gate) segment->gates_macs += step->call.macs;
        else segment->macs += step->call.macs;
        int64_t macs = build->plan->macs + build->gates_macs + segment->macs + segment->gates_macs;
        if (!expect(in, macs <= MOST_MACS, "a number of multiply-accumulates is too large")) return;
        segment->gated |= step->gate || step->keep != NONE || step->channels != NONE;
        build->plan->blocks += step->block;
        if (build->plan->blocks > INT32_MAX) expect(in, false, "it has too many blocks");
    }
    build->plan->gated |= segment->gated;
    build->plan->macs += segment->macs;
    build->gates_macs += segment->gates_macs;
}

/* -- exits ------------------------------------------------------------------------------------- */

static bool are_logits(const plan_t *plan, uint32_t value) {
    const value_t *found = &plan->value[value];
    return found->dtype == EE_FLOAT32 && found->bytes == 4 * (int64_t)plan->classes;
}

static void read_exit(build_t *build, exit_t *exit) {
    reader_t *in = &build->in;
    exit->name = read_text(in);
    uint8_t has = read_u8(in);
    if (!expect(in, has >= 1 && has <= 3, "an exit has neither head nor comparator")) return;
    exit->calls = has == 3 ? 2 : 1;
    for (uint32_t i = 0; i < exit->calls; i++) {
        call_t *call = &exit->call[i];
        read_call(build, call);
        bool answers = !in->failed && call->outputs &&
                       are_logits(build->plan, call->values[call->inputs]);
        if (!expect(in, answers, "an exit does not give one number for each class")) return;
        exit->macs += call->macs;
    }
    const call_t *head = &exit->call[0], *comparator = &exit->call[exit->calls - 1];
    exit->logits = head->values[head->inputs];
    exit->class_means = has & 2 ? comparator->values[comparator->inputs] : NONE;
    exit->border = read_indices(in, &exit->border_count, build->plan->values);
    for (uint32_t i = 0; !in->failed && i < exit->border_count; i++)
        expect(in, build->known[exit->border[i]], "a server would get what is not there yet");
}

/* Segments come first in the stream, exits behind them; but what an exit reads must be there when
 * its segment has run. So that is checked here, on what has been read. */
static void check_order(build_t *build) {
    const plan_t *plan = build->plan;
    uint32_t *since = take(&build->in, plan->values, sizeof(uint32_t));
    if (!since) return;
    for (uint32_t i = 0; i < plan->values; i++) since[i] = 0;
    for (uint32_t s = 0; s < plan->segments; s++)
        for (uint32_t i = plan->segment[s].first; i < plan->segment[s].end; i++) {
            const call_t *call = &plan->step[i].call;
            for (uint32_t k = 0; k < call->outputs; k++)
                if (!plan->value[call->values[call->inputs + k]].lasting)
                    since[call->values[call->inputs + k]] = s;
        }
    for (uint32_t e = 0; e < plan->exits; e++) {
        const exit_t *exit = &plan->exit[e];
        for (uint32_t c = 0; c < exit->calls; c++)
            for (uint32_t k = 0; k < exit->call[c].inputs; k++)
                expect(&build->in, since[exit->call[c].values[k]] <= e, "an exit reads too early");
        for (uint32_t k = 0; k < exit->border_count; k++)
            expect(&build->in, since[exit->border[k]] <= e, "a server would be asked too early");
    }
}

static void read_network(build_t *build) {
    reader_t *in = &build->in;
    plan_t *plan = build->plan;
    plan->output = read_index(in, plan->values);
    plan->classes = read_u32(in);
    plan->labels = read_count(in, 4);
    expect(in, !plan->labels || plan->labels == plan->classes, "labels are not one for each class");
    const char **labels = take(in, plan->labels, sizeof(char *));
    for (uint32_t i = 0; !in->failed && i < plan->labels; i++) labels[i] = read_text(in);
    plan->label = labels;
    plan->outputs_values = read_indices(in, &plan->outputs, plan->values);
    plan->shift = read_index_or_none(in, plan->values);
    if (!in->failed && plan->shift != NONE)
        expect(in, is_score(plan, plan->shift, 1), "the gates' shift is no number");

    plan->segments = read_count(in, 4);
    segment_t *segments = take(in, plan->segments, sizeof(segment_t));
    /* No step takes less room in the stream. */
    step_plan_t *steps = take(in, (size_t)(in->end - in->at) / 48, sizeof(step_plan_t));
    expect(in, plan->segments > 0, "it has no segments");
    expect(in, plan->segments <= MOST_EXITS + 1, "it has too many exits");
    for (uint32_t i = 0; !in->failed && i < plan->segments; i++) {
        read_segment(build, &segments[i], steps, plan->steps);
        plan->steps = segments[i].end;
    }
    plan->segment = segments;
    plan->step = steps;
    if (in->failed) return;
    bool scores = !plan->classes || are_logits(plan, plan->output);
    expect(in, scores, "its output is no vector of scores");
    expect(in, build->known[plan->output], "its output is not computed");
    for (uint32_t i = 0; !in->failed && i < plan->outputs; i++)
        expect(in, build->known[plan->outputs_values[i]], "an output is not computed");

    plan->exits = plan->segments - 1;
    expect(in, !plan->exits || plan->classes, "exits need classes");
    exit_t *exits = take(in, plan->exits, sizeof(exit_t));
    for (uint32_t i = 0; !in->failed && i < plan->exits; i++) read_exit(build, &exits[i]);
    plan->exit = exits;
    if (!in->failed) check_order(build);
    if (!in->failed) check_used(build);
}

/* -- costs and policies ------------------------------------------------------------------------ */

static bool all_known_are_costs(const double *numbers, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!isnan(numbers[i]) && !(numbers[i] >= 0 && isfinite(numbers[i]))) return false;
    return true;
}

static void read_clusters(reader_t *in, costs_t *costs) {
    costs->clusters = read_count(in, 16);
    cluster_t *clusters = take(in, costs->clusters, sizeof(cluster_t));
    for (uint32_t i = 0; !in->failed && i < costs->clusters; i++) {
        clusters[i].name = read_text(in);
        clusters[i].transition_s = read_f64(in);
        clusters[i].cpu = read_indices(in, &clusters[i].cpus, 1 << 16);
        expect(in, all_known_are_costs(&clusters[i].transition_s, 1), "a cost is below 0");
    }
    costs->cluster = clusters;
    costs->states = read_count(in, 12);
    expect(in, costs->states <= 1024, "it has too many clocks");
    state_t *states = take(in, costs->states, sizeof(state_t));
    for (uint32_t i = 0; !in->failed && i < costs->states; i++) {
        uint32_t cluster = read_index(in, costs->clusters);
        states[i].cluster = in->failed ? "" : clusters[cluster].name;
        states[i].frequency_hz = read_f64(in);
        expect(in, all_known_are_costs(&states[i].frequency_hz, 1), "a frequency is below 0");
    }
    costs->state = states;
}

static void read_costs(build_t *build) {
    reader_t *in = &build->in;
    const plan_t *plan = build->plan;
    if (!read_bool(in)) return;
    costs_t *costs = take(in, 1, sizeof(costs_t));
    if (!costs) return;
    read_clusters(in, costs);
    costs->segments = read_u32(in);
    costs->exits = read_u32(in);
    costs->steps = read_u32(in);
    uint32_t gated = 0;
    for (uint32_t i = 0; !in->failed && i < plan->segments; i++)
        if (plan->segment[i].gated) gated += plan->segment[i].end - plan->segment[i].first;
    bool fits = costs->segments == plan->segments && costs->exits == plan->exits &&
                costs->steps == gated && costs->states;
    if (!expect(in, fits, "its costs are of another network")) return;
    uint64_t count = ((uint64_t)costs->segments + costs->exits + costs->steps) * costs->states;
    if (!expect(in, count < UINT32_MAX, "it has too many costs")) return;
    costs->latency_s = read_numbers(in, (uint32_t)count, false);
    costs->energy_j = read_numbers(in, (uint32_t)count, false);
    costs->migration_s = read_f64(in);
    costs->idle_power_w = read_f64(in);
    if (in->failed) return;
    bool good = all_known_are_costs(costs->latency_s, count) &&
                all_known_are_costs(costs->energy_j, count) &&
                all_known_are_costs(&costs->migration_s, 1) &&
                all_known_are_costs(&costs->idle_power_w, 1);
    expect(in, good, "a cost is below 0 or not finite");
    build->plan->costs = costs;
}

static bool is_limit(double value) { return isnan(value) || (value > 0 && isfinite(value)); }

static void read_rules(build_t *build, policy_entry_t *entry) {
    reader_t *in = &build->in;
    clock_rule_t *clock = &entry->clock;
    clock->present = read_bool(in);
    clock->start = NONE;
    if (clock->present) {
        uint8_t objective = read_u8(in);
        clock->deadline_s = read_f64(in);
        clock->frequency_hz = read_f64(in);
        clock->safe = read_bool(in);
        clock->hard = read_bool(in);
        clock->start = read_index_or_none(in, build->plan->costs ? build->plan->costs->states : 0);
        bool good = objective <= UNCHANGED && is_limit(clock->deadline_s) &&
                    is_limit(clock->frequency_hz) && !(clock->safe && clock->hard) &&
                    (!(clock->safe || clock->hard) || !isnan(clock->deadline_s)) &&
                    (objective == FIXED) == !isnan(clock->frequency_hz) && build->plan->costs &&
                    (clock->start == NONE || objective == LOWEST_ENERGY);
        expect(in, good, "a policy's rule for clocks makes no sense");
        clock->objective = (objective_t)objective;
    }
    entry->halts = read_bool(in);
    entry->halt = (halt_rule_t){NAN, NAN, NAN};
    if (entry->halts) {
        entry->halt.macs = read_f64(in);
        entry->halt.latency_s = read_f64(in);
        entry->halt.energy_j = read_f64(in);
        bool good = is_limit(entry->halt.macs) && is_limit(entry->halt.latency_s) &&
                    is_limit(entry->halt.energy_j);
        expect(in, good && !clock->present, "a policy's budget makes no sense");
    }
    entry->offloads = read_bool(in);
    entry->guarded = read_bool(in);
}

const policy_t *policy_read_for(reader_t *in, const plan_t *plan) {
    uint8_t *has = take(in, plan->exits, 1);
    for (uint32_t i = 0; has && i < plan->exits; i++) {
        const exit_t *exit = &plan->exit[i];
        has[i] = exit->calls == 2 ? 3 : exit->class_means == NONE ? 1 : 2;
    }
    return policy_read(in, plan->exits, has, plan->classes);
}

static void read_policies(build_t *build) {
    reader_t *in = &build->in;
    plan_t *plan = build->plan;
    plan->policies = read_count(in, 8);
    policy_entry_t *entries = take(in, plan->policies, sizeof(policy_entry_t));
    for (uint32_t i = 0; !in->failed && i < plan->policies; i++) {
        entries[i].name = read_text(in);
        if (read_bool(in)) entries[i].policy = policy_read_for(in, plan);
        if (in->failed) break;
        read_rules(build, &entries[i]);
    }
    plan->policy = entries;
    plan->default_policy = read_index_or_none(in, plan->policies);
}

/* -- all of it --------------------------------------------------------------------------------- */

static ee_status check_head(const uint8_t *bytes, size_t count) {
    if (count < HEAD || memcmp(bytes, MAGIC, sizeof MAGIC))
        return fail(EE_BAD_ARTIFACT, "the plan is no plan of eecompile");
    reader_t in = {.at = bytes + 8, .end = bytes + count};
    uint32_t version = read_u32(&in), size = read_u32(&in);
    if (version != VERSION)
        return fail(
            EE_WRONG_VERSION, "the plan's format is %u, this runtime reads %d: %s", version,
            VERSION,
            version < VERSION ? "build the artifact again" : "use the library it came with");
    if (size != count - HEAD)
        return fail(
            EE_BAD_ARTIFACT, "the plan has %zu bytes, it should have %zu", count,
            (size_t)size + HEAD);
    unsigned char digest[32];
    sha256(bytes + HEAD, size, digest);
    if (memcmp(digest, bytes + 16, 32))
        return fail(EE_BAD_ARTIFACT, "the plan has been changed: its SHA-256 is another");
    return EE_OK;
}

static ee_status check_library(build_t *build) {
    reader_t *in = &build->in;
    build->plan->name = read_text(in);
    const uint8_t *identity = read_bytes(in, 32);
    const uint8_t *weights = read_bytes(in, 32);
    int64_t weights_bytes = read_i64(in);
    build->plan->threads = (int32_t)read_u32(in);
    expect(in, build->plan->threads >= 1 && build->plan->threads <= 1024, "no number of threads");
    if (in->failed) return EE_OK; /* Told below, with the rest. */
    if (memcmp(identity, build->library->identity, 32))
        return fail(
            EE_BAD_ARTIFACT,
            "the artifact `%s` belongs to another library than this one of `%s`: take both from "
            "one export",
            build->plan->name, build->library->name);
    expect(in, weights_bytes == build->library->weights_bytes, "its weights have another size");
    memcpy(build->plan->weights_sha256, weights, 32);
    return EE_OK;
}

ee_status plan_read(plan_t *plan, const ee_library *library, const uint8_t *bytes, size_t count) {
    *plan = (plan_t){.arena = {.most = MOST_MEMORY}, .default_policy = NONE};
    ee_status status = check_head(bytes, count);
    if (status) return status;
    build_t build = {
        .in = {.at = bytes + HEAD, .end = bytes + count, .arena = &plan->arena},
        .plan = plan,
        .library = library,
    };
    status = check_library(&build);
    if (status) {
        plan_free(plan);
        return status;
    }
    void (*const parts[])(build_t *) = {
        read_values, read_inputs, read_network, read_costs, read_policies};
    for (size_t i = 0; !build.in.failed && i < sizeof parts / sizeof *parts; i++) parts[i](&build);
    expect(&build.in, build.in.at == build.in.end, "it goes on behind its end");
    if (!build.in.failed) return EE_OK;
    plan_free(plan);
    return fail(EE_BAD_ARTIFACT, "the plan cannot be used: %s", build.in.what);
}

void plan_free(plan_t *plan) { arena_free(&plan->arena); }

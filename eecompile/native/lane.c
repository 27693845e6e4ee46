/* Memory for one sample on its way through a network, and the functions bound to it. */

#include "session.h"

#include <stdlib.h>
#include <string.h>

#define ADDRESS(pointer) ((int64_t)(intptr_t)(pointer))

void *lane_value(const lane_t *lane, uint32_t value) {
    return lane->block + lane->layout.value[value];
}

static int64_t address_of(const lane_t *lane, uint32_t value) {
    return value == NONE ? 0 : ADDRESS(lane_value(lane, value));
}

/* -- binding ----------------------------------------------------------------------------------- */

static int64_t frame_length(const call_t *call) {
    return 3 + (int64_t)call->inputs + call->outputs;
}

static bound_t bind(
    const lane_t *lane, const ee_network *network, const call_t *call, int64_t workspace,
    int64_t *frame) {
    frame[0] = 1;
    frame[1] = ADDRESS(network->files.weights);
    frame[2] = ADDRESS(lane->block + workspace);
    for (uint32_t i = 0; i < call->inputs + call->outputs; i++)
        frame[3 + i] = ADDRESS(lane_value(lane, call->values[i]));
    return (bound_t){&network->library->functions[call->function], frame};
}

static void bind_step(
    const lane_t *lane, const plan_t *plan, const step_plan_t *from, bound_t bound,
    int64_t *strides, step_t *step) {
    *step = (step_t){
        .code = (int64_t)(intptr_t)bound.function->code,
        .frame = ADDRESS(bound.frame),
        .strides = ADDRESS(strides),
        .places = frame_length(&from->call) - 1,
        .gate = from->gate,
        .keep = address_of(lane, from->keep),
        .output = address_of(lane, from->output),
        .otherwise = address_of(lane, from->otherwise),
        .bytes = from->output == NONE ? 0 : plan->value[from->output].bytes,
        .channels = address_of(lane, from->channels),
        .groups = from->groups,
        .macs = from->call.macs,
        .group_macs = from->group_macs,
        .block = from->block,
        .cost = (double)from->call.macs,
        .group_cost = (double)from->group_macs,
        .need = -INFINITY,
    };
}

static void bind_all(lane_t *lane, const ee_network *network, int64_t *strides) {
    const plan_t *plan = &network->plan;
    int64_t *frame = lane->frames;
    for (uint32_t i = 0; i < plan->steps; i++) {
        const step_plan_t *step = &plan->step[i];
        bound_t bound = bind(lane, network, &step->call, lane->layout.workspace[i], frame);
        bind_step(lane, plan, step, bound, strides, &lane->table[i]);
        frame += frame_length(&step->call);
    }
    for (uint32_t e = 0; e < plan->exits; e++)
        for (uint32_t c = 0; c < plan->exit[e].calls; c++) {
            const call_t *call = &plan->exit[e].call[c];
            int64_t workspace = lane->layout.workspace[plan->steps + 2 * e + c];
            lane->heads[2 * e + c] = bind(lane, network, call, workspace, frame);
            frame += frame_length(call);
        }
    lane->program = (program_t){
        .steps = ADDRESS(lane->table),
        .count = plan->steps,
        .tallies = ADDRESS(&lane->tally),
        .kept = ADDRESS(lane->kept),
    };
}

static int64_t all_frames(const plan_t *plan, int64_t *longest) {
    int64_t total = 0, length;
    *longest = 0;
    for (uint32_t i = 0; i < plan->steps; i++) {
        total += length = frame_length(&plan->step[i].call);
        if (length > *longest) *longest = length;
    }
    for (uint32_t e = 0; e < plan->exits; e++)
        for (uint32_t c = 0; c < plan->exit[e].calls; c++)
            total += frame_length(&plan->exit[e].call[c]);
    return total;
}

static void keep_everything(lane_t *lane, const plan_t *plan) {
    for (uint32_t i = 0; i < plan->values; i++) {
        const value_t *value = &plan->value[i];
        float *scores = lane_value(lane, i);
        for (int64_t k = 0; value->lasting && k < value->bytes / 4; k++) scores[k] = 1;
    }
}

static void set_shift(lane_t *lane, const plan_t *plan, float shift) {
    if (plan->shift != NONE) *(float *)lane_value(lane, plan->shift) = shift;
    lane->shift = shift;
}

ee_status lane_open(lane_t *lane, const ee_network *network, team_t *team, int32_t threads) {
    const plan_t *plan = &network->plan;
    *lane = (lane_t){.team = team, .threads = threads};
    ee_status status = layout_make(&lane->layout, network->library, plan, threads);
    if (status) return status;
    int64_t longest, frames = all_frames(plan, &longest);
    /* Zeros that the system gives when they are touched: what nothing uses takes no memory. */
    size_t bytes = (size_t)lane->layout.bytes + ALIGNMENT;
    lane->memory = calloc(bytes, 1);
    lane->block = lane->memory + (ALIGNMENT - (uintptr_t)lane->memory % ALIGNMENT) % ALIGNMENT;
    /* Strides lie behind the frames: zeros, as there is one sample. */
    lane->frames = calloc((size_t)(frames + longest + 1), sizeof(int64_t));
    lane->table = calloc(plan->steps + 1, sizeof(step_t));
    lane->heads = calloc(2 * (size_t)plan->exits + 1, sizeof(bound_t));
    if (plan->gated) lane->kept = calloc(plan->steps, sizeof(int32_t));
    bool lacks_kept = plan->gated && !lane->kept;
    if (!lane->memory || !lane->frames || !lane->table || !lane->heads || lacks_kept) {
        lane_close(lane);
        return fail(
            EE_NO_MEMORY, "there are no %zu bytes for a session of `%s`", bytes, plan->name);
    }
    bind_all(lane, network, lane->frames + frames);
    keep_everything(lane, plan);
    set_shift(lane, plan, 0);
    return EE_OK;
}

void lane_close(lane_t *lane) {
    free(lane->memory);
    free(lane->frames);
    free(lane->table);
    free(lane->heads);
    free(lane->kept);
    free(lane->state);
    layout_free(&lane->layout);
    *lane = (lane_t){0};
}

/* -- running ----------------------------------------------------------------------------------- */

void lane_begin(lane_t *lane, const plan_t *plan, bool gates, double shift) {
    if (!gates && lane->decided) {
        keep_everything(lane, plan);
        set_shift(lane, plan, lane->shift);
    }
    lane->decided = gates;
    if (gates && (float)shift != lane->shift) set_shift(lane, plan, (float)shift);
    lane->tally = (tally_t){0};
    for (uint32_t i = 0; lane->kept && i < plan->steps; i++) lane->kept[i] = -1;
    lane->program.gates = gates;
    lane->program.limit = UNLIMITED;
    lane->program.stop = 0;
}

/* Leads the team through a function that up to so many threads share. */
static ee_status lead(lane_t *lane, code_t code, const int64_t *frame, int32_t threads) {
    int32_t most = lane->threads < threads ? lane->threads : threads;
    int32_t status = lane->team && most > 1 ? eecompile_team_run(lane->team, most, code, frame)
                                            : code(frame, 0, 1, NULL);
    return status ? fail(EE_INTERNAL, "compiled code returned %d", (int)status) : EE_OK;
}

ee_status lane_segment(lane_t *lane, const plan_t *plan, uint32_t segment) {
    const segment_t *of = &plan->segment[segment];
    lane->range[0] = 1;
    lane->range[1] = ADDRESS(&lane->program);
    lane->range[2] = of->first;
    lane->range[3] = of->end;
    return lead(lane, eecompile_steps, lane->range, of->threads);
}

ee_status lane_exit(lane_t *lane, const plan_t *plan, uint32_t exit) {
    ee_status status = EE_OK;
    for (uint32_t c = 0; !status && c < plan->exit[exit].calls; c++) {
        const bound_t *bound = &lane->heads[2 * exit + c];
        status = lead(lane, bound->function->code, bound->frame, bound->function->threads);
    }
    return status;
}

exit_outputs_t lane_outputs(const lane_t *lane, const plan_t *plan, uint32_t exit) {
    const exit_t *of = &plan->exit[exit];
    const float *means = of->class_means == NONE ? NULL : lane_value(lane, of->class_means);
    return (exit_outputs_t){lane_value(lane, of->logits), means};
}

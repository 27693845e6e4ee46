/* Prints every field of a plan as JSON, as plan.c has read it. */
#include "internal.h"

#include <stdio.h>
#include <string.h>

void dump(const plan_t *plan, const ee_library *library, char *text, size_t room);

static FILE *out;
static const plan_t *of;

/* -- parts -------------------------------------------------------------------------------------- */

static void open_object(const char *name) { fprintf(out, "\"%s\": {", name); }
static void close_object(void) { fprintf(out, "\"\": 0}, "); }
static void text(const char *name, const char *found) {
    if (found) fprintf(out, "\"%s\": \"%s\", ", name, found);
    else fprintf(out, "\"%s\": null, ", name);
}
static void whole(const char *name, int64_t found) {
    fprintf(out, "\"%s\": %lld, ", name, (long long)found);
}
static void real(double found) {
    if (isnan(found)) fprintf(out, "null");
    else fprintf(out, "%.17g", found);
}
static void number(const char *name, double found) {
    fprintf(out, "\"%s\": ", name);
    real(found);
    fprintf(out, ", ");
}
static void numbers(const char *name, const double *found, size_t count) {
    fprintf(out, "\"%s\": [", name);
    for (size_t i = 0; i < count; i++) {
        fprintf(out, "%s", i ? ", " : "");
        real(found[i]);
    }
    fprintf(out, "], ");
}
static void wholes(const char *name, const uint32_t *found, uint32_t count) {
    fprintf(out, "\"%s\": [", name);
    for (uint32_t i = 0; i < count; i++) fprintf(out, "%s%u", i ? ", " : "", (unsigned)found[i]);
    fprintf(out, "], ");
}
static void value(const char *name, uint32_t found) {
    text(name, found == NONE ? NULL : of->value[found].name);
}
static void values(const char *name, const uint32_t *found, uint32_t count) {
    fprintf(out, "\"%s\": [", name);
    for (uint32_t i = 0; i < count; i++)
        fprintf(out, "%s\"%s\"", i ? ", " : "", of->value[found[i]].name);
    fprintf(out, "], ");
}
static void call(const ee_library *library, const call_t *found) {
    text("symbol", library->functions[found->function].symbol);
    values("inputs", found->values, found->inputs);
    values("outputs", found->values + found->inputs, found->outputs);
    whole("macs", found->macs);
}

/* -- a plan ------------------------------------------------------------------------------------- */

static void dump_values(const plan_t *plan) {
    open_object("values");
    for (uint32_t i = 0; i < plan->values; i++) {
        open_object(plan->value[i].name);
        whole("dtype", plan->value[i].dtype);
        wholes("shape", plan->value[i].shape, plan->value[i].rank);
        whole("lasting", plan->value[i].lasting);
        close_object();
    }
    close_object();
    open_object("inputs");
    for (uint32_t i = 0; i < plan->inputs; i++) {
        const input_t *input = &plan->input[i];
        open_object(plan->value[input->value].name);
        whole("normalizes", input->normalizes);
        number("scale", input->scale);
        numbers("mean", input->mean, input->channels);
        numbers("std", input->std, input->channels);
        close_object();
    }
    close_object();
}

static void dump_steps(const plan_t *plan, const ee_library *library) {
    open_object("steps");
    for (uint32_t s = 0; s < plan->segments; s++)
        for (uint32_t i = plan->segment[s].first; i < plan->segment[s].end; i++) {
            const step_plan_t *step = &plan->step[i];
            open_object(library->functions[step->call.function].symbol);
            whole("segment", s);
            call(library, &step->call);
            whole("gate", step->gate);
            whole("block", step->block);
            value("keep", step->keep);
            value("otherwise", step->otherwise);
            value("channels", step->channels);
            value("output", step->output);
            whole("groups", step->groups);
            whole("group_macs", step->group_macs);
            close_object();
        }
    close_object();
}

static void dump_exits(const plan_t *plan, const ee_library *library) {
    static const char *const names[] = {"first", "second"};
    open_object("exits");
    for (uint32_t i = 0; i < plan->exits; i++) {
        const exit_t *exit = &plan->exit[i];
        open_object(exit->name);
        for (uint32_t c = 0; c < exit->calls; c++) {
            open_object(names[c]);
            call(library, &exit->call[c]);
            close_object();
        }
        value("logits", exit->logits);
        value("class_means", exit->class_means);
        values("border", exit->border, exit->border_count);
        close_object();
    }
    close_object();
}

static void dump_costs(const costs_t *costs) {
    size_t rows = (size_t)costs->segments + costs->exits + costs->steps;
    open_object("costs");
    open_object("clusters");
    for (uint32_t i = 0; i < costs->clusters; i++) {
        open_object(costs->cluster[i].name);
        number("transition_s", costs->cluster[i].transition_s);
        wholes("cpus", costs->cluster[i].cpu, costs->cluster[i].cpus);
        close_object();
    }
    close_object();
    fprintf(out, "\"states\": [");
    for (uint32_t i = 0; i < costs->states; i++)
        fprintf(out, "%s[\"%s\", %.17g]", i ? ", " : "", costs->state[i].cluster,
                costs->state[i].frequency_hz);
    fprintf(out, "], ");
    whole("segments", costs->segments);
    whole("exits", costs->exits);
    whole("steps", costs->steps);
    numbers("latency_s", costs->latency_s, rows * costs->states);
    numbers("energy_j", costs->energy_j, rows * costs->states);
    number("migration_s", costs->migration_s);
    number("idle_power_w", costs->idle_power_w);
    close_object();
}

static void dump_policies(const plan_t *plan) {
    open_object("policies");
    for (uint32_t i = 0; i < plan->policies; i++) {
        const policy_entry_t *entry = &plan->policy[i];
        open_object(entry->name);
        whole("known", entry->policy != NULL);
        if (entry->policy) number("gate_shift", policy_gate_shift(entry->policy));
        if (entry->clock.present) {
            open_object("clock");
            whole("objective", entry->clock.objective);
            number("deadline_s", entry->clock.deadline_s);
            number("frequency_hz", entry->clock.frequency_hz);
            whole("safe", entry->clock.safe);
            whole("hard", entry->clock.hard);
            whole("start", entry->clock.start == NONE ? -1 : (int64_t)entry->clock.start);
            close_object();
        }
        if (entry->halts) {
            open_object("halt");
            number("macs", entry->halt.macs);
            number("latency_s", entry->halt.latency_s);
            number("energy_j", entry->halt.energy_j);
            close_object();
        }
        whole("offloads", entry->offloads);
        whole("guarded", entry->guarded);
        close_object();
    }
    close_object();
}

void dump(const plan_t *plan, const ee_library *library, char *to, size_t room) {
    char digits[65];
    of = plan;
    out = fmemopen(to, room, "w");
    for (int i = 0; i < 32; i++) snprintf(digits + 2 * i, 3, "%02x", plan->weights_sha256[i]);
    fprintf(out, "{");
    text("name", plan->name);
    text("weights_sha256", digits);
    whole("threads", plan->threads);
    dump_values(plan);
    value("output", plan->output);
    whole("classes", plan->classes);
    fprintf(out, "\"labels\": [");
    for (uint32_t i = 0; i < plan->labels; i++)
        fprintf(out, "%s\"%s\"", i ? ", " : "", plan->label[i]);
    fprintf(out, "], ");
    values("outputs", plan->outputs_values, plan->outputs);
    value("shift", plan->shift);
    dump_steps(plan, library);
    dump_exits(plan, library);
    if (plan->costs) dump_costs(plan->costs);
    dump_policies(plan);
    text("default", plan->default_policy == NONE ? NULL : plan->policy[plan->default_policy].name);
    whole("macs", plan->macs);
    whole("blocks", plan->blocks);
    fprintf(out, "\"\": 0}");
    fclose(out);
}

/* -- from bytes --------------------------------------------------------------------------------- */

extern const ee_library LIBRARY;
const char *dumped(const void *bytes, size_t count, char *to, size_t room);

/* NULL, or why the plan was refused. */
const char *dumped(const void *bytes, size_t count, char *to, size_t room) {
    plan_t plan;
    if (plan_read(&plan, &LIBRARY, bytes, count)) return latest_message();
    dump(&plan, &LIBRARY, to, room);
    plan_free(&plan);
    return NULL;
}

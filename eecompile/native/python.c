/* What Python's session calls beside the public functions: it has checked the files already, shares
 * a team of threads among sessions, and decides by policies that stand in no plan.
 */

#include "session.h"

#include <stdlib.h>
#include <string.h>

/* A network of a plan and weights in memory, which stay there until it is closed. The weights, at a
 * multiple of ALIGNMENT, are taken as they are: their hash was compared. */
VISIBLE ee_status eecompile_open_parts(
    const ee_library *library, const void *plan, size_t plan_bytes, const void *weights,
    size_t weights_bytes, ee_network **found) {
    if (weights_bytes < (size_t)library->weights_bytes)
        return fail(EE_BAD_ARTIFACT, "the weights are of another library");
    ee_network *network = network_new(library);
    if (!network) return EE_NO_MEMORY;
    ee_status status = plan_read(&network->plan, library, plan, plan_bytes);
    if (status) {
        free(network);
        return status;
    }
    network->files = (files_t){.weights = weights, .weights_bytes = weights_bytes};
    *found = network;
    return EE_OK;
}

/* A session, decisions off, of so many threads: those of a team that outlives it. */
VISIBLE ee_status eecompile_session_open(
    ee_network *network, team_t *team, int32_t threads, ee_session **session) {
    ee_options options = EE_OPTIONS;
    options.policy = "";
    options.threads = threads;
    return session_open_with(network, &options, team, session);
}

/* Decide from now on by a policy in a plan's form; gates do so too, if `gates`. */
VISIBLE ee_status eecompile_decide_by(
    ee_session *session, const void *bytes, size_t count, int32_t gates) {
    const plan_t *plan = &session->network->plan;
    arena_t arena = {.most = count * 64 + ((size_t)1 << 20)};
    reader_t reader = {.at = bytes, .end = (const uint8_t *)bytes + count, .arena = &arena};
    const policy_t *policy = policy_read_for(&reader, plan);
    expect(&reader, reader.at == reader.end, "it goes on behind its end");
    void *state = reader.failed ? NULL : calloc(1, policy_state_bytes(policy) + 1);
    if (!state) {
        arena_free(&arena);
        return fail(EE_BAD_ARGUMENT, "the policy cannot be used: %s", reader.what);
    }
    arena_free(&session->own);
    free(session->lane.state);
    session->own = arena;
    session->lane.state = state;
    session->decider = (decider_t){.policy = policy, .gates = gates};
    return EE_OK;
}

/* As ee_run, ended early once *stop is not 0. */
VISIBLE ee_status eecompile_run(
    ee_session *session, const void *const *inputs, ee_answer *answer, atomic_int *stop) {
    return session_run_until(session, inputs, answer, stop);
}

/* Memory of an input: what is written there before a call need not be copied. */
VISIBLE void *eecompile_input(ee_session *session, uint32_t index) {
    return lane_value(&session->lane, session->network->plan.input[index].value);
}

/* Memory of an output of the network. */
VISIBLE const void *eecompile_value(const ee_session *session, uint32_t output) {
    return lane_value(&session->lane, session->network->plan.outputs_values[output]);
}

/* What the caller gives, brought to where the network reads it; as eecompile/runtime/inputs.py. */

#include "session.h"

#include <string.h>

/* An input that is given, and not in memory that others are copied to: of what an earlier answer
 * left in the session only what lies in its very place already is still there when its turn comes.
 */
static ee_status check_input(
    const ee_session *session, const value_t *value, const void *from, const void *to) {
    const lane_t *own = &session->lane;
    uintptr_t at = (uintptr_t)from, block = (uintptr_t)own->block;
    if (!from) return fail(EE_BAD_ARGUMENT, "the input `%s` is NULL", value->name);
    if (from == to || at < block || at - block >= (uintptr_t)own->layout.bytes) return EE_OK;
    return fail(
        EE_BAD_ARGUMENT, "the input `%s` lies in the session's own memory: give a copy of it",
        value->name);
}

ee_status copy_inputs(
    const ee_session *session, lane_t *lane, const void *const *inputs, size_t sample) {
    const plan_t *plan = &session->network->plan;
    for (uint32_t i = 0; i < plan->inputs; i++) {
        const value_t *value = &plan->value[plan->input[i].value];
        void *to = lane_value(lane, plan->input[i].value);
        ee_status status = check_input(session, value, inputs[i], to);
        if (status) return status;
        const char *from = (const char *)inputs[i] + sample * (size_t)value->bytes;
        if (from != to) memcpy(to, from, (size_t)value->bytes);
    }
    return EE_OK;
}

/* Whether an image's channels are its first dimension, not its last one; `shape` is of one sample.
 * Where all are normalised alike nothing says how many there are: they are the fewer of the two. */
static bool channels_first(const input_t *input, const uint32_t shape[3]) {
    return input->channels > 1 ? shape[0] == input->channels : shape[0] <= shape[2];
}

/* Raw images have their channels last, whichever way the network's own have them; what is no image
 * is laid out as the input is, its channels in the first or the last dimension. */
static void normalize(const input_t *input, const value_t *value, const uint8_t *raw, float *to) {
    uint32_t lead = value->rank && value->shape[0] == 1;
    const uint32_t *shape = value->shape + lead;
    bool image = value->rank - lead == 3, moves = image && channels_first(input, shape);
    bool leading = moves || (!image && value->rank > lead && shape[0] == input->channels);
    int64_t count = value->bytes / 4, channels = moves ? shape[0] : input->channels;
    int64_t inner = leading ? count / channels : 1; /* from one channel to the next */
    float scale = (float)input->scale;
    for (int64_t i = 0; i < count; i++) {
        int64_t channel = i / inner % channels, k = input->channels > 1 ? channel : 0;
        int64_t from = moves ? i % inner * channels + channel : i;
        to[i] = ((float)raw[from] / scale - (float)input->mean[k]) / (float)input->std[k];
    }
}

ee_status copy_raw(
    const ee_session *session, lane_t *lane, const void *const *inputs) {
    const plan_t *plan = &session->network->plan;
    bool any = false;
    for (uint32_t i = 0; i < plan->inputs; i++) any |= plan->input[i].normalizes;
    if (!any)
        return fail(
            EE_BAD_ARGUMENT, "`%s` does not say how its inputs are normalised: use ee_run",
            plan->name);
    for (uint32_t i = 0; i < plan->inputs; i++) {
        const input_t *input = &plan->input[i];
        const value_t *value = &plan->value[input->value];
        void *to = lane_value(lane, input->value);
        ee_status status = check_input(session, value, inputs[i], NULL);
        if (status) return status;
        if (input->normalizes) normalize(input, value, inputs[i], to);
        else memcpy(to, inputs[i], (size_t)value->bytes);
    }
    return EE_OK;
}

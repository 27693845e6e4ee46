/* The public functions. Each hands its call to the library that its handle is from, which may be
 * another one, of another version, where a program uses several networks: the linker has bound all
 * calls to the first library it found.
 *
 * Of a handle only its first field is known here: the operations of its library. Those grow at
 * their end only; an older library has fewer.
 */

#include "internal.h"

VISIBLE const char *ee_message(void) { return latest_message(); }

VISIBLE const char *ee_status_name(ee_status status) {
    static const char *const names[] = {
        "EE_OK",        "EE_BAD_ARGUMENT", "EE_BAD_ARTIFACT", "EE_WRONG_VERSION",
        "EE_WRONG_MACHINE", "EE_NO_MEMORY", "EE_NO_FILE",      "EE_BUSY",
        "EE_INFEASIBLE", "EE_UNSUPPORTED",  "EE_INTERNAL"};
    return (unsigned)status < sizeof names / sizeof *names ? names[status] : "unknown status";
}

/* Another library has its own message. */
static ee_status told(const operations_t *of, ee_status status) {
    if (status && of != &eecompile_operations)
        return fail(status, "%s", of->message());
    return status;
}

static const operations_t *operations_of(const void *handle) {
    return *(const operations_t *const *)handle;
}

#define MISSING(what) fail(EE_BAD_ARGUMENT, "%s is NULL", what)
#define HAS(of, name)                                                                              \
    (offsetof(operations_t, name) <                                                                \
     offsetof(operations_t, message) + (of)->count * sizeof(void (*)(void)))

/* Calls `name` of the handle's library with what follows. */
#define CALL(handle, what, name, ...)                                                              \
    do {                                                                                           \
        if (!(handle)) return MISSING(what);                                                       \
        const operations_t *of = operations_of(handle);                                            \
        if (!HAS(of, name)) return fail(EE_UNSUPPORTED, "that library is too old for this call");  \
        return told(of, of->name(__VA_ARGS__));                                                    \
    } while (0)

/* -- networks ---------------------------------------------------------------------------------- */

VISIBLE ee_status ee_open(const ee_library *library, const char *path, ee_network **network) {
    if (!path || !network) return MISSING(path ? "network" : "path");
    *network = NULL;
    CALL(library, "library", open, library, path, network);
}

VISIBLE ee_status ee_open_memory(
    const ee_library *library, const void *bytes, size_t count, ee_network **network) {
    if (!bytes || !network) return MISSING(bytes ? "network" : "bytes");
    *network = NULL;
    CALL(library, "library", open_memory, library, bytes, count, network);
}

VISIBLE void ee_close(ee_network *network) {
    if (network) operations_of(network)->close(network);
}

VISIBLE ee_status ee_network_about(const ee_network *network, ee_network_info *info) {
    if (!info) return MISSING("info");
    CALL(network, "network", network_about, network, info);
}

VISIBLE ee_status ee_input_about(const ee_network *network, uint32_t index, ee_input_info *info) {
    if (!info) return MISSING("info");
    CALL(network, "network", input_about, network, index, info);
}

VISIBLE const char *ee_exit_name(const ee_network *network, uint32_t exit) {
    return network ? operations_of(network)->exit_name(network, exit) : NULL;
}

VISIBLE const char *ee_policy_name(const ee_network *network, uint32_t policy) {
    return network ? operations_of(network)->policy_name(network, policy) : NULL;
}

VISIBLE const char *ee_label(const ee_network *network, uint32_t label) {
    return network ? operations_of(network)->label(network, label) : NULL;
}

/* -- sessions ---------------------------------------------------------------------------------- */

VISIBLE ee_status ee_session_open(
    ee_network *network, const ee_options *options, ee_session **session) {
    if (!session) return MISSING("session");
    *session = NULL;
    CALL(network, "network", session_open, network, options, session);
}

VISIBLE void ee_session_close(ee_session *session) {
    if (session) operations_of(session)->session_close(session);
}

VISIBLE ee_status ee_set_policy(ee_session *session, const char *name) {
    CALL(session, "session", set_policy, session, name);
}

VISIBLE const char *ee_clocks_reason(const ee_session *session) {
    if (!session || !HAS(operations_of(session), clocks_reason)) return "";
    return operations_of(session)->clocks_reason(session);
}

VISIBLE ee_status ee_set_own_policy(ee_session *session, const ee_policy *policy) {
    CALL(session, "session", set_own_policy, session, policy);
}

VISIBLE ee_status ee_set_halt(ee_session *session, double macs, double latency_s, double energy_j) {
    CALL(session, "session", set_halt, session, macs, latency_s, energy_j);
}

VISIBLE ee_status ee_run(ee_session *session, const void *const *inputs, ee_answer *answer) {
    if (!inputs || !answer) return MISSING(inputs ? "answer" : "inputs");
    CALL(session, "session", run, session, inputs, answer);
}

VISIBLE ee_status ee_run_raw(ee_session *session, const void *const *inputs, ee_answer *answer) {
    if (!inputs || !answer) return MISSING(inputs ? "answer" : "inputs");
    CALL(session, "session", run_raw, session, inputs, answer);
}

VISIBLE ee_status ee_run_whole(ee_session *session, const void *const *inputs, ee_answer *answer) {
    if (!inputs || !answer) return MISSING(inputs ? "answer" : "inputs");
    CALL(session, "session", run_whole, session, inputs, answer);
}

VISIBLE ee_status ee_run_batch(
    ee_session *session, const void *const *inputs, size_t count, float *logits,
    ee_answer *answers) {
    if (!inputs || !answers) return MISSING(inputs ? "answers" : "inputs");
    CALL(session, "session", run_batch, session, inputs, count, logits, answers);
}

VISIBLE const void *ee_output(const ee_session *session, const char *name) {
    return session && name ? operations_of(session)->output(session, name) : NULL;
}

VISIBLE int ee_cancel(ee_session *session) {
    return session ? operations_of(session)->cancel(session) : 0;
}

VISIBLE ee_status ee_statistics_get(
    const ee_session *session, ee_statistics *statistics, uint64_t *exits) {
    if (!statistics) return MISSING("statistics");
    CALL(session, "session", statistics_get, session, statistics, exits);
}

VISIBLE void ee_statistics_reset(ee_session *session) {
    if (session) operations_of(session)->statistics_reset(session);
}

VISIBLE ee_status ee_state_get(const ee_session *session, void *bytes, size_t *count) {
    if (!count) return MISSING("count");
    CALL(session, "session", state_get, session, bytes, count);
}

VISIBLE ee_status ee_state_set(ee_session *session, const void *bytes, size_t count) {
    if (!bytes) return MISSING("bytes");
    CALL(session, "session", state_set, session, bytes, count);
}

/* Networks: code, weights and plan, opened once and shared by sessions. */

#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- the machine ------------------------------------------------------------------------------- */

/* What every CPU of the architecture has, also where /proc/cpuinfo cannot be read, or is that of
 * another machine, which emulates this one. */
#ifdef __aarch64__
static const char guaranteed[] = " fp asimd ";
#else
static const char guaranteed[] = "";
#endif

/* The features of this CPU as /proc/cpuinfo names them, between spaces; "" where it cannot be read.
 * The first line of that kind is enough: code runs on the CPU it was opened on, or one like it. */
static void cpu_features(char *line, size_t room) {
    line[0] = 0;
    FILE *file = fopen("/proc/cpuinfo", "re");
    if (!file) return;
    char found[8192];
    while (fgets(found, sizeof found, file)) {
        if (strncmp(found, "flags", 5) && strncmp(found, "Features", 8)) continue;
        const char *colon = strchr(found, ':');
        if (!colon) continue;
        snprintf(line, room, " %s ", colon + 1);
        line[strcspn(line, "\n")] = ' ';
        break;
    }
    fclose(file);
}

static bool has_feature(const char *line, const char *name, size_t length) {
    for (const char *at = line; (at = strstr(at, name)); at += length)
        if (at > line && at[-1] == ' ' && at[length] == ' ') return true;
    return false;
}

static ee_status check_machine(const ee_library *library) {
    char line[8200], name[64];
    const char *wanted = library->features;
    if (!*wanted) return EE_OK;
    cpu_features(line, sizeof line);
    while (*wanted) {
        size_t length = strcspn(wanted, " ");
        if (length && length < sizeof name) {
            memcpy(name, wanted, length);
            name[length] = 0;
            if (!has_feature(line, name, length) && !has_feature(guaranteed, name, length))
                return fail(
                    EE_WRONG_MACHINE, "this CPU lacks what the code of `%s` needs: %s",
                    library->name, name);
        }
        wanted += length + (wanted[length] == ' ');
    }
    return EE_OK;
}

/* -- opening ----------------------------------------------------------------------------------- */

static ee_status check_weights(const ee_network *network, const char *where) {
    const files_t *files = &network->files;
    unsigned char digest[32];
    if (files->weights_bytes != (size_t)network->library->weights_bytes)
        return fail(
            EE_BAD_ARTIFACT, "%.200s: the weights have %zu bytes, the code of `%s` reads %lld",
            where, files->weights_bytes, network->library->name,
            (long long)network->library->weights_bytes);
    sha256(files->weights, files->weights_bytes, digest);
    if (memcmp(digest, network->plan.weights_sha256, 32))
        return fail(
            EE_BAD_ARTIFACT, "%.200s: the weights have been changed: their SHA-256 is another",
            where);
    return EE_OK;
}

/* The latest error, with where it is. */
static ee_status fail_at(ee_status status, const char *where) {
    char what[512];
    snprintf(what, sizeof what, "%s", latest_message());
    return fail(status, "%.200s: %s", where, what);
}

ee_network *network_new(const ee_library *library) {
    ee_network *made = calloc(1, sizeof *made);
    if (!made) {
        fail(EE_NO_MEMORY, "there is no memory for a network");
        return NULL;
    }
    made->operations = library->operations;
    made->library = library;
    atomic_init(&made->users, 1);
    return made;
}

static ee_status opened(
    ee_network *network, ee_status status, const char *where, ee_network **found) {
    if (!status) {
        const files_t *files = &network->files;
        status = plan_read(
            &network->plan, network->library, files->plan, files->plan_bytes);
        if (status) status = fail_at(status, where);
        if (!status) status = check_weights(network, where);
        if (!status) {
            *found = network;
            return EE_OK;
        }
        plan_free(&network->plan);
        files_close(&network->files);
    }
    free(network);
    return status;
}

static ee_status network_open(
    const ee_library *library, const char *path, ee_network **network) {
    ee_status status = check_machine(library);
    if (status) return status;
    ee_network *made = network_new(library);
    if (!made) return EE_NO_MEMORY;
    return opened(made, files_open(&made->files, path), path, network);
}

static ee_status network_open_memory(
    const ee_library *library, const void *bytes, size_t count, ee_network **network) {
    ee_status status = check_machine(library);
    if (status) return status;
    ee_network *made = network_new(library);
    if (!made) return EE_NO_MEMORY;
    return opened(made, files_open_memory(&made->files, bytes, count), "memory", network);
}

void network_release(ee_network *network) {
    if (atomic_fetch_sub(&network->users, 1) != 1) return;
    plan_free(&network->plan);
    files_close(&network->files);
    free(network);
}

/* -- telling ----------------------------------------------------------------------------------- */

ee_status tell(void *to, const void *from, size_t size) {
    size_t known = *(size_t *)to;
    if (known < sizeof(size_t)) return fail(EE_BAD_ARGUMENT, "the structure has no size");
    size_t count = (known < size ? known : size) - sizeof(size_t);
    memcpy((char *)to + sizeof(size_t), (const char *)from + sizeof(size_t), count);
    return EE_OK;
}

static ee_status network_about(const ee_network *network, ee_network_info *info) {
    const plan_t *plan = &network->plan;
    layout_t layout;
    ee_status status = layout_make(&layout, network->library, plan, 1);
    if (status) return status;
    ee_network_info found = {
        .name = plan->name,
        .inputs = plan->inputs,
        .exits = plan->exits + 1,
        .policies = plan->policies,
        .classes = plan->classes,
        .segments = plan->segments,
        .blocks = plan->blocks,
        .macs = (uint64_t)plan->macs,
        .weights_bytes = (uint64_t)network->library->weights_bytes,
        .session_bytes = (uint64_t)layout.bytes,
    };
    layout_free(&layout);
    return tell(info, &found, sizeof found);
}

static ee_status input_about(const ee_network *network, uint32_t index, ee_input_info *info) {
    const plan_t *plan = &network->plan;
    if (index >= plan->inputs)
        return fail(EE_BAD_ARGUMENT, "there is no input %u: `%s` has %u", (unsigned)index,
                    plan->name, (unsigned)plan->inputs);
    const input_t *input = &plan->input[index];
    const value_t *value = &plan->value[input->value];
    ee_input_info found = {
        .name = value->name,
        .dtype = value->dtype,
        .rank = value->rank,
        .shape = value->shape,
        .bytes = (size_t)value->bytes,
        .normalizes = input->normalizes,
    };
    return tell(info, &found, sizeof found);
}

static const char *exit_name(const ee_network *network, uint32_t exit) {
    const plan_t *plan = &network->plan;
    if (exit == plan->exits) return "final";
    return exit < plan->exits ? plan->exit[exit].name : NULL;
}

static const char *policy_name(const ee_network *network, uint32_t policy) {
    const plan_t *plan = &network->plan;
    return policy < plan->policies ? plan->policy[policy].name : NULL;
}

static const char *label(const ee_network *network, uint32_t index) {
    const plan_t *plan = &network->plan;
    return index < plan->labels ? plan->label[index] : NULL;
}

const operations_t eecompile_operations = {
    .count = sizeof(operations_t) / sizeof(void (*)(void)) - 1,
    .message = latest_message,
    .open = network_open,
    .open_memory = network_open_memory,
    .close = network_release,
    .network_about = network_about,
    .input_about = input_about,
    .exit_name = exit_name,
    .policy_name = policy_name,
    .label = label,
    .session_open = session_open,
    .session_close = session_close,
    .set_policy = session_set_policy,
    .set_own_policy = session_set_own_policy,
    .set_halt = session_set_halt,
    .run = session_run,
    .run_raw = session_run_raw,
    .run_whole = session_run_whole,
    .run_batch = session_run_batch,
    .output = session_output,
    .cancel = session_cancel,
    .statistics_get = session_statistics_get,
    .statistics_reset = session_statistics_reset,
    .state_get = session_state_get,
    .state_set = session_state_set,
    .clocks_reason = session_clocks_reason,
};

/* Damaged and hostile plans: each is refused, or can be used without harm.
 *
 *     plan_fuzz FOLDER SEED COUNT
 *
 * FOLDER has a folder for each network with its plan.bin and weights.bin, and perhaps NETWORK.eec.
 * Takes COUNT valid plans one after the other, changes some bytes, lengths or numbers, puts size
 * and SHA-256 right (most often), and opens them. Where a plan is accepted, sessions are opened by
 * every policy of it, and samples answered. Packed files are damaged, too. What is read or written
 * out of bounds, undefined, or takes too long ends the program: compile it with sanitizers. Prints
 * how many plans were accepted.
 */
#include "internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NETWORKS = 3, SECONDS = 20, MOST_POLICIES = 40, MOST_CLASSES = 1 << 16 };

extern const ee_library ee_library_tiny, ee_library_gated, ee_library_odd;
ee_status eecompile_open_parts(
    const ee_library *library, const void *plan, size_t plan_bytes, const void *weights,
    size_t weights_bytes, ee_network **found);

typedef struct {
    uint8_t *bytes;
    size_t count;
} bytes_t;

static const ee_library *const libraries[NETWORKS] = {
    &ee_library_tiny, &ee_library_gated, &ee_library_odd};
static bytes_t plans[NETWORKS], weights[NETWORKS], packed[NETWORKS];

/* -- dice --------------------------------------------------------------------------------------- */

static uint64_t state;
static uint64_t dice(uint64_t sides) { /* splitmix64 */
    uint64_t x = state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % sides;
}

static bytes_t read_file(const char *folder, const char *network, const char *name) {
    char path[4096];
    struct stat about;
    bytes_t found = {NULL, 0};
    snprintf(path, sizeof path, "%s/%s%s", folder, network, name);
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &about)) return found;
    found.count = (size_t)about.st_size;
    found.bytes = aligned_alloc(ALIGNMENT, (found.count / ALIGNMENT + 1) * ALIGNMENT);
    if (read(file, found.bytes, found.count) != (ssize_t)found.count) abort();
    close(file);
    return found;
}

/* -- damage ------------------------------------------------------------------------------------- */

static void put(uint8_t *at, uint64_t value, size_t size) {
    for (size_t i = 0; i < size; i++) at[i] = (uint8_t)(value >> (8 * i));
}

static void put_number(bytes_t *to, size_t from) {
    static const uint64_t wholes[] = {
        0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 64, 255, 256, 1023, 1024, 1025, 65535, 1 << 20,
        1 << 30, INT32_MAX, 1u << 31, UINT32_MAX - 1, UINT32_MAX, 1ull << 40, 1ull << 52, 1ull << 60,
        INT64_MAX, 1ull << 63, UINT64_MAX};
    static const double reals[] = {
        0, -0.0, 1, -1, 0.5, 1e-300, 1e300, 1e99, 1e-9, INFINITY, -INFINITY, NAN, 5e-324, 1e16};
    uint64_t value = wholes[dice(sizeof wholes / sizeof *wholes)];
    size_t sizes[] = {1, 4, 4, 8, 8}, kind = dice(5), size = sizes[kind];
    if (kind == 4) memcpy(&value, &reals[dice(sizeof reals / sizeof *reals)], sizeof value);
    if (to->count < from + size) return;
    put(to->bytes + from + dice(to->count - from - size + 1), value, size);
}

/* Moves, doubles or drops some bytes: of this plan, or of another. */
static void splice_in(bytes_t *to, size_t head, size_t room, const bytes_t *other) {
    size_t length = 1 + dice(dice(4) ? 24 : 400), at = head + dice(to->count - head + 1);
    if (dice(2)) { /* drop */
        if (length > to->count - at) length = to->count - at;
        memmove(to->bytes + at, to->bytes + at + length, to->count - at - length);
        to->count -= length;
        return;
    }
    const bytes_t *from = dice(2) ? other : to;
    if (length > from->count - head || to->count + length > room) return;
    uint8_t taken[400];
    memcpy(taken, from->bytes + head + dice(from->count - head - length + 1), length);
    if (dice(2) && at + length <= to->count) { /* over what is there */
        memcpy(to->bytes + at, taken, length);
        return;
    }
    memmove(to->bytes + at + length, to->bytes + at, to->count - at);
    memcpy(to->bytes + at, taken, length);
    to->count += length;
}

static void damage(bytes_t *to, size_t head, size_t room, const bytes_t *other) {
    uint64_t times = 1 + (dice(3) ? 0 : dice(6));
    for (uint64_t i = 0; i < times && to->count > head; i++) {
        size_t at = head + dice(to->count - head);
        switch (dice(8)) {
        case 0: to->bytes[at] ^= (uint8_t)(1 << dice(8)); break;
        case 1: to->bytes[at] = (uint8_t)dice(256); break;
        case 2: to->bytes[at] += dice(2) ? 1 : 255; break;
        case 3: to->count = dice(8) ? to->count : at; break;
        case 4: splice_in(to, head, room, other); break;
        default: put_number(to, head); break;
        }
    }
}

/* -- use ---------------------------------------------------------------------------------------- */

static int offers(void *context, const char *cluster, double hertz) {
    (void)context, (void)hertz;
    return cluster[0] != 'x' && dice(8) > 0;
}
static int set(void *context, const char *cluster, double hertz) {
    (void)context, (void)cluster, (void)hertz;
    uint64_t found = dice(20);
    return found == 0 ? -1 : found == 1;
}
static void restore(void *context) { (void)context; }
static double energy(void *context) { return *(double *)context += 0.5; }

static int serve(
    void *context, uint32_t exit, const void *const *values, uint32_t count, float *logits) {
    (void)context, (void)exit;
    for (uint32_t i = 0; i < count; i++) logits[0] = *(const char *)values[i];
    return (int)dice(2);
}

/* Inputs of any size and content. */
static const void **make_inputs(const ee_network *network, uint32_t count, uint32_t samples) {
    const void **inputs = calloc(count + 1, sizeof *inputs);
    for (uint32_t i = 0; i < count; i++) {
        ee_input_info about = EE_INPUT_INFO;
        if (ee_input_about(network, i, &about)) abort();
        uint32_t *made = malloc(about.bytes * samples + sizeof *made);
        for (size_t k = 0; k < about.bytes * samples / sizeof *made; k++)
            made[k] = (uint32_t)dice(dice(4) ? 1u << 31 : UINT32_MAX);
        inputs[i] = made;
    }
    return inputs;
}

static void answer(ee_session *session, const void *const *inputs, uint32_t classes) {
    ee_answer answer = EE_ANSWER;
    double sum = 0;
    size_t count = 0;
    if (!ee_run(session, inputs, &answer))
        for (uint32_t i = 0; i < answer.classes; i++) sum += answer.logits[i];
    ee_run_whole(session, inputs, &answer);
    ee_run_raw(session, inputs, &answer);
    double share = (double)(1 + dice(100)) / 80;
    ee_set_halt(session, share, dice(2) ? NAN : share, dice(2) ? NAN : 4 * share);
    ee_run(session, inputs, &answer);
    ee_answer answers[3] = {EE_ANSWER, EE_ANSWER, EE_ANSWER};
    float *logits = calloc(3 * (size_t)classes + 1, sizeof *logits);
    ee_run_batch(session, inputs, 3, logits, answers);
    free(logits);
    ee_state_get(session, NULL, &count);
    char *bytes = malloc(count + 1);
    if (!ee_state_get(session, bytes, &count)) ee_state_set(session, bytes, count);
    free(bytes);
    if (sum == 12345) printf("%g\n", sum);
}

static void use(ee_network *network) {
    static double drawn;
    const ee_governor governor = {NULL, offers, set, restore};
    const ee_meter meter = {&drawn, energy};
    const ee_server server = {NULL, serve};
    ee_network_info about = EE_NETWORK_INFO;
    if (ee_network_about(network, &about) || about.classes > MOST_CLASSES) return;
    for (uint32_t i = 0; i <= about.exits; i++) ee_exit_name(network, i);
    for (uint32_t i = 0; i <= about.classes; i++) ee_label(network, i);
    const void **inputs = make_inputs(network, about.inputs, 3);
    uint32_t policies = about.policies < MOST_POLICIES ? about.policies : MOST_POLICIES;
    uint32_t first = dice(policies + 1), end = dice(8) ? first + 2 : policies + 1;
    for (uint32_t i = first; i < end && i <= policies; i++) {
        ee_options options = EE_OPTIONS;
        options.policy = i < policies ? ee_policy_name(network, i) : "";
        options.threads = dice(64) ? 1 : 3;
        options.clocks = (int32_t)dice(2);
        options.governor = &governor;
        if (dice(2)) options.meter = &meter;
        if (dice(2)) options.server = &server;
        ee_session *session;
        if (ee_session_open(network, &options, &session)) continue;
        answer(session, inputs, about.classes);
        ee_set_policy(session, NULL);
        answer(session, inputs, about.classes);
        ee_session_close(session);
    }
    for (uint32_t i = 0; i < about.inputs; i++) free((void *)inputs[i]);
    free(inputs);
}

/* -- one after the other ------------------------------------------------------------------------ */

static bool try_plan(void) {
    enum { HEAD = 48 };
    size_t which = dice(NETWORKS), room = plans[which].count + 4096;
    const bytes_t *other = &plans[dice(NETWORKS)];
    bytes_t made = {malloc(room), plans[which].count};
    memcpy(made.bytes, plans[which].bytes, made.count);
    bool repairs = dice(16) > 0;
    damage(&made, repairs ? HEAD : 0, room, other);
    if (repairs && made.count >= HEAD) {
        put(made.bytes + 12, made.count - HEAD, 4);
        sha256(made.bytes + HEAD, made.count - HEAD, made.bytes + 16);
    }
    /* Memory of exactly its size: nothing beyond it may be read. */
    uint8_t *exact = malloc(made.count + !made.count);
    memcpy(exact, made.bytes, made.count);
    free(made.bytes);
    ee_network *network;
    ee_status status = eecompile_open_parts(
        libraries[which], exact, made.count, weights[which].bytes, weights[which].count, &network);
    if (status > EE_INTERNAL || (status && !*ee_message())) abort();
    if (!status) {
        use(network);
        ee_close(network);
    }
    free(exact);
    return !status;
}

static void try_packed(void) {
    size_t which = dice(NETWORKS), room = packed[which].count + 4096;
    if (!packed[which].bytes) return;
    bytes_t made = {malloc(room), packed[which].count};
    memcpy(made.bytes, packed[which].bytes, made.count);
    damage(&made, 0, room, &packed[dice(NETWORKS)]);
    size_t space = (made.count / ALIGNMENT + 1) * ALIGNMENT, at = space - made.count;
    uint8_t *aligned = aligned_alloc(ALIGNMENT, 2 * space);
    (void)at;
    memcpy(aligned, made.bytes, made.count);
    ee_network *network;
    if (!ee_open_memory(libraries[which], aligned, made.count, &network)) {
        use(network);
        ee_close(network);
    }
    free(aligned);
    free(made.bytes);
}

int main(int count, char **arguments) {
    static const char *const names[NETWORKS] = {"tiny", "gated", "odd"};
    if (count != 4) return 2;
    for (size_t i = 0; i < NETWORKS; i++) {
        plans[i] = read_file(arguments[1], names[i], "/plan.bin");
        weights[i] = read_file(arguments[1], names[i], "/weights.bin");
        packed[i] = read_file(arguments[1], names[i], ".eec");
        if (!plans[i].bytes || !weights[i].bytes) return 2;
        ee_network *network;
        if (eecompile_open_parts(libraries[i], plans[i].bytes, plans[i].count, weights[i].bytes,
                                 weights[i].count, &network)) {
            fprintf(stderr, "%s: %s\n", names[i], ee_message());
            return 1;
        }
        use(network);
        ee_close(network);
    }
    uint64_t seed = strtoull(arguments[2], NULL, 10), wanted = strtoull(arguments[3], NULL, 10);
    uint64_t accepted = 0;
    for (uint64_t i = 0; i < wanted; i++) {
        state = (seed << 32) + i;
        alarm(SECONDS);
        if (dice(16)) accepted += try_plan();
        else try_packed();
    }
    for (size_t i = 0; i < NETWORKS; i++) {
        free(plans[i].bytes);
        free(weights[i].bytes);
        free(packed[i].bytes);
    }
    printf("%llu %llu\n", (unsigned long long)wanted, (unsigned long long)accepted);
    return 0;
}

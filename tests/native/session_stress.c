/* Many threads with many sessions of two networks: each answer is compared with what one thread got
 * before. Silent if all is well.
 *
 *     session_stress FOLDER THREADS SESSIONS ROUNDS SEED FORKS
 *
 * FOLDER has a folder for each network. Threads answer samples one by one and in batches, by random
 * policies and budgets; they cancel each other's calls, and open and close sessions and networks.
 * Meanwhile the process is forked FORKS times while its sessions are open; each child answers
 * alone. To be run plain, with sanitizers, and in valgrind.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "eecompile.h"

enum { NETWORKS = 2, SAMPLES = 16, CLASSES = 3, WIDTH = 4, MOST = 64, POLICIES = 40 };

extern const ee_library ee_library_tiny, ee_library_gated;

typedef struct {
    uint32_t exit, segments_run, heads_run, blocks_run, flags;
    uint64_t macs;
    float logits[CLASSES];
} known_t;

/* A network, its samples, and the answers of each policy; the last one is none. */
typedef struct {
    char path[4096];
    const ee_library *library;
    ee_network *network;
    uint32_t policies;
    const char *policy[POLICIES];
    int steady[POLICIES]; /* answers do not depend on those before */
    known_t known[POLICIES][SAMPLES];
    float x[SAMPLES][WIDTH];
} net_t;

typedef struct {
    ee_session *session;
    const net_t *net;
    pthread_mutex_t lock; /* held while it is closed, or cancelled by another thread */
    uint32_t policy;
    int halts;
} slot_t;

static net_t nets[NETWORKS];
static slot_t slots[MOST * MOST];
static int threads, sessions, rounds, forks;
static atomic_int cancels;

#define CHECK(holds)                                                                               \
    do {                                                                                           \
        if (!(holds)) {                                                                            \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #holds, ee_message());                  \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t dice(uint64_t *state, uint64_t sides) { /* splitmix64 */
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % sides;
}

/* -- what is right ------------------------------------------------------------------------------ */

static known_t as_known(const ee_answer *answer) {
    known_t found = {
        answer->exit, answer->segments_run, answer->heads_run, answer->blocks_run, answer->flags,
        answer->macs, {0}};
    memcpy(found.logits, answer->logits, sizeof found.logits);
    return found;
}

static int same(const known_t *a, const known_t *b) {
    return a->exit == b->exit && a->segments_run == b->segments_run &&
           a->heads_run == b->heads_run && a->blocks_run == b->blocks_run &&
           a->flags == b->flags && a->macs == b->macs &&
           !memcmp(a->logits, b->logits, sizeof a->logits);
}

static ee_session *open_session(ee_network *network, const char *policy, int team) {
    ee_options options = EE_OPTIONS;
    ee_session *session;
    options.policy = policy;
    options.threads = team;
    CHECK(!ee_session_open(network, &options, &session));
    return session;
}

static known_t ask(ee_session *session, const float *x) {
    const void *inputs[] = {x};
    ee_answer answer = EE_ANSWER;
    CHECK(!ee_run(session, inputs, &answer));
    return as_known(&answer);
}

static void learn_net(net_t *net, uint64_t *state) {
    ee_network_info about = EE_NETWORK_INFO;
    CHECK(!ee_open(net->library, net->path, &net->network));
    CHECK(!ee_network_about(net->network, &about));
    for (int i = 0; i < SAMPLES * WIDTH; i++)
        net->x[i / WIDTH][i % WIDTH] = (float)dice(state, 4000) / 1000 - 2.5f;
    net->policies = about.policies;
    CHECK(net->policies < POLICIES);
    for (uint32_t p = 0; p <= net->policies; p++) {
        net->policy[p] = p < net->policies ? ee_policy_name(net->network, p) : "";
        ee_session *session = open_session(net->network, net->policy[p], 1);
        size_t learned = 0;
        CHECK(!ee_state_get(session, NULL, &learned));
        /* Deadlines are of real time. */
        net->steady[p] = !learned && strcmp(net->policy[p], "hard");
        for (int i = 0; i < SAMPLES; i++) net->known[p][i] = ask(session, net->x[i]);
        ee_session_close(session);
    }
}

/* -- what threads do ---------------------------------------------------------------------------- */

static void open_slot(slot_t *slot, uint64_t *state) {
    slot->net = &nets[dice(state, NETWORKS)];
    slot->policy = (uint32_t)dice(state, slot->net->policies + 1);
    slot->halts = 0;
    const char *policy = slot->net->policy[slot->policy];
    ee_session *session = open_session(slot->net->network, policy, 1 + (int)dice(state, 3));
    pthread_mutex_lock(&slot->lock);
    slot->session = session;
    pthread_mutex_unlock(&slot->lock);
}

static void close_slot(slot_t *slot) {
    pthread_mutex_lock(&slot->lock);
    ee_session_close(slot->session);
    slot->session = NULL;
    pthread_mutex_unlock(&slot->lock);
}

/* Whether an answer is what it must be: of a call that nobody cancelled, that of before. */
static void look(const slot_t *slot, size_t sample, const known_t *found) {
    CHECK(found->exit < CLASSES && found->segments_run >= 1);
    if (found->flags & EE_CANCELLED || slot->halts || !slot->net->steady[slot->policy]) return;
    CHECK(same(found, &slot->net->known[slot->policy][sample]));
}

static void run_one(slot_t *slot, uint64_t *state) {
    size_t sample = dice(state, SAMPLES);
    known_t found = ask(slot->session, slot->net->x[sample]);
    look(slot, sample, &found);
}

static void run_whole(slot_t *slot, uint64_t *state) {
    size_t sample = dice(state, SAMPLES);
    const void *inputs[] = {slot->net->x[sample]};
    ee_answer answer = EE_ANSWER;
    CHECK(!ee_run_whole(slot->session, inputs, &answer));
    known_t found = as_known(&answer);
    CHECK(same(&found, &slot->net->known[slot->net->policies][sample]));
}

static void run_batch(slot_t *slot, uint64_t *state) {
    const ee_answer empty = EE_ANSWER;
    const void *inputs[] = {slot->net->x};
    ee_answer answers[SAMPLES];
    float logits[SAMPLES][CLASSES];
    size_t count = dice(state, SAMPLES + 1);
    for (size_t i = 0; i < SAMPLES; i++) answers[i] = empty;
    CHECK(!ee_run_batch(slot->session, inputs, count, logits[0], answers));
    for (size_t i = 0; i < count; i++) {
        CHECK(answers[i].logits == logits[i] && !(answers[i].flags & EE_CANCELLED));
        known_t found = as_known(&answers[i]);
        look(slot, i, &found);
    }
}

static void set_policy(slot_t *slot, uint64_t *state) {
    slot->policy = (uint32_t)dice(state, slot->net->policies + 1);
    slot->halts = 0;
    CHECK(!ee_set_policy(slot->session, slot->net->policy[slot->policy]));
}

static void set_halt(slot_t *slot, uint64_t *state) {
    double share = (double)(1 + dice(state, 120)) / 100;
    double seconds = dice(state, 3) ? NAN : share / 100;
    ee_status status = ee_set_halt(slot->session, share, seconds, NAN);
    CHECK(!status || status == EE_INFEASIBLE || status == EE_BAD_ARGUMENT);
    if (!status) slot->halts = 1;
}

static void cancel(uint64_t *state) {
    slot_t *slot = &slots[dice(state, (uint64_t)(threads * sessions))];
    pthread_mutex_lock(&slot->lock);
    if (slot->session) atomic_fetch_add(&cancels, ee_cancel(slot->session));
    pthread_mutex_unlock(&slot->lock);
}

static void own_network(slot_t *slot, uint64_t *state) {
    ee_network *network;
    const net_t *net = slot->net;
    CHECK(!ee_open(net->library, net->path, &network));
    ee_session *session = open_session(network, net->policy[slot->policy], 1);
    ee_close(network);
    size_t sample = dice(state, SAMPLES);
    known_t found = ask(session, net->x[sample]);
    if (net->steady[slot->policy]) CHECK(same(&found, &net->known[slot->policy][sample]));
    CHECK(ee_open(net->library, "/nowhere", &network) == EE_NO_FILE && !network);
    CHECK(strstr(ee_message(), "/nowhere"));
    ee_session_close(session);
}

static void look_around(slot_t *slot) {
    ee_statistics statistics = EE_STATISTICS;
    uint64_t exits[CLASSES + 1] = {0};
    char learned[4096];
    size_t count = sizeof learned;
    CHECK(!ee_statistics_get(slot->session, &statistics, exits));
    CHECK(exits[0] + exits[1] + exits[2] == statistics.answers);
    CHECK(!ee_state_get(slot->session, learned, &count));
    CHECK(!ee_state_set(slot->session, learned, count));
    if (statistics.answers > 50) ee_statistics_reset(slot->session);
}

static void *work(void *given) {
    slot_t *own = given;
    uint64_t state = (uint64_t)(own - slots) * 1000 + (uint64_t)rounds;
    for (int i = 0; i < sessions; i++) open_slot(&own[i], &state);
    for (int round = 0; round < rounds; round++) {
        slot_t *slot = &own[dice(&state, (uint64_t)sessions)];
        uint64_t what = dice(&state, 100);
        if (what < 50) run_one(slot, &state);
        else if (what < 60) run_whole(slot, &state);
        else if (what < 70) run_batch(slot, &state);
        else if (what < 80) cancel(&state);
        else if (what < 87) set_policy(slot, &state);
        else if (what < 91) set_halt(slot, &state);
        else if (what < 95) look_around(slot);
        else if (what < 97) own_network(slot, &state);
        else {
            close_slot(slot);
            open_slot(slot, &state);
        }
    }
    for (int i = 0; i < sessions; i++) close_slot(&own[i]);
    return NULL;
}

/* -- forked processes --------------------------------------------------------------------------- */

static void answer_alone(ee_session *const *open, uint64_t seed) {
    uint64_t state = seed;
    for (int n = 0; n < NETWORKS; n++) {
        slot_t slot = {.session = open[n], .net = &nets[n], .policy = 0};
        for (int i = 0; i < 20; i++) {
            run_one(&slot, &state);
            run_batch(&slot, &state);
        }
        set_policy(&slot, &state);
        run_one(&slot, &state);
        ee_session_close(open[n]);
    }
    _exit(0);
}

static void fork_meanwhile(void) {
    ee_session *open[NETWORKS];
    for (int n = 0; n < NETWORKS; n++)
        open[n] = open_session(nets[n].network, nets[n].policy[0], 3);
    for (int i = 0; i < forks; i++) {
        int status;
        for (int n = 0; n < NETWORKS; n++) ask(open[n], nets[n].x[0]);
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) answer_alone(open, (uint64_t)i);
        CHECK(waitpid(child, &status, 0) == child && !status);
    }
    for (int n = 0; n < NETWORKS; n++) ee_session_close(open[n]);
}

int main(int count, char **arguments) {
    pthread_t ids[MOST];
    if (count != 7) return 2;
    threads = atoi(arguments[2]);
    sessions = atoi(arguments[3]);
    rounds = atoi(arguments[4]);
    forks = atoi(arguments[6]);
    uint64_t state = strtoull(arguments[5], NULL, 10);
    if (threads > MOST || sessions > MOST) return 2;
    nets[0].library = &ee_library_tiny;
    nets[1].library = &ee_library_gated;
    for (int n = 0; n < NETWORKS; n++) {
        const char *name = n ? "gated" : "tiny";
        snprintf(nets[n].path, sizeof nets[n].path, "%s/%s", arguments[1], name);
        learn_net(&nets[n], &state);
    }
    for (int i = 0; i < threads * sessions; i++) pthread_mutex_init(&slots[i].lock, NULL);
    for (int i = 0; i < threads; i++)
        CHECK(!pthread_create(&ids[i], NULL, work, &slots[i * sessions]));
    fork_meanwhile();
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    for (int n = 0; n < NETWORKS; n++) ee_close(nets[n].network);
    return 0;
}

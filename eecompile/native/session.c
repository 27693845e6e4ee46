/* Sessions: who decides, samples in, answers out. */

#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { IDLE = -1 }; /* of own_stop */

atomic_int nobody_cancels;

static const plan_t *plan_of(const ee_session *session) { return &session->network->plan; }

/* -- one thread at a time ---------------------------------------------------------------------- */

/* In a forked process the threads are gone. (Clocks, which are the parent's, notice themselves.) */
static void forget_parent(ee_session *session) {
    session->forked = session->unforked ? !*session->unforked : session->owner != getpid();
    if (!session->forked) return;
    free(session->own_team);
    session->lane.team = session->team = session->own_team = NULL;
}

ee_status session_begin(ee_session *session) {
    if (atomic_flag_test_and_set_explicit(&session->in_use, memory_order_acquire))
        return fail(EE_BUSY, "another thread is using the session: open one for each thread");
    forget_parent(session);
    return EE_OK;
}

ee_status session_end(ee_session *session, ee_status status) {
    atomic_flag_clear_explicit(&session->in_use, memory_order_release);
    return status;
}

/* -- opening ----------------------------------------------------------------------------------- */

/* A page that forked processes find empty; asking the system for one's number takes longer. */
static unsigned char *page_of_this_process(void) {
#ifdef MADV_WIPEONFORK
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *page =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return NULL;
    if (!madvise(page, size, MADV_WIPEONFORK)) {
        *page = 1;
        return page;
    }
    munmap(page, size);
#endif
    return NULL;
}

static void measure_policies(ee_session *session) {
    const plan_t *plan = plan_of(session);
    for (uint32_t i = 0; i < plan->policies; i++) {
        if (!plan->policy[i].policy) continue;
        size_t state = policy_state_bytes(plan->policy[i].policy);
        size_t learned = policy_learned_bytes(plan->policy[i].policy);
        if (state > session->state_bytes) session->state_bytes = state;
        if (learned > session->learned_bytes) session->learned_bytes = learned;
    }
}

/* The function that an app should have given and has not, or NULL. */
static const char *missing_function(const ee_options *options) {
    const ee_governor *governor = options->governor;
    if (governor && !governor->offers) return "the governor lacks a function: `offers`";
    if (governor && !governor->set) return "the governor lacks a function: `set`";
    if (governor && !governor->restore) return "the governor lacks a function: `restore`";
    if (options->meter && !options->meter->energy_j)
        return "the meter lacks a function: `energy_j`";
    if (options->server && !options->server->answer) return "the server lacks a function: `answer`";
    return NULL;
}

static ee_status read_options(ee_session *session, const ee_options *options) {
    const plan_t *plan = plan_of(session);
    if (options && options->size < sizeof(size_t))
        return fail(EE_BAD_ARGUMENT, "the options have no size: begin with EE_OPTIONS");
    if (options) {
        size_t size = options->size < sizeof(ee_options) ? options->size : sizeof(ee_options);
        memcpy(&session->options, options, size);
    }
    session->threads = session->options.threads;
    if (session->threads < 0 || session->threads > 1024)
        return fail(
            EE_BAD_ARGUMENT, "there are no sessions of %d threads: give 1 to 1024, or 0",
            (int)session->threads);
    if (!session->threads) {
        int32_t most = usable_cpus();
        session->threads = plan->threads < most ? plan->threads : most;
    }
    const char *missing = missing_function(&session->options);
    return missing ? fail(EE_BAD_ARGUMENT, "%s", missing) : EE_OK;
}

static ee_status allocate(ee_session *session, team_t *team) {
    const plan_t *plan = plan_of(session);
    session->team = team;
    if (session->threads > 1 && !team) {
        session->team = session->own_team = eecompile_team_open(session->threads);
        if (!session->team)
            return fail(EE_NO_MEMORY, "the system gives no %d threads", (int)session->threads);
    }
    ee_status status = lane_open(&session->lane, session->network, session->team, session->threads);
    if (status) return status;
    measure_policies(session);
    session->lane.state = calloc(1, session->state_bytes + 1);
    session->learned = calloc(1, session->learned_bytes + 1);
    session->halting = calloc(1, halting_bytes(plan));
    session->exits = calloc((size_t)plan->exits + 1, sizeof(uint64_t));
    session->offloaded = calloc((size_t)plan->classes + 1, sizeof(float));
    uint32_t most = 0;
    for (uint32_t i = 0; i < plan->exits; i++)
        if (plan->exit[i].border_count > most) most = plan->exit[i].border_count;
    session->border = calloc((size_t)most + 1, sizeof(void *));
    session->workers = calloc((size_t)session->threads, sizeof(int32_t));
    session->unforked = page_of_this_process();
    session->owner = (int32_t)getpid();
    if (session->lane.state && session->learned && session->halting && session->exits &&
        session->offloaded && session->border && session->workers)
        return EE_OK;
    return fail(EE_NO_MEMORY, "there is no memory for a session of `%s`", plan->name);
}

ee_status session_open(ee_network *network, const ee_options *options, ee_session **found) {
    return session_open_with(network, options, NULL, found);
}

ee_status session_open_with(
    ee_network *network, const ee_options *options, team_t *team, ee_session **found) {
    ee_session *session = calloc(1, sizeof *session);
    if (!session) return fail(EE_NO_MEMORY, "there is no memory for a session");
    session->operations = network->operations;
    session->network = network;
    session->options = (ee_options)EE_OPTIONS;
    atomic_flag_clear(&session->in_use);
    atomic_init(&session->own_stop, IDLE);
    atomic_fetch_add(&network->users, 1);
    ee_status status = read_options(session, options);
    if (!status) status = allocate(session, team);
    if (!status) status = session_set_policy(session, session->options.policy);
    if (status) {
        session_close(session);
        return status;
    }
    *found = session;
    return EE_OK;
}

void session_close(ee_session *session) {
    if (session->owner) forget_parent(session);
    clocks_close(session->clocks);
    sysfs_governor_close(session->governor);
    for (int32_t i = 0; session->more && i < session->threads - 1; i++)
        lane_close(&session->more[i]);
    free(session->more);
    lane_close(&session->lane);
    if (session->own_team) eecompile_team_close(session->own_team);
    if (session->unforked) munmap(session->unforked, (size_t)sysconf(_SC_PAGESIZE));
    free(session->learned);
    free(session->halting);
    free(session->exits);
    free(session->offloaded);
    free(session->border);
    free(session->workers);
    arena_free(&session->own);
    network_release(session->network);
    free(session);
}

/* -- who decides ------------------------------------------------------------------------------- */

/* Linux's governor stays open from one policy to the next: there can be only one. */
static ee_status open_clocks(
    ee_session *session, const policy_entry_t *entry, clocks_t **clocks) {
    const plan_t *plan = plan_of(session);
    const ee_governor *governor = NULL;
    uint32_t workers = 0;
    *clocks = NULL;
    if (!entry->clock.present) return EE_OK;
    if (session->options.clocks && !session->forked && entry->clock.objective != UNCHANGED) {
        workers = team_threads(session->team, session->workers);
        governor = session->options.governor;
        if (!governor && !session->governor)
            session->governor = sysfs_governor_open(plan->costs, "", session->governor_why);
        if (!governor) governor = session->governor;
    }
    const plan_t *gated = plan->gated ? plan : NULL;
    return clocks_open(
        clocks, plan->costs, gated, &entry->clock, governor, session->workers, workers);
}

const char *session_clocks_reason(const ee_session *session) {
    if (!session->clocks || !session->options.clocks) return "";
    if (session->forked) return "clocks are set by the process this one was forked from";
    /* What the governor has given up says more than that it has. */
    const char *given_up = session->governor ? sysfs_governor_reason(session->governor) : "";
    const char *reason = *given_up ? given_up : clocks_reason(session->clocks);
    return *reason ? reason : session->governor_why;
}

static ee_status no_such_policy(const plan_t *plan, const char *name) {
    char known[300] = "none";
    size_t used = 0;
    for (uint32_t i = 0; i < plan->policies && used < sizeof known; i++)
        used += (size_t)snprintf(
            known + used, sizeof known - used, "%s%s", i ? ", " : "", plan->policy[i].name);
    const char *more = used < sizeof known ? "" : " ...";
    return fail(
        EE_BAD_ARGUMENT, "`%s` has no policy `%.100s`; it has: %s%s", plan->name, name, known,
        more);
}

static ee_status find_policy(
    const ee_session *session, const char *name, const policy_entry_t **entry) {
    const plan_t *plan = plan_of(session);
    *entry = NULL;
    if (!name && plan->default_policy != NONE) *entry = &plan->policy[plan->default_policy];
    for (uint32_t i = 0; name && i < plan->policies; i++)
        if (!strcmp(plan->policy[i].name, name)) *entry = &plan->policy[i];
    if (name && *name && !*entry) return no_such_policy(plan, name);
    if (*entry && (!(*entry)->policy || (*entry)->guarded))
        return fail(
            EE_UNSUPPORTED, "the policy `%s` %s, which needs eecompile's Python runtime",
            (*entry)->name, (*entry)->policy ? "has a guard" : "is of the builder's own kind");
    return EE_OK;
}

static ee_status decide_by(ee_session *session, const policy_entry_t *entry) {
    decider_t decider = {0};
    clocks_t *clocks = NULL;
    ee_status status = EE_OK;
    if (entry) {
        decider = (decider_t){.policy = entry->policy, .gates = true, .halts = entry->halts};
        if (policy_learned_bytes(entry->policy)) decider.learned = session->learned;
        if (entry->halts)
            status = halting_set(session->halting, plan_of(session), &entry->halt, true);
        if (!status) status = open_clocks(session, entry, &clocks);
        if (status) return status;
        if (decider.learned) {
            deciding_t deciding = {entry->policy, session->lane.state, session->learned};
            policy_reset(&deciding);
        }
    }
    clocks_close(session->clocks);
    session->decider = decider;
    session->clocks = clocks;
    session->transitions = 0;
    return EE_OK;
}

ee_status session_set_policy(ee_session *session, const char *name) {
    const policy_entry_t *entry;
    ee_status status = find_policy(session, name, &entry);
    if (!status) status = session_begin(session);
    return status ? status : session_end(session, decide_by(session, entry));
}

ee_status session_set_own_policy(ee_session *session, const ee_policy *policy) {
    const plan_t *plan = plan_of(session);
    if (policy && (!policy->decide || policy->first > plan->exits))
        return fail(
            EE_BAD_ARGUMENT, "the policy has no `decide`, or begins at no exit: 0 to %u",
            (unsigned)plan->exits);
    ee_status status = session_begin(session);
    if (status) return status;
    decide_by(session, NULL);
    session->decider = (decider_t){.own = policy, .gates = policy != NULL};
    return session_end(session, EE_OK);
}

static ee_status limit(ee_session *session, const halt_rule_t *rule) {
    decider_t *decider = &session->decider;
    if (isnan(rule->macs) && isnan(rule->latency_s) && isnan(rule->energy_j)) {
        decider->halts = false;
        return EE_OK;
    }
    const char *with = session->clocks                                  ? "chooses clocks"
                       : decider->learned                               ? "learns"
                       : decider->policy && policy_offloads(decider->policy) ? "asks a server"
                                                                        : NULL;
    if (with)
        return fail(EE_BAD_ARGUMENT, "no budget for each sample goes with a policy that %s", with);
    ee_status status = halting_set(session->halting, plan_of(session), rule, decider->gates);
    if (!status) decider->halts = true;
    return status;
}

ee_status session_set_halt(ee_session *session, double macs, double latency_s, double energy_j) {
    const double given[] = {macs, latency_s, energy_j};
    for (size_t i = 0; i < 3; i++)
        if (!isnan(given[i]) && !(given[i] > 0 && isfinite(given[i])))
            return fail(EE_BAD_ARGUMENT, "a budget must be above 0 and finite, or NAN for none");
    if (macs > 2) return fail(EE_BAD_ARGUMENT, "a budget of macs is a fraction: 60 %% is 0.6");
    halt_rule_t rule = {macs, latency_s, energy_j};
    ee_status status = session_begin(session);
    return status ? status : session_end(session, limit(session, &rule));
}

/* -- answers ----------------------------------------------------------------------------------- */

void count_answer(ee_session *session, const ee_answer *answer) {
    ee_statistics *all = &session->statistics;
    all->answers++;
    all->offloaded += (answer->flags & EE_OFFLOADED) != 0;
    all->halted += (answer->flags & EE_HALTED) != 0;
    all->cancelled += (answer->flags & EE_CANCELLED) != 0;
    all->late += (answer->flags & EE_LATE) != 0;
    all->latency_s += answer->latency_s;
    all->energy_j += answer->energy_j;
    all->macs += answer->macs;
    session->exits[answer->exit]++;
    if (!session->clocks) return;
    all->transitions += clocks_transitions(session->clocks) - session->transitions;
    session->transitions = clocks_transitions(session->clocks);
}

ee_status run_one(
    ee_session *session, const void *const *inputs, size_t sample, how_t how, ee_answer *answer) {
    static const decider_t nobody;
    int64_t start_ns = monotonic_ns();
    const ee_meter *meter = session->options.meter;
    double before_j = meter ? meter->energy_j(meter->context) : NAN;
    ee_answer found = EE_ANSWER;
    session->at_end = false;
    ee_status status = how == RAW ? copy_raw(session, &session->lane, inputs)
                                  : copy_inputs(session, &session->lane, inputs, sample);
    if (status) return status;
    const decider_t *decider = how == WHOLE ? &nobody : &session->decider;
    status = run_sample(session, &session->lane, decider, start_ns, &found);
    if (status) return status;
    if (meter) found.energy_j = meter->energy_j(meter->context) - before_j;
    count_answer(session, &found);
    return tell(answer, &found, sizeof found);
}

static ee_status run_alone(
    ee_session *session, const void *const *inputs, how_t how, ee_answer *answer,
    atomic_int *stop) {
    if (answer->size < sizeof(size_t))
        return fail(EE_BAD_ARGUMENT, "the answer has no size: begin with EE_ANSWER");
    ee_status status = session_begin(session);
    if (status) return status;
    session->stop = stop;
    bool own = stop == &session->own_stop;
    if (own) atomic_store_explicit(stop, 0, memory_order_relaxed);
    status = run_one(session, inputs, 0, how, answer);
    if (own) atomic_store_explicit(stop, IDLE, memory_order_relaxed);
    return session_end(session, status);
}

ee_status session_run(ee_session *session, const void *const *inputs, ee_answer *answer) {
    return run_alone(session, inputs, PLAIN, answer, &session->own_stop);
}

ee_status session_run_until(
    ee_session *session, const void *const *inputs, ee_answer *answer, atomic_int *stop) {
    return run_alone(session, inputs, PLAIN, answer, stop);
}

ee_status session_run_raw(ee_session *session, const void *const *inputs, ee_answer *answer) {
    return run_alone(session, inputs, RAW, answer, &session->own_stop);
}

ee_status session_run_whole(ee_session *session, const void *const *inputs, ee_answer *answer) {
    return run_alone(session, inputs, WHOLE, answer, &nobody_cancels);
}

int session_cancel(ee_session *session) {
    /* At once, or it might reach a later call. */
    int found = 0;
    return atomic_compare_exchange_strong(&session->own_stop, &found, 1) || found == 1;
}

/* -- what else is known ------------------------------------------------------------------------ */

const void *session_output(const ee_session *session, const char *name) {
    const plan_t *plan = plan_of(session);
    for (uint32_t i = 0; session->at_end && i < plan->outputs; i++)
        if (!strcmp(plan->value[plan->outputs_values[i]].name, name))
            return lane_value(&session->lane, plan->outputs_values[i]);
    return NULL;
}

ee_status session_statistics_get(
    const ee_session *session, ee_statistics *statistics, uint64_t *exits) {
    ee_status status = session_begin((ee_session *)session); /* nobody else counts meanwhile */
    if (status) return status;
    if (exits) memcpy(exits, session->exits, (plan_of(session)->exits + 1) * sizeof(uint64_t));
    status = tell(statistics, &session->statistics, sizeof session->statistics);
    return session_end((ee_session *)session, status);
}

void session_statistics_reset(ee_session *session) {
    session->statistics = (ee_statistics){0};
    memset(session->exits, 0, (plan_of(session)->exits + 1) * sizeof(uint64_t));
}

static size_t learned_bytes(const ee_session *session) {
    return session->decider.learned ? policy_learned_bytes(session->decider.policy) : 0;
}

ee_status session_state_get(const ee_session *session, void *bytes, size_t *count) {
    ee_status status = session_begin((ee_session *)session);
    if (status) return status;
    size_t room = *count, wanted = *count = learned_bytes(session);
    if (bytes && room < wanted)
        status = fail(
            EE_BAD_ARGUMENT, "what was learned takes %zu bytes, there are %zu", wanted, room);
    else if (bytes && wanted)
        memcpy(bytes, session->learned, wanted);
    return session_end((ee_session *)session, status);
}

ee_status session_state_set(ee_session *session, const void *bytes, size_t count) {
    ee_status status = session_begin(session);
    if (status) return status;
    size_t wanted = learned_bytes(session);
    if (count != wanted || (wanted && !policy_learned_is_sound(session->decider.policy, bytes)))
        status = fail(EE_BAD_ARGUMENT, "this was not learned by the policy in use");
    else if (wanted)
        memcpy(session->learned, bytes, wanted);
    return session_end(session, status);
}

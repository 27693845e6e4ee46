/* One sample's way through a network: segment by segment, until whoever decides is content.
 *
 * The ways are those of eecompile/runtime/single.py, which is the reference.
 */

#include "session.h"

#include <string.h>

/* What is known on the way. */
typedef struct {
    ee_session *session;
    lane_t *lane;
    const plan_t *plan;
    const decider_t *decider;
    deciding_t deciding;
    clocks_t *clocks;
    halting_t *halting;
    ee_answer *answer;
    int64_t start_ns;
    uint32_t last;  /* index of the network's own answer */
    uint32_t held;  /* the deepest exit whose head has run, or NONE */
    ee_status status;
} way_t;

static double elapsed_s(const way_t *way) {
    return (double)(monotonic_ns() - way->start_ns) * 1e-9;
}

static bool cancelled(const way_t *way) {
    return atomic_load_explicit(way->session->stop, memory_order_relaxed) != 0;
}

/* -- steps of a way ---------------------------------------------------------------------------- */

static bool run_segment(way_t *way, uint32_t segment) {
    way->status = lane_segment(way->lane, way->plan, segment);
    return !way->status;
}

/* Head and comparator of an exit: from now on there is an answer, and segments may end early. */
static bool run_head(way_t *way, uint32_t exit) {
    way->status = lane_exit(way->lane, way->plan, exit);
    way->answer->heads_run += way->plan->exit[exit].calls;
    way->answer->macs += (uint64_t)way->plan->exit[exit].macs;
    way->held = exit;
    way->lane->program.stop = (int64_t)(intptr_t)way->session->stop;
    return !way->status;
}

static uint32_t first_exit(way_t *way) {
    if (way->decider->policy) return policy_first(&way->deciding);
    if (way->decider->own) return way->decider->own->first;
    return way->last;
}

static int32_t decide(way_t *way, uint32_t exit) {
    exit_outputs_t outputs = lane_outputs(way->lane, way->plan, exit);
    if (way->decider->policy) return policy_decide(&way->deciding, exit, &outputs);
    const ee_policy *own = way->decider->own;
    if (own) {
        return own->decide(
            own->context, exit, outputs.logits, outputs.class_means, way->plan->classes);
    }
    return (int32_t)way->last;
}

static bool can_be_next(way_t *way, uint32_t exit, int32_t wanted) {
    if (wanted > (int32_t)exit && wanted <= (int32_t)way->last) return true;
    way->status = fail(
        EE_BAD_ARGUMENT, "the policy asked for exit %d after exit %u: EE_LEAVE, or %u to %u",
        (int)wanted, (unsigned)exit, (unsigned)exit + 1, (unsigned)way->last);
    return false;
}

/* -- answers ----------------------------------------------------------------------------------- */

static uint32_t largest(const float *logits, uint32_t classes) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < classes; i++)
        if (logits[i] > logits[best] || (isnan(logits[i]) && !isnan(logits[best]))) best = i;
    return best;
}

static void give(
    way_t *way, uint32_t exit, const float *logits, uint32_t segments, unsigned flags) {
    ee_answer *answer = way->answer;
    answer->logits = logits;
    answer->classes = way->plan->classes;
    answer->label = logits ? largest(logits, way->plan->classes) : 0;
    answer->exit = exit;
    answer->segments_run = segments;
    answer->flags |= flags;
    answer->macs += (uint64_t)way->lane->tally.macs;
    answer->blocks_run = (uint32_t)way->lane->tally.blocks;
}

static void give_exit(way_t *way, uint32_t exit, uint32_t segments, unsigned flags) {
    exit_outputs_t outputs = lane_outputs(way->lane, way->plan, exit);
    const float *logits = outputs.logits;
    if (way->decider->policy) logits = policy_answer(way->decider->policy, &outputs);
    give(way, exit, logits, segments, flags);
}

static void give_final(way_t *way) {
    const plan_t *plan = way->plan;
    give(
        way, way->last, plan->classes ? lane_value(way->lane, plan->output) : NULL, plan->segments,
        0);
    /* Other lanes are other threads'. */
    if (way->lane == &way->session->lane) way->session->at_end = true;
}

/* -- the ways ---------------------------------------------------------------------------------- */

/* No exit is asked: to the end, unless the call is cancelled; then the next exit answers. */
static void run_undecided(way_t *way) {
    for (uint32_t index = 0; index < way->plan->segments; index++) {
        if (!run_segment(way, index)) return;
        if (index < way->last && cancelled(way)) {
            if (run_head(way, index)) give_exit(way, index, index + 1, EE_CANCELLED);
            return;
        }
    }
    give_final(way);
}

/* Whether a server gave the network's own answer for a sample that leaves at `exit`. */
static bool offload(way_t *way, uint32_t exit) {
    const ee_server *server = way->session->options.server;
    const exit_t *of = &way->plan->exit[exit];
    if (!server) return false;
    const void **values = way->session->border;
    for (uint32_t i = 0; i < of->border_count; i++)
        values[i] = lane_value(way->lane, of->border[i]);
    return !server->answer(
        server->context, exit, values, of->border_count, way->session->offloaded);
}

static void learn(way_t *way, bool alone) {
    if (!way->decider->policy || !way->deciding.learned || way->status) return;
    const float *final = way->answer->exit == way->last ? way->answer->logits : NULL;
    policy_learn(&way->deciding, final, alone);
}

/* Asks at one exit. Whether the sample goes on; `*due` is where to, then. */
static bool goes_on(
    way_t *way, uint32_t index, int32_t *due, bool answers, bool *stays, bool *alone) {
    int32_t wanted = decide(way, index);
    if (wanted == OFFLOAD && way->decider->policy) { /* An app's own cannot ask for it. */
        if (offload(way, index)) {
            give(way, way->last, way->session->offloaded, index + 1, EE_OFFLOADED);
            return false;
        }
        *alone = true;
        wanted = (int32_t)way->last;
    }
    if (wanted != LEAVE) {
        if (!can_be_next(way, index, wanted)) return false;
        *due = wanted;
        if (!way->clocks) return true;
        if (!answers) {
            bool forecasts = way->decider->policy && policy_forecasts(way->decider->policy);
            stretch_t next =
                clocks_after(
                    way->clocks, index, (uint32_t)wanted, elapsed_s(way), forecasts,
                    way->lane->kept);
            *due = next.due;
            *stays = next.answers;
            if (next.due != LEAVE) return true;
        }
        /* The deadline leaves no time to go on. */
    }
    give_exit(way, index, index + 1, 0);
    return false;
}

/* As the policy says; with clocks, each stretch at the one that is chosen for it. */
static void run_decided(way_t *way) {
    int32_t due = (int32_t)first_exit(way);
    bool answers = false, alone = false;
    if (way->clocks) {
        stretch_t begun = clocks_begin(way->clocks, (uint32_t)due);
        due = begun.due;
        answers = begun.answers;
    }
    for (uint32_t index = 0; index <= way->last; index++) {
        if (!run_segment(way, index)) return;
        bool ended = cancelled(way) && (index < way->last || way->lane->tally.stopped);
        if (!ended && (index == way->last || (int32_t)index != due)) continue;
        if ((!ended || way->held == NONE) && !run_head(way, index)) return;
        if (ended) {
            give_exit(way, way->held, index + 1, EE_CANCELLED);
            return learn(way, alone);
        }
        bool stays = false;
        if (!goes_on(way, index, &due, answers, &stays, &alone)) return learn(way, alone);
        answers = stays;
    }
    give_final(way);
    learn(way, alone);
}

/* As the policy says and as far as budgets go: the rule of eecompile/policies/halted.py. */
static void run_halted(way_t *way) {
    halting_t *halting = way->halting;
    lane_t *lane = way->lane;
    int32_t due = (int32_t)first_exit(way), last = (int32_t)way->last;
    int64_t macs = 0;
    halting_begin(halting, way->start_ns);
    for (int32_t index = 0; index <= last; index++) {
        if (!run_segment(way, (uint32_t)index)) return;
        if (way->held != NONE && lane->tally.stopped) {
            bool ended = cancelled(way);
            return give_exit(way, way->held, (uint32_t)index, ended ? EE_CANCELLED : EE_HALTED);
        }
        if (index == last) break;
        lane->program.limit = UNLIMITED;
        halting_segment(halting, (uint32_t)index, lane->tally.macs - macs);
        macs = lane->tally.macs;
        bool ended = cancelled(way), affords = halting_affords(halting, (uint32_t)index);
        int32_t wanted = last;
        bool asks = index == due && !ended && affords;
        bool ends = !asks && (ended || !halting_goes_on(halting, (uint32_t)index));
        if (asks || (ends && (way->held == NONE || (!ended && affords)))) {
            if (!run_head(way, (uint32_t)index)) return;
            halting_head(halting, (uint32_t)index);
            if (asks) wanted = decide(way, (uint32_t)index);
            ended = cancelled(way);
            ends = ends || wanted == LEAVE || ended || !halting_goes_on(halting, (uint32_t)index);
        }
        if (ends && way->held != NONE) {
            bool forced = wanted != LEAVE;
            if (!forced || ended || !halting_tries(halting, (uint32_t)index, &lane->program)) {
                unsigned flags = !forced ? 0 : ended ? EE_CANCELLED : EE_HALTED;
                return give_exit(way, way->held, (uint32_t)index + 1, flags);
            }
        }
        if (asks && wanted == OFFLOAD && way->decider->policy) wanted = last;
        if (asks && !can_be_next(way, (uint32_t)index, wanted)) return;
        /* A head that was not affordable is missed: the policy is asked no more. */
        if (index >= due) due = wanted;
    }
    give_final(way);
}

ee_status run_sample(
    ee_session *session, lane_t *lane, const decider_t *decider, int64_t start_ns,
    ee_answer *answer) {
    const plan_t *plan = &session->network->plan;
    way_t way = {
        .session = session,
        .lane = lane,
        .plan = plan,
        .decider = decider,
        .deciding = {decider->policy, lane->state, decider->learned},
        .clocks = lane == &session->lane ? session->clocks : NULL,
        .halting = decider->halts ? session->halting : NULL,
        .answer = answer,
        .start_ns = start_ns,
        .last = plan->exits,
        .held = NONE,
    };
    bool decided = decider->policy || decider->own || decider->halts;
    double shift = decider->policy ? policy_gate_shift(decider->policy) : 0;
    lane_begin(lane, plan, decided && decider->gates, shift);
    if (!decided) {
        if (way.clocks) clocks_full_speed(way.clocks);
        run_undecided(&way);
    } else if (way.halting) {
        run_halted(&way);
    } else {
        run_decided(&way);
    }
    if (way.status) return way.status;
    answer->latency_s = elapsed_s(&way);
    answer->energy_j = answer->frequency_hz = NAN;
    if (way.clocks && decided) {
        bool late;
        clocks_finish(
            way.clocks, answer->exit, answer->latency_s, lane->kept, &answer->frequency_hz,
            &answer->energy_j, &late);
        answer->flags |= late ? EE_LATE : 0;
    }
    return EE_OK;
}

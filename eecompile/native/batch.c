/* Batches: samples shared out among a session's threads, or one after the other. */

#include "session.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ANSWER = 4096 }; /* bytes: no version's is larger */

typedef struct {
    ee_session *session;
    const void *const *inputs;
    size_t count;
    float *logits;
    char *answers;
    size_t answer_bytes;
    atomic_size_t next;
    pthread_mutex_t lock; /* of what follows, and of the session's statistics */
    ee_status status;     /* the first one that was not 0, and what it said: on a thread of ours */
    char message[512];
} batch_t;

/* The answers' logits go where the caller wants them, as the next sample overwrites them. */
static void keep(batch_t *batch, size_t sample, const ee_answer *found) {
    ee_answer kept = *found;
    if (batch->logits && found->logits) {
        float *to = batch->logits + sample * found->classes;
        memcpy(to, found->logits, found->classes * sizeof(float));
        kept.logits = to;
    } else {
        kept.logits = NULL;
    }
    tell(batch->answers + sample * batch->answer_bytes, &kept, sizeof kept);
}

/* Counts a sample, or remembers why there is no answer. Whether to go on. */
static bool account(batch_t *batch, ee_status status, const ee_answer *found) {
    pthread_mutex_lock(&batch->lock);
    if (!status) count_answer(batch->session, found);
    if (status && !batch->status) {
        batch->status = status;
        snprintf(batch->message, sizeof batch->message, "%s", latest_message());
    }
    bool good = !batch->status;
    pthread_mutex_unlock(&batch->lock);
    return good;
}

static int32_t share(const int64_t *frame, int32_t thread, int32_t threads, void *team) {
    (void)threads, (void)team;
    batch_t *batch = (batch_t *)(intptr_t)frame[0];
    ee_session *session = batch->session;
    lane_t *lane = thread ? &session->more[thread - 1] : &session->lane;
    size_t sample;
    while ((sample = atomic_fetch_add(&batch->next, 1)) < batch->count) {
        int64_t start_ns = monotonic_ns();
        ee_answer found = EE_ANSWER;
        ee_status status = copy_inputs(session, lane, batch->inputs, sample);
        if (!status) status = run_sample(session, lane, &session->decider, start_ns, &found);
        if (!status) keep(batch, sample, &found);
        if (!account(batch, status, &found)) break;
    }
    return 0;
}

static ee_status open_more(ee_session *session) {
    if (session->more) return EE_OK;
    size_t count = (size_t)session->threads - 1;
    lane_t *more = calloc(count, sizeof(lane_t));
    ee_status status = more ? EE_OK : fail(EE_NO_MEMORY, "there is no memory for a batch");
    size_t made = 0;
    while (!status && made < count) {
        status = lane_open(&more[made++], session->network, NULL, 1);
        if (status) break;
        more[made - 1].state = calloc(1, session->state_bytes + 1);
        if (!more[made - 1].state) status = fail(EE_NO_MEMORY, "there is no memory for a batch");
    }
    for (size_t i = 0; status && i < made; i++) lane_close(&more[i]);
    if (status) free(more);
    else session->more = more;
    return status;
}

/* Whether samples may be answered side by side: what one does must not depend on others or time. */
static bool can_share(const ee_session *session) {
    const decider_t *decider = &session->decider;
    return session->team && !session->clocks && !session->options.meter && !decider->own &&
           !decider->halts && !decider->learned && !session->options.server;
}

static ee_status run_shared(batch_t *batch) {
    ee_session *session = batch->session;
    ee_status status = open_more(session);
    if (status) return status;
    int64_t frame[] = {(int64_t)(intptr_t)batch};
    pthread_mutex_init(&batch->lock, NULL);
    eecompile_team_run(session->team, session->threads, share, frame);
    pthread_mutex_destroy(&batch->lock);
    return batch->status ? fail(batch->status, "%s", batch->message) : EE_OK;
}

static ee_status run_in_turn(batch_t *batch) {
    for (size_t sample = 0; sample < batch->count; sample++) {
        ee_answer found = EE_ANSWER;
        ee_status status = run_one(batch->session, batch->inputs, sample, PLAIN, &found);
        if (status) return status;
        keep(batch, sample, &found);
    }
    return EE_OK;
}

ee_status session_run_batch(
    ee_session *session, const void *const *inputs, size_t count, float *logits,
    ee_answer *answers) {
    batch_t batch = {
        .session = session,
        .inputs = inputs,
        .count = count,
        .logits = logits,
        .answers = (char *)answers,
        .answer_bytes = count ? answers->size : sizeof(ee_answer),
    };
    /* All have the size of the first: that is how far apart they are. */
    if (batch.answer_bytes < sizeof(size_t) || batch.answer_bytes % sizeof(size_t) ||
        batch.answer_bytes > MOST_ANSWER)
        return fail(EE_BAD_ARGUMENT, "the answers have no size: begin each with EE_ANSWER");
    for (size_t i = 0; i < count; i++)
        memcpy(batch.answers + i * batch.answer_bytes, &batch.answer_bytes, sizeof(size_t));
    ee_status status = session_begin(session);
    if (status) return status;
    session->stop = &nobody_cancels;
    status = can_share(session) ? run_shared(&batch) : run_in_turn(&batch);
    session->at_end = false;
    return session_end(session, status);
}

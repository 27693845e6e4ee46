/* A session's own: what network.c, lane.c, session.c and run.c share. */
#ifndef EECOMPILE_SESSION_H
#define EECOMPILE_SESSION_H

#include "internal.h"

struct ee_network {
    const operations_t *operations; /* first, see dispatch.c */
    const ee_library *library;
    files_t files;
    plan_t plan;
    atomic_int users; /* whoever opened it, and its sessions */
};

/* One without files and plan, with one user; NULL where there is no memory, which was said. */
ee_network *network_new(const ee_library *library);
/* Gives up one user's part; the last one frees it. */
void network_release(ee_network *network);

/* A call bound to a lane's memory. */
typedef struct {
    const function_t *function;
    int64_t *frame; /* 1, then addresses */
} bound_t;

/* Memory for one sample, and everything bound to it. For one thread at a time. */
typedef struct {
    char *memory, *block; /* as it was allocated; from the first multiple of ALIGNMENT on */
    layout_t layout;
    int64_t *frames;   /* of all calls, one behind the other */
    step_t *table;     /* of all segments' steps */
    bound_t *heads;    /* [exits][2] */
    program_t program;
    tally_t tally;
    int32_t *kept;     /* of each step, see program_t; -1: it has not run. NULL without gates */
    int64_t range[4];  /* frame of eecompile_steps */
    float shift;       /* that lies in memory now */
    bool decided;      /* whether gates wrote into the scores' memory */
    void *state;       /* of a policy, for the sample under way */
    team_t *team;      /* NULL: the caller alone */
    int32_t threads;
} lane_t;

ee_status lane_open(lane_t *lane, const ee_network *network, team_t *team, int32_t threads);
void lane_close(lane_t *lane);
/* A sample begins: nothing spent, nothing stopped. */
void lane_begin(lane_t *lane, const plan_t *plan, bool gates, double shift);
/* Runs a segment's steps, or the calls of an exit; EE_INTERNAL where one fails. */
ee_status lane_segment(lane_t *lane, const plan_t *plan, uint32_t segment);
ee_status lane_exit(lane_t *lane, const plan_t *plan, uint32_t exit);
void *lane_value(const lane_t *lane, uint32_t value);
exit_outputs_t lane_outputs(const lane_t *lane, const plan_t *plan, uint32_t exit);

/* Who decides. */
typedef struct {
    const policy_t *policy;  /* NULL: the app's own, or nobody */
    const ee_policy *own;
    bool gates;              /* those of the network decide */
    bool halts;
    void *learned;
} decider_t;

struct ee_session {
    const operations_t *operations; /* first, see dispatch.c */
    ee_network *network;
    ee_options options;
    team_t *team, *own_team; /* own: ended with the session */
    int32_t threads;
    atomic_flag in_use;
    atomic_int own_stop;     /* 0: a call of ee_run is under way; 1: it was cancelled; -1: none */
    atomic_int *stop;        /* what ends the call under way once it is not 0 */
    unsigned char *unforked; /* its first byte is 0 in forked processes; NULL: owner tells */
    int32_t owner;           /* process */
    bool forked;             /* this is another one */
    lane_t lane;
    lane_t *more;            /* of the team's other threads, for batches; NULL before one */
    decider_t decider;
    halting_t *halting;
    clocks_t *clocks;
    uint64_t transitions;    /* of `clocks`, that the statistics have */
    ee_governor *governor;   /* of its own; NULL: none, or the app's */
    char governor_why[200];  /* there is none, or it cannot set all clocks */
    int32_t *workers;        /* the system's numbers of the team's own threads */
    float *offloaded;        /* [classes] what a server answered */
    const void **border;     /* what it is given: as many as any exit has */
    size_t state_bytes, learned_bytes;
    void *learned;
    ee_statistics statistics;
    uint64_t *exits;         /* answers by exit */
    arena_t own;             /* of a policy that was given as bytes */
    bool at_end;             /* the latest sample got the network's own answer, here */
};

/* -- inputs (inputs.c) ------------------------------------------------------------------------- */

/* One sample, of the arrays' number `sample`, to where a lane's functions read it. */
ee_status copy_inputs(
    const ee_session *session, lane_t *lane, const void *const *inputs, size_t sample);
/* The same of raw data, normalised. */
ee_status copy_raw(const ee_session *session, lane_t *lane, const void *const *inputs);

/* -- samples (run.c, session.c) ---------------------------------------------------------------- */

typedef enum { PLAIN, RAW, WHOLE } how_t;

/* Takes the session for a call, or EE_BUSY; every other status comes after `session_end`, which
 * returns what it is given. */
ee_status session_begin(ee_session *session);
ee_status session_end(ee_session *session, ee_status status);
extern atomic_int nobody_cancels; /* 0: a `stop` */

/* One sample from inputs to answer, counted; the session has begun. */
ee_status run_one(
    ee_session *session, const void *const *inputs, size_t sample, how_t how, ee_answer *answer);
void count_answer(ee_session *session, const ee_answer *answer);

/* One sample, its inputs in the lane's memory; `answer` but for what the session adds. */
ee_status run_sample(
    ee_session *session, lane_t *lane, const decider_t *decider, int64_t start_ns,
    ee_answer *answer);

/* Copies as much of a structure as the caller knows; its first field is that size. */
ee_status tell(void *to, const void *from, size_t size);

/* The public functions of sessions. */
ee_status session_open(ee_network *network, const ee_options *options, ee_session **session);
/* With a team of as many threads as the options say, that somebody else ends. */
ee_status session_open_with(
    ee_network *network, const ee_options *options, team_t *team, ee_session **session);
void session_close(ee_session *session);
ee_status session_set_policy(ee_session *session, const char *name);
const char *session_clocks_reason(const ee_session *session);
ee_status session_set_own_policy(ee_session *session, const ee_policy *policy);
ee_status session_set_halt(ee_session *session, double macs, double latency_s, double energy_j);
ee_status session_run(ee_session *session, const void *const *inputs, ee_answer *answer);
/* The same, ended early once *stop is not 0. */
ee_status session_run_until(
    ee_session *session, const void *const *inputs, ee_answer *answer, atomic_int *stop);
ee_status session_run_raw(ee_session *session, const void *const *inputs, ee_answer *answer);
ee_status session_run_whole(ee_session *session, const void *const *inputs, ee_answer *answer);
ee_status session_run_batch(
    ee_session *session, const void *const *inputs, size_t count, float *logits,
    ee_answer *answers);
const void *session_output(const ee_session *session, const char *name);
int session_cancel(ee_session *session);
ee_status session_statistics_get(
    const ee_session *session, ee_statistics *statistics, uint64_t *exits);
void session_statistics_reset(ee_session *session);
ee_status session_state_get(const ee_session *session, void *bytes, size_t *count);
ee_status session_state_set(ee_session *session, const void *bytes, size_t count);

#endif

/* eecompile.h: runs compiled early-exit networks from C and C++.
 *
 *     #include "resnet56.h"                       (generated beside lib<name>.so; includes this)
 *
 *     ee_network *network;
 *     ee_session *session;
 *     ee_answer answer = EE_ANSWER;
 *     const void *inputs[] = {image};
 *     if (ee_open(&ee_library_resnet56, "resnet56.eec", &network) ||
 *         ee_session_open(network, NULL, &session) ||
 *         ee_run(session, inputs, &answer))
 *         fprintf(stderr, "%s\n", ee_message());
 *
 * Units: seconds, joules, hertz. What is not known is NAN. Needs libc, libm and pthreads.
 *
 * Threads. A network may be used by any number of threads at once, a session by one at a time: a
 * second one is told EE_BUSY by what returns a status; all else but ee_cancel must wait until no
 * call is under way. Sessions of one network share its code and weights and nothing else.
 * Nothing is allocated after ee_session_open, but where a function says so.
 *
 * Signals. ee_cancel may be called in a signal handler, nothing else. Fork. In a forked process a
 * session that was not at work just then runs on the caller's thread alone, with the same answers;
 * clocks are not set there.
 *
 * ABI. Symbols are versioned (EECOMPILE_1). Structures that begin with their size, as the caller
 * knows it, only ever grow at their end; their initialisers set it. The others, of callbacks, stay
 * as they are. Functions may be called for a network of another library than the one they are found
 * in, also of a later version.
 */
#ifndef EECOMPILE_H
#define EECOMPILE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EE_ABI_VERSION 1

typedef enum {
    EE_OK = 0,
    EE_BAD_ARGUMENT = 1,  /* what was passed, or asked of this network, makes no sense */
    EE_BAD_ARTIFACT = 2,  /* the files are damaged, changed, or of another library */
    EE_WRONG_VERSION = 3, /* the files' format is one this runtime does not read */
    EE_WRONG_MACHINE = 4, /* the code needs what this CPU has not */
    EE_NO_MEMORY = 5,
    EE_NO_FILE = 6,       /* a file cannot be read; the message has the system's reason */
    EE_BUSY = 7,          /* another thread is using the session */
    EE_INFEASIBLE = 8,    /* no answer keeps such a budget; the message has the cheapest one */
    EE_UNSUPPORTED = 9,   /* the policy needs the Python runtime, or the library is too old */
    EE_INTERNAL = 10      /* a defect of eecompile */
} ee_status;

typedef struct ee_library ee_library; /* a network's code, one in each lib<name>.so */
typedef struct ee_network ee_network; /* its weights and plan, opened */
typedef struct ee_session ee_session; /* memory for one sample under way, and who decides */

/* The latest error of the calling thread, one line of UTF-8; "" before the first. Valid until the
 * thread's next error. */
const char *ee_message(void);

/* Name of a status, such as "EE_BUSY". */
const char *ee_status_name(ee_status status);

/* -- networks ---------------------------------------------------------------------------------- */

/* Opens a network's weights and plan: `path` is the artifact's folder, or its packed file. Weights
 * are mapped, and so shared between processes. Plan and weights are used only if their SHA-256 are
 * those that the plan holds. Allocates. */
ee_status ee_open(const ee_library *library, const char *path, ee_network **network);

/* The same from a packed file's bytes in memory, at an address that is a multiple of 64. They are
 * not copied: they must stay until the network is closed. */
ee_status ee_open_memory(
    const ee_library *library, const void *bytes, size_t count, ee_network **network);

/* Closes it when its sessions are closed too. NULL is fine. */
void ee_close(ee_network *network);

typedef struct {
    size_t size;
    const char *name;
    uint32_t inputs, exits, policies, classes; /* the last exit is the network's end, "final" */
    uint32_t segments;
    uint32_t blocks;        /* that gates may leave out */
    uint64_t macs;          /* of the whole network, one sample */
    uint64_t weights_bytes;
    uint64_t session_bytes; /* most of what a session of one thread allocates */
} ee_network_info;
#define EE_NETWORK_INFO {sizeof(ee_network_info), NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0}

typedef enum {
    EE_FLOAT32 = 0, EE_INT64 = 1, EE_INT32 = 2, EE_INT16 = 3, EE_INT8 = 4, EE_UINT16 = 5,
    EE_UINT8 = 6, EE_BOOL = 7
} ee_dtype;

typedef struct {
    size_t size;
    const char *name;
    ee_dtype dtype;
    uint32_t rank;
    const uint32_t *shape;
    size_t bytes;           /* of one sample */
    int32_t normalizes;     /* whether the artifact says how raw data become it */
} ee_input_info;
#define EE_INPUT_INFO {sizeof(ee_input_info), NULL, EE_FLOAT32, 0, NULL, 0, 0}

/* Allocates, and frees that again. */
ee_status ee_network_about(const ee_network *network, ee_network_info *info);
ee_status ee_input_about(const ee_network *network, uint32_t index, ee_input_info *info);
/* Names by index; NULL beyond the last. A label is NULL where the artifact has none. */
const char *ee_exit_name(const ee_network *network, uint32_t exit);
const char *ee_policy_name(const ee_network *network, uint32_t policy);
const char *ee_label(const ee_network *network, uint32_t label);

/* -- sessions ---------------------------------------------------------------------------------- */

/* An app that owns the clocks. `states` of the cost table are what it is asked to set. */
typedef struct {
    void *context;
    /* Whether the clock can be set; asked once, when the session opens or its policy changes. */
    int (*offers)(void *context, const char *cluster, double frequency_hz);
    /* Sets it; 0: done. Above 0: not just now (it is too hot, say); the next sample asks again.
     * Below 0: not any more; this cluster's clock is left alone from now on. */
    int (*set)(void *context, const char *cluster, double frequency_hz);
    /* Puts everything back. */
    void (*restore)(void *context);
} ee_governor;

/* Joules drawn since any moment, ever rising; NAN where not known. */
typedef struct {
    void *context;
    double (*energy_j)(void *context);
} ee_meter;

/* Another device, for policies that offload: writes the network's own logits, float32[classes], and
 * returns 0; anything else where nobody answered. `values` are what the rest of the network reads,
 * in the order of the artifact's server model for that exit. */
typedef struct {
    void *context;
    int (*answer)(
        void *context, uint32_t exit, const void *const *values, uint32_t count, float *logits);
} ee_server;

/* A policy of the app's own. Returns EE_LEAVE, or the index of the next exit to evaluate: above
 * `exit`, the number of exits - 1 for the network's own answer. */
#define EE_LEAVE (-1)
typedef struct {
    void *context;
    uint32_t first;    /* the first exit evaluated */
    int32_t (*decide)(
        void *context, uint32_t exit, const float *logits, const float *class_means,
        uint32_t classes);
} ee_policy;

typedef struct {
    size_t size;
    const char *policy;          /* NULL: the artifact's default; "": decisions off */
    int32_t threads;             /* 0: as the artifact says, but no more than may be used here */
    int32_t clocks;              /* whether a policy that chooses clocks sets them */
    const ee_governor *governor; /* NULL: Linux's cpufreq */
    const ee_meter *meter;       /* NULL: energies are the cost table's */
    const ee_server *server;     /* NULL: nobody answers; what would be sent is computed here */
} ee_options;
#define EE_OPTIONS {sizeof(ee_options), NULL, 0, 0, NULL, NULL, NULL}

/* Allocates all that answering samples needs, and starts threads - 1 threads. `options` may be
 * NULL; what they point to must stay until the session is closed. */
ee_status ee_session_open(ee_network *network, const ee_options *options, ee_session **session);

/* Puts clocks back, ends threads. NULL is fine. */
void ee_session_close(ee_session *session);

/* Decide by another policy of the artifact from now on, which has learned nothing yet: as
 * ee_options.policy. Allocates where the policy chooses clocks. */
ee_status ee_set_policy(ee_session *session, const char *name);

/* Why clocks that the policy in use chooses are not set, or not all of them; "" where they are,
 * where it chooses none, and without ee_options.clocks. Valid until the session's next call. */
const char *ee_clocks_reason(const ee_session *session);

/* Decide by the app's own; NULL: decisions off. It must stay until another is set. */
ee_status ee_set_own_policy(ee_session *session, const ee_policy *policy);

/* What each sample may spend at most: fractions of the network's multiply-accumulates, seconds from
 * the call to the answer, joules as the cost table tells them. NAN: not limited. The deepest exit
 * that fits answers. Replaces the policy's own limits; ee_set_policy brings them back. Goes with
 * no policy that learns, asks a server, chooses clocks or keeps a deadline. */
ee_status ee_set_halt(ee_session *session, double macs, double latency_s, double energy_j);

typedef enum {
    EE_OFFLOADED = 1,  /* a server answered */
    EE_HALTED = 2,     /* a budget was spent where the policy would have gone on */
    EE_CANCELLED = 4,  /* ee_cancel ended it */
    EE_LATE = 8        /* after the policy's deadline */
} ee_flag;

typedef struct {
    size_t size;
    const float *logits;   /* float32[classes], the session's until its next call; NULL if none */
    uint32_t classes;
    uint32_t label;        /* of the largest logit; the first of equal ones */
    uint32_t exit;         /* index; the last is the network's own answer */
    uint32_t segments_run, heads_run;
    uint32_t blocks_run;   /* of those that gates may leave out */
    uint32_t flags;        /* ee_flag */
    uint64_t macs;
    double latency_s;
    double energy_j;       /* the meter's, else the cost table's where clocks are set */
    double frequency_hz;   /* of the clock it ended at, where clocks are set */
} ee_answer;
#define EE_ANSWER {sizeof(ee_answer), NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Answers one sample; no segment runs that its exit does not need. `inputs` are dense arrays as
 * ee_input_about says, in order, at any alignment; they are copied, each to its place: what
 * ee_output or an answer points to must be copied before it can be an input of the same session. */
ee_status ee_run(ee_session *session, const void *const *inputs, ee_answer *answer);

/* The same for raw data, 8-bit integers, which are normalised as the artifact says: (raw / scale -
 * mean) / std. Images are (height, width, channels), as decoders give them, also where the
 * network's own have their channels first: in a dimension of as many as are normalised, or, where
 * all are normalised alike, one not larger than the last. All else is laid out as the input is;
 * inputs that are not normalised are read as they are. */
ee_status ee_run_raw(ee_session *session, const void *const *inputs, ee_answer *answer);

/* The network's own answer: decisions off, no head and no gate runs. */
ee_status ee_run_whole(ee_session *session, const void *const *inputs, ee_answer *answer);

/* `count` samples, each input's lying one after the other: each as by ee_run, shared by the
 * session's threads; in order where one may depend on another or on time: with policies that learn
 * or are the app's own, servers, meters, budgets, clocks. Logits go to `logits`,
 * float32[count][classes], or nowhere if it is NULL; `answers[i].logits` point there. All answers
 * have the size of the first. With several threads the first call allocates memory for each. */
ee_status ee_run_batch(
    ee_session *session, const void *const *inputs, size_t count, float *logits,
    ee_answer *answers);

/* An output of the network, its logits among them, after an answer of its last exit: <name>.h has
 * names, types and shapes. NULL where there is none of this name, or the latest sample did not get
 * there. The session's until its next call. */
const void *ee_output(const ee_session *session, const char *name);

/* Has the call of ee_run or ee_run_raw under way answer with what it has: the deepest exit whose
 * head has run, or the next one. From any thread, and in signal handlers. Returns whether there was
 * such a call; the next one is never cancelled. */
int ee_cancel(ee_session *session);

typedef struct {
    size_t size;
    uint64_t answers, offloaded, halted, cancelled, late, transitions;
    double latency_s, energy_j; /* added up; NAN where one is not known */
    uint64_t macs;
} ee_statistics;
#define EE_STATISTICS {sizeof(ee_statistics), 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Since the session was opened, or ee_statistics_reset. `exits`: answers by exit, uint64[exits], or
 * NULL. */
ee_status ee_statistics_get(const ee_session *session, ee_statistics *statistics, uint64_t *exits);
void ee_statistics_reset(ee_session *session);

/* What the policy in use has learned, as bytes that ee_state_set of the same policy of the same
 * artifact takes; `*count` is the room in `bytes`, and then what was written, or is needed: 0 of a
 * policy that does not learn. `bytes` NULL: just that. */
ee_status ee_state_get(const ee_session *session, void *bytes, size_t *count);
ee_status ee_state_set(ee_session *session, const void *bytes, size_t count);

#ifdef __cplusplus
}
#endif
#endif

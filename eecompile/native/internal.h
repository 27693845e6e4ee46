/* What the parts of the runtime share. Nothing here is seen by apps; see eecompile.h for those.
 *
 *     dispatch.c   the public functions: hand every call to the library its handle is from
 *     errors.c     what went wrong last
 *     network.c    networks: code, weights and plan, opened once
 *     files.c      an artifact's plan and weights: from a folder, a packed file, memory; sha256.c
 *     reader.c     bytes that nobody has checked, taken one after the other
 *     plan.c       the plan: what a network consists of, read and checked once
 *     memory.c     where values and workspaces of a session lie
 *     session.c    who decides, answers; session.h: with inputs.c, batch.c,
 *     lane.c       memory for one sample, and functions bound to it
 *     run.c        one sample's way through the network
 *     steps.c      runs a network's steps, some left out
 *     team.c       threads
 *     policies.c   who leaves where; policies.h: with policy_reading.c
 *     halting.c    budgets of each sample
 *     clocks.c     which clock for which stretch; clocks.h: with clock_fronts.c, placement.c
 *     governor.c   sets clocks through Linux's cpufreq; sysfs.h: with clock_domain.c, clock_lock.c,
 *                  restoring.c, sysfs.c, watchdog.c
 *     python.c     what Python's session calls beside the public functions
 *
 * Rules. Nothing that was read is followed before it was checked. Functions that can fail return a
 * status and have said why with `fail`; parts of a reader's fail the reader, and parts of clocks.c
 * return what is wrong in words. What is allocated is allocated by ..._open; ..._close frees it,
 * also what was opened halfway, and takes NULL.
 */
#ifndef EECOMPILE_INTERNAL_H
#define EECOMPILE_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "eecompile.h"

#define ALIGNMENT 64
#define NONE UINT32_MAX /* no index */
#define VISIBLE __attribute__((visibility("default"))) /* to other libraries; all else is hidden */

/* -- errors (errors.c) ------------------------------------------------------------------------- */

/* Says what is wrong, for ee_message, and returns `status`. */
ee_status fail(ee_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* What `fail` said last on this thread. */
const char *latest_message(void);

/* -- code (a table that linking writes, see targets/lowering/link.py) -------------------------- */

typedef int32_t (*code_t)(const int64_t *frame, int32_t thread, int32_t threads, void *team);

/* A compiled function, as eecompile.compiled.Function tells it. */
typedef struct {
    const char *symbol;
    code_t code;
    int64_t workspace_bytes, private_bytes;
    int32_t threads;
    uint32_t inputs, outputs;
    const int64_t *bytes; /* of one sample of each input, then of each output */
} function_t;

typedef struct operations operations_t;

/* Where the code of other versions looks. It never grows: programs hold a copy of it, of the size
 * it had when they were linked (a copy relocation). `operations` can. */
struct ee_library {
    const operations_t *operations; /* first: dispatch.c knows no more */
    const char *name;               /* of the network */
    const unsigned char *identity;  /* 32 bytes, equal in the plans that belong to it */
    const char *features;           /* of the CPU, that the code needs: "avx2 fma" */
    const function_t *functions;
    uint32_t function_count;
    int64_t weights_bytes;
};
_Static_assert(sizeof(void *) != 8 || sizeof(ee_library) == 56, "programs have it of this size");

/* -- bytes that nobody has checked (reader.c) -------------------------------------------------- */

/* Little-endian values one after the other. A reader that has met something wrong stays failed and
 * gives zeros from then on, so that callers look once, at the end of a part. */
typedef struct {
    const uint8_t *at, *end;
    bool failed;
    const char *what;    /* the first thing that was wrong */
    struct arena *arena; /* of what is read into memory of its own */
} reader_t;

uint8_t read_u8(reader_t *reader);
uint32_t read_u32(reader_t *reader);
int64_t read_i64(reader_t *reader); /* below 0: failed, nothing in a plan is */
double read_f64(reader_t *reader);
/* An index below `count`. */
uint32_t read_index(reader_t *reader, uint32_t count);
/* One of `count`, or NONE. */
uint32_t read_index_or_none(reader_t *reader, uint32_t count);
/* A number of things to come, each of at least `bytes` bytes of the input. */
uint32_t read_count(reader_t *reader, size_t bytes);
bool read_bool(reader_t *reader);
/* UTF-8 without NUL, ended by one: u32 length, bytes. */
const char *read_text(reader_t *reader);
/* `count` numbers, in memory of their own; `finite`: they must be. */
const double *read_numbers(reader_t *reader, uint32_t count, bool finite);
const uint8_t *read_bytes(reader_t *reader, size_t count);
/* Fails the reader unless `holds`. Returns whether it is still good. */
bool expect(reader_t *reader, bool holds, const char *what);

/* Memory that is freed at once. */
typedef struct arena {
    struct block *blocks;
    size_t bytes, most; /* asked for so far, and at most */
} arena_t;
/* Zeros, aligned for any type; NULL: no memory, or too much asked for. */
void *arena_take(arena_t *arena, size_t count, size_t size);
void arena_free(arena_t *arena);
/* The same on behalf of a reader, which fails where there is none. */
void *take(reader_t *reader, size_t count, size_t size);

/* -- files (files.c, sha256.c) ----------------------------------------------------------------- */

void sha256(const void *bytes, size_t count, unsigned char digest[32]);

/* An artifact's two members that are needed to run. Weights are at a multiple of ALIGNMENT. */
typedef struct {
    const uint8_t *plan, *weights;
    size_t plan_bytes, weights_bytes;
    void *mapped[2]; /* what files_close unmaps */
    size_t mapped_bytes[2];
} files_t;

ee_status files_open(files_t *files, const char *path);
ee_status files_open_memory(files_t *files, const void *bytes, size_t count);
void files_close(files_t *files);

/* -- plan (plan.c) ----------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    ee_dtype dtype;
    uint32_t rank;
    const uint32_t *shape;
    int64_t bytes; /* of one sample */
    bool lasting;  /* a gate's score or shift: its memory is nobody else's */
} value_t;

typedef struct {
    uint32_t value;
    bool normalizes;
    double scale;
    uint32_t channels; /* of mean and std; 1: the same for all */
    const double *mean, *std;
} input_t;

/* A function and what it is called with. */
typedef struct {
    uint32_t function;
    uint32_t inputs, outputs;
    const uint32_t *values; /* inputs, then outputs */
    int64_t macs;
} call_t;

/* As eecompile.compiled.CompiledStep. */
typedef struct {
    call_t call;
    bool gate, block;
    uint32_t keep, otherwise, channels; /* values, or NONE */
    uint32_t output;                    /* what stands for it where it is left out, or NONE */
    int64_t groups, group_macs;
} step_plan_t;

/* The share of its costs that a step takes of which so many groups of channels ran. */
static inline double step_share(const step_plan_t *step, int64_t kept) {
    double most = step->call.macs > 1 ? (double)step->call.macs : 1;
    return 1 - (double)(step->groups - kept) * (double)step->group_macs / most;
}

typedef struct {
    uint32_t first, end; /* steps */
    int64_t macs, gates_macs;
    bool gated;
    int32_t threads; /* more gain nothing */
} segment_t;

typedef struct {
    const char *name;
    uint32_t calls; /* 1 or 2 */
    call_t call[2]; /* head, comparator; or one of them */
    uint32_t logits, class_means; /* values; class_means may be NONE */
    int64_t macs;
    uint32_t border_count; /* what the rest of the network reads, for a server */
    const uint32_t *border;
} exit_t;

/* What pieces cost at each clock, as eecompile.cost_table.CostTable; NAN: not known. */
typedef struct {
    const char *cluster;
    double frequency_hz; /* NAN: not known */
} state_t;

typedef struct {
    const char *name;
    double transition_s; /* NAN: not known */
    uint32_t cpus;
    const uint32_t *cpu;
} cluster_t;

typedef struct {
    uint32_t states, clusters, segments, exits, steps;
    const state_t *state;
    const cluster_t *cluster;
    const double *latency_s, *energy_j; /* [segments + exits + steps][states], in this order */
    double migration_s, idle_power_w;   /* NAN: not known */
} costs_t;

typedef enum { LOWEST_ENERGY, LOWEST_LATENCY, RACE_TO_IDLE, FIXED, UNCHANGED } objective_t;

typedef struct {
    bool present;
    objective_t objective;
    double deadline_s, frequency_hz; /* NAN: none */
    bool safe, hard;
    uint32_t start; /* state, or NONE */
} clock_rule_t;

typedef struct {
    double macs, latency_s, energy_j; /* NAN: no limit */
} halt_rule_t;

typedef struct policy policy_t; /* see below */

typedef struct {
    const char *name;
    const policy_t *policy; /* NULL: of a kind that only Python has */
    clock_rule_t clock;
    halt_rule_t halt;
    bool halts, offloads, guarded;
} policy_entry_t;

typedef struct {
    arena_t arena;
    const char *name;
    uint32_t values, inputs, steps, segments, exits, labels, policies, classes;
    const value_t *value;
    const input_t *input;
    const step_plan_t *step; /* of all segments */
    const segment_t *segment;
    const exit_t *exit; /* the network's own answer is none of them */
    const char *const *label;
    const policy_entry_t *policy;
    uint32_t default_policy; /* or NONE */
    uint32_t output;         /* value: the network's own logits */
    uint32_t outputs;        /* all values the last segment gives */
    const uint32_t *outputs_values;
    uint32_t shift; /* value that gates subtract from their scores, or NONE */
    uint32_t blocks;
    bool gated;      /* gates may leave something out */
    int32_t threads; /* the artifact's cores */
    int64_t macs;    /* of the untouched backbone */
    const costs_t *costs; /* NULL: none */
    unsigned char weights_sha256[32];
} plan_t;

/* Reads and checks all of it; the plan's memory is its arena's. */
ee_status plan_read(plan_t *plan, const ee_library *library, const uint8_t *bytes, size_t count);
void plan_free(plan_t *plan);

/* -- memory (memory.c) ------------------------------------------------------------------------- */

/* Offsets of a session's values and workspaces in one block; see eecompile/memory.py. */
typedef struct {
    int64_t *value;     /* [values] */
    int64_t *workspace; /* [steps], then two for each exit */
    int64_t bytes;
} layout_t;

ee_status layout_make(layout_t *layout, const ee_library *library, const plan_t *plan, int threads);
void layout_free(layout_t *layout);

/* -- policies (policies.c, policy_reading.c) --------------------------------------------------- */

/* Besides the index of the next exit to evaluate. */
enum { LEAVE = EE_LEAVE, OFFLOAD = -2 };

/* float32[classes]; the comparator's logits where the exit has nothing else. */
typedef struct {
    const float *logits;
    const float *class_means; /* NULL: the exit has none */
} exit_outputs_t;

/* A rule, as read from a plan: constant, and shared by sessions. `exits` are those that have a
 * trained head (1), a comparator (2) or both (3). Fails the reader where it makes no sense. */
const policy_t *policy_read(
    reader_t *reader, uint32_t exits, const uint8_t *has, uint32_t classes);
/* The same for the exits of a plan. */
const policy_t *policy_read_for(reader_t *reader, const plan_t *plan);

/* A rule in use. */
typedef struct {
    const policy_t *policy;
    void *state;   /* of the sample under way: policy_state_bytes, aligned for a double */
    void *learned; /* of all samples: policy_learned_bytes, doubles; NULL: it does not learn */
} deciding_t;

size_t policy_state_bytes(const policy_t *policy);
size_t policy_learned_bytes(const policy_t *policy); /* 0: it does not learn */
bool policy_forecasts(const policy_t *policy);
bool policy_offloads(const policy_t *policy); /* whether it may decide to */
double policy_gate_shift(const policy_t *policy);
/* Forget everything that was learned. */
void policy_reset(const deciding_t *deciding);
/* A new sample: returns the first exit it wants evaluated; the number of exits: none. */
uint32_t policy_first(const deciding_t *deciding);
/* LEAVE, OFFLOAD, or the next exit. */
int32_t policy_decide(const deciding_t *deciding, uint32_t exit, const exit_outputs_t *outputs);
/* What a sample is answered that leaves there: one of the two. */
const float *policy_answer(const policy_t *policy, const exit_outputs_t *outputs);
/* Of a policy that learns: the sample was answered; `final` is NULL where nobody computed it,
 * `here`: computed here because no server answered, or there is none. */
void policy_learn(const deciding_t *deciding, const float *final, bool here);
/* Whether bytes that an app gave, at any alignment, can be what such a policy has learned. */
bool policy_learned_is_sound(const policy_t *policy, const void *learned);

/* -- budgets (halting.c) ----------------------------------------------------------------------- */

typedef struct halting halting_t;
typedef struct program program_t; /* steps.c */

/* Budgets for samples of a session; as eecompile/runtime/halting.py and piece_costs.py. Fails with
 * EE_INFEASIBLE where no answer keeps them, EE_BAD_ARGUMENT where a cost is not known, and is as it
 * was then. The memory is the caller's, halting_bytes of it, zeros at first, so that budgets can be
 * changed without allocating; how fast the process is now is remembered in it. */
size_t halting_bytes(const plan_t *plan);
ee_status halting_set(
    halting_t *halting, const plan_t *plan, const halt_rule_t *rule, bool gates);
/* A sample begins whose call began at `start_ns` of CLOCK_MONOTONIC. */
void halting_begin(halting_t *halting, int64_t start_ns);
void halting_segment(halting_t *halting, uint32_t segment, int64_t macs);
void halting_head(halting_t *halting, uint32_t exit);
bool halting_affords(const halting_t *halting, uint32_t exit);
bool halting_goes_on(const halting_t *halting, uint32_t exit);
/* Limits the steps of the segment after `exit`: Account.tries. */
bool halting_tries(halting_t *halting, uint32_t exit, program_t *program);

/* -- clocks (clocks.c, governor.c) ------------------------------------------------------------- */

typedef struct clocks clocks_t;

/* As eecompile/runtime/clock.py: what the scheduler says, set by a governor. `governor` NULL: none
 * is set, and only deadlines are looked after. Fails with EE_BAD_ARTIFACT where costs and rule do
 * not fit. `gated`: the plan that the costs are of, where its gates decide, or NULL. `threads`: the
 * team's, to be kept on the cluster's CPUs. */
ee_status clocks_open(
    clocks_t **clocks, const costs_t *costs, const plan_t *gated, const clock_rule_t *rule,
    const ee_governor *governor, const int32_t *threads, uint32_t thread_count);
void clocks_close(clocks_t *clocks); /* puts everything back */
typedef struct {
    int32_t due;  /* exit to run to; the number of exits: to the end; LEAVE: answer with this one */
    bool answers; /* the exit at `due` answers whatever the policy says there */
} stretch_t;
stretch_t clocks_begin(clocks_t *clocks, uint32_t first);
/* `kept`: of each step of the plan, what ran so far, as in a program; NULL: everything. */
stretch_t clocks_after(
    clocks_t *clocks, uint32_t exit, uint32_t due, double elapsed_s, bool forecasts,
    const int32_t *kept);
/* The answer is there: its clock, energy and whether it is late. */
void clocks_finish(
    clocks_t *clocks, uint32_t exit, double elapsed_s, const int32_t *kept, double *frequency_hz,
    double *energy_j, bool *late);
void clocks_full_speed(clocks_t *clocks);
uint64_t clocks_transitions(const clocks_t *clocks);
/* Why clocks are left alone, or some of them, where a governor was given; "" where they are not. */
const char *clocks_reason(const clocks_t *clocks);

/* Linux's cpufreq as an ee_governor: NULL with a reason in `why` where no clock of these clusters
 * can be set; else which ones cannot, or "". Restores what it found when `restore` is called, when
 * closed, at exit, and through a process of its own when this one is killed. `root` is "", or a
 * folder with a copy of such files. Only one at a time sets clocks of a machine. */
ee_governor *sysfs_governor_open(const costs_t *costs, const char *root, char why[200]);
/* Which clocks it has given up since, and why; "" where none. */
const char *sysfs_governor_reason(const ee_governor *governor);
void sysfs_governor_close(ee_governor *governor);

/* -- threads (team.c) and steps (steps.c) ------------------------------------------------------ */

typedef struct team team_t;
VISIBLE team_t *eecompile_team_open(int32_t threads);
VISIBLE void eecompile_team_close(team_t *team);
/* CPUs that the calling thread may use. */
int32_t usable_cpus(void);
/* The system's numbers of a team's own threads, one fewer than it has; how many. */
uint32_t team_threads(team_t *team, int32_t *tids);
int32_t eecompile_team_wait(team_t *team);
VISIBLE int32_t eecompile_team_run(
    team_t *team, int32_t threads, code_t function, const int64_t *frame);
VISIBLE int32_t eecompile_team_samples(
    team_t *team, int32_t threads, code_t function, const int64_t *frame, const int64_t *strides,
    int64_t places);
VISIBLE int32_t eecompile_chain(const int64_t *frame, int32_t thread, int32_t threads, void *team);
VISIBLE int32_t eecompile_steps(const int64_t *frame, int32_t thread, int32_t threads, void *team);

typedef struct {
    /* A function as eecompile_team_samples takes it. */
    int64_t code, frame, strides, places;
    int64_t gate;                     /* runs only where gates do */
    int64_t keep;                     /* float32: its score */
    int64_t output, otherwise, bytes; /* left out: output's bytes are otherwise's, or 0 */
    int64_t channels, groups;         /* float32[groups]: scores of what it computes */
    int64_t macs, group_macs;         /* all groups kept; what each takes off where it is not */
    int64_t block;                    /* 1: counted among the blocks that ran */
    double cost, group_cost;          /* of the same form as macs */
    double need;                      /* what must be left of the budget before it runs */
} step_t;

/* What one sample took. */
typedef struct {
    int64_t macs, blocks;
    double spent;                     /* costs added up */
    atomic_int_least64_t stopped;     /* 1 + the step before which it stopped; 0: at none */
} tally_t;

enum { UNLIMITED, COUNTED, TIMED };

struct program {
    int64_t steps, count; /* step_t[count] */
    int64_t tallies;      /* tally_t[samples] */
    int64_t kept;         /* int32_t[samples][count]: groups kept (0 without) where a step ran */
    int64_t gates;        /* whether gates run */
    int64_t stop;         /* int32_t: no step begins once it is not 0 */
    int64_t limit;        /* what `budget` is compared with: costs, or seconds since `start_ns` */
    double budget;
    int64_t start_ns;                 /* of CLOCK_MONOTONIC */
    atomic_int_least64_t next;        /* samples taken by threads that share them; then 0 */
};

/* -- time -------------------------------------------------------------------------------------- */

static inline int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* -- what public functions become, see dispatch.c ---------------------------------------------- */

struct operations {
    uint32_t count; /* of the functions below: those that this version has */
    const char *(*message)(void);
    ee_status (*open)(const ee_library *, const char *, ee_network **);
    ee_status (*open_memory)(const ee_library *, const void *, size_t, ee_network **);
    void (*close)(ee_network *);
    ee_status (*network_about)(const ee_network *, ee_network_info *);
    ee_status (*input_about)(const ee_network *, uint32_t, ee_input_info *);
    const char *(*exit_name)(const ee_network *, uint32_t);
    const char *(*policy_name)(const ee_network *, uint32_t);
    const char *(*label)(const ee_network *, uint32_t);
    ee_status (*session_open)(ee_network *, const ee_options *, ee_session **);
    void (*session_close)(ee_session *);
    ee_status (*set_policy)(ee_session *, const char *);
    ee_status (*set_own_policy)(ee_session *, const ee_policy *);
    ee_status (*set_halt)(ee_session *, double, double, double);
    ee_status (*run)(ee_session *, const void *const *, ee_answer *);
    ee_status (*run_raw)(ee_session *, const void *const *, ee_answer *);
    ee_status (*run_whole)(ee_session *, const void *const *, ee_answer *);
    ee_status (*run_batch)(ee_session *, const void *const *, size_t, float *, ee_answer *);
    const void *(*output)(const ee_session *, const char *);
    int (*cancel)(ee_session *);
    ee_status (*statistics_get)(const ee_session *, ee_statistics *, uint64_t *);
    void (*statistics_reset)(ee_session *);
    ee_status (*state_get)(const ee_session *, void *, size_t *);
    ee_status (*state_set)(ee_session *, const void *, size_t);
    const char *(*clocks_reason)(const ee_session *);
};

extern const operations_t eecompile_operations; /* session.c's and network's, of this library */

#endif

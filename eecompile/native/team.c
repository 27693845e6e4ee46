/* Threads that run one compiled function together, phase by phase or sample by sample.
 *
 * See targets/lowering/aot.py for the functions it calls.
 *
 * Between the phases of a call threads spin, as the next phase is microseconds away. They soon
 * offer their core to whoever else wants it, perhaps the very thread they wait for, and sleep after
 * SPIN_NS. Between calls they spin as long, then sleep: an idle network costs nothing.
 *
 * A team belongs to whoever opened it, who closes it when no call is under way. Any thread may
 * call; of two calls at once the second is carried out by its caller alone. In a forked process
 * the workers are gone: there NULL must be passed for the team.
 */

#include "internal.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__) || defined(__arm__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

/* Longer than waking a thread takes and than what a program does between two segments (each 5 to
 * 50 us), much shorter than a time slice.
 * Source: measured, 2 cores of an AMD EPYC, 100 phases of 10 us on 2 threads beside 8 busy
 * processes: 10, 20 and 50 us take the same time, 3 ms, as long as the core is offered meanwhile,
 * and 11, 20 and 24 ms where it is not. On idle cores a barrier takes 0.03 us. */
#ifndef SPIN_NS
#define SPIN_NS 50000
#endif

/* The low bits of `call` say how many threads take part in it; 0 ends the workers. */
#define MOST_THREADS 1024
#define TAKING_PART (2 * MOST_THREADS - 1)

typedef struct {
    team_t *team;
    int32_t thread;
    pthread_t id;
} worker_t;

struct team {
    atomic_uint_least64_t call;  /* counts calls; what idle workers wait on */
    atomic_uint_least64_t phase; /* counts barriers; what threads within a call wait on */
    atomic_int arrived;          /* threads that wait for the phase to end */
    atomic_int sleepers;         /* threads that wait for `changed` */
    atomic_int status;           /* the first status of the call that was not 0 */
    atomic_int_least64_t next;   /* the first sample that nobody has taken */
    int32_t workers;             /* threads beside the caller's */
    /* Of the call under way; written before `call` changes, read by those who take part. */
    int32_t active;
    code_t function;
    const int64_t *frame;
    const int64_t *strides; /* NULL: threads share phases; else samples, see below */
    int64_t places;
    atomic_int cores[MOST_THREADS]; /* where each thread was when it last began a call, or -1 */
    atomic_int tids[MOST_THREADS];  /* the system's numbers of the workers; -1: it has none */
    pthread_mutex_t busy; /* held during a call */
    pthread_mutex_t lock; /* protects sleeping on `changed` */
    pthread_cond_t changed;
    worker_t worker[];
};

/* The new value of *counter as soon as it is no longer `seen`. */
static uint64_t await(team_t *team, atomic_uint_least64_t *counter, uint64_t seen, int spin) {
    uint64_t found;
    int64_t begun = spin ? monotonic_ns() : 0;
    while (spin) {
        for (int turn = 0; turn < 64; turn++) {
            found = atomic_load_explicit(counter, memory_order_acquire);
            if (found != seen) return found;
            RELAX();
        }
        sched_yield();
        spin = monotonic_ns() - begun < SPIN_NS;
    }
    pthread_mutex_lock(&team->lock);
    atomic_fetch_add(&team->sleepers, 1);
    while ((found = atomic_load(counter)) == seen) pthread_cond_wait(&team->changed, &team->lock);
    atomic_fetch_sub(&team->sleepers, 1);
    pthread_mutex_unlock(&team->lock);
    return found;
}

/* Gives *counter another value and wakes who sleeps. Sequentially consistent with `await`: either
 * that one sees the new value, or this one sees a sleeper, who holds the lock until it can be
 * woken. */
static void set(team_t *team, atomic_uint_least64_t *counter, uint64_t value) {
    atomic_store(counter, value);
    if (atomic_load(&team->sleepers)) {
        pthread_mutex_lock(&team->lock);
        pthread_cond_broadcast(&team->changed);
        pthread_mutex_unlock(&team->lock);
    }
}

/* Waits until every thread that takes part in the call has called this. */
int32_t eecompile_team_wait(team_t *team) {
    /* Nobody changes these before this thread has arrived; after that the next call may. */
    uint64_t seen = atomic_load_explicit(&team->phase, memory_order_relaxed);
    int32_t active = team->active;
    if (atomic_fetch_add(&team->arrived, 1) + 1 == active) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        set(team, &team->phase, seen + 1);
    } else {
        await(team, &team->phase, seen, 1);
    }
    return 0;
}

/* `count` samples from the sample `first` on, as the call of `thread` out of `threads`, in the
 * workspace number `own`. */
static int32_t on_samples(
    team_t *team, int64_t first, int64_t count, int32_t own, int32_t thread, int32_t threads) {
    int64_t frame[1 + team->places];
    frame[0] = count;
    for (int64_t i = 0; i < team->places; i++)
        frame[1 + i] = team->frame[1 + i] + (i == 1 ? own : first) * team->strides[i];
    return team->function(frame, thread, threads, threads > 1 ? team : NULL);
}

/* A number of samples that divides evenly, taken block by block by whoever is free, as the system
 * may stop a thread at any time; then the phases of those that are left. */
static int32_t share_samples(team_t *team, int32_t thread) {
    int64_t n = team->frame[0], left = n % team->active, whole = n - left, first;
    int64_t block = whole / (4 * team->active) + 1;
    int32_t status = 0, found;
    while ((first = atomic_fetch_add(&team->next, block)) < whole) {
        int64_t count = first + block < whole ? block : whole - first;
        found = on_samples(team, first, count, thread, 0, 1);
        if (!status) status = found;
    }
    if (left) {
        /* Their workspace lies where those of the threads do. */
        eecompile_team_wait(team);
        found = on_samples(team, whole, left, 0, thread, team->active);
        if (!status) status = found;
    }
    return status;
}

/* Leaves a core that an earlier thread of the team is on. The system often wakes a thread on the
 * core of the one that wakes it, where the two then wait for each other for many milliseconds
 * though another core is idle. Which cores the thread may use stays as it was: for a moment it
 * does without the taken ones, unless there are no others. */
static void leave_taken_core(team_t *team, int32_t thread) {
#ifdef __linux__
    int core = sched_getcpu(), taken = 0;
    for (int32_t i = 0; i < thread; i++) taken |= atomic_load(&team->cores[i]) == core;
    cpu_set_t allowed, others;
    if (taken && !sched_getaffinity(0, sizeof allowed, &allowed)) {
        others = allowed;
        for (int32_t i = 0; i < thread; i++) {
            int other = atomic_load(&team->cores[i]);
            if (other >= 0 && other < CPU_SETSIZE) CPU_CLR(other, &others);
        }
        if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others)) {
            sched_setaffinity(0, sizeof allowed, &allowed);
            core = sched_getcpu();
        }
    }
    atomic_store(&team->cores[thread], core);
#else
    (void)team, (void)thread;
#endif
}

static void take_part(team_t *team, int32_t thread) {
    int32_t status = team->strides ? share_samples(team, thread)
                                   : team->function(team->frame, thread, team->active, team);
    int none = 0;
    if (status) atomic_compare_exchange_strong(&team->status, &none, status);
    eecompile_team_wait(team);
}

static void *work(void *given) {
    const worker_t *worker = given;
    team_t *team = worker->team;
    uint64_t call = 0;
    int spin = 0;
#ifdef __linux__
    pthread_setname_np(pthread_self(), "eecompile");
    atomic_store(&team->tids[worker->thread], (int)syscall(SYS_gettid));
#else
    atomic_store(&team->tids[worker->thread], -1);
#endif
    for (;;) {
        call = await(team, &team->call, call, spin);
        int32_t active = (int32_t)(call & TAKING_PART);
        if (!active) return NULL;
        spin = worker->thread < active;
        if (!spin) continue;
        leave_taken_core(team, worker->thread);
        take_part(team, worker->thread);
    }
}

/* Begins another call, in which `active` threads take part. */
static void begin(team_t *team, int32_t active) {
    uint64_t before = atomic_load_explicit(&team->call, memory_order_relaxed);
    set(team, &team->call, ((before | TAKING_PART) + 1) | (uint64_t)active);
}

/* Ends the threads of a team that no call is using. */
void eecompile_team_close(team_t *team) {
    begin(team, 0);
    for (int32_t i = 0; i < team->workers; i++) pthread_join(team->worker[i].id, NULL);
    pthread_cond_destroy(&team->changed);
    pthread_mutex_destroy(&team->lock);
    pthread_mutex_destroy(&team->busy);
    free(team);
}

/* Signals go to the program's own threads, where they interrupt what waits for them; only those
 * that a thread causes itself stay its own. */
static void block_signals(sigset_t *before) {
    static const int own[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP};
    sigset_t blocked;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&blocked, own[i]);
    pthread_sigmask(SIG_BLOCK, &blocked, before);
}

/* A team of the calling thread and `threads - 1` workers; NULL where the system gives none. */
team_t *eecompile_team_open(int32_t threads) {
    if (threads < 1 || threads > MOST_THREADS) return NULL;
    team_t *team = calloc(1, sizeof(team_t) + (size_t)threads * sizeof(worker_t));
    if (!team) return NULL;
    for (int32_t i = 0; i < MOST_THREADS; i++) team->cores[i] = -1;
    pthread_mutex_init(&team->busy, NULL);
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->changed, NULL);
    sigset_t before;
    block_signals(&before);
    while (team->workers < threads - 1) {
        worker_t *worker = &team->worker[team->workers];
        worker->team = team;
        worker->thread = team->workers + 1;
        if (pthread_create(&worker->id, NULL, work, worker)) break;
        team->workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (team->workers == threads - 1) return team;
    eecompile_team_close(team);
    return NULL;
}

int32_t usable_cpus(void) {
#ifdef __linux__
    cpu_set_t allowed;
    if (!sched_getaffinity(0, sizeof allowed, &allowed)) return CPU_COUNT(&allowed);
#endif
    return MOST_THREADS;
}

uint32_t team_threads(team_t *team, int32_t *tids) {
    if (!team) return 0;
    for (int32_t i = 1; i <= team->workers; i++)
        while (!(tids[i - 1] = atomic_load(&team->tids[i]))) sched_yield(); /* It has just begun. */
    return (uint32_t)team->workers;
}

static int32_t lead(team_t *team, int32_t threads) {
    team->active = threads <= team->workers ? threads : team->workers + 1;
    atomic_store_explicit(&team->status, 0, memory_order_relaxed);
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    leave_taken_core(team, 0); /* There is no earlier one: this tells the others where it is. */
    begin(team, team->active);
    take_part(team, 0);
    int32_t status = atomic_load(&team->status);
    pthread_mutex_unlock(&team->busy);
    return status;
}

/* Runs a function on up to `threads` threads, which share its phases; on the caller's alone where
 * there is no team or it is busy with another call. Returns its status. */
int32_t eecompile_team_run(
    team_t *team, int32_t threads, code_t function, const int64_t *frame) {
    if (!team || threads < 2 || pthread_mutex_trylock(&team->busy))
        return function(frame, 0, 1, NULL);
    team->function = function;
    team->frame = frame;
    team->strides = NULL;
    return lead(team, threads);
}

/* The same for many samples, which the threads share. Of each of the frame's `places` behind n,
 * `strides` tells the bytes of a sample; of the second, the workspace, those of a thread. */
int32_t eecompile_team_samples(
    team_t *team, int32_t threads, code_t function, const int64_t *frame,
    const int64_t *strides, int64_t places) {
    if (!team || threads < 2 || pthread_mutex_trylock(&team->busy))
        return function(frame, 0, 1, NULL);
    team->function = function;
    team->frame = frame;
    team->strides = strides;
    team->places = places;
    return lead(team, threads);
}

/* Functions one after the other, as one function. Frame: how many, then code and frame of each.
 * Returns the first status that is not 0. */
int32_t eecompile_chain(const int64_t *frame, int32_t thread, int32_t threads, void *team) {
    int32_t status = 0;
    for (int64_t i = 0; i < frame[0]; i++) {
        code_t function = (code_t)(intptr_t)frame[1 + 2 * i];
        const int64_t *own = (const int64_t *)(intptr_t)frame[2 + 2 * i];
        int32_t found = function(own, thread, threads, team);
        if (!status) status = found;
        if (threads > 1) eecompile_team_wait(team);
    }
    return status;
}

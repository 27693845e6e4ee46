/* Threads that run one compiled function together, phase by phase.
 *
 * Compiled into every library beside its kernels; see aot.py for the functions it calls.
 *
 * Between the phases of a call threads spin, as the next phase is microseconds away; after
 * SPIN_NS they sleep, as then the system has given a core to somebody else. Between calls they
 * spin as long, then sleep: an idle network costs nothing.
 */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__) || defined(__arm__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

/* Longer than waking a thread takes (5 to 50 us), much shorter than a time slice. */
#define SPIN_NS 50000

typedef int32_t (*function_t)(const int64_t *frame, int32_t thread, int32_t threads, void *team);

typedef struct team {
    atomic_uint phase;   /* counts barriers and calls; what everybody waits on */
    atomic_int arrived;  /* threads that wait for the phase to end */
    atomic_int sleepers; /* threads that wait for `changed` */
    atomic_uint call;    /* counts calls; what idle workers wait on */
    atomic_int status;   /* the first status of the call that was not 0 */
    atomic_bool stop;
    int32_t threads, started;
    function_t function;
    const int64_t *frame;
    pthread_mutex_t busy; /* held during a call */
    pthread_mutex_t lock; /* protects sleeping on `changed` */
    pthread_cond_t changed;
    pthread_t workers[];
} team_t;

typedef struct {
    team_t *team;
    int32_t thread;
} worker_t;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Returns when *counter is no longer `seen`. */
static void await(team_t *team, atomic_uint *counter, unsigned seen) {
    int64_t begun = 0;
    do {
        for (int turn = 0; turn < 64; turn++) {
            if (atomic_load_explicit(counter, memory_order_acquire) != seen) return;
            RELAX();
        }
        if (!begun) begun = now_ns();
    } while (now_ns() - begun < SPIN_NS);
    pthread_mutex_lock(&team->lock);
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(counter) == seen) pthread_cond_wait(&team->changed, &team->lock);
    atomic_fetch_sub(&team->sleepers, 1);
    pthread_mutex_unlock(&team->lock);
}

/* Changes *counter and wakes who sleeps. Sequentially consistent with `await`: either that one
 * sees the new value, or this one sees a sleeper. */
static void advance(team_t *team, atomic_uint *counter) {
    atomic_fetch_add(counter, 1);
    if (atomic_load(&team->sleepers)) {
        pthread_mutex_lock(&team->lock);
        pthread_cond_broadcast(&team->changed);
        pthread_mutex_unlock(&team->lock);
    }
}

/* Waits until every thread of the team has called this. */
int32_t eecompile_team_wait(team_t *team) {
    unsigned seen = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->threads) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        advance(team, &team->phase);
    } else {
        await(team, &team->phase, seen);
    }
    return 0;
}

static void take_part(team_t *team, int32_t thread) {
    int32_t status = team->function(team->frame, thread, team->threads, team);
    int none = 0;
    if (status) atomic_compare_exchange_strong(&team->status, &none, status);
    eecompile_team_wait(team);
}

static void *work(void *given) {
    worker_t worker = *(worker_t *)given;
    team_t *team = worker.team;
    unsigned seen = 0;
    free(given);
    for (;;) {
        await(team, &team->call, seen);
        seen++;
        if (atomic_load(&team->stop)) return NULL;
        take_part(team, worker.thread);
    }
}

void eecompile_team_close(team_t *team) {
    atomic_store(&team->stop, 1);
    advance(team, &team->call);
    for (int32_t i = 1; i < team->started; i++) pthread_join(team->workers[i], NULL);
    pthread_cond_destroy(&team->changed);
    pthread_mutex_destroy(&team->lock);
    pthread_mutex_destroy(&team->busy);
    free(team);
}

/* A team of the calling thread and `threads - 1` workers; NULL where the system gives none. */
team_t *eecompile_team_open(int32_t threads) {
    team_t *team = calloc(1, sizeof(team_t) + (size_t)threads * sizeof(pthread_t));
    if (!team) return NULL;
    team->threads = threads;
    team->started = 1;
    pthread_mutex_init(&team->busy, NULL);
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->changed, NULL);
    while (team->started < threads) {
        worker_t *worker = malloc(sizeof(worker_t));
        if (!worker) break;
        *worker = (worker_t){team, team->started};
        if (pthread_create(&team->workers[team->started], NULL, work, worker)) {
            free(worker);
            break;
        }
        team->started++;
    }
    if (team->started == threads) return team;
    eecompile_team_close(team);
    return NULL;
}

/* Runs a function on all threads; on the caller's alone where there is no team or it is busy with
 * another call. Returns its status. */
int32_t eecompile_team_run(team_t *team, function_t function, const int64_t *frame) {
    if (!team || pthread_mutex_trylock(&team->busy)) return function(frame, 0, 1, NULL);
    team->function = function;
    team->frame = frame;
    atomic_store(&team->status, 0);
    advance(team, &team->call);
    take_part(team, 0);
    int32_t status = atomic_load(&team->status);
    pthread_mutex_unlock(&team->busy);
    return status;
}

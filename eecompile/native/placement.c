/* Keeps threads on some CPUs for a while: those of the cluster whose clock is chosen.
 *
 * CPUs a thread might not use stay forbidden to it, and one that somebody else has moved since is
 * left where it is. As eecompile/runtime/affinity.py. Machines of more CPUs than a cpu_set_t holds
 * are left alone.
 */

#include "clocks.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

/* -- which thread, which process --------------------------------------------------------------- */

/* Asking the kernel each time would take longer than a decision. A new thread begins with 0. */
static _Thread_local pid_t cached_thread;
static atomic_uint forks;

static void forked(void) {
    atomic_fetch_add(&forks, 1);
    cached_thread = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forked); }

unsigned forks_so_far(void) { return atomic_load_explicit(&forks, memory_order_relaxed); }

pid_t this_thread(void) {
    if (!cached_thread) cached_thread = (pid_t)syscall(SYS_gettid);
    return cached_thread;
}

/* Whether a number is still that of a thread of this process. */
static bool is_here(pid_t thread) {
    return thread > 0 && !syscall(SYS_tgkill, getpid(), thread, 0);
}

/* -- moving ------------------------------------------------------------------------------------ */

bool placement_open(
    placement_t *placement, arena_t *arena, const int32_t *workers, uint32_t count) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    placement->place = arena_take(arena, (size_t)count + MOST_CALLERS, sizeof(placed_t));
    if (!placement->place) return false;
    placement->workers = count;
    for (uint32_t i = 0; i < count; i++) placement->place[i].thread = workers[i];
    return true;
}

/* The CPUs a thread had before it was moved; those it has now where it was not. */
static bool had(const placed_t *place, cpu_set_t *cpus) {
    if (!is_here(place->thread)) return false;
    if (sched_getaffinity(place->thread, sizeof *cpus, cpus)) return false;
    if (place->moved && CPU_EQUAL(cpus, &place->given)) *cpus = place->had;
    return true;
}

static void put_back(placed_t *place) {
    cpu_set_t now;
    bool ours = place->moved && is_here(place->thread) &&
                !sched_getaffinity(place->thread, sizeof now, &now) &&
                CPU_EQUAL(&now, &place->given);
    if (ours) sched_setaffinity(place->thread, sizeof place->had, &place->had);
    place->moved = false;
}

/* Of the calling thread: where it is remembered. The caller that was met first makes room. */
static placed_t *place_of_caller(placement_t *placement) {
    pid_t thread = this_thread();
    placed_t *callers = placement->place + placement->workers;
    for (uint32_t i = 0; i < MOST_CALLERS; i++)
        if (callers[i].thread == thread) return callers + i;
    placed_t *place = callers + placement->next++ % MOST_CALLERS;
    put_back(place);
    place->thread = thread;
    return place;
}

static void move(placed_t *place, const cpu_set_t *cpus) {
    cpu_set_t before, wanted;
    if (!had(place, &before)) return;
    CPU_AND(&wanted, &before, cpus);
    if (!CPU_COUNT(&wanted) || sched_setaffinity(place->thread, sizeof wanted, &wanted)) return;
    place->had = before;
    place->given = wanted;
    place->moved = true;
}

void placement_move(placement_t *placement, const cluster_t *cluster) {
    cpu_set_t cpus, may;
    CPU_ZERO(&cpus);
    for (uint32_t i = 0; i < cluster->cpus; i++)
        if (cluster->cpu[i] < CPU_SETSIZE) CPU_SET(cluster->cpu[i], &cpus);
    if (!CPU_COUNT(&cpus)) return;
    placed_t *caller = place_of_caller(placement);
    if (!had(caller, &may)) return;
    CPU_AND(&may, &may, &cpus);
    if (!CPU_COUNT(&may)) return; /* workers alone would compute far from their caller */
    move(caller, &cpus);
    for (uint32_t i = 0; i < placement->workers; i++) move(&placement->place[i], &cpus);
}

void placement_restore(placement_t *placement) {
    for (uint32_t i = 0; placement->place && i < placement->workers + MOST_CALLERS; i++)
        put_back(&placement->place[i]);
}

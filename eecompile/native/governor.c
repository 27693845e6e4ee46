/* Sets clocks through sysfs, and puts everything back, whatever happens to this process.
 *
 * As eecompile/runtime/sysfs_governor.py and levers.py. Before the first write, what was found is
 * told to a watchdog, a process of its own. Who restores:
 *
 *     closing the session                     the governor
 *     a return of main, exit, dlclose         the governor
 *     a signal, _exit, a crash, kill, exec    the watchdog, as soon as the process is gone
 *     the same, and the watchdog is killed    nobody, until a reboot
 *
 * Signals stay the app's: no handler is installed. Limits that were found are never passed. Another
 * process that changes a governor or a limit is noticed at the next change of clock and not fought:
 * that clock is left alone from then on. Heat that holds a clock down is no such change. In a
 * forked process nothing is set and nothing put back.
 */

#include "sysfs.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Refusals in a row after which a clock is left alone; a CPU being unplugged gives a few. */
#define PATIENCE 3
#define MOST_POLICIES 1024
#define MOST_BYTES ((size_t)16 << 20)
/* That the end of the process waits for a thread that is changing a clock. */
#define WAIT_AT_END_S 1

/* One cluster's clock: its domains, moved together. */
typedef struct {
    uint32_t first, domains; /* 0 domains: it cannot be set */
    int64_t *ours;           /* the kernel's numbers for what may be set */
    uint32_t ours_count;
    bool claimed, gone;
    int refused; /* changes in a row that the kernel did not take */
} lever_t;

typedef struct sysfs_governor {
    ee_governor governor; /* first */
    arena_t arena;
    const costs_t *costs;
    const char *root;
    lever_t *lever;    /* [clusters] */
    domain_t *domain;
    uint32_t domains, most_domains;
    int64_t *value;    /* [states], -1: it cannot be set */
    uint32_t *cluster; /* of each state */
    uint32_t current;  /* state that was set last and read back, or NONE */
    bool busy;         /* something was or may have been written */
    int lock;
    watchdog_t watchdog;
    pid_t process;
    struct sysfs_governor *next; /* of those that are busy */
    char reason[200];
} sysfs_governor_t;

/* Changes of clock and what is done at the end of the process: one after the other. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static sysfs_governor_t *busy_ones;
static atomic_int owner; /* the process they are of */
static bool ended;

static void forked(void) {
    turn = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER; /* perhaps another thread had it */
    busy_ones = NULL;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forked); }

/* -- words ------------------------------------------------------------------------------------- */

static const char *reason_of(int status) {
    static const struct { int error; const char *words; } known[] = {
        {EACCES, "permission denied"}, {EPERM, "operation not permitted"},
        {ENOENT, "no such file or directory"}, {ENODEV, "no such device"},
        {EBUSY, "device or resource busy"}, {EINVAL, "invalid argument"},
        {EROFS, "read-only file system"}, {EIO, "input/output error"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].error == -status) return known[i].words;
    return "the kernel refuses it";
}

static void note(char *text, size_t size, const char *cluster, const char *what) {
    size_t at = strlen(text);
    snprintf(text + at, size - at, "%scluster %s: %s", at ? "; " : "", cluster, what);
}

/* -- finding clocks ---------------------------------------------------------------------------- */

typedef struct {
    uint64_t bits[MOST_CPUS / 64];
} cpus_t;

typedef struct {
    uint32_t count;
    uint32_t number[MOST_POLICIES];
} policies_t;

static void add_policy(void *context, const char *name) {
    policies_t *found = context;
    if (strncmp(name, "policy", 6) || found->count == MOST_POLICIES) return;
    int64_t number = number_in(name + 6);
    if (number < 0 || number > MOST_CPUS) return;
    uint32_t place = found->count++;
    for (; place && found->number[place - 1] > number; place--)
        found->number[place] = found->number[place - 1];
    found->number[place] = (uint32_t)number;
}

static bool has(const cpus_t *cpus, uint32_t cpu) {
    return cpu < MOST_CPUS && cpus->bits[cpu / 64] >> cpu % 64 & 1;
}

/* CPUs of a sysfs list, in either of its forms: "0 1 2", "0-2,5"; none where it is no list. */
static void read_cpus(char *text, cpus_t *cpus) {
    char *rest = NULL;
    memset(cpus, 0, sizeof *cpus);
    for (char *part = strtok_r(text, ", ", &rest); part; part = strtok_r(NULL, ", ", &rest)) {
        char *dash = strchr(part, '-');
        if (dash) *dash = 0;
        int64_t low = number_in(part), high = dash ? number_in(dash + 1) : low;
        if (low < 0 || high < low || high >= MOST_CPUS) {
            memset(cpus, 0, sizeof *cpus);
            return;
        }
        for (int64_t cpu = low; cpu <= high; cpu++) cpus->bits[cpu / 64] |= 1ULL << cpu % 64;
    }
}

static void policy_folder(uint32_t number, char folder[FOLDER_BYTES]) {
    char digits[SETTING_BYTES];
    number_text(number, digits);
    joined(folder, FOLDER_BYTES, CPUFREQ, "/policy", digits);
}

/* Whether a policy's CPUs are the cluster's: 0 none of them, 1 all, 2 some. */
static int shares(const sysfs_governor_t *g, const cluster_t *cluster, uint32_t number) {
    char folder[FOLDER_BYTES], path[PATH_BYTES], text[TEXT_BYTES];
    cpus_t cpus;
    uint32_t whole = 0, mine = 0;
    policy_folder(number, folder);
    joined(path, sizeof path, folder, "/related_cpus", "");
    if (sysfs_read(g->root, path, text)) return 0;
    read_cpus(text, &cpus);
    for (uint32_t i = 0; i < MOST_CPUS / 64; i++)
        whole += (uint32_t)__builtin_popcountll(cpus.bits[i]);
    for (uint32_t i = 0; i < cluster->cpus; i++) mine += has(&cpus, cluster->cpu[i]);
    return !mine ? 0 : mine == whole ? 1 : 2;
}

/* Opens a domain of a lever: an errno where it may not be set, or there is no room. */
static int add_domain(sysfs_governor_t *g, lever_t *lever, const char *folder, bool devfreq) {
    if (g->domains == g->most_domains) return -EINVAL;
    lever->domains++;
    return domain_open(&g->domain[g->domains++], g->root, folder, devfreq);
}

/* The policies that have a cluster's CPUs; of one without CPUs the devfreq device of its name.
 * NULL, or why it cannot be set. */
static const char *match(sysfs_governor_t *g, const policies_t *policies, uint32_t index) {
    const cluster_t *cluster = &g->costs->cluster[index];
    lever_t *lever = &g->lever[index];
    char folder[FOLDER_BYTES];
    int status = 0;
    lever->first = g->domains;
    if (!cluster->cpus) {
        bool named = cluster->name[0] && cluster->name[0] != '.' && !strchr(cluster->name, '/');
        if (!named || !joined(folder, sizeof folder, DEVFREQ_FOLDER, "/", cluster->name))
            return "it has no CPUs";
        status = add_domain(g, lever, folder, true);
        return status ? reason_of(status) : NULL;
    }
    for (uint32_t i = 0; i < policies->count; i++)
        if (shares(g, cluster, policies->number[i]) == 2)
            return "its CPUs share a clock with others";
    for (uint32_t i = 0; i < policies->count && !status; i++) {
        if (!shares(g, cluster, policies->number[i])) continue;
        policy_folder(policies->number[i], folder);
        status = add_domain(g, lever, folder, false);
    }
    if (status) return reason_of(status);
    return lever->domains ? NULL : "no cpufreq policy has its CPUs";
}

/* The kernel's number for a state; -1 where the domains do not agree on one. */
static int64_t value_of(const sysfs_governor_t *g, const lever_t *lever, double frequency_hz) {
    int64_t found = -1;
    for (uint32_t i = 0; i < lever->domains; i++) {
        int64_t value = domain_value(&g->domain[lever->first + i], frequency_hz);
        if (value < 0 || (i && value != found)) return -1;
        found = value;
    }
    return found;
}

/* Which states of a cluster can be set; whether any can. */
static bool find_values(sysfs_governor_t *g, uint32_t index, char why[200]) {
    lever_t *lever = &g->lever[index];
    uint32_t states = 0;
    for (uint32_t k = 0; k < g->costs->states; k++) {
        if (g->cluster[k] != index) continue;
        states++;
        g->value[k] = value_of(g, lever, g->costs->state[k].frequency_hz);
        if (g->value[k] >= 0) lever->ours[lever->ours_count++] = g->value[k];
    }
    if (lever->ours_count < states) {
        char limits[80], told[160];
        domain_describe(&g->domain[lever->first], limits);
        snprintf(told, sizeof told, "%u of %u clocks are not here (%s)",
                 states - lever->ours_count, states, limits);
        note(why, 200, g->costs->cluster[index].name, told);
    }
    return lever->ours_count > 0;
}

static void find_levers(sysfs_governor_t *g, const policies_t *policies, char why[200]) {
    for (uint32_t index = 0; index < g->costs->clusters; index++) {
        const char *wrong = match(g, policies, index);
        if (wrong) note(why, 200, g->costs->cluster[index].name, wrong);
        g->lever[index].gone = wrong || !find_values(g, index, why);
    }
}

static uint32_t cluster_named(const costs_t *costs, const char *name) {
    for (uint32_t index = 0; index < costs->clusters; index++)
        if (!strcmp(costs->cluster[index].name, name)) return index;
    return NONE;
}

/* The state that can be set of this cluster and frequency, or NONE. */
static uint32_t find_state(const sysfs_governor_t *g, const char *cluster, double frequency_hz) {
    uint32_t index = cluster_named(g->costs, cluster);
    if (index == NONE || g->lever[index].gone) return NONE;
    for (uint32_t k = 0; k < g->costs->states; k++)
        if (g->cluster[k] == index && g->costs->state[k].frequency_hz == frequency_hz)
            return g->value[k] < 0 ? NONE : k;
    return NONE;
}

/* -- putting back ------------------------------------------------------------------------------ */

/* What the watchdog does, in a process of its own. */
static bool restore_copy(void *context) {
    const sysfs_governor_t *g = context;
    bool all = true;
    for (uint32_t i = 0; i < g->domains; i++) all &= !domain_restore(&g->domain[i]);
    return all;
}

/* Domains that could not be put back stay to be tried again; whether there is none. */
static bool put_back(sysfs_governor_t *g, const lever_t *only) {
    bool all = true;
    for (uint32_t i = 0; i < g->domains; i++) {
        bool wanted = !only || (i >= only->first && i < only->first + only->domains);
        if (wanted && !domain_restore(&g->domain[i])) g->domain[i].found = false;
        all &= !g->domain[i].found;
    }
    return all;
}

/* Nothing of ours is set any more but what is stuck, as `all` says: that is left to the watchdog,
 * which keeps the lock meanwhile. */
static void finish(sysfs_governor_t *g, bool all) {
    watchdog_stop(&g->watchdog, all);
    clock_lock_release(g->lock, all);
    g->lock = -1;
    g->busy = false;
    g->current = NONE;
    for (uint32_t index = 0; index < g->costs->clusters; index++) g->lever[index].claimed = false;
    for (sysfs_governor_t **at = &busy_ones; *at; at = &(*at)->next)
        if (*at == g) {
            *at = g->next;
            return;
        }
}

/* What could not be put back before is tried once more, unless the watchdog is still at it. */
static void retry(sysfs_governor_t *g) {
    char why[200];
    bool stuck = false;
    for (uint32_t i = 0; i < g->domains; i++) stuck |= g->domain[i].found;
    if (!stuck) return;
    int lock = clock_lock_take(g->root, why);
    if (lock != -2) put_back(g, NULL);
    clock_lock_release(lock, true);
}

static void restore_now(sysfs_governor_t *g) {
    if (g->busy)
        finish(g, put_back(g, NULL));
    else
        retry(g);
}

/* At exit and dlclose. Where a thread is stuck within a change of clock the watchdog does it. */
__attribute__((destructor)) static void restore_at_end(void) {
    struct timespec until;
    if (atomic_load(&owner) != getpid()) return;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_AT_END_S;
    if (pthread_mutex_timedlock(&turn, &until)) return;
    ended = true;
    while (busy_ones) restore_now(busy_ones);
    pthread_mutex_unlock(&turn);
}

/* -- changing clocks --------------------------------------------------------------------------- */

/* Leaves a clock alone from now on, as it was found where that is possible. */
static int give_up(sysfs_governor_t *g, uint32_t index, const char *why) {
    bool any = false;
    char told[200];
    g->lever[index].gone = true;
    if (g->busy) put_back(g, &g->lever[index]);
    for (uint32_t i = 0; i < g->costs->clusters; i++) any |= !g->lever[i].gone;
    if (!any) restore_now(g);
    snprintf(told, sizeof told, "%.120s; its clock is left alone from now on", why);
    note(g->reason, sizeof g->reason, g->costs->cluster[index].name, told);
    return -1;
}

/* Whether a domain is of a clock that may still be set. */
static bool is_in_use(const sysfs_governor_t *g, uint32_t domain) {
    for (uint32_t index = 0; index < g->costs->clusters; index++) {
        const lever_t *lever = &g->lever[index];
        if (domain >= lever->first && domain < lever->first + lever->domains) return !lever->gone;
    }
    return false;
}

/* What could not be put back before: whether nothing of that is in the way. */
static bool unstick(sysfs_governor_t *g) {
    bool all = true;
    for (uint32_t i = 0; i < g->domains; i++) {
        if (g->domain[i].found && !domain_restore(&g->domain[i])) g->domain[i].found = false;
        all &= !g->domain[i].found || !is_in_use(g, i);
    }
    return all;
}

/* NULL, or what is wrong with the settings. */
static const char *find_all(sysfs_governor_t *g) {
    if (!unstick(g)) return "what was changed before could not be put back";
    for (uint32_t index = 0; index < g->costs->clusters; index++) {
        lever_t *lever = &g->lever[index];
        for (uint32_t i = lever->first; !lever->gone && i < lever->first + lever->domains; i++) {
            int status = domain_find(&g->domain[i], lever->ours, lever->ours_count);
            if (!status) continue;
            for (uint32_t k = 0; k < g->domains; k++) g->domain[k].found &= !is_in_use(g, k);
            return status == TAKEN ? g->domain[i].said : reason_of(status);
        }
    }
    return NULL;
}

/* Looks at everything that may be changed, and sees to it that it is put back; NULL, or why not. */
static const char *prepare(sysfs_governor_t *g, char told[200]) {
    if (ended) return "the process ends";
    g->lock = clock_lock_take(g->root, told);
    if (g->lock == -2) return told;
    const char *why = find_all(g);
    if (!why && !watchdog_start(&g->watchdog, restore_copy, g, g->lock))
        why = "nobody would restore clocks if this process were killed";
    if (why) {
        clock_lock_release(g->lock, true);
        return why;
    }
    g->busy = true;
    g->next = busy_ones;
    busy_ones = g;
    atomic_store(&owner, g->process);
    return NULL;
}

static int claim(sysfs_governor_t *g, uint32_t index) {
    lever_t *lever = &g->lever[index];
    char told[200] = "";
    const char *why = g->busy ? NULL : prepare(g, told);
    if (why) return give_up(g, index, why);
    for (uint32_t i = 0; i < lever->domains; i++) {
        int status = domain_claim(&g->domain[lever->first + i]);
        if (status) return give_up(g, index, reason_of(status));
    }
    lever->claimed = true;
    return 0;
}

static int move_one(domain_t *domain, int64_t value) {
    int status = domain_move(domain, value);
    if (!is_gone(status)) return status;
    /* A CPU that was unplugged and is back has its governor of before. */
    status = domain_claim(domain);
    return status ? status : domain_move(domain, value);
}

static int move(sysfs_governor_t *g, uint32_t state) {
    uint32_t index = g->cluster[state];
    lever_t *lever = &g->lever[index];
    bool arrived = true;
    for (uint32_t i = lever->first; i < lever->first + lever->domains; i++) {
        int status = move_one(&g->domain[i], g->value[state]);
        if (status == TAKEN) return give_up(g, index, g->domain[i].said);
        if (status < 0) {
            bool passing = status == -EBUSY || status == -EAGAIN || status == -EINTR;
            if (passing && ++lever->refused < PATIENCE) return NOT_REACHED;
            return give_up(g, index, reason_of(status));
        }
        arrived &= !status;
    }
    lever->refused = 0;
    if (arrived) g->current = state;
    return arrived ? 0 : NOT_REACHED;
}

/* -- as an ee_governor ------------------------------------------------------------------------- */

static int offers(void *context, const char *cluster, double frequency_hz) {
    const sysfs_governor_t *g = context;
    return g->process == getpid() && find_state(g, cluster, frequency_hz) != NONE;
}

static int set(void *context, const char *cluster, double frequency_hz) {
    sysfs_governor_t *g = context;
    if (g->process != getpid()) return -1;
    pthread_mutex_lock(&turn);
    uint32_t state = find_state(g, cluster, frequency_hz);
    int status = state == NONE ? -1 : 0;
    if (!status && state != g->current) {
        g->current = NONE;
        if (!g->lever[g->cluster[state]].claimed) status = claim(g, g->cluster[state]);
        if (!status) status = move(g, state);
    }
    pthread_mutex_unlock(&turn);
    return status;
}

static void restore(void *context) {
    sysfs_governor_t *g = context;
    if (g->process != getpid()) return;
    pthread_mutex_lock(&turn);
    restore_now(g);
    pthread_mutex_unlock(&turn);
}

const char *sysfs_governor_reason(const ee_governor *governor) {
    return ((const sysfs_governor_t *)governor)->reason;
}

/* -- opening and closing ----------------------------------------------------------------------- */

static bool open_memory(
    sysfs_governor_t *g, const costs_t *costs, const char *root, size_t domains) {
    size_t length = strlen(root) + 1;
    char *copy = arena_take(&g->arena, length, 1);
    g->lever = arena_take(&g->arena, costs->clusters, sizeof(lever_t));
    g->domain = arena_take(&g->arena, domains, sizeof(domain_t));
    g->value = arena_take(&g->arena, costs->states, sizeof(int64_t));
    g->cluster = arena_take(&g->arena, costs->states, sizeof(uint32_t));
    int64_t *ours = arena_take(&g->arena, costs->states, sizeof(int64_t));
    if (!copy || !g->lever || !g->domain || !g->value || !g->cluster || !ours) return false;
    memcpy(copy, root, length);
    g->root = copy;
    g->most_domains = (uint32_t)domains;
    for (uint32_t k = 0; k < costs->states; k++) {
        g->value[k] = -1;
        g->cluster[k] = cluster_named(costs, costs->state[k].cluster);
    }
    for (uint32_t index = 0; index < costs->clusters; index++) {
        g->lever[index].ours = ours;
        for (uint32_t k = 0; k < costs->states; k++) ours += g->cluster[k] == index;
    }
    return true;
}

static bool any_lever(const sysfs_governor_t *g) {
    for (uint32_t index = 0; index < g->costs->clusters; index++)
        if (!g->lever[index].gone) return true;
    return false;
}

/* Whether somebody else sets clocks just now. */
static bool is_busy_elsewhere(const char *root, char why[200]) {
    int lock = clock_lock_take(root, why);
    clock_lock_release(lock, true);
    return lock == -2;
}

static sysfs_governor_t *made(const costs_t *costs) {
    sysfs_governor_t *g = calloc(1, sizeof *g);
    if (!g) return NULL;
    g->governor = (ee_governor){g, offers, set, restore};
    g->arena.most = MOST_BYTES;
    g->costs = costs;
    g->current = NONE;
    g->lock = -1;
    g->process = getpid();
    return g;
}

ee_governor *sysfs_governor_open(const costs_t *costs, const char *root, char why[200]) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    policies_t policies = {0};
    pthread_once(&once, watch_forks);
    why[0] = 0;
    if (is_busy_elsewhere(root, why)) return NULL;
    sysfs_governor_t *g = made(costs);
    sysfs_names(root, CPUFREQ, add_policy, &policies);
    /* Each policy is in one cluster's domains, or there is a mistake in the table. */
    if (!g || !open_memory(g, costs, root, (size_t)policies.count + costs->clusters)) {
        snprintf(why, 200, "there is no memory for it");
        sysfs_governor_close(g ? &g->governor : NULL);
        return NULL;
    }
    find_levers(g, &policies, why);
    if (any_lever(g)) return &g->governor;
    if (!why[0]) snprintf(why, 200, "the board file names no clocks");
    sysfs_governor_close(&g->governor);
    return NULL;
}

void sysfs_governor_close(ee_governor *governor) {
    sysfs_governor_t *g = (sysfs_governor_t *)governor;
    if (!g) return;
    restore(g);
    if (g->process != getpid()) { /* both are the parent's */
        if (g->watchdog.process) close(g->watchdog.link);
        clock_lock_release(g->lock, false);
    }
    arena_free(&g->arena);
    free(g);
}

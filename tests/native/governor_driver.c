/* Sets clocks below a folder and comes to all kinds of ends.
 *
 *     driver ROOT ends HOW    sets a clock and ends as HOW says
 *     driver ROOT kills AT    sets clocks and puts them back, twice, in a process that kills itself
 *                             before (odd) or after (even) its write number AT / 2, and waits for
 *                             all that it leaves behind; prints "alive" if there is no such write
 *
 * All sources are compiled with -Dpwrite=counted_pwrite.
 */
#undef pwrite

#include "internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int steps_left, sigchld_seen;
static pid_t victim;

static void step(void) {
    if (victim == getpid() && !--steps_left) kill(victim, SIGKILL);
}

ssize_t counted_pwrite(int handle, const void *bytes, size_t count, off_t at) {
    step();
    ssize_t found = pwrite(handle, bytes, count, at);
    step();
    return found;
}

/* The clusters of sysfs_tree.rk3399. */
static const uint32_t little[] = {0, 1, 2, 3}, big[] = {4, 5};
static const cluster_t clusters[] = {{"c0", NAN, 4, little}, {"c4", NAN, 2, big}};
static const state_t states[] = {
    {"c0", 408e6}, {"c0", 1200e6}, {"c4", 408e6}, {"c4", 600e6}, {"c4", 1416e6},
};
static const costs_t costs = {
    .states = 5, .clusters = 2, .state = states, .cluster = clusters,
};

static ee_governor *opened(const char *root) {
    char why[200];
    ee_governor *governor = sysfs_governor_open(&costs, root, why);
    if (!governor || why[0]) printf("%s\n", why);
    if (!governor) exit(9);
    return governor;
}

static int set(const ee_governor *governor, int state) {
    return governor->set(governor->context, states[state].cluster, states[state].frequency_hz);
}

static void work(const char *root) {
    static const int order[] = {1, 4, 0, 2};
    ee_governor *governor = opened(root);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 4; i++)
            if (set(governor, order[i])) exit(8);
        governor->restore(governor->context);
    }
    sysfs_governor_close(governor);
}

static int kills(const char *root, int at) {
    int status = 0;
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    pid_t child = fork();
    if (!child) {
        victim = getpid();
        steps_left = at;
        work(root);
        _exit(7);
    }
    waitpid(child, &status, 0);
    while (waitpid(-1, NULL, __WALL) > 0 || errno == EINTR) {
        /* the watchdog becomes ours when its parent is gone */
    }
    if (WIFEXITED(status)) printf(WEXITSTATUS(status) == 7 ? "alive\n" : "failed\n");
    return 0;
}

static void see(int number) {
    (void)number;
    sigchld_seen = 1;
}

/* The watchdog is no business of the app's: no `wait` finds it, no signal tells of it. */
static int unseen(const char *root) {
    signal(SIGCHLD, see);
    ee_governor *governor = opened(root);
    if (set(governor, 1)) return 1;
    if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD) return 2;
    sysfs_governor_close(governor);
    if (waitpid(-1, NULL, WNOHANG | __WALL) != -1 || errno != ECHILD) return 3;
    return sigchld_seen ? 4 : 0;
}

static int forked(const char *root) {
    ee_governor *governor = opened(root);
    if (set(governor, 1)) return 1;
    int status = 0;
    pid_t child = fork();
    if (!child) {
        bool quiet = !governor->offers(governor->context, "c0", 408e6) && set(governor, 0) < 0;
        governor->restore(governor->context);
        sysfs_governor_close(governor);
        exit(quiet ? 0 : 1); /* with all that is done at the end of a process */
    }
    waitpid(child, &status, 0);
    if (status) return 2;
    if (set(governor, 0)) return 3;
    child = fork();
    if (!child) { /* it lives on, with what it has inherited */
        pause();
        _exit(0);
    }
    printf("%d\n", (int)child);
    fflush(stdout);
    kill(getpid(), SIGKILL);
    return 4;
}

static void *end_within(void *governor) {
    set(governor, 0);
    exit(0);
}

static int ends(const char *root, const char *how) {
    if (!strcmp(how, "unseen")) return unseen(root);
    if (!strcmp(how, "forked")) return forked(root);
    ee_governor *governor = opened(root);
    if (set(governor, 1) || set(governor, 4)) return 6;
    if (!strcmp(how, "exit")) exit(3);
    if (!strcmp(how, "_exit")) _exit(3);
    if (!strcmp(how, "abort")) abort();
    if (!strcmp(how, "exec")) execl("/bin/true", "true", NULL);
    if (!strcmp(how, "close")) sysfs_governor_close(governor);
    if (!strcmp(how, "term")) raise(SIGTERM);
    if (!strcmp(how, "kill")) raise(SIGKILL);
    if (!strcmp(how, "fault")) raise(SIGSEGV);
    if (!strcmp(how, "stop")) raise(SIGSTOP);
    if (!strcmp(how, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, end_within, governor);
        pthread_join(thread, NULL);
    }
    return 0; /* "return" */
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    if (!strcmp(arguments[2], "ends")) return ends(arguments[1], arguments[3]);
    return kills(arguments[1], atoi(arguments[3]));
}

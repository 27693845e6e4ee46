/* Puts clocks back where the process that changed them could not: killed, crashed, `_exit`.
 *
 * A process of its own waits for the end of a connection, or of the process at its other end,
 * without a word that all is restored. It is a copy of the app's process, begun without a word to
 * the app: no SIGCHLD tells of its end, and no `wait` finds it. In such a copy of a process with
 * many threads only what is safe in signal handlers may be called. It keeps no file of the app's
 * open, and no signal reaches it but SIGKILL.
 */

#include "sysfs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434 /* since Linux 5.3 */
#endif
#ifndef SYS_close_range
#define SYS_close_range 436 /* since Linux 5.9 */
#endif

enum { RESTORED = 'r', TRIES = 40, PAUSE_MS = 250, PATIENCE_MS = 5000 };

static void close_between(int first, int last) {
    if (first > last) return;
    if (!syscall(SYS_close_range, first, last, 0)) return;
    struct rlimit most = {0, 0};
    getrlimit(RLIMIT_NOFILE, &most);
    int end = most.rlim_cur > 65536 ? 65536 : (int)most.rlim_cur;
    for (int handle = first; handle <= last && handle < end; handle++) close(handle);
}

static void close_all_but(int one, int other) {
    int low = one < other ? one : other, high = one < other ? other : one;
    close_between(0, low - 1);
    close_between(low < 0 ? 0 : low + 1, high - 1);
    close_between(high + 1, INT32_MAX);
}

/* Returns whether clocks are to be put back: the other side has gone without a word. */
static bool wait_for_end(int link, pid_t parent) {
    struct pollfd watched[2] = {{link, POLLIN, 0}, {-1, POLLIN, 0}};
    /* A process that was forked from the parent may keep the connection open. Before Linux 5.3 the
     * connection has to do. */
    watched[1].fd = (int)syscall(SYS_pidfd_open, parent, 0);
    if (getppid() != parent) return true;
    for (;;) {
        char word = 0;
        if (poll(watched, 2, -1) < 0 && errno != EINTR) return true;
        bool spoke = watched[0].revents && recv(link, &word, 1, MSG_DONTWAIT) == 1;
        if (spoke) return word != RESTORED;
        if (watched[0].revents || watched[1].revents) return true;
    }
}

static void watch(
    int link, pid_t parent, bool (*restore)(void *), void *context, int kept) {
    close_all_but(link, kept);
    setsid(); /* Ctrl-C is for the whole group */
    if (chdir("/")) {
        /* then it stays where it is */
    }
    prctl(PR_SET_NAME, "clocks-restored");
    if (!wait_for_end(link, parent)) return;
    close(link);
    for (int i = 0; i < TRIES && !restore(context); i++) poll(NULL, 0, PAUSE_MS);
}

bool watchdog_start(watchdog_t *watchdog, bool (*restore)(void *), void *context, int kept) {
    int ends[2];
    sigset_t all, before;
    watchdog->process = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) return false;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the app's handlers must not run in the copy */
    pid_t parent = getpid();
    /* fork without a signal at its end, and without what the app has registered for forks */
    pid_t process = (pid_t)syscall(SYS_clone, 0UL, 0UL, 0UL, 0UL, 0UL);
    if (!process) {
        watch(ends[1], parent, restore, context, kept);
        _exit(0);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(ends[1]);
    if (process < 0) {
        close(ends[0]);
        return false;
    }
    *watchdog = (watchdog_t){process, ends[0]};
    return true;
}

void watchdog_stop(watchdog_t *watchdog, bool restored) {
    const char word = RESTORED;
    struct pollfd end = {watchdog->link, POLLIN, 0};
    if (!watchdog->process) return;
    bool ends = restored && send(watchdog->link, &word, 1, MSG_NOSIGNAL) == 1 &&
                poll(&end, 1, PATIENCE_MS) == 1;
    close(watchdog->link);
    while (ends && waitpid(watchdog->process, NULL, __WCLONE) < 0 && errno == EINTR) {
        /* it is about to be gone */
    }
    watchdog->process = 0;
}

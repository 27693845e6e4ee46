/* Whoever sets the clocks of a machine holds a file locked, clocks.json in the user's folder for
 * state. It is the journal of eecompile/runtime/journal.py, so that sessions in C and in Python,
 * and several of each, do not take one another's clocks for the owner's. */

#include "sysfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* Makes a folder and those above it. */
static void make_folders(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    mkdir(path, 0700);
}

/* Whether a folder is ours alone: in another's, somebody could put something else there. */
static bool is_usable(char *folder) {
    struct stat there;
    make_folders(folder);
    return !lstat(folder, &there) && S_ISDIR(there.st_mode) && there.st_uid == getuid() &&
           !(there.st_mode & (S_IWGRP | S_IWOTH));
}

static void file_name(const char *root, char name[64]) {
    unsigned char digest[32];
    snprintf(name, 64, "/clocks.json");
    if (!root[0]) return;
    sha256(root, strlen(root), digest);
    int at = snprintf(name, 64, "/clocks-");
    for (int i = 0; i < 8; i++) at += snprintf(name + at, (size_t)(64 - at), "%02x", digest[i]);
    snprintf(name + at, (size_t)(64 - at), ".json");
}

static int opened(char *folder, const char *name) {
    char path[PATH_BYTES];
    struct stat there;
    if (!is_usable(folder) || !joined(path, sizeof path, folder, name, "")) return -1;
    int handle = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (handle < 0) return -1;
    if (!fstat(handle, &there) && S_ISREG(there.st_mode) && there.st_uid == getuid())
        return handle;
    close(handle);
    return -1;
}

/* In the first folder where there can be one; -1: there is none. */
static int find(const char *root) {
    char name[64], folder[PATH_BYTES], user[32];
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    const char *given = getenv("TMPDIR"), *temporary = given && given[0] == '/' ? given : "/tmp";
    int handle = -1;
    file_name(root, name);
    if (state && state[0] == '/' && joined(folder, sizeof folder, state, "/eecompile", ""))
        handle = opened(folder, name);
    if (handle < 0 && home && home[0] == '/' &&
        joined(folder, sizeof folder, home, "/.local/state/eecompile", ""))
        handle = opened(folder, name);
    snprintf(user, sizeof user, "/eecompile-%u", (unsigned)getuid());
    if (handle < 0 && joined(folder, sizeof folder, temporary, user, ""))
        handle = opened(folder, name);
    return handle;
}

/* Whether a record of this boot is in it: somebody was killed together with who watched. */
static bool holds_record(int handle, const char *root) {
    char boot[TEXT_BYTES], text[TEXT_BYTES];
    if (sysfs_read(root, "/proc/sys/kernel/random/boot_id", boot) || !boot[0]) return false;
    size_t kept = 0, whole = strlen(boot);
    for (off_t at = 0;;) {
        ssize_t count = pread(handle, text + kept, sizeof text - 1 - kept, at);
        if (count <= 0) return false;
        at += count;
        text[kept += (size_t)count] = 0;
        if (memmem(text, kept, boot, whole)) return true;
        size_t rest = kept < whole ? kept : whole;
        memmove(text, text + kept - rest, rest);
        kept = rest;
    }
}

int clock_lock_take(const char *root, char why[200]) {
    int handle = find(root);
    if (handle < 0) return -1;
    if (flock(handle, LOCK_EX | LOCK_NB)) {
        int status = errno == EWOULDBLOCK ? -2 : -1;
        snprintf(why, 200, "another process is setting clocks");
        close(handle);
        return status;
    }
    if (!holds_record(handle, root)) return handle;
    snprintf(why, 200, "what an earlier run changed was not put back; the Python package's next "
                       "session does that, or a reboot");
    clock_lock_release(handle, true);
    return -2;
}

void clock_lock_release(int lock, bool free) {
    if (lock < 0) return;
    if (free) flock(lock, LOCK_UN);
    close(lock);
}

/* What governor.c is made of: the kernel's files, one clock, putting it back, and who watches. */
#ifndef EECOMPILE_SYSFS_H
#define EECOMPILE_SYSFS_H

#include "internal.h"

#include <sys/types.h>

#define CPUFREQ "/sys/devices/system/cpu/cpufreq"
#define DEVFREQ_FOLDER "/sys/class/devfreq"

enum {
    PATH_BYTES = 512,
    TEXT_BYTES = 4096,    /* of a file; sysfs has no longer ones */
    FOLDER_BYTES = 160,
    SETTING_BYTES = 64,   /* a governor's name, a number */
    MOST_CLOCKS = 256,    /* in a table of the kernel's */
    MOST_TUNABLES = 16,    /* of a governor; one with more is not left */
    MOST_CPUS = 65536,
};

/* -- files (sysfs.c): by absolute paths, below `root`; 0, or an errno below 0 ------------------ */

/* A file without white space around it. Safe after a fork, as all but `sysfs_names` are. */
int sysfs_read(const char *root, const char *path, char text[TEXT_BYTES]);
/* Hands a text to the kernel in one piece. */
int sysfs_write(const char *root, const char *path, const char *text);
/* Whether a file is there and may be read and written. */
int sysfs_may_write(const char *root, const char *path);
/* Whether files that the kernel makes anew may be written as well: root's are. */
bool sysfs_privileged(void);
/* Calls `each` with the names in a folder. */
int sysfs_names(
    const char *root, const char *folder, void (*each)(void *context, const char *name),
    void *context);

/* The parts one after the other; false: too long, and the result is empty. */
bool joined(char *result, size_t size, const char *a, const char *b, const char *c);
/* The whole number that a text is; -1: it is none. */
int64_t number_in(const char *text);
/* The number in a file; -1: it cannot be read or holds none. */
int64_t sysfs_number(const char *root, const char *folder, const char *name);
void number_text(int64_t number, char text[SETTING_BYTES]);
/* Whether a file that is not there any more takes its settings with it. */
bool is_gone(int status);

/* -- one clock (clock_domain.c), as eecompile/runtime/clock_domains.py ------------------------- */

typedef enum { BY_SPEED, BY_LIMITS, BY_DEVFREQ } way_t;

typedef struct {
    char path[FOLDER_BYTES + SETTING_BYTES], text[SETTING_BYTES];
} tunable_t;

/* In the kernel's unit: kHz of cpufreq, Hz of devfreq. */
typedef struct {
    const char *root;
    char folder[FOLDER_BYTES];
    way_t way;
    int64_t clock[MOST_CLOCKS]; /* of the kernel's table, rising; none where it has no table */
    uint32_t clocks;
    int64_t lowest, highest; /* the limits that were found: the owner's, and never passed */
    const int64_t *ours;     /* what may be set */
    uint32_t ours_count;
    bool found; /* from here on: what is put back */
    char governor[SETTING_BYTES], speed[SETTING_BYTES];
    tunable_t tunable[MOST_TUNABLES];
    uint32_t tunables;
    /* What was asked for last, and the one before while that is being written. */
    int64_t asked[2];
    uint32_t asks;
    int64_t seen_low, seen_high;
    char said[168]; /* why the clock is somebody else's */
} domain_t;

/* Besides 0 and errnos below 0. */
enum { NOT_REACHED = 1, TAKEN = 2 };

/* Reads its table and limits; an errno where it may not be set. */
int domain_open(domain_t *domain, const char *root, const char *folder, bool devfreq);
/* The kernel's number for a clock; -1: it has none, or the limits forbid it. */
int64_t domain_value(const domain_t *domain, double frequency_hz);
/* Looks at the settings before they are changed to any of `ours`. */
int domain_find(domain_t *domain, const int64_t *ours, uint32_t count);
/* Writes what comes before the first clock. */
int domain_claim(domain_t *domain);
int domain_move(domain_t *domain, int64_t value);
/* The limits in force, for messages. */
void domain_describe(const domain_t *domain, char text[80]);
const char *low_name(const domain_t *domain);
const char *high_name(const domain_t *domain);

/* -- putting back (restoring.c), as eecompile/runtime/watchdog.py; safe after a fork ----------- */

/* As far as it is still ours: what somebody else has changed since is left to them. */
int domain_restore(const domain_t *domain);
int write_limits(const domain_t *domain, int64_t low, int64_t high, bool high_first);
/* Whether a cooling device holds a processor's clock down just now. */
bool is_cooling(const char *root);

/* -- who puts back when this process is killed (watchdog.c) ------------------------------------ */

typedef struct {
    pid_t process; /* 0: none */
    int link;
} watchdog_t;

/* Starts a process that calls `restore` when this one has gone, every quarter of a second until it
 * returns true, some times; `kept` is a descriptor it keeps open meanwhile, or -1. */
bool watchdog_start(watchdog_t *watchdog, bool (*restore)(void *), void *context, int kept);
/* `restored`: there is nothing left to do for it; otherwise it begins at once. */
void watchdog_stop(watchdog_t *watchdog, bool restored);

/* -- one at a time (clock_lock.c) -------------------------------------------------------------- */

/* The descriptor of a file that whoever sets clocks of a machine holds locked, the same as Python's
 * journal; -1: there is nowhere to have one, which is fine; -2: somebody else has it, or left what
 * must be put back first, as `why` says. */
int clock_lock_take(const char *root, char why[200]);
/* `free`: others may have it at once, also where forked processes have inherited it. */
void clock_lock_release(int lock, bool free);

#endif

/* The kernel's files on a board, and who puts back what was written to them.
 *
 * Part of remote.c, which is the one file that is compiled.
 *
 * What a file under /sys held before the first write to it is told to a process of its own, the
 * keeper, before anything is written. When the process that writes is gone, however it ended, the
 * keeper puts back whatever is not as it was.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST_BYTES (1 << 20) /* of one file */
#define MOST_SETTINGS 512
#define PATH_BYTES 512
#define VALUE_BYTES 504

/* A setting as it was found. A pipe takes so much in one piece. */
typedef struct {
    char path[PATH_BYTES];
    int64_t size;
    char value[VALUE_BYTES];
} setting_t;

static char root_path[PATH_BYTES]; /* what every path is put behind; empty but in tests */
static int keeper = -1;            /* the pipe to the keeper */
static setting_t found[MOST_SETTINGS];
static int settings;

/* Up to `room` bytes of a file into `to`; how many, or -errno. */
static int64_t read_all(const char *path, char *to, int64_t room) {
    int handle = open(path, O_RDONLY | O_CLOEXEC);
    if (handle < 0) return -errno;
    int64_t size = 0, more = 1;
    while (size < room && more > 0) {
        more = read(handle, to + size, (size_t)(room - size));
        if (more < 0 && errno == EINTR) more = 1;
        else if (more > 0) size += more;
    }
    int64_t status = more < 0 ? -errno : size;
    close(handle);
    return status;
}

/* A text handed over in one piece: 0 or -errno. */
static int64_t write_all(const char *path, const char *text, int64_t size) {
    int handle = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (handle < 0) return -errno;
    int64_t status = write(handle, text, (size_t)size) < 0 ? -errno : 0;
    close(handle);
    return status;
}

/* Length of a text without white space at its end. */
static int64_t stripped(const char *text, int64_t size) {
    while (size && (text[size - 1] == '\n' || text[size - 1] == ' ')) size--;
    return size;
}

/* Whether a setting is as it was; one that cannot be read counts as such. */
static int as_found(const setting_t *setting) {
    char now[VALUE_BYTES];
    int64_t size = read_all(setting->path, now, VALUE_BYTES);
    if (size < 0) return 1;
    size = stripped(now, size);
    return size == stripped(setting->value, setting->size) &&
           !memcmp(now, setting->value, (size_t)size);
}

/* Settings may depend on each other (a lowest clock must not exceed the highest): what the kernel
 * does not take at first it may take when the others have been put back. */
static void put_back(void) {
    for (int turn = 0, left = 1; left && turn < 5; turn++) {
        left = 0;
        for (int i = settings - 1; i >= 0; i--) {
            if (as_found(&found[i])) continue;
            write_all(found[i].path, found[i].value, found[i].size);
            left = 1;
        }
    }
}

/* The keeper's life. In a process forked from one with threads: system calls only. */
static void keep(int pipe_end) {
    static const int ignored[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGQUIT};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) signal(ignored[i], SIG_IGN);
    prctl(PR_SET_NAME, "eecompile-keep", 0, 0, 0);
    /* It must hold no socket of the server's: the other side would not see it closed. */
    dup2(pipe_end, 0);
    long most = sysconf(_SC_OPEN_MAX);
    for (int i = 1; i < (most > 0 && most < 65536 ? most : 65536); i++) close(i);
    if (chdir("/")) _exit(1);
    char *to = (char *)&found[settings];
    int64_t held = 0;
    for (;;) {
        int64_t more = read(0, to + held, sizeof(setting_t) - (size_t)held);
        if (more < 0 && errno == EINTR) continue;
        if (more <= 0) break;
        held += more;
        if (held < (int64_t)sizeof(setting_t)) continue;
        held = 0;
        to = (char *)&found[++settings];
        if (settings == MOST_SETTINGS) break;
    }
    put_back();
    _exit(0);
}

/* Starts the keeper, as no child of this process: 0 or -errno. */
static int64_t start_keeper(void) {
    int ends[2], status = 0;
    if (pipe2(ends, O_CLOEXEC)) return -errno;
    pid_t child = fork();
    if (!child) {
        close(ends[1]);
        setsid();
        pid_t own = fork();
        if (own) _exit(own < 0);
        keep(ends[0]);
    }
    int error = errno;
    close(ends[0]);
    if (child < 0) return -error;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (status) return -EAGAIN;
    keeper = ends[1];
    return 0;
}

/* Tells the keeper what a file holds, if it has not been told: 0 or -errno. */
static int64_t remember(const char *path) {
    for (int i = 0; i < settings; i++)
        if (!strcmp(found[i].path, path)) return 0;
    if (settings == MOST_SETTINGS - 1) return -ENOSPC;
    setting_t *setting = &found[settings];
    memset(setting, 0, sizeof *setting);
    strcpy(setting->path, path);
    setting->size = read_all(path, setting->value, VALUE_BYTES);
    if (setting->size == -EACCES) return 0; /* can only be written: nothing to put back */
    if (setting->size < 0) return setting->size;
    if (setting->size == VALUE_BYTES) return -EFBIG;
    if (keeper < 0 || write(keeper, setting, sizeof *setting) != (ssize_t)sizeof *setting)
        return -EPIPE;
    settings++;
    return 0;
}

/* The file a path means, in `to`: 0 or -errno. Others than the kernel's are none of ours. */
static int64_t resolved(const char *path, size_t size, char *to) {
    size_t before = strlen(root_path);
    if (before + size >= PATH_BYTES || memchr(path, 0, size)) return -EINVAL;
    memcpy(to, root_path, before);
    memcpy(to + before, path, size);
    to[before + size] = 0;
    const char *rest = !strncmp(to + before, "/sys", 4)    ? to + before + 4
                       : !strncmp(to + before, "/proc", 5) ? to + before + 5
                                                           : "x";
    if (*rest && *rest != '/') return -EPERM;
    for (; (rest = strstr(rest, "/..")); rest++)
        if (!rest[3] || rest[3] == '/') return -EPERM;
    return 0;
}

/* The names in a folder, each with a 0 at its end, in memory to be freed: how many bytes, or
 * -errno. */
static int64_t list_names(const char *path, char **names) {
    DIR *folder = opendir(path);
    if (!folder) return -errno;
    char *all = NULL;
    size_t size = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        size_t own = strlen(entry->d_name) + 1;
        char *more = size + own > MOST_BYTES ? NULL : realloc(all, size + own);
        if (!more) {
            free(all);
            closedir(folder);
            return -ENOMEM;
        }
        all = more;
        memcpy(all + size, entry->d_name, own);
        size += own;
    }
    closedir(folder);
    *names = all;
    return (int64_t)size;
}

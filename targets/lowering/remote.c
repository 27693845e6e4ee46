/* What a board does for whoever measures on it over a wire: runs compiled functions and times them,
 * and reads and writes its kernel's files.
 *
 * remote.py has this compiled for the board, hands it to TVM's RPC server there and calls the
 * functions it exports. Arguments are whole numbers, floating-point numbers and bytes. Every
 * function returns a number, negative for -errno, or bytes where it says so. One session at a time,
 * one call at a time, as the server has it.
 */

#define _GNU_SOURCE /* sched_setaffinity, pipe2, POLLRDHUP */

#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include <tvm/ffi/c_api.h>

#include "remote_files.c"

#define ALIGNMENT 64

/* TVM's convention for functions of modules.
 * Source: TVMFFISafeCallType of tvm/ffi/c_api.h; the names as TVM_FFI_DLL_EXPORT_TYPED_FUNC of
 * tvm/ffi/function.h gives them. */
#define EXPORT(name) \
    int __tvm_ffi_eecompile_##name( \
        void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result)

typedef int32_t (*function_t)(const int64_t *frame, int32_t thread, int32_t threads, void *team);

typedef struct {
    function_t function;
    int32_t threads;
    int64_t *frame;
} step_t;

/* The network that is measured. */
static struct {
    void *code;
    char *memory; /* weights, values, workspaces and samples; all offsets count from here */
    int64_t nbytes;
    void *team;
    int32_t (*lead)(void *team, int32_t threads, function_t function, const int64_t *frame);
    int32_t threads;
    step_t *steps;
    int64_t count;
} network;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- arguments and results ---- */

static int number(TVMFFIAny *result, int64_t value) {
    memset(result, 0, sizeof *result);
    result->type_index = kTVMFFIInt;
    result->v_int64 = value;
    return 0;
}

static int bytes(TVMFFIAny *result, const char *data, int64_t size) {
    TVMFFIByteArray view = {data, (size_t)size};
    return TVMFFIBytesFromByteArray(&view, result);
}

static int words(TVMFFIAny *result, const char *text) {
    return bytes(result, text, (int64_t)strlen(text));
}

/* The bytes of an argument: short ones lie in it, others where it points. */
static TVMFFIByteArray view(const TVMFFIAny *arg) {
    TVMFFIByteArray none = {"", 0};
    switch (arg->type_index) {
    case kTVMFFIByteArrayPtr: return *(const TVMFFIByteArray *)arg->v_ptr;
    case kTVMFFIBytes: return *(const TVMFFIByteArray *)(arg->v_obj + 1);
    case kTVMFFISmallBytes: return (TVMFFIByteArray){arg->v_bytes, arg->small_str_len};
    default: return none;
    }
}

/* Bytes with a 0 behind them, in memory to be freed. */
static char *text(const TVMFFIAny *arg) {
    TVMFFIByteArray given = view(arg);
    char *copy = malloc(given.size + 1);
    if (copy) {
        memcpy(copy, given.data, given.size);
        copy[given.size] = 0;
    }
    return copy;
}

#define EXPECT(n) \
    (void)self; \
    if (count != (n)) return number(result, -EINVAL)

/* ---- the kernel's files ---- */

/* (path) -> content */
EXPORT(read) {
    EXPECT(1);
    TVMFFIByteArray given = view(&args[0]);
    char path[PATH_BYTES];
    int64_t size = resolved(given.data, given.size, path);
    char *content = size ? NULL : malloc(MOST_BYTES);
    if (!size) size = content ? read_all(path, content, MOST_BYTES) : -ENOMEM;
    int status = size < 0 ? number(result, size) : bytes(result, content, size);
    free(content);
    return status;
}

/* (path, text) -> 0 */
EXPORT(write) {
    EXPECT(2);
    TVMFFIByteArray given = view(&args[0]), value = view(&args[1]);
    char path[PATH_BYTES];
    int64_t status = resolved(given.data, given.size, path);
    if (!status && strncmp(path + strlen(root_path), "/sys/", 5)) status = -EPERM;
    if (!status) status = remember(path);
    if (!status) status = write_all(path, value.data, (int64_t)value.size);
    return number(result, status);
}

/* (path) -> 0: what the file holds now is put back in the end */
EXPORT(remember) {
    EXPECT(1);
    TVMFFIByteArray given = view(&args[0]);
    char path[PATH_BYTES];
    int64_t status = resolved(given.data, given.size, path);
    return number(result, status ? status : remember(path));
}

/* (folder) -> names, a 0 behind each */
EXPORT(names) {
    EXPECT(1);
    TVMFFIByteArray given = view(&args[0]);
    char path[PATH_BYTES], *names = NULL;
    int64_t size = resolved(given.data, given.size, path);
    if (!size) size = list_names(path, &names);
    int status = size < 0 ? number(result, size) : bytes(result, names, size);
    free(names);
    return status;
}

/* ---- the connection ---- */

/* Whether `handle` is a connected socket; of TCP, `port` is its own. */
static int connected(int handle, int *port) {
    struct sockaddr_storage name;
    socklen_t size = sizeof name;
    if (getpeername(handle, (struct sockaddr *)&name, &size)) return 0;
    size = sizeof name;
    if (getsockname(handle, (struct sockaddr *)&name, &size)) return 0;
    if (name.ss_family == AF_INET) *port = ((struct sockaddr_in *)&name)->sin_port;
    else if (name.ss_family == AF_INET6) *port = ((struct sockaddr_in6 *)&name)->sin6_port;
    else return 0;
    return 1;
}

/* The port of the socket that listens, which a forked session inherits; 0 where it does not. */
static int listening_port(void) {
    for (int handle = 0; handle < 1024; handle++) {
        struct sockaddr_storage name;
        socklen_t size = sizeof name, own = sizeof(int);
        int listens = 0;
        if (getsockopt(handle, SOL_SOCKET, SO_ACCEPTCONN, &listens, &own) || !listens) continue;
        if (getsockname(handle, (struct sockaddr *)&name, &size)) continue;
        if (name.ss_family == AF_INET) return ((struct sockaddr_in *)&name)->sin_port;
        if (name.ss_family == AF_INET6) return ((struct sockaddr_in6 *)&name)->sin6_port;
    }
    return 0;
}

/* The socket of this session's client, or -1. */
static int client_socket(void) {
    int listening = listening_port(), port;
    for (int handle = 0; handle < 1024; handle++)
        if (connected(handle, &port) && (!listening || port == listening)) return handle;
    return -1;
}

/* Ends the session when its client is gone, in the middle of a measurement too: the keeper then
 * puts back what was set. The status is 0, as with any other the server would take no more
 * clients. */
static void *watch(void *given) {
    struct pollfd socket = {(int)(intptr_t)given, POLLRDHUP, 0};
    while (poll(&socket, 1, -1) < 0 && errno == EINTR) {
    }
    usleep(300000); /* an orderly end is quicker */
    _exit(0);
}

static int watched = -1;

/* A reset makes the server's thread fail with another status than 0, before or after `watch` comes
 * to run. The kernel raises this signal while it holds the socket, so that a call which waits for
 * it gets here before it returns. */
static void changed(int signal) {
    (void)signal;
    int before = errno;
    struct pollfd socket = {watched, 0, 0}; /* asks for errors only */
    if (poll(&socket, 1, 0) > 0) _exit(0);
    errno = before;
}

/* Has `changed` called, in this thread, whenever something happens to the client's socket. */
static void watch_resets(int handle) {
    struct sigaction action = {.sa_handler = changed, .sa_flags = SA_RESTART};
    struct f_owner_ex own = {F_OWNER_TID, (pid_t)syscall(SYS_gettid)};
    sigset_t one;
    watched = handle;
    sigemptyset(&one);
    sigaddset(&one, SIGIO);
    sigaction(SIGIO, &action, NULL);
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    fcntl(handle, F_SETOWN_EX, &own);
    fcntl(handle, F_SETFL, fcntl(handle, F_GETFL) | O_ASYNC);
}

static void watch_client(void) {
    int handle = client_socket(), on = 1, idle = 15, each = 5, probes = 3, silent_ms = 30000;
    if (handle < 0) return;
    /* A client whose machine lost power says nothing any more. */
    setsockopt(handle, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(handle, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(handle, IPPROTO_TCP, TCP_KEEPINTVL, &each, sizeof each);
    setsockopt(handle, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    setsockopt(handle, IPPROTO_TCP, TCP_USER_TIMEOUT, &silent_ms, sizeof silent_ms);
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    if (!pthread_create(&thread, NULL, watch, (void *)(intptr_t)handle)) pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    watch_resets(handle);
}

/* (root) -> 0. Once, before all else; paths are taken to lie under `root`, for tests. */
EXPORT(begin) {
    EXPECT(1);
    TVMFFIByteArray given = view(&args[0]);
    if (keeper >= 0 || given.size >= PATH_BYTES) return number(result, -EINVAL);
    memcpy(root_path, given.data, given.size);
    int64_t status = start_keeper();
    if (!status) watch_client();
    return number(result, status);
}

/* ---- the network ---- */

/* (path of the code, bytes of memory, threads) -> 0, or words that say why not */
EXPORT(open) {
    EXPECT(3);
    if (network.code) return words(result, "a network is open already");
    char *path = text(&args[0]);
    network.nbytes = args[1].v_int64;
    network.threads = (int32_t)args[2].v_int64;
    void *memory = NULL;
    if (!path || network.nbytes < 1 ||
        posix_memalign(&memory, ALIGNMENT, (size_t)network.nbytes)) {
        free(path);
        return words(result, "not enough memory");
    }
    memset(memory, 0, (size_t)network.nbytes);
    network.memory = memory;
    network.code = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    free(path);
    if (!network.code) return words(result, dlerror());
    if (network.threads > 1) {
        void *(*start)(int32_t) = (void *(*)(int32_t))dlsym(network.code, "eecompile_team_open");
        *(void **)&network.lead = dlsym(network.code, "eecompile_team_run");
        if (!start || !network.lead) return words(result, "it has no code for threads");
        network.team = start(network.threads);
        if (!network.team) return words(result, "the system gives no such number of threads");
    }
    return number(result, 0);
}

/* (symbol, most threads, frame as int64: n, then offsets) -> 0 */
EXPORT(add) {
    EXPECT(3);
    char *symbol = text(&args[0]);
    TVMFFIByteArray given = view(&args[2]);
    int64_t places = (int64_t)(given.size / sizeof(int64_t));
    void *function = symbol && network.code ? dlsym(network.code, symbol) : NULL;
    free(symbol);
    if (!function) return number(result, -ENOENT);
    step_t *steps = realloc(network.steps, (size_t)(network.count + 1) * sizeof *steps);
    if (steps) network.steps = steps;
    int64_t *frame = malloc(given.size);
    if (!steps || !frame || places < 1) return number(result, -ENOMEM);
    memcpy(frame, given.data, given.size);
    for (int64_t i = 1; i < places; i++) {
        if (frame[i] < 0 || frame[i] > network.nbytes) return number(result, -ERANGE);
        frame[i] += (int64_t)(intptr_t)network.memory;
    }
    step_t *step = &steps[network.count++];
    int64_t most = args[1].v_int64;
    *(void **)&step->function = function;
    step->threads = most < network.threads ? (int32_t)most : network.threads;
    step->frame = frame;
    return number(result, 0);
}

static int inside(int64_t offset, int64_t size) {
    return offset >= 0 && size >= 0 && size <= network.nbytes && offset <= network.nbytes - size;
}

/* (offset, content) -> 0 */
EXPORT(put) {
    EXPECT(2);
    TVMFFIByteArray given = view(&args[1]);
    if (!inside(args[0].v_int64, (int64_t)given.size)) return number(result, -ERANGE);
    memcpy(network.memory + args[0].v_int64, given.data, given.size);
    return number(result, 0);
}

/* (offset, size) -> content */
EXPORT(get) {
    EXPECT(2);
    if (!inside(args[0].v_int64, args[1].v_int64)) return number(result, -ERANGE);
    return bytes(result, network.memory + args[0].v_int64, args[1].v_int64);
}

/* (CPUs as int32) -> 0: all threads of this process run there from now on */
EXPORT(place) {
    EXPECT(1);
    TVMFFIByteArray given = view(&args[0]);
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (size_t i = 0; i < given.size / sizeof(int32_t); i++) {
        int32_t cpu = ((const int32_t *)given.data)[i];
        if (cpu < 0 || cpu >= CPU_SETSIZE) return number(result, -EINVAL);
        CPU_SET(cpu, &cpus);
    }
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) return number(result, -errno);
    int64_t status = 0;
    for (struct dirent *entry; (entry = readdir(tasks));) {
        int task = atoi(entry->d_name);
        /* A thread may have ended meanwhile. */
        if (task && sched_setaffinity(task, sizeof cpus, &cpus) && errno != ESRCH) status = -errno;
    }
    closedir(tasks);
    return number(result, status);
}

/* ---- measuring ---- */

static int32_t run(const step_t *step) {
    if (step->threads > 1)
        return network.lead(network.team, step->threads, step->function, step->frame);
    return step->function(step->frame, 0, 1, NULL);
}

/* (copies as int64 triples: to, from, size; first step; steps; turns) -> seconds of each as double
 *
 * Copies a sample into place and runs the steps, `turns` times; the last turn is timed.
 * A step that fails: its status. */
EXPORT(round) {
    EXPECT(4);
    TVMFFIByteArray given = view(&args[0]);
    const int64_t *copies = (const int64_t *)given.data;
    int64_t triples = (int64_t)(given.size / (3 * sizeof(int64_t)));
    int64_t first = args[1].v_int64, steps = args[2].v_int64, turns = args[3].v_int64;
    if (first < 0 || steps < 0 || steps > network.count || first > network.count - steps)
        return number(result, -ERANGE);
    double *seconds = calloc((size_t)steps + 1, sizeof *seconds);
    if (!seconds) return number(result, -ENOMEM);
    int64_t status = 0;
    for (int64_t turn = 0; turn < turns && !status; turn++) {
        for (int64_t i = 0; i < triples; i++) {
            int64_t triple[3];
            memcpy(triple, copies + 3 * i, sizeof triple);
            if (!inside(triple[0], triple[2]) || !inside(triple[1], triple[2])) status = -ERANGE;
            else memmove(network.memory + triple[0], network.memory + triple[1], (size_t)triple[2]);
        }
        for (int64_t i = 0; i < steps && !status; i++) {
            int64_t begun = now_ns();
            status = run(&network.steps[first + i]);
            seconds[i] = (double)(now_ns() - begun) * 1e-9;
        }
    }
    int failed = status ? number(result, status)
                        : bytes(result, (const char *)seconds, steps * (int64_t)sizeof *seconds);
    free(seconds);
    return failed;
}

/* Readings of files, growing: of each reading when it began, as double seconds, then of each file
 * an int32 size or -errno, and its content. */
typedef struct {
    const char *paths; /* each with a 0 at its end */
    size_t paths_bytes;
    int64_t begun_ns, interval_ns;
    char *data;
    size_t size, room;
    int failed;
    volatile int stop;
} log_t;

static void append(log_t *log, const void *data, size_t size) {
    if (log->size + size > log->room) {
        size_t room = 2 * (log->size + size);
        char *more = room > ((size_t)64 << 20) ? NULL : realloc(log->data, room);
        if (!more) {
            log->failed = 1;
            return;
        }
        log->data = more;
        log->room = room;
    }
    memcpy(log->data + log->size, data, size);
    log->size += size;
}

static void take_reading(log_t *log) {
    char path[PATH_BYTES], content[4096];
    double at = (double)(now_ns() - log->begun_ns) * 1e-9;
    append(log, &at, sizeof at);
    for (const char *p = log->paths; p < log->paths + log->paths_bytes; p += strlen(p) + 1) {
        int64_t size = resolved(p, strlen(p), path);
        if (!size) size = read_all(path, content, sizeof content);
        int32_t told = (int32_t)size;
        append(log, &told, sizeof told);
        if (size > 0) append(log, content, (size_t)size);
    }
}

static void *take_readings(void *given) {
    log_t *log = given;
    struct timespec pause = {log->interval_ns / 1000000000, log->interval_ns % 1000000000};
    for (;;) {
        nanosleep(&pause, NULL);
        if (log->stop) return NULL;
        take_reading(log);
    }
}

/* (step, seconds, paths with a 0 behind each, interval in seconds)
 *     -> calls as int64, their seconds as double, readings as above
 *
 * Runs a step again and again for at least so long. Files are read right before and right after,
 * and every `interval` in between if that is not 0. A step that fails: its status. */
EXPORT(repeat) {
    EXPECT(4);
    int64_t index = args[0].v_int64, calls = 0, status = 0, taken = 0;
    int64_t wanted = (int64_t)(args[1].v_float64 * 1e9);
    TVMFFIByteArray paths = view(&args[2]);
    if (index < 0 || index >= network.count || (paths.size && paths.data[paths.size - 1]))
        return number(result, -EINVAL);
    log_t log = {.paths = paths.data, .paths_bytes = paths.size};
    log.interval_ns = (int64_t)(args[3].v_float64 * 1e9);
    int64_t head[2] = {0, 0};
    append(&log, head, sizeof head);
    log.begun_ns = now_ns();
    take_reading(&log);
    pthread_t reader;
    int reading = log.interval_ns > 0 && !pthread_create(&reader, NULL, take_readings, &log);
    int64_t begun = now_ns();
    while (taken < wanted && !status) {
        status = run(&network.steps[index]);
        calls++;
        taken = now_ns() - begun;
    }
    if (reading) {
        log.stop = 1;
        pthread_join(reader, NULL);
    }
    take_reading(&log);
    double seconds = (double)taken * 1e-9;
    if (log.failed && !status) status = -ENOMEM;
    if (!status) {
        memcpy(log.data, &calls, sizeof calls);
        memcpy(log.data + sizeof calls, &seconds, sizeof seconds);
    }
    int failed = status ? number(result, status) : bytes(result, log.data, (int64_t)log.size);
    free(log.data);
    return failed;
}

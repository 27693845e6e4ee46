/* An artifact's plan and weights: from its folder, its packed file, or a packed file in memory.
 *
 * A packed artifact is a ZIP file of one form only, which eecompile/packed.py writes and describes.
 * Whatever a member's name, size, checksum and place do not leave open is compared byte for byte
 * with what it has to be, so that there is nothing to interpret: no compression, no encryption, no
 * gaps, no overlaps, no second member of a name. Both readers must accept the same files and give
 * the same reasons for refusing others.
 *
 * Weights are mapped. What else is needed of a file is read into memory and then checked, so that
 * nothing changes it afterwards. A mapped file that somebody cuts off gives the signal SIGBUS when
 * missing weights are read: artifacts are to be replaced, as `eecompile build` does, never written
 * over.
 */

#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_PLAN_BYTES ((uint64_t)64 << 20)
#define MOST_WEIGHTS_BYTES ((uint64_t)1 << 40)
/* Of a packed file. Source: PKWARE's APPNOTE, 4.3: sizes and offsets without ZIP64 are 32 bits. */
#define MOST_PACKED_BYTES ((uint64_t)UINT32_MAX)
#define MOST_MEMBERS 1000
#define MOST_NAME 100
enum { LOCAL_BYTES = 30, CENTRAL_BYTES = 46, END_BYTES = 22, PADDING_BYTES = 6 };

/* What an artifact is read from: an open file, or memory. */
typedef struct {
    int file; /* -1: memory */
    const uint8_t *bytes;
    uint64_t size;
    const char *path;
} source_t;

typedef struct {
    char name[MOST_NAME + 1];
    uint32_t checksum;
    uint64_t size, header, data; /* offsets of its local header and its data */
} member_t;

static const uint8_t nothing[ALIGNMENT] __attribute__((aligned(ALIGNMENT))); /* empty weights */

/* -- files ------------------------------------------------------------------------------------- */

/* Copies a part of the source, whose size was taken into account. */
static ee_status copied(const source_t *from, uint64_t offset, void *to, size_t count) {
    if (from->file < 0) {
        memcpy(to, from->bytes + offset, count);
        return EE_OK;
    }
    for (size_t done = 0; done < count;) {
        ssize_t got = pread(
            from->file, (uint8_t *)to + done, count - done, (off_t)(offset + done));
        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0) {
            return fail(EE_NO_FILE, "`%s` was cut off while it was read", from->path);
        } else if (errno != EINTR) {
            return fail(EE_NO_FILE, "`%s` cannot be read: %m", from->path);
        }
    }
    return EE_OK;
}

/* The plan's bytes, copied unless the source is memory. */
static ee_status take_plan(files_t *files, const source_t *from, uint64_t offset, uint64_t size) {
    if (size > MOST_PLAN_BYTES)
        return fail(
            EE_BAD_ARTIFACT, "the plan of `%s` has %llu bytes, more than the limit of %llu",
            from->path, (unsigned long long)size, (unsigned long long)MOST_PLAN_BYTES);
    files->plan_bytes = (size_t)size;
    files->plan = nothing;
    if (!size) return EE_OK;
    if (from->file < 0) {
        files->plan = from->bytes + offset;
        return EE_OK;
    }
    void *memory = mmap(
        NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return fail(EE_NO_MEMORY, "there is no memory for the plan of `%s`", from->path);
    files->plan = files->mapped[0] = memory;
    files->mapped_bytes[0] = (size_t)size;
    return copied(from, offset, memory, (size_t)size);
}

/* The weights' bytes, mapped unless the source is memory. `offset` is a multiple of ALIGNMENT. */
static ee_status take_weights(
    files_t *files, const source_t *from, uint64_t offset, uint64_t size) {
    uint64_t before = from->file < 0 ? 0 : offset % (uint64_t)sysconf(_SC_PAGESIZE);
    if (size > MOST_WEIGHTS_BYTES || size + before >= SIZE_MAX)
        return fail(
            EE_BAD_ARTIFACT, "the weights of `%s` have %llu bytes, more than can be mapped",
            from->path, (unsigned long long)size);
    files->weights_bytes = (size_t)size;
    files->weights = nothing;
    if (!size) return EE_OK;
    if (from->file < 0) {
        files->weights = from->bytes + offset;
        return EE_OK;
    }
    size_t bytes = (size_t)(size + before);
    void *mapped = mmap(
        NULL, bytes, PROT_READ, MAP_PRIVATE, from->file, (off_t)(offset - before));
    if (mapped == MAP_FAILED)
        return fail(EE_NO_FILE, "the weights of `%s` cannot be mapped: %m", from->path);
    files->mapped[1] = mapped;
    files->mapped_bytes[1] = bytes;
    files->weights = (const uint8_t *)mapped + before;
    return EE_OK;
}

/* -- packed artifacts -------------------------------------------------------------------------- */

static uint32_t number(const uint8_t *bytes, int count) {
    uint32_t value = 0;
    for (int i = 0; i < count; i++) value |= (uint32_t)bytes[i] << (8 * i);
    return value;
}

static uint8_t *put(uint8_t *at, int count, uint64_t value) {
    for (int i = 0; i < count; i++) *at++ = (uint8_t)(value >> (8 * i));
    return at;
}

static ee_status refused(const source_t *from, const char *why) {
    return fail(EE_BAD_ARTIFACT, "`%s` is no packed artifact: %s", from->path, why);
}

static ee_status refused_member(const source_t *from, const member_t *member, const char *why) {
    return fail(
        EE_BAD_ARTIFACT, "`%s` is no packed artifact: `%s` %s", from->path, member->name, why);
}

/* What local and central headers tell alike, from the version needed to the length of the name. */
static uint8_t *put_common(uint8_t *at, const member_t *member) {
    at = put(at, 2, 10);   /* version needed: 1.0 */
    at = put(at, 2, 0);    /* flags */
    at = put(at, 2, 0);    /* method: stored */
    at = put(at, 2, 0);    /* time */
    at = put(at, 2, 0x21); /* date: 1980-01-01 */
    at = put(at, 4, member->checksum);
    at = put(at, 4, member->size);
    at = put(at, 4, member->size);
    return put(at, 2, strlen(member->name));
}

/* The central header a member must have, but for its name. */
static void central_header(uint8_t header[CENTRAL_BYTES], const member_t *member) {
    uint8_t *at = put(header, 4, 0x02014b50);
    at = put_common(put(at, 2, 3 << 8 | 10), member); /* made by: Unix, 1.0 */
    at = put(at, 8, 0); /* nothing beside; disk 0; bytes, no text */
    put(put(at, 4, (uint64_t)0100644 << 16), 4, member->header); /* a file, readable by all */
}

/* The local header a member must have: the name and then zeros, so that its data are aligned.
 * Returns its size. */
static size_t local_header(
    uint8_t header[LOCAL_BYTES + MOST_NAME + PADDING_BYTES + ALIGNMENT], const member_t *member) {
    size_t name = strlen(member->name), padding = (size_t)(member->data - member->header);
    padding -= LOCAL_BYTES + name;
    uint8_t *at = put_common(put(header, 4, 0x04034b50), member);
    at = put(at, 2, padding);
    memcpy(at, member->name, name);
    at = put(at + name, 2, 0xd935); /* a field for alignment, as Android's tools write it */
    at = put(at, 2, padding - 4);
    at = put(at, 2, ALIGNMENT);
    memset(at, 0, padding - PADDING_BYTES);
    return LOCAL_BYTES + name + padding;
}

static bool names_a_file(const char *name, size_t length) {
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool plain = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (!plain && c != '_' && (i == 0 || (c != '.' && c != '-'))) return false;
    }
    return length > 0;
}

/* Reads one entry of the directory, that begins at `at`. */
static ee_status central_entry(
    const source_t *from, const uint8_t *at, size_t left, member_t *member) {
    if (left < CENTRAL_BYTES || number(at, 4) != 0x02014b50)
        return refused(from, "its directory has fewer entries than it should");
    size_t length = number(at + 28, 2);
    if (length > MOST_NAME || length > left - CENTRAL_BYTES ||
        !names_a_file((const char *)at + CENTRAL_BYTES, length))
        return refused(from, "its directory holds a name that no file of an artifact has");
    memcpy(member->name, at + CENTRAL_BYTES, length);
    member->name[length] = 0;
    member->checksum = number(at + 16, 4);
    member->size = number(at + 24, 4);
    if (number(at + 8, 2) & 1) return refused_member(from, member, "is encrypted");
    if (number(at + 10, 2)) return refused_member(from, member, "is compressed");
    return EE_OK;
}

/* Compares a member with what it has to be; `header` is where it must begin, `end` where the
 * directory begins. */
static ee_status check_member(
    const source_t *from, const uint8_t *central, member_t *member, uint64_t header, uint64_t end) {
    uint8_t wanted[LOCAL_BYTES + MOST_NAME + PADDING_BYTES + ALIGNMENT], found[sizeof wanted];
    uint64_t data = header + LOCAL_BYTES + strlen(member->name) + PADDING_BYTES;
    member->header = header;
    member->data = (data + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (member->data + member->size > end)
        return refused_member(from, member, "is larger than the file");
    central_header(wanted, member);
    if (memcmp(wanted, central, CENTRAL_BYTES))
        return refused_member(from, member, "has another entry in the directory than it should");
    size_t bytes = local_header(wanted, member);
    ee_status status = copied(from, header, found, bytes);
    if (status) return status;
    if (memcmp(wanted, found, bytes))
        return refused_member(from, member, "has another header than it should");
    return EE_OK;
}

/* Checks every member and takes those that are needed. */
static ee_status walk(
    files_t *files, const source_t *from, const uint8_t *directory, size_t bytes, uint32_t count) {
    uint64_t end = from->size - END_BYTES - bytes, header = 0;
    const uint8_t *at = directory;
    member_t member = {.size = 0}, before;
    for (uint32_t i = 0; i < count; i++) {
        before = member;
        size_t left = bytes - (size_t)(at - directory);
        ee_status status = central_entry(from, at, left, &member);
        if (status) return status;
        bool manifest = !strcmp(member.name, "manifest.json");
        if (i == 0 && !manifest) return refused(from, "its first member is not `manifest.json`");
        if (i > 0 && (manifest || (i > 1 && strcmp(before.name, member.name) >= 0)))
            return refused_member(from, &member, "is there twice, or not in order");
        status = check_member(from, at, &member, header, end);
        if (!status && !strcmp(member.name, "plan.bin"))
            status = take_plan(files, from, member.data, member.size);
        if (!status && !strcmp(member.name, "weights.bin"))
            status = take_weights(files, from, member.data, member.size);
        if (status) return status;
        header = member.data + member.size;
        at += CENTRAL_BYTES + strlen(member.name);
    }
    if ((size_t)(at - directory) != bytes || header != end)
        return refused(from, "there is something between its parts");
    return EE_OK;
}

static ee_status open_packed(files_t *files, const source_t *from) {
    uint8_t begin[4], found[END_BYTES], wanted[END_BYTES];
    if (from->size < END_BYTES) return refused(from, "it is too short");
    if (from->size > MOST_PACKED_BYTES) return refused(from, "it has 4 GiB or more");
    ee_status status = copied(from, 0, begin, sizeof begin);
    if (!status) status = copied(from, from->size - END_BYTES, found, END_BYTES);
    if (status) return status;
    if (number(begin, 4) != 0x04034b50) return refused(from, "it does not begin as one");
    uint32_t count = number(found + 10, 2), bytes = number(found + 12, 4);
    if (number(found, 4) != 0x06054b50)
        return refused(from, "it does not end as one; it may have been cut off");
    if (count > MOST_MEMBERS) return refused(from, "it holds too many files");
    if (bytes > from->size - END_BYTES || bytes > count * (CENTRAL_BYTES + MOST_NAME))
        return refused(from, "its directory is larger than it can be");
    uint8_t *at = put(put(wanted, 4, 0x06054b50), 4, 0); /* one file on one disk */
    at = put(put(put(at, 2, count), 2, count), 4, bytes);
    put(put(at, 4, from->size - END_BYTES - bytes), 2, 0); /* no comment */
    if (memcmp(wanted, found, END_BYTES))
        return refused(from, "its last bytes are not what they should be");
    uint8_t *directory = malloc(bytes + !bytes);
    if (!directory) return fail(EE_NO_MEMORY, "there is no memory to read `%s`", from->path);
    status = copied(from, from->size - END_BYTES - bytes, directory, bytes);
    if (!status) status = walk(files, from, directory, bytes, count);
    free(directory);
    return status;
}

/* -- folders ----------------------------------------------------------------------------------- */

#define FLAGS (O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)

static ee_status lacks(const char *path, const char *name) {
    return fail(
        EE_BAD_ARTIFACT, "`%s` is no artifact this runtime reads: it has no `%s`%s", path, name,
        strcmp(name, "plan.bin") ? "" : " (format 5 has none: build it again)");
}

/* Opens a plain file of a folder, never what a link points to. */
static ee_status open_member(int folder, const char *path, const char *name, source_t *member) {
    struct stat about;
    member->path = path;
    member->file = openat(folder, name, FLAGS | O_NOFOLLOW);
    if (member->file < 0 && errno == ENOENT) return lacks(path, name);
    if (member->file < 0 && errno == ELOOP)
        return fail(EE_BAD_ARTIFACT, "`%s` in `%s` is a link, not a plain file", name, path);
    if (member->file < 0 || fstat(member->file, &about))
        return fail(EE_NO_FILE, "`%s` in `%s` cannot be read: %m", name, path);
    if (!S_ISREG(about.st_mode))
        return fail(EE_BAD_ARTIFACT, "`%s` in `%s` is no plain file", name, path);
    member->size = (uint64_t)about.st_size;
    return EE_OK;
}

static ee_status open_folder(files_t *files, int folder, const char *path) {
    source_t plan = {.file = -1}, weights = {.file = -1};
    ee_status status = open_member(folder, path, "plan.bin", &plan);
    if (!status) status = open_member(folder, path, "weights.bin", &weights);
    if (!status) status = take_plan(files, &plan, 0, plan.size);
    if (!status) status = take_weights(files, &weights, 0, weights.size);
    if (plan.file >= 0) close(plan.file);
    if (weights.file >= 0) close(weights.file);
    return status;
}

/* -- what the others call ---------------------------------------------------------------------- */

/* Messages have room for the end of a path. */
static const char *shown(const char *path) {
    size_t length = strlen(path);
    if (length > 250) path += length - 250;
    while (((unsigned char)*path & 0xc0) == 0x80) path++; /* not from the middle of a letter */
    return path;
}

static ee_status complete(files_t *files, const source_t *from, ee_status status) {
    const char *missing = !files->plan ? "plan.bin" : !files->weights ? "weights.bin" : NULL;
    if (!status && missing) status = lacks(from->path, missing);
    if (status) files_close(files);
    return status;
}

ee_status files_open(files_t *files, const char *path) {
    memset(files, 0, sizeof *files);
    if (!path) return fail(EE_BAD_ARGUMENT, "the artifact's path is NULL");
    source_t from = {.file = open(path, FLAGS), .path = shown(path)};
    struct stat about;
    if (from.file < 0 || fstat(from.file, &about)) {
        ee_status status = fail(EE_NO_FILE, "`%s` cannot be opened: %m", from.path);
        if (from.file >= 0) close(from.file);
        return status;
    }
    ee_status status;
    if (S_ISDIR(about.st_mode)) {
        status = open_folder(files, from.file, from.path);
    } else if (S_ISREG(about.st_mode)) {
        from.size = (uint64_t)about.st_size;
        status = open_packed(files, &from);
    } else {
        status = fail(EE_BAD_ARTIFACT, "`%s` is neither a folder nor a plain file", from.path);
    }
    close(from.file);
    return complete(files, &from, status);
}

ee_status files_open_memory(files_t *files, const void *bytes, size_t count) {
    memset(files, 0, sizeof *files);
    if (!bytes || (uintptr_t)bytes % ALIGNMENT)
        return fail(
            EE_BAD_ARGUMENT, "a packed artifact's bytes must lie at a multiple of %d", ALIGNMENT);
    source_t from = {.file = -1, .bytes = bytes, .size = count, .path = "memory"};
    return complete(files, &from, open_packed(files, &from));
}

void files_close(files_t *files) {
    if (!files) return;
    for (int i = 0; i < 2; i++)
        if (files->mapped[i]) munmap(files->mapped[i], files->mapped_bytes[i]);
    memset(files, 0, sizeof *files);
}


/* Small files through which a kernel tells and takes settings; nothing here allocates but what
 * lists a folder. */

#include "sysfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int opened(const char *root, const char *path, int flags) {
    char whole[PATH_BYTES];
    if (!joined(whole, sizeof whole, root, path, "")) return -ENAMETOOLONG;
    int handle = open(whole, flags | O_CLOEXEC);
    return handle < 0 ? -errno : handle;
}

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

int sysfs_read(const char *root, const char *path, char text[TEXT_BYTES]) {
    text[0] = 0;
    int handle = opened(root, path, O_RDONLY);
    if (handle < 0) return handle;
    ssize_t count = read(handle, text, TEXT_BYTES - 1);
    int status = count < 0 ? -errno : 0;
    close(handle);
    size_t end = count < 0 ? 0 : (size_t)count, start = 0;
    while (end && is_space(text[end - 1])) end--;
    while (start < end && is_space(text[start])) start++;
    memmove(text, text + start, end - start);
    text[end - start] = 0;
    return status;
}

/* The end of a plain file's longer text is first overwritten with newlines and then cut: at no
 * moment, killed or not, does it hold another setting. A kernel takes each write as a whole. */
static int put(int handle, const char *text, bool plain) {
    char line[TEXT_BYTES];
    struct stat there;
    size_t count = strlen(text) + 1, whole = count;
    if (!joined(line, sizeof line, text, "\n", "")) return -EINVAL;
    if (plain && !fstat(handle, &there) && there.st_size > (off_t)count) {
        whole = there.st_size < TEXT_BYTES ? (size_t)there.st_size : TEXT_BYTES;
        memset(line + count, '\n', whole - count);
    }
    if (pwrite(handle, line, whole, 0) < 0) return -errno;
    if (whole > count && ftruncate(handle, (off_t)count)) return -errno;
    return 0;
}

int sysfs_write(const char *root, const char *path, const char *text) {
    int handle = opened(root, path, O_WRONLY);
    if (handle < 0) return handle;
    int status = put(handle, text, root[0] != 0);
    close(handle);
    return status;
}

int sysfs_may_write(const char *root, const char *path) {
    int handle = opened(root, path, O_RDWR);
    if (handle < 0) return handle;
    close(handle);
    return 0;
}

bool sysfs_privileged(void) { return !geteuid(); }

int sysfs_names(
    const char *root, const char *folder, void (*each)(void *context, const char *name),
    void *context) {
    char whole[PATH_BYTES];
    if (!joined(whole, sizeof whole, root, folder, "")) return -ENAMETOOLONG;
    DIR *listing = opendir(whole);
    if (!listing) return -errno;
    for (struct dirent *entry; (entry = readdir(listing));) each(context, entry->d_name);
    closedir(listing);
    return 0;
}

/* Puts clocks back as they were found: what can be done in the worst of moments, in a process that
 * was forked from one with many threads. Nothing here allocates or locks. */

#include "sysfs.h"

#include <errno.h>
#include <string.h>

/* -- texts ------------------------------------------------------------------------------------- */

bool joined(char *result, size_t size, const char *a, const char *b, const char *c) {
    size_t counts[] = {strlen(a), strlen(b), strlen(c)};
    result[0] = 0;
    if (counts[0] + counts[1] + counts[2] >= size) return false;
    memcpy(result, a, counts[0]);
    memcpy(result + counts[0], b, counts[1]);
    memcpy(result + counts[0] + counts[1], c, counts[2] + 1);
    return true;
}

int64_t number_in(const char *text) {
    int64_t value = 0;
    size_t count = strlen(text);
    if (!count || count > 18) return -1;
    for (; *text; text++) {
        if (*text < '0' || *text > '9') return -1;
        value = 10 * value + (*text - '0');
    }
    return value;
}

void number_text(int64_t number, char text[SETTING_BYTES]) {
    char reversed[24];
    size_t count = 0;
    do {
        reversed[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    for (size_t i = 0; i < count; i++) text[i] = reversed[count - 1 - i];
    text[count] = 0;
}

bool is_gone(int status) { return status == -ENOENT || status == -ENODEV || status == -ENXIO; }

/* -- settings ---------------------------------------------------------------------------------- */

static int read_setting(const domain_t *domain, const char *name, char text[TEXT_BYTES]) {
    char path[PATH_BYTES];
    text[0] = 0;
    if (!joined(path, sizeof path, domain->folder, "/", name)) return -ENAMETOOLONG;
    return sysfs_read(domain->root, path, text);
}

static int write_setting(const domain_t *domain, const char *name, const char *text) {
    char path[PATH_BYTES];
    if (!joined(path, sizeof path, domain->folder, "/", name)) return -ENAMETOOLONG;
    return sysfs_write(domain->root, path, text);
}

int64_t sysfs_number(const char *root, const char *folder, const char *name) {
    char path[PATH_BYTES], text[TEXT_BYTES];
    if (!joined(path, sizeof path, folder, "/", name) || sysfs_read(root, path, text)) return -1;
    return number_in(text);
}

const char *low_name(const domain_t *domain) {
    return domain->way == BY_DEVFREQ ? "min_freq" : "scaling_min_freq";
}

const char *high_name(const domain_t *domain) {
    return domain->way == BY_DEVFREQ ? "max_freq" : "scaling_max_freq";
}

bool is_cooling(const char *root) {
    char folder[PATH_BYTES], path[PATH_BYTES], number[SETTING_BYTES], text[TEXT_BYTES];
    for (int device = 0; device < 64; device++) {
        number_text(device, number);
        joined(folder, sizeof folder, "/sys/class/thermal/cooling_device", number, "");
        joined(path, sizeof path, folder, "/type", "");
        if (sysfs_read(root, path, text)) continue;
        if (!strstr(text, "cpufreq") && strcmp(text, "Processor")) continue;
        joined(path, sizeof path, folder, "/cur_state", "");
        if (!sysfs_read(root, path, text) && text[0] && strcmp(text, "0")) return true;
    }
    return false;
}

/* A kernel may refuse the limit that crosses the other one's old value: then it goes last. */
int write_limits(const domain_t *domain, int64_t low, int64_t high, bool high_first) {
    const char *names[] = {low_name(domain), high_name(domain)};
    int64_t values[] = {low, high}; /* below 0: it is not written */
    bool left[] = {low >= 0, high >= 0};
    for (int attempt = 0; attempt < 2; attempt++) {
        for (int i = 0; i < 2; i++) {
            int which = high_first ? 1 - i : i;
            char text[SETTING_BYTES];
            if (!left[which]) continue;
            number_text(values[which], text);
            int status = write_setting(domain, names[which], text);
            if (status && (attempt || status != -EINVAL)) return status;
            left[which] = status != 0;
        }
    }
    return 0;
}

/* -- putting back ------------------------------------------------------------------------------ */

static bool is_ours(const domain_t *domain, int64_t value) {
    for (uint32_t i = 0; i < domain->ours_count; i++)
        if (value == domain->ours[i]) return true;
    return false;
}

static bool is_below_ours(const domain_t *domain, int64_t value) {
    for (uint32_t i = 0; i < domain->ours_count; i++)
        if (value >= 0 && value < domain->ours[i]) return true;
    return false;
}

static int restore_speed(const domain_t *domain) {
    char now[TEXT_BYTES];
    int status = read_setting(domain, "scaling_setspeed", now);
    if (status || !strcmp(now, domain->speed)) return status;
    if (!is_ours(domain, number_in(now)) || number_in(domain->speed) < 0) return 0;
    return write_setting(domain, "scaling_setspeed", domain->speed);
}

static int restore_governor(const domain_t *domain) {
    char now[TEXT_BYTES];
    int status = read_setting(domain, "scaling_governor", now);
    if (status) return status;
    if (!strcmp(now, domain->governor))
        status = strcmp(now, "userspace") ? 0 : restore_speed(domain);
    else if (!strcmp(now, "userspace"))
        status = write_setting(domain, "scaling_governor", domain->governor);
    else
        return 0; /* somebody else's */
    for (uint32_t i = 0; !status && i < domain->tunables; i++) {
        const tunable_t *tunable = &domain->tunable[i];
        /* Some are read-only, and none is worth a failure. */
        if (!sysfs_read(domain->root, tunable->path, now) && strcmp(now, tunable->text))
            (void)sysfs_write(domain->root, tunable->path, tunable->text);
    }
    return status;
}

static int restore_limits(const domain_t *domain) {
    char text[TEXT_BYTES];
    int status = read_setting(domain, low_name(domain), text);
    int64_t low = number_in(text);
    if (!status) status = read_setting(domain, high_name(domain), text);
    int64_t high = number_in(text);
    if (status) return status;
    /* What a kernel shows may be clamped by the other limit, or by heat. */
    bool low_ours = low == domain->lowest || is_ours(domain, low) ||
                    (low == high && is_below_ours(domain, low));
    bool high_ours = high == domain->highest || is_ours(domain, high) ||
                     (is_below_ours(domain, high) && is_cooling(domain->root));
    bool changed = (low_ours && low != domain->lowest) || (high_ours && high != domain->highest);
    if (!changed) return 0; /* both go back if one does */
    return write_limits(
        domain, low_ours ? domain->lowest : -1, high_ours ? domain->highest : -1,
        high < domain->lowest);
}

int domain_restore(const domain_t *domain) {
    if (!domain->found) return 0;
    int status = domain->way == BY_SPEED ? restore_governor(domain) : restore_limits(domain);
    return is_gone(status) ? 0 : status;
}

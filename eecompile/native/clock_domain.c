/* What the kernel offers to set one clock: a cpufreq policy or a devfreq device.
 *
 * As eecompile/runtime/clock_domains.py. Two ways to set a clock: the `userspace` governor with
 * scaling_setspeed, or the limits, lower = upper. Files are opened anew each time: a CPU that was
 * unplugged has others when it comes back.
 */

#include "sysfs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The table's frequency and the kernel's are the same clock where they differ by less. */
#define SAME_CLOCK 0.005
/* A driver without a table may round to what its hardware can. */
#define ROUNDING 0.01

static double unit_hz(const domain_t *domain) { return domain->way == BY_DEVFREQ ? 1.0 : 1000.0; }

static int read_in(const domain_t *domain, const char *name, char text[TEXT_BYTES]) {
    char path[PATH_BYTES];
    text[0] = 0;
    if (!joined(path, sizeof path, domain->folder, "/", name)) return -ENAMETOOLONG;
    return sysfs_read(domain->root, path, text);
}

static int write_in(const domain_t *domain, const char *name, const char *text) {
    char path[PATH_BYTES];
    if (!joined(path, sizeof path, domain->folder, "/", name)) return -ENAMETOOLONG;
    return sysfs_write(domain->root, path, text);
}

static int64_t low_now(const domain_t *domain) {
    return sysfs_number(domain->root, domain->folder, low_name(domain));
}

static int64_t high_now(const domain_t *domain) {
    return sysfs_number(domain->root, domain->folder, high_name(domain));
}

static int taken(domain_t *domain, const char *what, const char *detail, const char *end) {
    snprintf(domain->said, sizeof domain->said, "%.70s%.70s%.20s", what, detail, end);
    return TAKEN;
}

static void megahertz(const domain_t *domain, int64_t value, char text[32]) {
    if (value < 0)
        snprintf(text, 32, "unknown");
    else
        snprintf(text, 32, "%lld MHz", (long long)(value * unit_hz(domain) / 1e6 + 0.5));
}

void domain_describe(const domain_t *domain, char text[80]) {
    char low[32], high[32];
    megahertz(domain, low_now(domain), low);
    megahertz(domain, high_now(domain), high);
    snprintf(text, 80, "limits %s to %s", low, high);
}

/* -- what there is ----------------------------------------------------------------------------- */

static void add_clock(domain_t *domain, int64_t value) {
    uint32_t place = domain->clocks;
    if (value <= 0 || domain->clocks == MOST_CLOCKS) return;
    while (place && domain->clock[place - 1] > value) place--;
    if (place && domain->clock[place - 1] == value) return;
    memmove(&domain->clock[place + 1], &domain->clock[place],
            (domain->clocks++ - place) * sizeof *domain->clock);
    domain->clock[place] = value;
}

static void read_table(domain_t *domain, const char *name) {
    char text[TEXT_BYTES], *rest = NULL;
    if (read_in(domain, name, text)) return;
    for (char *word = strtok_r(text, " \t\n", &rest); word; word = strtok_r(NULL, " \t\n", &rest))
        add_clock(domain, number_in(word));
}

/* Of one folder of tunables: those that are numbers. */
typedef struct {
    domain_t *domain;
    char folder[FOLDER_BYTES + 40];
} tunables_t;

static void add_tunable(void *context, const char *name) {
    tunables_t *from = context;
    domain_t *domain = from->domain;
    tunable_t tunable;
    char text[TEXT_BYTES];
    if (name[0] == '.') return;
    bool fits = joined(tunable.path, sizeof tunable.path, from->folder, "/", name);
    if (!fits || sysfs_read(domain->root, tunable.path, text)) return;
    const char *digits = text + (text[0] == '-');
    if (number_in(digits) < 0 || !joined(tunable.text, SETTING_BYTES, text, "", "")) return;
    if (domain->tunables < MOST_TUNABLES) domain->tunable[domain->tunables] = tunable;
    domain->tunables++;
}

/* Switching away from a governor makes the kernel forget its tunables, its own for the policy or
 * those for all policies. */
static void find_tunables(domain_t *domain, const char *governor) {
    const char *folders[] = {CPUFREQ, domain->folder};
    domain->tunables = 0;
    for (int i = 0; i < 2 && governor[0]; i++) {
        tunables_t from = {domain, ""};
        if (joined(from.folder, sizeof from.folder, folders[i], "/", governor))
            sysfs_names(domain->root, from.folder, add_tunable, &from);
    }
}

/* Whether the policy has the governor `userspace`, and leaving the one in use loses nothing. */
static bool offers_speed(domain_t *domain) {
    char text[TEXT_BYTES], *rest = NULL;
    bool found = false;
    if (read_in(domain, "scaling_available_governors", text)) return false;
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        found |= !strcmp(word, "userspace");
    if (!found) return false;
    if (read_in(domain, "scaling_governor", text)) return true;
    find_tunables(domain, text);
    /* Files the kernel makes anew are root's. */
    return !domain->tunables || (sysfs_privileged() && domain->tunables <= MOST_TUNABLES);
}

static int may_write(const domain_t *domain) {
    const char *speed[] = {"scaling_governor", "scaling_setspeed"};
    const char *limits[] = {low_name(domain), high_name(domain)};
    for (int i = 0; i < 2; i++) {
        char path[PATH_BYTES];
        const char *name = domain->way == BY_SPEED ? speed[i] : limits[i];
        if (!joined(path, sizeof path, domain->folder, "/", name)) return -ENAMETOOLONG;
        int status = sysfs_may_write(domain->root, path);
        if (status) return status;
    }
    return 0;
}

int domain_open(domain_t *domain, const char *root, const char *folder, bool devfreq) {
    memset(domain, 0, sizeof *domain);
    domain->root = root;
    if (!joined(domain->folder, sizeof domain->folder, folder, "", "")) return -ENAMETOOLONG;
    domain->way = devfreq ? BY_DEVFREQ : BY_LIMITS;
    if (!devfreq && offers_speed(domain)) domain->way = BY_SPEED;
    read_table(domain, devfreq ? "available_frequencies" : "scaling_available_frequencies");
    if (!devfreq) read_table(domain, "scaling_boost_frequencies");
    int64_t low = low_now(domain), high = high_now(domain);
    domain->lowest = low < 0 ? 0 : low;
    domain->highest = high < 0 ? 0 : high;
    return may_write(domain);
}

int64_t domain_value(const domain_t *domain, double frequency_hz) {
    double wanted = frequency_hz / unit_hz(domain);
    if (!(wanted >= 0 && wanted < 1e15)) return -1;
    int64_t value = (int64_t)nearbyint(wanted);
    for (uint32_t i = 0; i < domain->clocks; i++)
        if (!i || fabs(domain->clock[i] - wanted) < fabs(value - wanted)) value = domain->clock[i];
    if (domain->clocks && fabs(value - wanted) > SAME_CLOCK * wanted) return -1;
    return domain->lowest <= value && value <= domain->highest ? value : -1;
}

/* -- before the first write -------------------------------------------------------------------- */

static int find_speed(domain_t *domain) {
    char governor[TEXT_BYTES], speed[TEXT_BYTES];
    int status = read_in(domain, "scaling_governor", governor);
    if (!status) status = read_in(domain, "scaling_setspeed", speed);
    if (status) return status;
    if (!governor[0]) return taken(domain, "no governor is set", "", "");
    if (!joined(domain->governor, SETTING_BYTES, governor, "", "") ||
        !joined(domain->speed, SETTING_BYTES, speed, "", ""))
        return -EINVAL;
    find_tunables(domain, governor);
    if (domain->tunables > MOST_TUNABLES) return taken(domain, "its governor has changed", "", "");
    domain->asks = 0;
    return 0;
}

static int find_limits(domain_t *domain) {
    if (is_cooling(domain->root))
        return taken(domain, "heat holds clocks down, so that its limits cannot be told from ",
                     "heat's", "");
    domain->seen_low = domain->asked[0] = domain->lowest;
    domain->seen_high = domain->asked[1] = domain->highest;
    return 0;
}

int domain_find(domain_t *domain, const int64_t *ours, uint32_t count) {
    char limits[80], text[TEXT_BYTES];
    domain->found = false;
    domain->ours = ours;
    domain->ours_count = count;
    int status = read_in(domain, low_name(domain), text);
    int64_t low = number_in(text);
    if (!status) status = read_in(domain, high_name(domain), text);
    int64_t high = number_in(text);
    if (status) return status;
    for (uint32_t i = 0; i < count; i++) {
        if (low >= 0 && low <= ours[i] && ours[i] <= high) continue;
        domain_describe(domain, limits);
        return taken(domain, "it has other ", limits, " than before");
    }
    domain->lowest = low;
    domain->highest = high;
    status = domain->way == BY_SPEED ? find_speed(domain) : find_limits(domain);
    domain->found = !status;
    return status;
}

int domain_claim(domain_t *domain) {
    if (domain->way != BY_SPEED || !strcmp(domain->governor, "userspace")) return 0;
    return write_in(domain, "scaling_governor", "userspace");
}

/* -- changing the clock ------------------------------------------------------------------------ */

static bool is_at(const domain_t *domain, int64_t found, int64_t value) {
    if (found < 0) return false;
    return domain->clocks ? found == value : llabs(found - value) <= ROUNDING * value;
}

static int look_at_governor(domain_t *domain) {
    char text[TEXT_BYTES];
    int status = read_in(domain, "scaling_governor", text);
    if (status || !strcmp(text, "userspace")) return status;
    return taken(domain, "the governor was changed to `", text, "`");
}

/* Another clock than we left: the limits' doing, or another process's. */
static int look_at_speed(domain_t *domain) {
    int status = look_at_governor(domain);
    if (status) return status;
    if (low_now(domain) != domain->lowest || high_now(domain) != domain->highest) return 0;
    return taken(domain, "`scaling_setspeed` was changed", "", "");
}

static int check_speed(domain_t *domain) {
    char text[TEXT_BYTES];
    if (!domain->asks) return 0;
    int status = read_in(domain, "scaling_setspeed", text);
    if (status) return status;
    for (uint32_t i = 0; i < domain->asks; i++)
        if (is_at(domain, number_in(text), domain->asked[i])) return 0;
    return look_at_speed(domain);
}

static int move_speed(domain_t *domain, int64_t value) {
    char text[TEXT_BYTES], wanted[SETTING_BYTES];
    int status = check_speed(domain);
    if (status) return status;
    if (domain->asks) domain->asked[0] = domain->asked[domain->asks - 1];
    domain->asks = domain->asks ? 2 : 1;
    domain->asked[domain->asks - 1] = value;
    number_text(value, wanted);
    status = write_in(domain, "scaling_setspeed", wanted);
    if (status) {
        int seen = look_at_governor(domain);
        return seen ? seen : status;
    }
    domain->asked[0] = value;
    domain->asks = 1;
    status = read_in(domain, "scaling_setspeed", text);
    if (status || is_at(domain, number_in(text), value)) return status;
    status = look_at_governor(domain);
    domain->asks = 0; /* what the kernel made of it is no measure for the next time */
    return status ? status : NOT_REACHED;
}

static int read_limits(domain_t *domain, int64_t *low, int64_t *high) {
    char text[TEXT_BYTES];
    int status = read_in(domain, low_name(domain), text);
    *low = number_in(text) < 0 ? 0 : number_in(text);
    if (!status) status = read_in(domain, high_name(domain), text);
    *high = number_in(text) < 0 ? 0 : number_in(text);
    return status;
}

/* Other limits than we saw: what we asked for since, or heat, which comes and goes. */
static int look_at_limits(domain_t *domain, int64_t low, int64_t high) {
    char limits[80];
    bool low_known = low == domain->seen_low || low == domain->asked[0];
    bool high_known = high == domain->seen_high || high == domain->asked[1];
    if (low_known && high_known) return 0;
    if (high < domain->asked[1] && is_cooling(domain->root)) return 0;
    domain_describe(domain, limits);
    return taken(domain, "its limits were changed (", limits, ")");
}

static int move_limits(domain_t *domain, int64_t value) {
    int64_t low, high;
    int status = read_limits(domain, &low, &high);
    if (!status) status = look_at_limits(domain, low, high);
    if (status) return status;
    domain->asked[0] = domain->asked[1] = value;
    /* Older kernels refuse a lower limit above the upper one, at any moment. */
    status = write_limits(domain, value, value, value > high);
    if (!status) status = read_limits(domain, &domain->seen_low, &domain->seen_high);
    if (status) return status;
    bool there = is_at(domain, domain->seen_low, value) && is_at(domain, domain->seen_high, value);
    return there ? 0 : NOT_REACHED;
}

int domain_move(domain_t *domain, int64_t value) {
    return domain->way == BY_SPEED ? move_speed(domain, value) : move_limits(domain, value);
}

/* Where a session's values and workspaces lie: in one block, sharing what is not needed at once.
 *
 * A value lives from the function that computes it to the last one that reads it; one that none
 * reads is a result and lives to the end. The rule is that of eecompile/memory.py, so that both
 * sides plan alike; the offsets themselves may differ.
 */

#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    int64_t bytes, offset; /* bytes: a multiple of ALIGNMENT */
    uint32_t first, last;
    int64_t *place;        /* where the offset goes */
} buffer_t;

/* More buffers, which no sensible network has, get memory each. */
enum { MOST_BUFFERS = 5000 };
#define MOST_TOTAL 0x1p60 /* bytes, so that no sum overflows */

static int64_t padded(int64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* -- in which order ---------------------------------------------------------------------------- */

static int by_first(const buffer_t *a, const buffer_t *b) {
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    return (a->place > b->place) - (a->place < b->place);
}

static int largest_first(const void *left, const void *right) {
    const buffer_t *a = left, *b = right;
    if (a->bytes != b->bytes) return a->bytes > b->bytes ? -1 : 1;
    return by_first(a, b);
}

static int most_first(const void *left, const void *right) {
    const buffer_t *a = left, *b = right;
    double of_a = (double)a->bytes * (a->last - a->first + 1.0);
    double of_b = (double)b->bytes * (b->last - b->first + 1.0);
    if (of_a != of_b) return of_a > of_b ? -1 : 1;
    return by_first(a, b);
}

static int longest_first(const void *left, const void *right) {
    const buffer_t *a = left, *b = right;
    uint32_t of_a = a->last - a->first, of_b = b->last - b->first;
    if (of_a != of_b) return of_a > of_b ? -1 : 1;
    return largest_first(left, right);
}

static int needed_first(const void *left, const void *right) {
    return by_first(left, right);
}

/* -- packing ----------------------------------------------------------------------------------- */

/* The lowest offset at which a buffer meets none of `placed`, which are sorted by offset. */
static int64_t lowest(const buffer_t *buffer, const buffer_t *const *placed, uint32_t count) {
    int64_t floor = 0;
    for (uint32_t i = 0; i < count; i++) {
        const buffer_t *other = placed[i];
        if (other->first > buffer->last || other->last < buffer->first) continue;
        if (other->offset - floor >= buffer->bytes) break;
        if (other->offset + other->bytes > floor) floor = other->offset + other->bytes;
    }
    return floor;
}

static int64_t pack(buffer_t *buffers, uint32_t count, const buffer_t **placed) {
    int64_t end = 0;
    for (uint32_t i = 0; i < count; i++) {
        buffer_t *buffer = &buffers[i];
        buffer->offset = lowest(buffer, placed, i);
        uint32_t at = i;
        while (at && placed[at - 1]->offset > buffer->offset) at--;
        memmove(&placed[at + 1], &placed[at], (i - at) * sizeof *placed);
        placed[at] = buffer;
        if (buffer->offset + buffer->bytes > end) end = buffer->offset + buffer->bytes;
    }
    return end;
}

static int64_t side_by_side(buffer_t *buffers, uint32_t count) {
    int64_t end = 0;
    for (uint32_t i = 0; i < count; i++) {
        buffers[i].offset = end;
        end += buffers[i].bytes;
    }
    return end;
}

/* Several orders are tried; the smallest block wins. */
static int64_t best_pack(buffer_t *buffers, uint32_t count, const buffer_t **placed) {
    int (*const orders[])(const void *, const void *) = {
        largest_first, most_first, longest_first, needed_first};
    if (count > MOST_BUFFERS) return side_by_side(buffers, count);
    int64_t best = INT64_MAX, found = 0;
    size_t winner = 0;
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        qsort(buffers, count, sizeof *buffers, orders[i]);
        found = pack(buffers, count, placed);
        if (found < best) {
            best = found;
            winner = i;
        }
    }
    qsort(buffers, count, sizeof *buffers, orders[winner]);
    return pack(buffers, count, placed);
}

/* -- what is needed when ----------------------------------------------------------------------- */

typedef struct {
    const ee_library *library;
    const plan_t *plan;
    layout_t *layout;
    uint32_t *first, *last; /* [values]; last is NONE where nobody reads it */
    buffer_t *buffers;
    uint32_t count, now;
    int threads;
    double total; /* bytes of all buffers side by side */
} planner_t;

static void add(planner_t *planner, int64_t bytes, uint32_t first, uint32_t last, int64_t *place) {
    planner->total += (double)bytes + ALIGNMENT;
    planner->buffers[planner->count++] = (buffer_t){padded(bytes), 0, first, last, place};
}

static void reads(planner_t *planner, uint32_t value) {
    if (value != NONE) planner->last[value] = planner->now;
}

static void add_call(planner_t *planner, const call_t *call, int64_t *workspace) {
    const function_t *function = &planner->library->functions[call->function];
    int threads = planner->threads < function->threads ? planner->threads : function->threads;
    for (uint32_t i = 0; i < call->inputs; i++) reads(planner, call->values[i]);
    for (uint32_t i = 0; i < call->outputs; i++) {
        uint32_t value = call->values[call->inputs + i];
        if (!planner->plan->value[value].lasting) planner->first[value] = planner->now;
    }
    int64_t bytes = function->workspace_bytes + threads * function->private_bytes;
    add(planner, bytes, planner->now, planner->now, workspace);
    planner->now++;
}

static void add_steps(planner_t *planner, uint32_t segment) {
    const plan_t *plan = planner->plan;
    for (uint32_t i = plan->segment[segment].first; i < plan->segment[segment].end; i++) {
        const step_plan_t *step = &plan->step[i];
        reads(planner, step->keep);
        reads(planner, step->otherwise);
        reads(planner, step->channels);
        add_call(planner, &step->call, &planner->layout->workspace[i]);
    }
}

static void add_all(planner_t *planner) {
    const plan_t *plan = planner->plan;
    for (uint32_t i = 0; i < plan->values; i++) planner->last[i] = NONE;
    for (uint32_t s = 0; s < plan->segments; s++) {
        add_steps(planner, s);
        for (uint32_t c = 0; s < plan->exits && c < plan->exit[s].calls; c++)
            add_call(
                planner, &plan->exit[s].call[c],
                &planner->layout->workspace[plan->steps + 2 * s + c]);
    }
    for (uint32_t i = 0; i < plan->outputs; i++)
        planner->last[plan->outputs_values[i]] = planner->now;
    for (uint32_t i = 0; i < plan->values; i++) {
        const value_t *value = &plan->value[i];
        bool stays = value->lasting || planner->last[i] == NONE;
        uint32_t last = stays ? planner->now : planner->last[i];
        add(planner, value->bytes, planner->first[i], last, &planner->layout->value[i]);
    }
}

/* Bytes of memory in this machine. */
static double all_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (double)pages * (double)page : MOST_TOTAL;
}

ee_status layout_make(
    layout_t *layout, const ee_library *library, const plan_t *plan, int threads) {
    size_t calls = (size_t)plan->steps + 2 * (size_t)plan->exits, count = calls + plan->values;
    *layout = (layout_t){
        .value = calloc(plan->values + 1, sizeof(int64_t)),
        .workspace = calloc(calls + 1, sizeof(int64_t)),
    };
    planner_t planner = {
        .library = library,
        .plan = plan,
        .layout = layout,
        .first = calloc(plan->values + 1, sizeof(uint32_t)),
        .last = calloc(plan->values + 1, sizeof(uint32_t)),
        .buffers = calloc(count + 1, sizeof(buffer_t)),
        .threads = threads,
    };
    const buffer_t **placed = calloc(count + 1, sizeof *placed);
    ee_status status = EE_OK;
    if (!layout->value || !layout->workspace || !planner.first || !planner.last ||
        !planner.buffers || !placed) {
        status = fail(EE_NO_MEMORY, "there is no memory for a session of `%s`", plan->name);
    } else {
        add_all(&planner);
        bool fits = planner.total < MOST_TOTAL;
        if (!fits) status = fail(EE_NO_MEMORY, "`%s` needs more memory than there is", plan->name);
        layout->bytes = fits ? best_pack(planner.buffers, planner.count, placed) : 0;
        if (fits && (double)layout->bytes > all_memory())
            status = fail(EE_NO_MEMORY, "`%s` needs more memory than there is", plan->name);
        for (uint32_t i = 0; i < planner.count; i++)
            *planner.buffers[i].place = planner.buffers[i].offset;
    }
    free(planner.first);
    free(planner.last);
    free(planner.buffers);
    free(placed);
    if (status) layout_free(layout);
    return status;
}

void layout_free(layout_t *layout) {
    free(layout->value);
    free(layout->workspace);
    *layout = (layout_t){0};
}

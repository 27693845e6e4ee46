/* A network of three segments and two exits in the form compiled code has, for tests.
 *
 *   segment 0:  a = x * w[0..3]               b = sum(x), an integer (rounded)
 *   exit 0:     logits = a[0..2]
 *   segment 1:  c = a + 1
 *   exit 1:     logits = c[1..3]; comparator: -|c[0..2]|
 *   segment 2:  logits = c[0..2] + b
 *
 * Each function refuses weights, workspaces and values that are not aligned (status 2; the first
 * sample of a thread's share may lie anywhere), fills its whole workspace, and counts its calls and
 * samples in a table of its own.
 *
 * FUNCTION gives them the signature of compiled code: a frame of n and addresses. They use no
 * team, so thread 0 does everything.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define WORKSPACE 256
#define AT(k) ((void *)(uintptr_t)frame[k])
#define FUNCTION(name, parameters, ...) \
    static int32_t name##_ parameters; \
    int32_t name(const int64_t *frame, int32_t thread, int32_t threads, void *team) { \
        (void)threads, (void)team; \
        return thread ? 0 : name##_(frame[0], AT(1), AT(2), __VA_ARGS__); \
    } \
    static int32_t name##_ parameters
_Atomic int64_t calls[6], samples[6];

static int32_t enter(int k, int64_t n, void *workspace, const void *const *buffers, int count) {
    for (int i = 0; i < count; i++)
        if ((uintptr_t)buffers[i] % (i ? 4 : 64)) return 2;
    if ((uintptr_t)workspace % 64) return 2;
    memset(workspace, 0xff, WORKSPACE);
    calls[k]++;
    samples[k] += n;
    return 0;
}
#define ENTER(k, ...) do { \
    const void *buffers[] = {weights, __VA_ARGS__}; \
    int32_t status = enter(k, n, workspace, buffers, sizeof buffers / sizeof *buffers); \
    if (status) return status; } while (0)

FUNCTION(segment_0, (int64_t n, const void *weights, void *workspace, const void *x_, void *a_, void *b_), AT(3), AT(4), AT(5)) {
    const float *w = weights, *x = x_; float *a = a_; int64_t *b = b_;
    ENTER(0, x_, a_, b_);
    for (int64_t i = 0; i < n; i++) {
        float sum = 0;
        for (int j = 0; j < 4; j++) a[4 * i + j] = x[4 * i + j] * w[j], sum += x[4 * i + j];
        b[i] = (int64_t)rintf(sum);
    }
    return 0;
}
FUNCTION(head_0, (int64_t n, const void *weights, void *workspace, const void *a_, void *out_), AT(3), AT(4)) {
    const float *a = a_; float *out = out_;
    ENTER(1, a_, out_);
    for (int64_t i = 0; i < n; i++) for (int j = 0; j < 3; j++) out[3 * i + j] = a[4 * i + j];
    return 0;
}
FUNCTION(segment_1, (int64_t n, const void *weights, void *workspace, const void *a_, void *c_), AT(3), AT(4)) {
    const float *a = a_; float *c = c_;
    ENTER(2, a_, c_);
    for (int64_t i = 0; i < 4 * n; i++) c[i] = a[i] + 1;
    return 0;
}
FUNCTION(head_1, (int64_t n, const void *weights, void *workspace, const void *c_, void *out_), AT(3), AT(4)) {
    const float *c = c_; float *out = out_;
    ENTER(3, c_, out_);
    for (int64_t i = 0; i < n; i++) for (int j = 0; j < 3; j++) out[3 * i + j] = c[4 * i + 1 + j];
    return 0;
}
FUNCTION(comparator_1, (int64_t n, const void *weights, void *workspace, const void *c_, void *out_), AT(3), AT(4)) {
    const float *c = c_; float *out = out_;
    ENTER(4, c_, out_);
    for (int64_t i = 0; i < n; i++) for (int j = 0; j < 3; j++) out[3 * i + j] = -fabsf(c[4 * i + j]);
    return 0;
}
FUNCTION(segment_2, (int64_t n, const void *weights, void *workspace, const void *c_, const void *b_, void *out_), AT(3), AT(4), AT(5)) {
    const float *c = c_; const int64_t *b = b_; float *out = out_;
    ENTER(5, c_, b_, out_);
    for (int64_t i = 0; i < n; i++) for (int j = 0; j < 3; j++) out[3 * i + j] = c[4 * i + j] + b[i];
    return 0;
}
FUNCTION(broken, (int64_t n, const void *weights, void *workspace, const void *x, void *out), AT(3), AT(4)) {
    (void)n, (void)weights, (void)workspace, (void)x, (void)out;
    return 7;
}

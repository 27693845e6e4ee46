/* A network of two segments with gates, in the form compiled code has, for tests. Every value has
 * four elements, scores one or two.
 *
 *   segment 0:  stem    a = x + 1
 *               gate_0  keep_0 = a[0] - shift             state = a[0]
 *               double_ b = 2 a, or a
 *   exit:       head    logits = b[0..2]
 *   segment 1:  gate_1  keep_1 = state + b[1] - shift     groups = b[2] - shift, b[3] - shift
 *               plus    d = b + 3
 *               times   e = 5 d, pairs of it by groups; or 0
 *               end     logits = e[0..2] + b[0..2]
 *
 * Each fills its whole workspace, and counts its calls. Threads share the elements.
 */
#include <stdint.h>
#include <string.h>

_Atomic int64_t calls[8];

#define SHARE(name, number, ...) \
    int32_t name(const int64_t *frame, int32_t thread, int32_t threads, void *team) { \
        (void)team; \
        if (!thread) calls[number]++, memset((void *)(intptr_t)frame[2], 0xff, 256); \
        for (int64_t s = 0; s < frame[0]; s++) \
            for (int j = thread; j < 4; j += threads) __VA_ARGS__ \
        return 0; \
    }
#define V(place, size) ((float *)(intptr_t)frame[place] + size * s)

SHARE(stem, 0, { V(4, 4)[j] = V(3, 4)[j] + 1; })
SHARE(gate_0, 1, {
    float a = V(3, 4)[0], shift = *V(4, 1);
    if (j == 0) *V(5, 1) = a - shift;
    if (j == 1) *V(6, 1) = a;
})
SHARE(double_, 2, { V(4, 4)[j] = 2 * V(3, 4)[j]; })
SHARE(head, 3, { if (j < 3) V(4, 3)[j] = V(3, 4)[j]; })
SHARE(gate_1, 4, {
    const float *b = V(3, 4), shift = *V(5, 1);
    if (j == 0) *V(6, 1) = *V(4, 1) + b[1] - shift;
    if (j > 1) V(7, 2)[j - 2] = b[j] - shift;
})
SHARE(plus, 5, { V(4, 4)[j] = V(3, 4)[j] + 3; })
SHARE(times, 6, { V(5, 4)[j] = V(4, 2)[j / 2] > 0 ? 5 * V(3, 4)[j] : 0; })
SHARE(end, 7, { if (j < 3) V(5, 3)[j] = V(3, 4)[j] + V(4, 4)[j]; })

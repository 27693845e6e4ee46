/* A network without classes and exits, of inputs of several types, in the form compiled code has:
 *
 *   mix    y = (sum of the image + both ids, flag ? scalar : -scalar)      z = ids, exchanged
 *
 * Its workspace is of no bytes; a score of -1 has it fail.
 */
#include <stdint.h>

#define AT(type, k) ((type *)(intptr_t)frame[k])

int32_t mix(const int64_t *frame, int32_t thread, int32_t threads, void *team) {
    (void)threads, (void)team;
    const float *image = AT(const float, 3), *scalar = AT(const float, 6);
    const int64_t *ids = AT(const int64_t, 4);
    const uint8_t *flag = AT(const uint8_t, 5);
    float *y = AT(float, 7);
    int64_t *z = AT(int64_t, 8);
    if (thread) return 0;
    y[0] = (float)ids[0] + (float)ids[1];
    for (int i = 0; i < 12; i++) y[0] += image[i];
    y[1] = *flag ? *scalar : -*scalar;
    z[0] = ids[1];
    z[1] = ids[0];
    return *scalar == -1 ? 3 : 0;
}

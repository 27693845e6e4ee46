/* Two networks in one program, each asked in turn, with each other's data refused. Arguments: their
 * data, then a sample of both. */
#include <stdio.h>

#include "digits.h"
#include "other.h"

static int run(ee_session *session, const float *sample, uint32_t exits) {
    const void *const inputs[] = {sample};
    ee_answer answer = EE_ANSWER;
    if (ee_run(session, inputs, &answer)) return fprintf(stderr, "%s\n", ee_message()), 1;
    printf("%u of %u:", (unsigned)answer.exit, (unsigned)exits);
    for (uint32_t i = 0; i < answer.classes; i++) printf(" %.9g", (double)answer.logits[i]);
    printf("\n");
    return 0;
}

int main(int count, char **given) {
    static float sample[EE_OTHER_INPUT_IMAGE_BYTES / sizeof(float)];
    ee_network *networks[2], *none;
    ee_session *sessions[2];
    ee_options options = EE_OPTIONS;
    FILE *file = count == 4 ? fopen(given[3], "rb") : NULL;
    if (!file || fread(sample, sizeof sample, 1, file) != 1) return 2;
    fclose(file);
    if (ee_open(&ee_library_digits, given[1], &networks[0]) ||
        ee_open(&ee_library_other, given[2], &networks[1]))
        return fprintf(stderr, "%s\n", ee_message()), 1;
    printf("%s\n", ee_status_name(ee_open(&ee_library_digits, given[2], &none)));
    printf("%s\n", ee_status_name(ee_open(&ee_library_other, given[1], &none)));
    options.policy = "nobody"; /* the second library's message, asked of the first */
    printf("%s\n", ee_status_name(ee_session_open(networks[1], &options, &sessions[1])));
    printf("%s\n", ee_message());
    options.policy = ""; /* to the end */
    for (int i = 0; i < 2; i++)
        if (ee_session_open(networks[i], &options, &sessions[i])) return 1;
    for (int i = 0; i < 4; i++)
        if (run(sessions[i % 2], sample, i % 2 ? EE_OTHER_EXITS : EE_DIGITS_EXITS)) return 1;
    for (int i = 0; i < 2; i++) {
        ee_session_close(sessions[i]);
        ee_close(networks[i]);
    }
    return 0;
}

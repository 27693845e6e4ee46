/* Answers samples of an exported network: its data, policy, inputs, and where answers go: for each
 * sample its exit as uint32, and its logits. -DLIBRARY, -DHEADER name the network. */
#include <stdio.h>
#include <stdlib.h>

#include HEADER

static void check(ee_status status) {
    if (!status) return;
    fprintf(stderr, "%s: %s\n", ee_status_name(status), ee_message());
    exit(1);
}

int main(int count, char **given) {
    ee_network *network;
    ee_session *session;
    ee_options options = EE_OPTIONS;
    ee_answer answer = EE_ANSWER;
    ee_input_info input = EE_INPUT_INFO;
    if (count != 5) return 2;
    FILE *from = fopen(given[3], "rb"), *to = fopen(given[4], "wb");
    if (!from || !to) return 2;
    check(ee_open(&LIBRARY, given[1], &network));
    check(ee_input_about(network, 0, &input));
    options.policy = given[2];
    check(ee_session_open(network, &options, &session));
    void *sample = malloc(input.bytes);
    while (fread(sample, input.bytes, 1, from) == 1) {
        const void *const inputs[] = {sample};
        check(ee_run(session, inputs, &answer));
        fwrite(&answer.exit, sizeof answer.exit, 1, to);
        fwrite(answer.logits, sizeof(float), answer.classes, to);
    }
    free(sample);
    fclose(from);
    ee_session_close(session);
    ee_close(network);
    return fclose(to) != 0;
}

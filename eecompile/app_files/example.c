/* Answers samples with @NETWORK@, one after the other:
 *
 *     example [SAMPLES [DATA]]
 *
 * SAMPLES holds each sample's inputs as the network reads them (see @NAME@.h).
 */
#include <stdio.h>
#include <stdlib.h>

#include "@NAME@.h"

@BUFFERS@
static const void *const inputs[] = {@NAMES@};

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
    const char *samples = count > 1 ? given[1] : "samples.bin";
    FILE *file = fopen(samples, "rb");
    if (!file) return perror(samples), 1;
    check(ee_open(&@SYMBOL@, count > 2 ? given[2] : "@NAME@.eec", &network));
    options.policy = @POLICY@;
    check(ee_session_open(network, &options, &session));
    while (@READ@) {
        check(ee_run(session, inputs, &answer));
        @TELL@
    }
    fclose(file);
    ee_session_close(session);
    ee_close(network);
    return 0;
}

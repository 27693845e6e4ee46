/* What went wrong last, in words, for each thread. */

#include "internal.h"

#include <stdio.h>

static _Thread_local char message[512];

ee_status fail(ee_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return status;
}

const char *latest_message(void) { return message; }

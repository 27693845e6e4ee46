/* Bytes that nobody has checked, taken one after the other; and memory for what they say. */

#include "internal.h"

#include <stdlib.h>
#include <string.h>

struct block {
    struct block *next;
    max_align_t memory[];
};

void *arena_take(arena_t *arena, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, sizeof(struct block), &bytes) ||
        bytes > arena->most - arena->bytes)
        return NULL;
    struct block *block = calloc(1, bytes);
    if (!block) return NULL;
    arena->bytes += bytes;
    block->next = arena->blocks;
    arena->blocks = block;
    return block->memory;
}

void arena_free(arena_t *arena) {
    while (arena->blocks) {
        struct block *next = arena->blocks->next;
        free(arena->blocks);
        arena->blocks = next;
    }
    arena->bytes = 0;
}

bool expect(reader_t *reader, bool holds, const char *what) {
    if (!holds && !reader->failed) {
        reader->failed = true;
        reader->what = what;
    }
    return !reader->failed;
}

void *take(reader_t *reader, size_t count, size_t size) {
    void *found = reader->failed ? NULL : arena_take(reader->arena, count, size);
    expect(reader, found != NULL, "it asks for too much memory");
    return found;
}

const uint8_t *read_bytes(reader_t *reader, size_t count) {
    if (!expect(reader, count <= (size_t)(reader->end - reader->at), "it ends too early"))
        return NULL;
    const uint8_t *found = reader->at;
    reader->at += count;
    return found;
}

/* Little-endian, whatever the machine is. */
static uint64_t whole(reader_t *reader, int count) {
    const uint8_t *bytes = read_bytes(reader, (size_t)count);
    uint64_t value = 0;
    for (int i = 0; bytes && i < count; i++) value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

uint8_t read_u8(reader_t *reader) { return (uint8_t)whole(reader, 1); }

uint32_t read_u32(reader_t *reader) { return (uint32_t)whole(reader, 4); }

int64_t read_i64(reader_t *reader) {
    uint64_t value = whole(reader, 8);
    expect(reader, value <= INT64_MAX, "a size or count is below 0");
    return reader->failed ? 0 : (int64_t)value;
}

double read_f64(reader_t *reader) {
    uint64_t bits = whole(reader, 8);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t read_index(reader_t *reader, uint32_t count) {
    uint32_t value = read_u32(reader);
    expect(reader, value < count, "it refers to something that is not there");
    return reader->failed ? 0 : value;
}

uint32_t read_index_or_none(reader_t *reader, uint32_t count) {
    uint32_t value = read_u32(reader);
    expect(reader, value < count || value == NONE, "it refers to something that is not there");
    return reader->failed ? NONE : value;
}

uint32_t read_count(reader_t *reader, size_t bytes) {
    uint32_t value = read_u32(reader);
    expect(reader, value <= (size_t)(reader->end - reader->at) / bytes, "it ends too early");
    return reader->failed ? 0 : value;
}

bool read_bool(reader_t *reader) {
    uint8_t value = read_u8(reader);
    expect(reader, value < 2, "what is yes or no is neither");
    return value == 1;
}

const char *read_text(reader_t *reader) {
    uint32_t length = read_count(reader, 1);
    const uint8_t *bytes = read_bytes(reader, length);
    char *text = take(reader, (size_t)length + 1, 1);
    if (!text) return "";
    if (!expect(reader, !memchr(bytes, 0, length), "a text has an end in its middle")) return "";
    memcpy(text, bytes, length);
    return text;
}

const double *read_numbers(reader_t *reader, uint32_t count, bool finite) {
    if (!expect(reader, count <= (size_t)(reader->end - reader->at) / 8, "it ends too early"))
        return NULL;
    double *found = take(reader, count, sizeof(double));
    for (uint32_t i = 0; found && i < count; i++) {
        found[i] = read_f64(reader);
        expect(reader, !finite || isfinite(found[i]), "a number is not finite");
    }
    return found;
}

/* What a rule consists of: policy_reading.c reads it, policies.c decides by it. */
#ifndef EECOMPILE_POLICIES_H
#define EECOMPILE_POLICIES_H

#include "internal.h"

enum { FEW_CLASSES = 128, LARGEST = 16 }; /* of more classes, so many shares are looked at */

typedef enum {
    THRESHOLD, CLASS_MEANS, PATIENCE, EITHER, NEVER, PREDICTED, LEARNED_SCORE, SPLIT
} kind_t;

/* MEANS: of a split, the largest softmax of the class means. */
typedef enum { MAX_SOFTMAX, ENTROPY, MARGIN, SURENESS, LEAD, MEANS } measure_t;
enum { MEASURES = 5 }; /* of one head's logits */

typedef enum { CLASS_ORDER, SORTED, FITTED, FORECASTS } forecast_t;

/* An exit of a rule with one limit for each. */
typedef struct {
    float limit;
    int32_t after; /* the next exit that is evaluated */
} stop_t;

typedef struct {
    measure_t measure;
    const stop_t *stop;
    uint32_t first;
} threshold_t;

typedef struct {
    uint32_t last, confirmed;
} confirmed_t;

typedef struct {
    uint32_t count;
    const policy_t *const *rule;
} either_t;

typedef struct {
    const double *limit;
    const uint32_t *live; /* [exits + 1]: from there on the next exit that is evaluated */
    const double *table;  /* [exits][window - 1] */
    uint32_t start, last, window;
    bool surprise;
    forecast_t forecast;
} predicted_t;

typedef struct {
    bool any;
    const float *shares, *before; /* NULL: none counts */
    float measure[MEASURES];
} row_t;

typedef struct {
    const stop_t *stop;
    const row_t *row;
    uint32_t first;
    bool sorted, remembers;
} score_t;

typedef struct {
    measure_t measure;
    uint32_t arms; /* but the network's end */
    const uint32_t *place; /* [arms + 1]: exits */
    const stop_t *stop;    /* of all exits; limits are those of arms */
    const uint32_t *arm;   /* of all exits; NONE: nothing is split there */
    bool learns, side, imputes;
    uint32_t fixed;
    double discount, exploration, weight, price;
    const double *spent, *alone; /* [arms + 1] */
} split_t;

typedef struct {
    float confidence;
    bool known;
} seen_t;

typedef struct {
    uint32_t arm;
    seen_t seen[];
} split_state_t;

/* See eecompile/policies/split_bandit.py. Of n arms and the end: counts [n + 1], sums [n + 1], and
 * the network's confidences in samples unsure at an arm: counts [n], sums [n]. */
typedef struct {
    double rounds, asked, vain;
    double values[];
} learned_t;

struct policy {
    kind_t kind;
    double gate_shift;
    uint32_t exits, classes;
    float most_information; /* ln(classes) */
    size_t own;             /* where in `state` its memory is, behind the room that is shared */
    size_t room, memory;    /* of the outermost rule: both in bytes */
    bool offloads;
    union {
        threshold_t threshold; /* of class means too */
        uint32_t wanted;
        either_t either;
        predicted_t predicted;
        score_t score;
        split_t split;
    };
};

#endif

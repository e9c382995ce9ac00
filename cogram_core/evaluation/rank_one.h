/* What the arithmetic of changes of rank one (rank_one.c) and the visits that rest on it (visits.c) share. */
#ifndef COGRAM_RANK_ONE_H
#define COGRAM_RANK_ONE_H

#include <stdint.h>

/* A classifier's end, and where the network stands. A linear layer makes Z of what arrives there, a channel a row. */
struct end {
    int64_t examples, width, classes, padded, rectified;
    double *output;           /* Z, (examples, width) */
    double *own;              /* what the visited layer gives, channel by channel, (rows, examples) */
    double *arriving;         /* the same, rectified or as it is, (rows, examples) */
    const double *directions; /* what each row adds to Z when one arrives there, (rows, width) */
    const double *weight;     /* of the last layer, transposed and padded with zeros, (width, padded); null: none */
    const double *bias;       /* (padded) */
    const int64_t *targets;   /* (examples) */
    const double *weights;    /* of the examples, summing to one */
    double *base;             /* losses as the network stands, (examples) */
};

/* Candidates, each of which has other levels arrive at one of the inputs. */
struct batch {
    int64_t count;
    const double *levels; /* (any, examples) */
    const int64_t *picks; /* (count), which of the levels; null: one after the other */
    const int64_t *rows;  /* (count), at which input */
    double *losses;       /* (count, examples) */
    double *means;        /* (count), of the losses over the examples */
};

/* Losses and their means. They don't depend on the number of threads. */
void cogram_losses(const struct end *end, const struct batch *batch, int64_t threads);

/* Puts a channel of the layer, (examples), into the network. */
void cogram_put(const struct end *end, int64_t row, const double *own);

/* sums (examples) += number * features[i] (examples), over all `count` numbers, in order. */
void cogram_add_features(const double *numbers, int64_t count, const double *features, int64_t examples, double *sums);

/* What arrives where the visited layer gives `own`; both (examples), perhaps the same. */
void cogram_function(const struct end *end, const double *own, double *levels);

#endif

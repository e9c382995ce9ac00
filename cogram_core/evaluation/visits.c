/* CoGraM's visits of a run of neurons or weights, one after the other: losses, shares, steps, acceptance.
 *
 * The same rules as the visits in Python have, which say what they mean; here, because a unit's losses take less time than
 * the steps between them do there. Values are mixed here in order to be tried; those that stay are mixed once more by the
 * caller, so that a fused network's bytes come from one place.
 */
#include "rank_one.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SHARE 65536.0 /* shares are multiples of its inverse */

enum did { SKIPPED, NOT_FINITE, ROLLED_BACK, MERGED };

struct visits {
    int64_t first, count;                        /* units; a weight's counts row by row, the bias last */
    int64_t level;                               /* 0: neurons, 1: weights */
    int64_t width, inputs;                       /* numbers of a neuron; without the bias */
    int64_t block, rows;                         /* first row of the block that holds the units, and how many it has */
    int64_t candidates, sources, known, steps;   /* known: the candidate that is the unit as it stands, or -1 */
    int64_t single;                              /* whether values are rounded to single precision */
    int64_t threads;
    const double *current;                       /* (rows, width) */
    const double *values;                        /* (candidates, rows, width) */
    const uint8_t *same;                         /* (count): no candidate can change the unit */
    const double *levels;                        /* of neurons: what would arrive, (candidates but known x rows, examples);
                                                    null: found here, unit by unit */
    const double *features;                      /* what the layer is given, (inputs, examples) */
    const double *handicaps;                     /* (sources), what is taken off a source's loss */
    const double *step;                          /* (steps) */
    double steepness, below, loss;               /* below: the share of the loss that an accepted one stays below */
    double *losses, *shares;                     /* found, (count, candidates) */
    double *last_step, *after;                   /* found, (count): the last step tried, and its loss */
    int64_t *did;                                /* found, (count) */
};

struct space {
    double *numbers; /* (width), a neuron as it would be */
    double *own;     /* (candidates, examples), what the layer would give */
    double *levels;  /* (candidates, examples), what would arrive */
    double *losses;  /* (candidates, examples) */
    double *means;   /* (candidates) */
    int64_t *picks, *rows;
};

/* a = softmax(-steepness * losses), in multiples of 1 / SHARE that sum to one; a loss that isn't finite gets nothing. */
static void find_shares(const struct visits *visits, const double *losses, double *shares)
{
    double best = INFINITY;
    long double total = 0.0L, running = 0.0L;
    for (int64_t c = 0; c < visits->candidates; c++) {
        shares[c] = losses[c] - (c < visits->sources ? visits->handicaps[c] : 0.0);
        if (isfinite(shares[c]) && shares[c] < best)
            best = shares[c];
    }
    for (int64_t c = 0; c < visits->candidates; c++) {
        shares[c] = isfinite(shares[c]) ? exp(-visits->steepness * (shares[c] - best)) : 0.0;
        total += shares[c];
    }
    double before = 0.0;
    for (int64_t c = 0; c < visits->candidates; c++) {
        running += shares[c] / (double)total;
        double bound = c == visits->candidates - 1 ? SHARE : fmin(rint((double)running * SHARE), SHARE);
        shares[c] = (bound - before) / SHARE;
        before = bound;
    }
}

/* current + step * (sum of shares * values - current), rounded once; `apart`: how far the candidates' values lie apart. */
static double stepped(const struct visits *visits, const double *shares, double step, double current, const double *values,
                      int64_t apart)
{
    double target = 0.0;
    for (int64_t c = 0; c < visits->candidates; c++)
        target += shares[c] * values[c * apart];
    double value = step == 1.0 ? target : current + step * (target - current);
    return visits->single ? (float)value : value;
}

static double finite_or_infinity(double mean)
{
    return isfinite(mean) ? mean : INFINITY;
}

/* What the layer would give with one number of the unit's row changed by so much. */
static void change_weight(const struct end *end, const struct visits *visits, int64_t row, int64_t column, double change,
                          double *own)
{
    const double *now = end->own + row * end->examples, *feature = visits->features + column * end->examples;
    for (int64_t n = 0; n < end->examples; n++)
        own[n] = now[n] + change * (column < visits->inputs ? feature[n] : 1.0);
}

/* What the layer would give with these numbers for a row. */
static void change_neuron(const struct end *end, const struct visits *visits, const double *numbers, double *own)
{
    for (int64_t n = 0; n < end->examples; n++)
        own[n] = visits->inputs < visits->width ? numbers[visits->inputs] : 0.0;
    cogram_add_features(numbers, visits->inputs, visits->features, end->examples, own);
}

/* The losses of a unit's candidates, (candidates). */
static void find_candidate_losses(const struct end *end, const struct visits *visits, const struct space *space, int64_t row,
                                  int64_t column, double *losses)
{
    int64_t place = (row - visits->block) * visits->width + column, tried = 0;
    for (int64_t c = 0; c < visits->candidates; c++) {
        if (c == visits->known)
            continue;
        if (!visits->levels) {
            double *own = space->own + tried * end->examples;
            const double *numbers = visits->values + c * visits->rows * visits->width + place;
            if (visits->level)
                change_weight(end, visits, row, column, *numbers - visits->current[place], own);
            else
                change_neuron(end, visits, numbers, own);
            cogram_function(end, own, space->levels + tried * end->examples);
        }
        space->picks[tried] = visits->levels ? tried * visits->rows + row - visits->block : tried;
        space->rows[tried++] = row;
    }
    const double *levels = visits->levels ? visits->levels : space->levels;
    struct batch batch = {tried, levels, space->picks, space->rows, space->losses, space->means};
    cogram_losses(end, &batch, visits->threads);
    for (int64_t c = 0, t = 0; c < visits->candidates; c++)
        losses[c] = c == visits->known ? visits->loss : finite_or_infinity(space->means[t++]);
}

/* What the layer would give with the unit moved by this step, in space->own. */
static void find_stepped(const struct end *end, const struct visits *visits, const struct space *space, int64_t row,
                         int64_t column, const double *shares, double step)
{
    int64_t apart = visits->rows * visits->width, from = (row - visits->block) * visits->width;
    const double *current = visits->current + from, *values = visits->values + from;
    if (visits->level) {
        double value = stepped(visits, shares, step, current[column], values + column, apart);
        change_weight(end, visits, row, column, value - current[column], space->own);
        return;
    }
    for (int64_t i = 0; i < visits->width; i++)
        space->numbers[i] = stepped(visits, shares, step, current[i], values + i, apart);
    change_neuron(end, visits, space->numbers, space->own);
}

static enum did visit(const struct end *end, struct visits *visits, const struct space *space, int64_t u)
{
    int64_t unit = visits->first + u, row = visits->level ? unit / visits->width : unit;
    int64_t column = visits->level ? unit % visits->width : 0, finite = 0;
    double *losses = visits->losses + u * visits->candidates, *shares = visits->shares + u * visits->candidates;
    if (visits->same[u])
        return SKIPPED;
    find_candidate_losses(end, visits, space, row, column, losses);
    for (int64_t c = 0; c < visits->sources; c++)
        finite |= isfinite(losses[c]);
    if (!finite)
        return NOT_FINITE;
    find_shares(visits, losses, shares);
    for (int64_t s = 0; s < visits->steps; s++) {
        struct batch batch = {1, space->levels, NULL, &row, space->losses, space->means};
        find_stepped(end, visits, space, row, column, shares, visits->step[s]);
        cogram_function(end, space->own, space->levels);
        cogram_losses(end, &batch, visits->threads);
        visits->last_step[u] = visits->step[s];
        visits->after[u] = finite_or_infinity(space->means[0]);
        if (visits->after[u] < visits->loss * visits->below) {
            visits->loss = visits->after[u];
            memcpy(end->base, space->losses, sizeof(double) * end->examples);
            cogram_put(end, row, space->own);
            return MERGED;
        }
    }
    return ROLLED_BACK;
}

/* The layer's output for a neuron, or with one number of the row changed; then puts it into the network. */
int cogram_move(const struct end *end, int64_t row, int64_t column, const double *numbers, int64_t inputs, int64_t width,
                const double *features, int64_t threads)
{
    struct visits visits = {.inputs = inputs, .width = width, .features = features};
    double *own = malloc(sizeof(double) * 3 * end->examples), mean;
    if (!own)
        return 1;
    double *levels = own + end->examples, *losses = levels + end->examples;
    if (column < 0)
        change_neuron(end, &visits, numbers, own);
    else
        change_weight(end, &visits, row, column, *numbers, own);
    cogram_function(end, own, levels);
    struct batch batch = {1, levels, NULL, &row, losses, &mean};
    cogram_losses(end, &batch, threads);
    memcpy(end->base, losses, sizeof(double) * end->examples);
    cogram_put(end, row, own);
    free(own);
    return 0;
}

/* Gives 0, or 1 if there was no memory. */
int cogram_visit(const struct end *end, struct visits *visits)
{
    int64_t most = visits->candidates, examples = end->examples;
    double *numbers = malloc(sizeof(double) * (visits->width + 3 * most * examples + most));
    int64_t *picks = malloc(sizeof(int64_t) * 2 * most);
    if (numbers && picks) {
        double *own = numbers + visits->width, *levels = own + most * examples, *losses = levels + most * examples;
        struct space space = {numbers, own, levels, losses, losses + most * examples, picks, picks + most};
        for (int64_t u = 0; u < visits->count; u++)
            visits->did[u] = visit(end, visits, &space, u);
    }
    int failed = !numbers || !picks;
    free(numbers);
    free(picks);
    return failed;
}

/* Changes with what the functions take, so that code and library of different age don't meet. */
int64_t cogram_rank_one_version(void)
{
    return 4;
}

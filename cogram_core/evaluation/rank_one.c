/* Losses of a classifier under changes of rank one, without writing its activations to memory.
 *
 * Candidate k has other levels arrive at one input of a linear layer, and so adds (level - what arrives now)[n] * direction to
 * row n of what the layer gives, Z. What follows is either nothing, and Z are the logits, or a rectifier and one more linear
 * layer (width x classes). The loss is log(1 + sum over c != t of exp(z_c - z_t)), in the form in which the losses module has
 * it, in double precision.
 *
 * Plain C without Python's headers: built as a shared library and called through ctypes.
 */
#include "rank_one.h"

#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>

#define LANES 8
#define ROWS 8 /* examples at a time, so that a row of the last layer's weight is loaded once for all of them */
#define BLOCK 128 /* columns at a time, so that what is in use stays in the nearest cache */
#define GROUP 64 /* examples that go through the blocks together; a multiple of ROWS */
#define MOST_CLASSES 128
#define MOST_THREADS 64
#define WORTH_A_THREAD 4000000 /* multiplications; some hundred microseconds, several times what a thread's start takes */

typedef double lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef int64_t masks __attribute__((vector_size(LANES * sizeof(int64_t)), aligned(sizeof(int64_t)), may_alias));

/* exp(x) = 2^n * exp(r) with |r| <= ln(2) / 2: n by a sum that rounds to a whole number, exp(r) by its series, whose rest is
 * below the last digit. */
#define ROUNDER 6755399441055744.0 /* 1.5 * 2^52 */
#define LN2_HIGH 6.93147180369123816490e-01 /* times n exact, for its last 21 bits are zero */
#define LN2_LOW 1.90821492927058770002e-10
#define LEAST -708.0 /* below, the result is less than any number with all its digits, and counts as zero */

/* The loops that take the time, once for each set of instructions.
 * add: for ROWS examples and the columns first to last - 1, hidden values with the candidate's change, rectified,
 * (ROWS, BLOCK), and logits (ROWS, padded) += hidden x weight.
 * sum: sums (count) += factor * values (count), for every one of many factors and rows of values.
 * loss: of one example's logits. */
#define DEFINE_LOOPS(suffix, attribute)                                                                                \
    attribute static void add_##suffix(const struct end *end, const double *direction, const int64_t *chosen,          \
                                       const double *by, int64_t count, int64_t first, int64_t last, double *hidden,   \
                                       double *logits)                                                                 \
    {                                                                                                                  \
        int64_t padded = end->padded;                                                                                  \
        for (int r = 0; r < ROWS; r++) {                                                                               \
            const double *row = end->output + chosen[r < count ? r : 0] * end->width;                                  \
            double factor = by[r < count ? r : 0], *to = hidden + r * BLOCK - first;                                   \
            int64_t m = first;                                                                                         \
            for (; m + LANES <= last; m += LANES) {                                                                    \
                lanes value = *(const lanes *)(row + m) + factor * *(const lanes *)(direction + m);                    \
                *(masks *)(to + m) = (masks)value & ~(value < 0.0); /* NaN stays NaN */                                \
            }                                                                                                          \
            for (; m < last; m++) {                                                                                    \
                double value = row[m] + factor * direction[m];                                                         \
                to[m] = value < 0.0 ? 0.0 : value;                                                                     \
            }                                                                                                          \
        }                                                                                                              \
        for (int64_t c = 0; c < padded; c += 2 * LANES) {                                                              \
            lanes sum[ROWS][2];                                                                                        \
            _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                                     \
                _Pragma("GCC unroll 2") for (int b = 0; b < 2; b++)                                                    \
                    sum[r][b] = *(const lanes *)(logits + r * padded + c + b * LANES);                                 \
            const double *weight = end->weight + first * padded + c;                                                   \
            for (int64_t m = 0; m < last - first; m++, weight += padded) {                                             \
                lanes left = *(const lanes *)weight, right = *(const lanes *)(weight + LANES);                         \
                _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++) {                                               \
                    double value = hidden[r * BLOCK + m];                                                              \
                    sum[r][0] += value * left;                                                                         \
                    sum[r][1] += value * right;                                                                        \
                }                                                                                                      \
            }                                                                                                          \
            _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                                     \
                _Pragma("GCC unroll 2") for (int b = 0; b < 2; b++)                                                    \
                    *(lanes *)(logits + r * padded + c + b * LANES) = sum[r][b];                                       \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    attribute static void sum_##suffix(const double *factors, int64_t many, const double *values, int64_t count,       \
                                       double *sums)                                                                   \
    {                                                                                                                  \
        int64_t n = 0;                                                                                                 \
        for (; n + 8 * LANES <= count; n += 8 * LANES) {                                                               \
            lanes sum[8];                                                                                              \
            _Pragma("GCC unroll 8") for (int b = 0; b < 8; b++) sum[b] = *(const lanes *)(sums + n + b * LANES);       \
            for (int64_t i = 0; i < many; i++)                                                                         \
                _Pragma("GCC unroll 8") for (int b = 0; b < 8; b++)                                                    \
                    sum[b] += factors[i] * *(const lanes *)(values + i * count + n + b * LANES);                       \
            _Pragma("GCC unroll 8") for (int b = 0; b < 8; b++) *(lanes *)(sums + n + b * LANES) = sum[b];             \
        }                                                                                                              \
        for (; n < count; n++)                                                                                         \
            for (int64_t i = 0; i < many; i++)                                                                         \
                sums[n] += factors[i] * values[i * count + n];                                                         \
    }                                                                                                                  \
                                                                                                                       \
    attribute static double loss_##suffix(const double *logits, int64_t classes, int64_t target)                       \
    {                                                                                                                  \
        double differences[MOST_CLASSES + LANES], peak = -INFINITY, sum = 0.0;                                         \
        for (int64_t c = 0; c < classes; c++)                                                                          \
            differences[c] = logits[c] - logits[target];                                                               \
        differences[target] = -INFINITY;                                                                               \
        for (int64_t c = classes; c % LANES; c++)                                                                      \
            differences[c] = -INFINITY;                                                                                \
        for (int64_t c = 0; c < classes; c++)                                                                          \
            peak = differences[c] > peak ? differences[c] : peak;                                                      \
        if (peak == INFINITY)                                                                                          \
            return INFINITY;                                                                                           \
        double shift = peak > 700.0 ? peak : 0.0; /* exp would overflow */                                             \
        for (int64_t c = 0; c < classes; c += LANES) {                                                                 \
            lanes x = *(const lanes *)(differences + c) - shift, rounded = x * M_LOG2E + ROUNDER;                      \
            lanes n = rounded - ROUNDER, r = x - n * LN2_HIGH - n * LN2_LOW, series = (lanes){} + 1.0 / 6227020800.0;  \
            static const double terms[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,       \
                                           1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,     1.0 / 120.0,          \
                                           1.0 / 24.0,        1.0 / 6.0,        0.5,             1.0,                  \
                                           1.0};                                                                       \
            _Pragma("GCC unroll 13") for (int t = 0; t < 13; t++) series = series * r + terms[t];                      \
            masks power = ((masks)rounded + 1023) << 52; /* the last bits of what was rounded are n */                 \
            lanes found = series * (lanes)power;                                                                       \
            found = (lanes)((masks)found & ~(x < LEAST));                                                              \
            for (int lane = 0; lane < LANES; lane++)                                                                   \
                sum += found[lane];                                                                                    \
        }                                                                                                              \
        return shift > 0.0 ? shift + log(sum) : log1p(sum);                                                            \
    }

struct loops {
    void (*add)(const struct end *, const double *, const int64_t *, const double *, int64_t, int64_t, int64_t, double *,
                double *);
    void (*sum)(const double *, int64_t, const double *, int64_t, double *);
    double (*loss)(const double *, int64_t, int64_t);
};

DEFINE_LOOPS(plain, )
#if defined(__x86_64__) && defined(__GNUC__)
DEFINE_LOOPS(avx2, __attribute__((target("avx2,fma"))))
DEFINE_LOOPS(avx512, __attribute__((target("avx512f"))))
#endif

static struct loops best_loops(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return (struct loops){add_avx512, sum_avx512, loss_avx512};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return (struct loops){add_avx2, sum_avx2, loss_avx2};
#endif
    return (struct loops){add_plain, sum_plain, loss_plain};
}

/* Logits of `count` examples, at most GROUP, changed `by` so much, as rows of `padded`, or of `width` where Z are logits. */
static void find_logits(const struct end *end, const struct loops *loops, const double *direction, const int64_t *chosen,
                        const double *by, int64_t count, double *logits)
{
    double hidden[ROWS * BLOCK];
    if (!end->weight) {
        for (int64_t i = 0; i < count; i++)
            for (int64_t c = 0; c < end->width; c++)
                logits[i * end->width + c] = end->output[chosen[i] * end->width + c] + by[i] * direction[c];
        return;
    }
    for (int64_t i = 0; i < count || i % ROWS; i++) /* the last ROWS may be more than there are examples */
        memcpy(logits + i * end->padded, end->bias, sizeof(double) * end->padded);
    for (int64_t first = 0; first < end->width; first += BLOCK) {
        int64_t last = first + BLOCK < end->width ? first + BLOCK : end->width;
        for (int64_t i = 0; i < count; i += ROWS)
            loops->add(end, direction, chosen + i, by + i, count - i < ROWS ? count - i : ROWS, first, last, hidden,
                       logits + i * end->padded);
    }
}

/* The losses of the examples first to last - 1 under one candidate. */
static void find_losses(const struct end *end, const struct loops *loops, const struct batch *batch, int64_t k, int64_t first,
                        int64_t last)
{
    double logits[GROUP * MOST_CLASSES], by[GROUP], *losses = batch->losses + k * end->examples;
    int64_t chosen[GROUP], count = 0, stride = end->weight ? end->padded : end->width;
    const double *levels = batch->levels + (batch->picks ? batch->picks[k] : k) * end->examples;
    const double *arriving = end->arriving + batch->rows[k] * end->examples;
    const double *direction = end->directions + batch->rows[k] * end->width;
    for (int64_t n = first; n < last; n++) {
        losses[n] = end->base[n];
        chosen[count] = n;
        by[count] = levels[n] - arriving[n];
        count += by[count] != 0.0; /* NaN is a change, too */
        if (count == GROUP || (n == last - 1 && count > 0)) {
            find_logits(end, loops, direction, chosen, by, count, logits);
            for (int64_t i = 0; i < count; i++)
                losses[chosen[i]] = loops->loss(logits + i * stride, end->classes, end->targets[chosen[i]]);
            count = 0;
        }
    }
}

struct share {
    const struct end *end;
    const struct batch *batch;
    const struct loops *loops;
    int64_t first, last; /* of all pairs of candidate and example */
};

static void *run_share(void *argument)
{
    const struct share *share = argument;
    int64_t examples = share->end->examples;
    for (int64_t at = share->first; at < share->last;) {
        int64_t k = at / examples, stop = (k + 1) * examples < share->last ? (k + 1) * examples : share->last;
        find_losses(share->end, share->loops, share->batch, k, at - k * examples, stop - k * examples);
        at = stop;
    }
    return NULL;
}

void cogram_losses(const struct end *end, const struct batch *batch, int64_t threads)
{
    struct share shares[MOST_THREADS];
    pthread_t handles[MOST_THREADS];
    struct loops loops = best_loops();
    int64_t pairs = batch->count * end->examples, worth = pairs * end->width * (end->padded + 1) / WORTH_A_THREAD;
    int64_t count = threads < worth ? threads : worth;
    count = count < 1 ? 1 : count > MOST_THREADS ? MOST_THREADS : count;
    for (int64_t s = 0; s < count; s++)
        shares[s] = (struct share){end, batch, &loops, pairs * s / count, pairs * (s + 1) / count};
    int64_t started = 1;
    while (started < count && pthread_create(&handles[started], NULL, run_share, &shares[started]) == 0)
        started++;
    run_share(&shares[0]);
    for (int64_t s = started; s < count; s++) /* threads that could not be started */
        run_share(&shares[s]);
    for (int64_t s = 1; s < started; s++)
        pthread_join(handles[s], NULL);
    for (int64_t k = 0; k < batch->count; k++) {
        double mean = 0.0;
        for (int64_t n = 0; n < end->examples; n++)
            mean += end->weights[n] * batch->losses[k * end->examples + n];
        batch->means[k] = mean;
    }
}

void cogram_function(const struct end *end, const double *own, double *levels)
{
    for (int64_t n = 0; n < end->examples; n++)
        levels[n] = end->rectified && own[n] < 0.0 ? 0.0 : own[n];
}

void cogram_put(const struct end *end, int64_t row, const double *own)
{
    struct loops loops = best_loops();
    double *arriving = end->arriving + row * end->examples;
    for (int64_t n = 0; n < end->examples; n++) {
        double level = end->rectified && own[n] < 0.0 ? 0.0 : own[n], by = level - arriving[n];
        if (by != 0.0)
            loops.sum(&by, 1, end->directions + row * end->width, end->width, end->output + n * end->width);
        arriving[n] = level;
    }
    memcpy(end->own + row * end->examples, own, sizeof(double) * end->examples);
}

void cogram_add_features(const double *numbers, int64_t count, const double *features, int64_t examples, double *sums)
{
    struct loops loops = best_loops();
    loops.sum(numbers, count, features, examples, sums);
}

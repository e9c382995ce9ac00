/* Losses of a classifier under changes of rank one, without writing its activations to memory.
 *
 * A linear layer makes Z (examples x width) of what arrives there. Candidate k has other levels arrive at one of its inputs,
 * and adds (level - what arrives now)[n] * direction to row n, the input's column of weights. What follows is either
 * nothing, and Z are the logits, or a rectifier and one more linear layer (width x classes). The loss is
 * log(1 + sum over c != t of exp(z_c - z_t)), in the form in which the losses module has it, in double precision.
 *
 * Plain C without Python's headers: built as a shared library and called through ctypes.
 */
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8
#define ROWS 8 /* examples at a time, so that a row of the last layer's weight is loaded once for all of them */
#define BLOCK 128 /* columns at a time, so that what is in use stays in the nearest cache */
#define MOST_THREADS 64

typedef double lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef int64_t masks __attribute__((vector_size(LANES * sizeof(int64_t)), aligned(sizeof(int64_t)), may_alias));

struct work {
    int64_t candidates, examples, width, classes, padded;
    const double *output;     /* Z, (examples, width) */
    const double *levels;     /* (any, examples) */
    const int64_t *picks;     /* (candidates), which of the levels; null: one after the other */
    const double *arriving;   /* (rows, examples) */
    const double *directions; /* (rows, width) */
    const int64_t *rows;      /* (candidates), which row of both */
    const double *weight;     /* of the last layer, transposed and padded with zeros, (width, padded); null: none */
    const double *bias;       /* (padded) */
    const int64_t *targets;   /* (examples) */
    const double *weights;    /* of the examples, summing to one */
    const double *base;       /* losses without a change, (examples) */
    double *losses;           /* (candidates, examples) */
    double *means;            /* (candidates) */
};

static double loss_of(const double *logits, int64_t classes, int64_t target)
{
    double peak = -INFINITY, sum = 0.0;
    for (int64_t c = 0; c < classes; c++) {
        double difference = logits[c] - logits[target];
        if (c != target && !(difference <= peak)) /* so that NaN becomes the peak */
            peak = difference;
    }
    if (peak == INFINITY)
        return INFINITY;
    double shift = peak > 700.0 ? peak : 0.0; /* exp would overflow */
    for (int64_t c = 0; c < classes; c++)
        if (c != target)
            sum += exp(logits[c] - logits[target] - shift);
    return shift > 0.0 ? shift + log(sum) : log1p(sum);
}

/* The two loops that take the time, once for each set of instructions: for one group of examples and the columns first to
 * last - 1, hidden values with the candidate's change, rectified, (ROWS, BLOCK), and logits (ROWS, padded) += hidden x weight. */
#define DEFINE_LOOPS(suffix, attribute)                                                                                \
    attribute static void add_##suffix(const struct work *work, const double *direction, const int64_t *group,         \
                                       const double *by, int64_t count, int64_t first, int64_t last, double *hidden,   \
                                       double *logits)                                                                 \
    {                                                                                                                  \
        int64_t padded = work->padded;                                                                                 \
        for (int r = 0; r < ROWS; r++) {                                                                               \
            const double *row = work->output + group[r < count ? r : 0] * work->width;                                 \
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
            const double *weight = work->weight + first * padded + c;                                                  \
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
    }

typedef void (*loops)(const struct work *, const double *, const int64_t *, const double *, int64_t, int64_t, int64_t, double *,
                      double *);

DEFINE_LOOPS(plain, )
#if defined(__x86_64__) && defined(__GNUC__)
DEFINE_LOOPS(avx2, __attribute__((target("avx2,fma"))))
DEFINE_LOOPS(avx512, __attribute__((target("avx512f"))))

static loops best_loops(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return add_avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? add_avx2 : add_plain;
}
#else
static loops best_loops(void)
{
    return add_plain;
}
#endif

struct share {
    const struct work *work;
    loops run;
    int64_t first, last;
    int failed;
};

/* Logits of the first `count` examples of `chosen`, changed `by` so much, as rows of `stride`. */
static void find_logits(const struct work *work, loops add, const double *direction, const int64_t *chosen, const double *by,
                        int64_t count, double *hidden, double *logits)
{
    if (!work->weight) {
        for (int64_t i = 0; i < count; i++)
            for (int64_t c = 0; c < work->width; c++)
                logits[i * work->width + c] = work->output[chosen[i] * work->width + c] + by[i] * direction[c];
        return;
    }
    for (int64_t i = 0; i < count; i++)
        memcpy(logits + i * work->padded, work->bias, sizeof(double) * work->padded);
    for (int64_t first = 0; first < work->width; first += BLOCK) {
        int64_t last = first + BLOCK < work->width ? first + BLOCK : work->width;
        for (int64_t i = 0; i < count; i += ROWS)
            add(work, direction, chosen + i, by + i, count - i < ROWS ? count - i : ROWS, first, last, hidden,
                logits + i * work->padded);
    }
}

static void *run_share(void *argument)
{
    struct share *share = argument;
    const struct work *work = share->work;
    int64_t stride = work->weight ? work->padded : work->width, examples = work->examples;
    double *hidden = malloc(sizeof(double) * ROWS * BLOCK);
    double *logits = malloc(sizeof(double) * (examples + ROWS) * stride); /* the last group may be filled up */
    double *by = malloc(sizeof(double) * examples);
    int64_t *chosen = malloc(sizeof(int64_t) * examples);
    share->failed = !hidden || !logits || !by || !chosen;
    for (int64_t k = share->first; k < share->last && !share->failed; k++) {
        double *losses = work->losses + k * examples, mean = 0.0;
        const double *levels = work->levels + (work->picks ? work->picks[k] : k) * examples;
        const double *arriving = work->arriving + work->rows[k] * examples;
        int64_t count = 0;
        for (int64_t n = 0; n < examples; n++) {
            losses[n] = work->base[n];
            chosen[count] = n;
            by[count] = levels[n] - arriving[n];
            count += by[count] != 0.0; /* NaN is a change, too */
        }
        const double *direction = work->directions + work->rows[k] * work->width;
        find_logits(work, share->run, direction, chosen, by, count, hidden, logits);
        for (int64_t i = 0; i < count; i++)
            losses[chosen[i]] = loss_of(logits + i * stride, work->classes, work->targets[chosen[i]]);
        for (int64_t n = 0; n < examples; n++)
            mean += work->weights[n] * losses[n];
        work->means[k] = mean;
    }
    free(hidden);
    free(logits);
    free(by);
    free(chosen);
    return NULL;
}

/* Changes with what the function below takes, so that code and library of different age don't meet. */
int64_t cogram_rank_one_version(void)
{
    return 2;
}

/* Gives 0, or 1 if there was no memory. Results don't depend on the number of threads. */
int cogram_rank_one_losses(const struct work *work, int64_t threads)
{
    struct share shares[MOST_THREADS];
    pthread_t handles[MOST_THREADS];
    int64_t count = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    if (count > work->candidates)
        count = work->candidates;
    int failed = 0;
    loops run = best_loops();
    for (int64_t s = 0; s < count; s++)
        shares[s] = (struct share){work, run, work->candidates * s / count, work->candidates * (s + 1) / count, 0};
    int64_t started = 1;
    while (started < count && pthread_create(&handles[started], NULL, run_share, &shares[started]) == 0)
        started++;
    if (count > 0)
        run_share(&shares[0]);
    for (int64_t s = started; s < count; s++) /* threads that could not be started */
        run_share(&shares[s]);
    for (int64_t s = 1; s < started; s++)
        pthread_join(handles[s], NULL);
    for (int64_t s = 0; s < count; s++)
        failed |= shares[s].failed;
    return failed;
}

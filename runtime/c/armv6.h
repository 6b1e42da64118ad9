/* Products for the ARM1176 (Raspberry Pi 1 and Zero): ARMv6 with VFPv2. Part of kernels.h, in the set "armv6".
 *
 * fp32: the VFP11 has short vectors: one instruction multiplies and adds four numbers in four cycles, and the loads for the
 * next ones run in their shadow. A tile is 4 cells x 4 columns: s16 .. s31 its sums (a row of four for each cell), s0 .. s7
 * two numbers of each cell, s8 .. s11 and s12 .. s15 the weights of these two.
 *
 * int16: SMLAD multiplies two pairs of numbers and adds both products. A tile is 3 cells x 2 columns: r6 .. r11 its sums;
 * the six registers r0 .. r5 take what is multiplied, each loaded again as soon as it is free and four cycles before it is
 * needed. There are no registers for more than two pointers, so the cells of a tile lie interleaved: numbers 0 and 1 of
 * cells 0, 1, 2, then numbers 2 and 3 of them, and so on. Sums lie tile by tile.
 *
 * Loads run ahead of the products by up to 24 bytes; the caller has that much memory behind its arrays.
 */
/* ---- fp32 ---- */

typedef struct {
    const float *const *a; /* rows of four cells after four */
    int32_t offset;        /* bytes */
    const float *b, *start;
    float *c;
    int32_t c_row; /* bytes */
    int32_t groups, pairs; /* groups of four cells; pairs of numbers in a row */
} Vectors;

/* Four columns of all groups. The floating-point unit is in vectors of four, flush to zero and default NaN meanwhile: the
 * mode in which it needs no help from the operating system. */
static __attribute__((naked, noinline)) void KERNEL(vectors)(const Vectors *v __attribute__((unused)))
{
    __asm__ volatile(
        ".syntax unified\n"
        "push {r4-r11, lr}\n"
        "vpush {d8-d15}\n" /* the caller's, as r4 to r11 */
        "vmrs lr, fpscr\n"
        "push {lr}\n"
        "bic lr, lr, #0x00370000\n"
        "orr lr, lr, #0x03000000\n"
        "orr lr, lr, #0x00030000\n"
        "vmsr fpscr, lr\n"
        "ldmia r0, {r1, r2, r3, r4, r5, r6, r7}\n" /* a, offset, b, start, c, c_row, groups */
        "ldr r8, [r0, #28]\n"                      /* pairs */
        "push {r3, r4, r7, r8}\n"                  /* b, start, groups, pairs: sp + 0, 4, 8, 12 */
        "1:\n"
        "ldmia r1!, {r7, r8, r9, r10}\n"
        "ldr r12, [sp, #4]\n"
        "ldr r11, [sp, #0]\n"
        "ldr lr, [sp, #12]\n"
        "add r7, r7, r2\n"
        "add r8, r8, r2\n"
        "add r9, r9, r2\n"
        "add r10, r10, r2\n"
        "vldmia r11!, {s8-s11}\n"
        "vldmia r7!, {s0-s1}\n"
        "vldmia r8!, {s2-s3}\n"
        "cmp r12, #0\n"
        "addeq r0, r5, r6\n"
        "addeq r3, r5, r6, lsl #1\n"
        "addeq r4, r0, r6, lsl #1\n"
        "moveq r12, r5\n"
        "movne r0, r12\n"
        "movne r3, r12\n"
        "movne r4, r12\n"
        "vldmia r12, {s16-s19}\n"
        "vldmia r9!, {s4-s5}\n"
        "vldmia r0, {s20-s23}\n"
        "vldmia r3, {s24-s27}\n"
        "vldmia r4, {s28-s31}\n"
        "2:\n"
        "vmla.f32 s16, s8, s0\n"
        "vldmia r10!, {s6-s7}\n"
        "vldmia r11!, {s12-s15}\n"
        "vmla.f32 s20, s8, s2\n"
        "subs lr, lr, #1\n"
        "vmla.f32 s24, s8, s4\n"
        "vmla.f32 s28, s8, s6\n"
        "vmla.f32 s16, s12, s1\n"
        "vldmiane r11!, {s8-s11}\n"
        "vmla.f32 s20, s12, s3\n"
        "vldmiane r7!, {s0-s1}\n"
        "vmla.f32 s24, s12, s5\n"
        "vldmiane r8!, {s2-s3}\n"
        "vmla.f32 s28, s12, s7\n"
        "vldmiane r9!, {s4-s5}\n"
        "bne 2b\n"
        "ldr lr, [sp, #8]\n"
        "add r0, r5, r6\n"
        "add r3, r5, r6, lsl #1\n"
        "add r4, r0, r6, lsl #1\n"
        "vstmia r5, {s16-s19}\n"
        "vstmia r0, {s20-s23}\n"
        "subs lr, lr, #1\n"
        "str lr, [sp, #8]\n"
        "add r5, r5, r6, lsl #2\n"
        "vstmia r3, {s24-s27}\n"
        "vstmia r4, {s28-s31}\n"
        "bne 1b\n"
        "add sp, sp, #16\n"
        "pop {lr}\n"
        "vmsr fpscr, lr\n"
        "vpop {d8-d15}\n"
        "pop {r4-r11, pc}\n");
}

/* As in kernels.h. Cells are taken in shares that leave room for weights in the first cache. */
static void KERNEL(multiply)(const Layer *l, int64_t count, const float *const *a, int64_t offset, int64_t from, int64_t depth,
                             float *c, int64_t c_row)
{
    const int width = (int)l->width, deep = (int)l->depth, row = (int)c_row;
    const float *last[4], *start = l->start;
    float c_last[16];
    enum { SHARE = 3072 }; /* numbers: 12 kB of the 16 */
    const int share = SHARE / (int)depth < 4 ? 4 : SHARE / (int)depth & ~3;
    for (int left = (int)count, cells; left > 0; left -= cells, a += cells, c += cells * row) {
        cells = left < share ? left : share;
        const int groups = cells / 4, rest = cells % 4;
        for (int i = 0; i < 4; i++)
            last[i] = rest ? a[groups * 4 + (i < rest ? i : 0)] : 0;
        for (int j = 0; j < width; j += 4) {
            Vectors v = {a, (int32_t)offset * 4, (const float *)l->weights + j * deep + (int)from * 4, from ? 0 : start + j, c + j,
                         row * 4, groups, (int32_t)depth / 2};
            if (groups)
                KERNEL(vectors)(&v);
            if (!rest)
                continue;
            float *out = c + groups * 4 * row + j;
            for (int i = 0; i < rest && from; i++)
                memcpy(c_last + 4 * i, out + i * row, 16);
            v.a = last;
            v.c = c_last;
            v.c_row = 16;
            v.groups = 1;
            KERNEL(vectors)(&v);
            for (int i = 0; i < rest; i++)
                memcpy(out + i * row, c_last + 4 * i, 16);
        }
    }
}

/* Numbers that are not NaN: the unit makes NaN without a sign, so that they stay. */
static void KERNEL(rectify)(int64_t count, const float *from, float *to)
{
    typedef int32_t __attribute__((may_alias)) Bits;
    const Bits *x = (const Bits *)from;
    Bits *y = (Bits *)to;
    for (int i = 0; i < (int)count; i += 4) {
        const Bits a = x[i], b = x[i + 1], c = x[i + 2], d = x[i + 3];
        y[i] = a & ~(a >> 31);
        y[i + 1] = b & ~(b >> 31);
        y[i + 2] = c & ~(c >> 31);
        y[i + 3] = d & ~(d >> 31);
    }
}

static void KERNEL(add)(int64_t n, int64_t count, float *const *cells, const float *residuals)
{
    for (int i = 0; i < (int)count; i++) {
        float *cell = cells[i];
        for (int j = 0; j < (int)n; j += 8, cell += 8, residuals += 8) {
            float sum[8]; /* eight at a time: a sum is there after eight cycles */
            UNROLL for (int k = 0; k < 8; k++) sum[k] = cell[k] + residuals[k];
            UNROLL for (int k = 0; k < 8; k++) cell[k] = sum[k];
        }
    }
}

/* ---- int16 ---- */

/* Two columns of all groups of three cells. */
typedef struct {
    const int16_t *a; /* interleaved */
    int32_t a_group;  /* bytes of a group */
    const int16_t *b; /* two columns of a panel of four */
    int32_t *sums;
    const int32_t *start; /* null: go on with what sums holds */
    int32_t groups, loops, rest; /* depth = 32 loops + 8 rest */
} Trios;

/* Four numbers of each cell. A: numbers 0 and 1 of cells 0 and 1, C: those of cell 2, then 2 and 3 of cell 0; B: weights.
 * Afterwards A holds the same of the next four; B and C have changed places. */
#define ONE_AND_A_HALF(A0, A1, B0, B1, C0, C1) \
    "smlad r6, " A0 ", " B0 ", r6\n" \
    "smlad r7, " A0 ", " B1 ", r7\n" \
    "smlad r8, " A1 ", " B0 ", r8\n" \
    "smlad r9, " A1 ", " B1 ", r9\n" \
    "ldrd " A0 ", " A1 ", [lr], #16\n" \
    "smlad r10, " C0 ", " B0 ", r10\n" \
    "smlad r11, " C0 ", " B1 ", r11\n" \
    "ldrd " B0 ", " B1 ", [r12], #8\n" \
    "smlad r6, " C1 ", " A0 ", r6\n" \
    "smlad r7, " C1 ", " A1 ", r7\n" \
    "ldrd " C0 ", " C1 ", [lr], #16\n" \
    "smlad r8, " B0 ", " A0 ", r8\n" \
    "smlad r10, " B1 ", " A0 ", r10\n"
#define FOUR(A0, A1, B0, B1, C0, C1) \
    ONE_AND_A_HALF(A0, A1, B0, B1, C0, C1) \
    "ldr " A0 ", [r12], #4\n" \
    "smlad r9, " B0 ", " A1 ", r9\n" \
    "smlad r11, " B1 ", " A1 ", r11\n" \
    "ldr " A1 ", [r12], #4\n" \
    "ldrd " B0 ", " B1 ", [r12], #8\n"
/* The same, and meanwhile the counter at sp + 32 is counted down. */
#define FOUR_COUNTED(A0, A1, B0, B1, C0, C1) \
    ONE_AND_A_HALF(A0, A1, B0, B1, C0, C1) \
    "ldr " A0 ", [sp, #32]\n" \
    "smlad r9, " B0 ", " A1 ", r9\n" \
    "smlad r11, " B1 ", " A1 ", r11\n" \
    "subs " A0 ", " A0 ", #1\n" \
    "str " A0 ", [sp, #32]\n" \
    "ldrd " A0 ", " A1 ", [r12], #8\n" \
    "ldrd " B0 ", " B1 ", [r12], #8\n"
#define EIGHT FOUR("r0", "r1", "r2", "r3", "r4", "r5") FOUR("r0", "r1", "r4", "r5", "r2", "r3")
#define EIGHT_COUNTED FOUR("r0", "r1", "r2", "r3", "r4", "r5") FOUR_COUNTED("r0", "r1", "r4", "r5", "r2", "r3")

static __attribute__((naked, noinline)) void KERNEL(trios)(const Trios *t __attribute__((unused)))
{
    __asm__ volatile(
        ".syntax unified\n"
        "push {r4-r11, lr}\n"
        "sub sp, sp, #36\n"
        "ldmia r0, {r1-r8}\n"
        "stmia sp, {r1-r8}\n" /* a, a_group, b, sums, start, groups, loops, rest; counter */
        "1:\n"
        "ldmia sp, {r0, r1, lr}\n"
        "ldr r2, [sp, #12]\n"
        "ldr r4, [sp, #16]\n"
        "ldr r3, [sp, #28]\n"
        "mov r12, r0\n"
        "add r0, r0, r1\n"
        "str r0, [sp]\n"
        "cmp r4, #0\n"
        "ldrdne r6, r7, [r4]\n"
        "ldmiaeq r2, {r6-r11}\n"
        "ldr r5, [sp, #24]\n"
        "movne r8, r6\n"
        "movne r9, r7\n"
        "movne r10, r6\n"
        "movne r11, r7\n"
        "cmp r3, #0\n"
        "moveq r3, r5\n"
        "str r3, [sp, #32]\n"
        "ldrd r2, r3, [lr], #16\n"
        "ldrd r0, r1, [r12], #8\n"
        "ldrd r4, r5, [r12], #8\n"
        "beq 3f\n"
        "2:\n" EIGHT_COUNTED "bne 2b\n"
        "ldr r0, [sp, #24]\n"
        "cmp r0, #0\n"
        "beq 4f\n"
        "str r0, [sp, #32]\n"
        "ldrd r0, r1, [r12, #-16]\n"
        "3:\n" EIGHT EIGHT EIGHT EIGHT_COUNTED "bne 3b\n"
        "4:\n"
        "ldr r0, [sp, #12]\n"
        "ldr r1, [sp, #20]\n"
        "stmia r0!, {r6-r11}\n"
        "str r0, [sp, #12]\n"
        "subs r1, r1, #1\n"
        "str r1, [sp, #20]\n"
        "bne 1b\n"
        "add sp, sp, #36\n"
        "pop {r4-r11, pc}\n");
}

/* Cells (three after three) at an offset in bytes, `quads` times four numbers of each -> interleaved. */
static __attribute__((naked, noinline)) void KERNEL(interleave)(const int16_t *const *three __attribute__((unused)),
                                                                int32_t offset __attribute__((unused)),
                                                                int16_t *out __attribute__((unused)),
                                                                int32_t quads __attribute__((unused)))
{
    __asm__ volatile(
        ".syntax unified\n"
        "push {r4-r9, lr}\n"
        "mov lr, r2\n"
        "mov r12, r3\n"
        "mov r3, r1\n"
        "ldmia r0, {r0-r2}\n"
        "add r0, r0, r3\n"
        "add r1, r1, r3\n"
        "add r2, r2, r3\n"
        "1:\n"
        "ldmia r0!, {r4, r7}\n"
        "ldmia r1!, {r5, r8}\n"
        "ldmia r2!, {r6, r9}\n"
        "subs r12, r12, #1\n"
        "stmia lr!, {r4-r9}\n"
        "bne 1b\n"
        "pop {r4-r9, pc}\n");
}

/* Sums of two columns of all groups -> int16 numbers. */
typedef struct {
    const int32_t *sums;
    int32_t shift[2], groups;
    int16_t *out;
    int32_t out_group, out_cell;  /* bytes from group to group and from cell to cell */
    int16_t *positive;            /* interleaved: the same after the ReLU; or null */
    int32_t positive_group;
} Narrow;

/* Returns 1 where a number does not fit: then all must be done again, by narrow(). Else all is written. The test is made on
 * numbers + 32767, which must lie in 0 .. 65534. */
static __attribute__((naked, noinline)) int KERNEL(narrow_trios)(const Narrow *n __attribute__((unused)))
{
    __asm__ volatile(
        ".syntax unified\n"
        "push {r0, r4-r11, lr}\n"
        "mov r2, r0\n"
        "ldmia r2!, {r0, r10, r11, r12}\n" /* sums, shifts, groups */
        "ldr r1, [r2]\n"                   /* out */
        "ldr r2, [r2, #12]\n"              /* positive */
        "mvn r3, #0\n"
        "mov r3, r3, lsr #17\n"            /* 32767 */
        "orr lr, r3, r3, lsl #16\n"
        "1:\n"
        "ldmia r0!, {r4-r9}\n"
        "add r4, r3, r4, asr r10\n"
        "add r5, r3, r5, asr r11\n"
        "cmp r4, r3, lsl #1\n"
        "add r6, r3, r6, asr r10\n"
        "cmpls r5, r3, lsl #1\n"
        "add r7, r3, r7, asr r11\n"
        "cmpls r6, r3, lsl #1\n"
        "add r8, r3, r8, asr r10\n"
        "cmpls r7, r3, lsl #1\n"
        "add r9, r3, r9, asr r11\n"
        "cmpls r8, r3, lsl #1\n"
        "pkhbt r4, r4, r5, lsl #16\n"
        "cmpls r9, r3, lsl #1\n"
        "pkhbt r6, r6, r7, lsl #16\n"
        "pkhbt r8, r8, r9, lsl #16\n"
        "bhi 2f\n"
        "cmp r1, #0\n"
        "ldr r9, [sp]\n"
        "ssub16 r4, r4, lr\n"
        "ssub16 r6, r6, lr\n"
        "ssub16 r8, r8, lr\n"
        "beq 3f\n"
        "ldr r7, [r9, #24]\n" /* out_cell */
        "ldr r5, [r9, #20]\n" /* out_group */
        "cmp r2, #0\n"
        "str r4, [r1]\n"
        "str r6, [r1, r7]\n"
        "str r8, [r1, r7, lsl #1]\n"
        "add r1, r1, r5\n"
        "beq 4f\n"
        "3:\n"
        "ldr r7, [r9, #32]\n" /* positive_group */
        "usat16 r4, #15, r4\n"
        "usat16 r5, #15, r6\n"
        "usat16 r6, #15, r8\n"
        "stmia r2, {r4-r6}\n"
        "add r2, r2, r7\n"
        "4:\n"
        "subs r12, r12, #1\n"
        "bne 1b\n"
        "mov r0, #0\n"
        "add sp, sp, #4\n"
        "pop {r4-r11, pc}\n"
        "2:\n"
        "mov r0, #1\n"
        "add sp, sp, #4\n"
        "pop {r4-r11, pc}\n");
}

/* Cells -> sums of a layer, two columns by two columns, group by group. */
static void KERNEL(multiply_trios)(const Layer *l, int groups, const int16_t *a, int from, int depth, int32_t *sums)
{
    const int width = (int)l->width, deep = (int)l->depth;
    Trios t = {a, depth * 6, 0, sums, 0, groups, depth / 32, depth % 32 / 8};
    for (int j = 0; j < width; j += 2, t.sums += groups * 6) {
        t.b = (const int16_t *)l->weights + (j & ~3) * deep + from * 4 + (j & 2) * 2;
        t.start = from ? 0 : (const int32_t *)l->start + j;
        KERNEL(trios)(&t);
    }
}

/* Sums -> numbers at out and, after the ReLU, at positive; one of them may be null. Returns how many did not fit. */
static int64_t KERNEL(finish)(const Layer *l, int count, const int32_t *sums, int16_t *out, int out_pair, int out_group, int out_cell,
                              int16_t *positive, int positive_group)
{
    const int width = (int)l->width, groups = (count + 2) / 3;
    int bad = 0;
    for (int j = 0; j < width; j += 2, sums += groups * 6) {
        Narrow n = {sums, {l->shift[j], l->shift[j + 1]}, groups, out ? out + j / 2 * out_pair : 0, out_group, out_cell,
                    positive ? positive + j * 3 : 0, positive_group};
        if (!KERNEL(narrow_trios)(&n))
            continue;
        for (int i = 0; i < groups * 3; i++) /* all cells, as those that fill the last group must be numbers too */
            for (int k = 0; k < 2; k++) {
                const int32_t exact = sums[i * 2 + k] >> l->shift[j + k];
                const int32_t fits = exact > 32767 ? 32767 : exact < -32767 ? -32767 : exact;
                bad += i < count && fits != exact;
                if (out)
                    n.out[(i / 3 * out_group + i % 3 * out_cell) / 2 + k] = (int16_t)fits;
                if (positive)
                    n.positive[i / 3 * positive_group / 2 + i % 3 * 2 + k] = (int16_t)(fits < 0 ? 0 : fits);
            }
    }
    return bad;
}

static int64_t KERNEL(int16)(const Rule *r, int64_t n, int64_t row, int64_t count, const int16_t *const *cells,
                             int16_t *residuals, int16_t *in, int16_t *act, int32_t *sums);

/* KERNEL(int16) for a share of the cells of a dense rule: as many as leave room for weights in the first cache. */
enum { SHARE_OF_INT16 = 36 };

static int64_t KERNEL(dense_share)(const Rule *r, int own, int row, int count, const int16_t *const *cells, int16_t *residuals,
                                   int16_t *in, int16_t *act, int32_t *sums)
{
    const int wide = own + (int)r->views.width, units = (int)r->out.depth, groups = (count + 2) / 3;
    const int first = r->rewritten ? (int)r->views.width : 0;
    const int16_t *all[SHARE_OF_INT16];
    int64_t bad = 0;
    for (int i = 0; i < groups * 3; i++)
        all[i] = cells[i < count ? i : count - 1];
    for (int i = 0; i < groups; i++)
        KERNEL(interleave)(all + 3 * i, 0, in + i * wide * 3, own / 4);
    for (int tap = 0; tap < 3; tap++) {
        for (int i = 0; i < groups; i++)
            KERNEL(interleave)(all + 3 * i, ((tap - 1) * row - own) * 2, act + i * own * 9, own * 3 / 4);
        KERNEL(multiply_trios)(&r->views, groups, act, tap * 3 * own, 3 * own, sums);
    }
    bad += KERNEL(finish)(&r->views, count, sums, in + own * 3, 6, wide * 6, 4, first ? act : 0, units * 6);
    KERNEL(multiply_trios)(&r->hidden, groups, in, 0, wide, sums);
    bad += KERNEL(finish)(&r->hidden, count, sums, 0, 0, 0, 0, act + first * 3, units * 6);
    KERNEL(multiply_trios)(&r->out, groups, act, 0, units, sums);
    return bad + KERNEL(finish)(&r->out, count, sums, residuals, 2, own * 6, own * 2, 0, 0);
}

static int64_t KERNEL(dense16)(const Rule *r, int64_t n, int64_t row, int64_t count, const int16_t *const *cells,
                               int16_t *residuals, int16_t *in, int16_t *act, int32_t *sums)
{
    if (r->views.plain)
        return KERNEL(int16)(r, n, row, count, cells, residuals, in, act, sums);
    int64_t bad = 0;
    for (int at = 0, share; at < (int)count; at += share) {
        share = (int)count - at < SHARE_OF_INT16 ? (int)count - at : SHARE_OF_INT16;
        bad += KERNEL(dense_share)(r, (int)n, (int)row, share, cells + at, residuals + at * (int)n, in, act, sums);
    }
    return bad;
}

static int64_t KERNEL(add16)(int64_t n, int64_t count, int16_t *const *cells, const int16_t *residuals)
{
    typedef uint32_t __attribute__((may_alias)) Two;
    int bad = 0;
    for (int i = 0; i < (int)count; i++) {
        int16_t *cell = cells[i];
        for (int j = 0; j < (int)n; j += 8, cell += 8, residuals += 8) {
            const Two *from = (const Two *)residuals;
            Two *to = (Two *)cell, sum[4], far = 0;
            UNROLL for (int k = 0; k < 4; k++) sum[k] = (Two)__qadd16((int32_t)to[k], (int32_t)from[k]);
            UNROLL for (int k = 0; k < 4; k++) far |= (Two)__sadd16((int32_t)sum[k], 0x40004000);
            if (!(far & 0x80008000)) { /* all within -16384 .. 16383: they fit */
                UNROLL for (int k = 0; k < 4; k++) to[k] = sum[k];
                continue;
            }
            for (int k = 0; k < 8; k++) {
                const int32_t exact = (int32_t)cell[k] + residuals[k];
                const int32_t fits = exact > 32767 ? 32767 : exact < -32767 ? -32767 : exact;
                bad += fits != exact;
                cell[k] = (int16_t)fits;
            }
        }
    }
    return bad;
}

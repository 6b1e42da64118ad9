/* A plugin for qemu-arm: what a program would cost on an ARM1176 (Raspberry Pi 1), by its manual. See estimate.py.
 *
 * Counted are executed instructions; core cycles, by an in-order scoreboard that is fed with every instruction in the order
 * of execution; and misses of the data caches, fed with every address. Timings are those of the ARM1176JZF-S Technical
 * Reference Manual (ARM DDI 0301H): tables 16-2 to 16-19 for the core, 16-11 for branches, chapter 21 (tables 21-15 and
 * 21-16) for the floating-point unit. Where the manual leaves a choice the slower one is taken, but for branches that its
 * 128-entry predictor knows: 1 cycle (the manual has 0 or 1).
 *
 *     qemu-arm -cpu arm1176 -plugin ./arm1176.so,out=FILE[,fast=on] PROGRAM
 *
 * FILE then holds one line of numbers with names, and with profile=on a line for each block. fast=on counts instructions
 * only. qemu's plugin interface, version 1, is declared here because Debian ships no header for it.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS = 0, INLINE_ADD = 0, READS_AND_WRITES = 3 };
__attribute__((visibility("default"))) int qemu_plugin_version = 1;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, void (*)(unsigned, qemu_plugin_meminfo_t, uint64_t, void *), int,
                                      int, void *);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
_Bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);

/* ---- What an instruction needs and gives ---- */

enum { CORE, MULTIPLY, LOAD, STORE, BRANCH, RETURN, V_MATH, V_LOAD, V_STORE, V_READ, V_WRITE, V_CONTROL };

typedef struct {
    uint8_t kind;
    uint8_t cycles, latency, memory;    /* to issue; until the result is there; of the data port */
    uint8_t divide, twice;              /* floating point: its own unit; double precision */
    uint8_t base;                       /* register that is updated by a load or store; 16: none */
    int8_t v_to, v_from[2];             /* single registers of the floating-point unit; -1: none */
    uint8_t v_count, v_width;           /* of a load or store; 2 for double precision */
    uint8_t accumulate;                 /* a multiplication's third operand; 16: none */
    uint8_t reads_flags, sets_flags, conditional;
    uint16_t reads, early, writes;      /* sets of core registers */
    uint32_t target;                    /* of a branch */
} Work;

typedef struct Block {
    uint32_t address, count;
    uint64_t runs, cycles;
    Work *work;
    struct Block *next;
} Block;

static unsigned field(uint32_t word, int at, int bits)
{
    return word >> at & ((1u << bits) - 1);
}

static int bits_in(uint32_t set)
{
    return __builtin_popcount(set);
}

/* Coprocessors 10 and 11. */
static void decode_floating(uint32_t w, Work *k)
{
    const int wide = field(w, 8, 1), rn = (int)field(w, 16, 4), rd = (int)field(w, 12, 4);
    const int d = wide ? rd * 2 : rd * 2 + (int)field(w, 22, 1);
    const int n = wide ? rn * 2 : rn * 2 + (int)field(w, 7, 1);
    const int m = wide ? (int)field(w, 0, 4) * 2 : (int)field(w, 0, 4) * 2 + (int)field(w, 5, 1);
    k->v_width = (uint8_t)(wide ? 2 : 1);
    if (field(w, 24, 4) == 14 && field(w, 4, 1)) { /* one core register */
        if (field(w, 21, 3) == 7) {                /* control register */
            k->kind = V_CONTROL;
            if (!field(w, 20, 1))
                k->reads |= 1u << rd;
            else if (rd == 15)
                k->sets_flags = 1;
            else
                k->writes |= 1u << rd;
            k->v_to = -1;
        } else {
            const int s = wide ? rn * 2 + (int)field(w, 21, 1) : n;
            k->kind = field(w, 20, 1) ? V_READ : V_WRITE;
            k->v_count = 1;
            if (field(w, 20, 1)) {
                k->writes |= 1u << rd;
                k->v_from[0] = (int8_t)s;
            } else {
                k->reads |= 1u << rd;
                k->v_to = (int8_t)s;
            }
        }
        k->v_width = 1;
    } else if (field(w, 21, 7) == 0x62) { /* two core registers */
        k->v_count = 2;
        k->v_width = 1;
        if (field(w, 20, 1)) {
            k->kind = V_READ;
            k->writes |= (uint16_t)(1u << rd | 1u << rn);
            k->v_from[0] = (int8_t)m;
        } else {
            k->kind = V_WRITE;
            k->reads |= (uint16_t)(1u << rd | 1u << rn);
            k->v_to = (int8_t)m;
        }
    } else if (field(w, 25, 3) == 6) { /* loads and stores */
        const int several = !(field(w, 24, 1) && !field(w, 21, 1));
        const int words = several ? (int)field(w, 0, 8) & ~(wide ? 1 : 0) : wide + 1;
        k->kind = field(w, 20, 1) ? V_LOAD : V_STORE;
        k->v_count = (uint8_t)words;
        k->v_width = 1;
        k->memory = (uint8_t)((words + 1) / 2);
        k->reads |= 1u << rn;
        k->early |= 1u << rn;
        if (several && field(w, 21, 1))
            k->base = (uint8_t)rn;
        if (k->kind == V_LOAD)
            k->v_to = (int8_t)d;
        else
            k->v_from[0] = (int8_t)d;
    } else { /* arithmetic */
        const unsigned operation = field(w, 23, 1) << 3 | field(w, 20, 2) << 1 | field(w, 6, 1);
        const int one = operation == 15; /* one operand, told by n */
        k->kind = V_MATH;
        k->latency = 8;
        k->v_to = (int8_t)d;
        k->v_from[0] = (int8_t)m;
        k->v_from[1] = (int8_t)(one ? -1 : n);
        k->divide = operation == 8;
        k->twice = (uint8_t)(wide && !field(w, 23, 1) && field(w, 20, 2) != 3); /* multiplications */
        if (one) {
            const unsigned which = field(w, 16, 4) * 2 + field(w, 7, 1);
            k->divide = which == 3;
            if (which < 3 || (which >= 8 && which < 12) || which == 15) /* copies, comparisons, conversions of size */
                k->latency = 4;
            if (which >= 8 && which < 12)
                k->sets_flags = 2; /* of the floating-point unit */
        }
        if (k->divide)
            k->latency = wide ? 33 : 19;
        else if (k->twice)
            k->latency = 9;
    }
}

static void decode(uint32_t w, uint32_t at, Work *k)
{
    const unsigned condition = field(w, 28, 4), rn = field(w, 16, 4), rd = field(w, 12, 4), rs = field(w, 8, 4), rm = field(w, 0, 4);
    memset(k, 0, sizeof *k);
    k->kind = CORE;
    k->cycles = k->latency = 1;
    k->base = k->accumulate = 16;
    k->v_to = k->v_from[0] = k->v_from[1] = -1;
    k->conditional = k->reads_flags = condition < 14;
    if (condition == 15) {
        if (field(w, 25, 3) == 2 && field(w, 20, 1)) { /* PLD */
            k->kind = LOAD;
            k->memory = 1;
            k->reads = k->early = (uint16_t)(1u << rn);
        } else if (field(w, 25, 3) == 5)
            k->kind = RETURN;
        return;
    }
    switch (field(w, 25, 3)) {
    case 0:
        if (field(w, 4, 1) && field(w, 7, 1)) { /* multiplications, loads and stores of other sizes */
            const unsigned which = field(w, 5, 2);
            if (!which && !field(w, 24, 1)) {
                const int wide = (int)field(w, 23, 1), add = (int)field(w, 21, 1);
                k->kind = MULTIPLY;
                k->cycles = (uint8_t)(wide ? 3 : 2);
                k->latency = (uint8_t)(wide ? 5 : 4);
                if (field(w, 20, 1))
                    k->cycles = (uint8_t)(k->cycles + 3), k->sets_flags = 1;
                k->reads = k->early = (uint16_t)(1u << rm | 1u << rs);
                k->writes = (uint16_t)(1u << rn | (wide ? 1u << rd : 0));
                if (add)
                    k->accumulate = (uint8_t)rd;
                return;
            }
            if (!which) { /* exclusive and swap */
                k->kind = LOAD;
                k->memory = 1;
                k->latency = 3;
                k->reads = k->early = (uint16_t)(1u << rn);
                k->writes = (uint16_t)(1u << rd);
                return;
            }
            const int doubled = !field(w, 20, 1) && which >= 2, store = !field(w, 20, 1) && which != 2;
            k->kind = store ? STORE : LOAD;
            k->memory = 1;
            k->latency = 3;
            k->reads = k->early = (uint16_t)(1u << rn | (field(w, 22, 1) ? 0 : 1u << rm));
            if (store)
                k->reads |= (uint16_t)(1u << rd | (doubled ? 2u << rd : 0));
            else
                k->writes = (uint16_t)(1u << rd | (doubled ? 2u << rd : 0));
            if (!field(w, 24, 1) || field(w, 21, 1))
                k->base = (uint8_t)rn;
            if (!field(w, 22, 1) && !field(w, 23, 1))
                k->cycles = 2;
            return;
        }
        if (field(w, 23, 2) == 2 && !field(w, 20, 1)) { /* what hides among the comparisons */
            if (field(w, 4, 4) == 1 && field(w, 21, 2) == 1) { /* BX */
                k->kind = RETURN;
                k->reads = (uint16_t)(1u << rm);
            } else if (field(w, 4, 4) == 3) { /* BLX */
                k->kind = RETURN;
                k->reads = (uint16_t)(1u << rm);
                k->writes = 1u << 14;
            } else if (field(w, 7, 1)) { /* SMLAxy and the like */
                k->kind = MULTIPLY;
                k->latency = 3;
                k->reads = k->early = (uint16_t)(1u << rm | 1u << rs);
                k->writes = (uint16_t)(1u << rn);
                if (field(w, 21, 2) != 3)
                    k->reads |= (uint16_t)(1u << rd);
            } else if (field(w, 4, 4) == 5) { /* QADD */
                k->latency = 2;
                k->reads = (uint16_t)(1u << rm | 1u << rn);
                k->writes = (uint16_t)(1u << rd);
            } else if (field(w, 4, 4) == 1) { /* CLZ */
                k->reads = (uint16_t)(1u << rm);
                k->writes = (uint16_t)(1u << rd);
            } else if (!field(w, 21, 1)) /* MRS */
                k->writes = (uint16_t)(1u << rd);
            else
                k->cycles = 4, k->sets_flags = 1; /* MSR */
            return;
        } /* fall through */
    case 1: {
        const unsigned operation = field(w, 21, 4);
        const int plain = operation == 13 || operation == 15, compares = operation >= 8 && operation < 12;
        if (field(w, 25, 1) && operation == 9 && !field(w, 20, 1)) /* MSR and hints */
            return;
        if (!plain)
            k->reads |= (uint16_t)(1u << rn);
        if (!field(w, 25, 1)) {
            k->reads |= (uint16_t)(1u << rm);
            if (field(w, 4, 1)) {
                k->cycles = 2;
                k->latency = 2;
                k->reads |= (uint16_t)(1u << rs);
                k->early |= (uint16_t)(1u << rs);
            } else if (field(w, 5, 7))
                k->early |= (uint16_t)(1u << rm);
        }
        if (!compares)
            k->writes = (uint16_t)(1u << rd);
        if (operation >= 5 && operation < 8)
            k->reads_flags = 1;
        k->sets_flags = (uint8_t)field(w, 20, 1);
        if (k->writes >> 15)
            k->kind = RETURN;
        return;
    }
    case 3:
        if (field(w, 4, 1)) { /* media */
            const unsigned which = field(w, 20, 5);
            if ((which & 0x18) == 0x10) { /* SMLAD and the like: rn is the result, rd what is added */
                k->kind = MULTIPLY;
                k->latency = 3;
                k->reads = k->early = (uint16_t)(1u << rm | 1u << rs);
                k->writes = (uint16_t)(1u << rn);
                if (which == 0x10 && rd != 15)
                    k->reads |= (uint16_t)(1u << rd), k->accumulate = (uint8_t)rd;
                if (which != 0x10)
                    k->cycles = 2, k->latency = 4, k->accumulate = (uint8_t)(rd == 15 ? 16 : rd);
                return;
            }
            if (which >= 0x18) { /* USAD8 */
                k->latency = 3;
                k->reads = k->early = (uint16_t)(1u << rm | 1u << rs);
                k->writes = (uint16_t)(1u << rn);
                return;
            }
            k->reads = (uint16_t)(1u << rn | 1u << rm);
            k->writes = (uint16_t)(1u << rd);
            if (which < 8) /* parallel sums; saturating ones take longer */
                k->latency = (uint8_t)((which & 3) == 2 ? 2 : 1);
            else if (field(w, 5, 1) == 0 || (which & 3) == 2 || (which & 3) == 3) /* PKH, saturation */
                k->early = (uint16_t)(1u << rm), k->latency = (uint8_t)((which & 2) ? 2 : 1);
            else if (field(w, 4, 4) == 7) /* extensions, with their rotation */
                k->early = (uint16_t)(1u << rm);
            return;
        } /* fall through */
    case 2:
        k->kind = field(w, 20, 1) ? LOAD : STORE;
        k->memory = 1;
        k->latency = 3;
        k->reads = k->early = (uint16_t)(1u << rn);
        if (field(w, 25, 1)) {
            k->reads |= (uint16_t)(1u << rm);
            k->early |= (uint16_t)(1u << rm);
            if (!field(w, 23, 1) || (field(w, 5, 7) && field(w, 5, 7) != 8)) /* other than + and LSL 2 */
                k->cycles = 2, k->latency = 4;
        }
        if (k->kind == STORE)
            k->reads |= (uint16_t)(1u << rd);
        else
            k->writes = (uint16_t)(1u << rd);
        if (!field(w, 24, 1) || field(w, 21, 1))
            k->base = (uint8_t)rn;
        if (k->writes >> 15)
            k->kind = RETURN;
        return;
    case 4:
        k->kind = field(w, 20, 1) ? LOAD : STORE;
        k->memory = (uint8_t)((bits_in(w & 0xffff) + 1) / 2);
        k->latency = 3;
        k->reads = k->early = (uint16_t)(1u << rn);
        if (field(w, 21, 1))
            k->base = (uint8_t)rn;
        if (k->kind == STORE)
            k->reads |= (uint16_t)(w & 0xffff);
        else
            k->writes = (uint16_t)(w & 0xffff);
        if (k->kind == LOAD && w >> 15 & 1)
            k->kind = RETURN;
        return;
    case 5:
        k->kind = BRANCH;
        k->target = at + 8 + (uint32_t)((int32_t)(w << 8) >> 6);
        if (field(w, 24, 1))
            k->writes = 1u << 14;
        return;
    default:
        if ((field(w, 8, 4) & 14) == 10 && field(w, 24, 4) != 15)
            decode_floating(w, k);
        else if (field(w, 24, 4) == 15)
            k->cycles = 8; /* SVC */
    }
}

/* ---- The pipeline ---- */

static struct {
    uint64_t now;
    uint64_t ready[17], forward[17];  /* core registers: for all; for a following accumulation */
    uint64_t locked[16];              /* by a store multiple that has not read them */
    uint64_t flags, v_flags;          /* the cycle from which they can be read */
    uint64_t flags_set;               /* when they were last set: branches soon after cost more when mispredicted */
    uint64_t port, math, divider;     /* the cycle from which a unit is free */
    uint64_t v_ready[32], v_read[32]; /* single registers: result there; last read */
    int length;                       /* of vectors */
} pipe;

static uint8_t predictor[128];
static uint32_t predictor_tag[128];
static uint64_t mispredicted;

static uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* A vector wraps around within its bank of eight. */
static int element(int first, int i)
{
    return (first & ~7) | ((first + i) & 7);
}

/* fpscr: what a V_CONTROL that writes it was handed is not visible here; estimate.py's program uses one other mode only, so
 * that writes toggle it. */
static void issue(const Work *k)
{
    uint64_t t = pipe.now;
    if (k->reads_flags)
        t = later(t, pipe.flags);
    for (uint32_t set = k->reads; set; set &= set - 1) {
        const int r = __builtin_ctz(set);
        t = later(t, r == k->accumulate ? pipe.forward[r] : pipe.ready[r] + (k->early >> r & 1));
    }
    if (k->accumulate < 16)
        t = later(t, pipe.forward[k->accumulate]);
    for (uint32_t set = k->writes; set; set &= set - 1)
        t = later(t, pipe.locked[__builtin_ctz(set)]);
    if (k->memory)
        t = later(t, pipe.port);
    const int vectors = k->kind == V_MATH && pipe.length > 1 && k->v_to >= 8 && k->v_width == 1;
    const int length = vectors ? pipe.length : 1;
    switch (k->kind) {
    case V_MATH:
        t = later(t, k->divide ? later(pipe.math, pipe.divider) : pipe.math);
        for (int i = 0; i < length; i++)
            for (int part = 0; part < k->v_width; part++) {
                for (int s = 0; s < 2; s++)
                    if (k->v_from[s] >= 0)
                        t = later(t, pipe.v_ready[s == 0 && k->v_from[0] < 8 ? k->v_from[0] + part :
                                                  vectors ? element(k->v_from[s], i) : k->v_from[s] + part]);
                const int to = vectors ? element(k->v_to, i) : k->v_to + part;
                t = later(t, later(pipe.v_ready[to], pipe.v_read[to]));
            }
        for (int i = 0; i < length; i++)
            for (int part = 0; part < k->v_width; part++) {
                const int to = vectors ? element(k->v_to, i) : k->v_to + part;
                if (k->sets_flags == 2)
                    pipe.v_flags = t + k->latency;
                else
                    pipe.v_ready[to] = t + (uint64_t)i + k->latency;
                for (int s = 0; s < 2; s++)
                    if (k->v_from[s] >= 0)
                        pipe.v_read[s == 0 && k->v_from[0] < 8 ? k->v_from[0] + part :
                                    vectors ? element(k->v_from[s], i) : k->v_from[s] + part] = t + (uint64_t)i + 2;
            }
        pipe.math = t + (uint64_t)length * (k->twice ? 2 : 1);
        if (k->divide)
            pipe.divider = t + (k->v_width == 2 ? 29 : 15);
        break;
    case V_LOAD:
        for (int i = 0; i < k->v_count; i++)
            t = later(t, later(pipe.v_ready[(k->v_to + i) & 31], pipe.v_read[(k->v_to + i) & 31]));
        for (int i = 0; i < k->v_count; i++)
            pipe.v_ready[(k->v_to + i) & 31] = t + 4 + (uint64_t)i / 2;
        break;
    case V_STORE:
        for (int i = 0; i < k->v_count; i++)
            t = later(t, pipe.v_ready[(k->v_from[0] + i) & 31] + 1);
        for (int i = 0; i < k->v_count; i++)
            pipe.v_read[(k->v_from[0] + i) & 31] = t + 3 + (uint64_t)i / 2;
        break;
    case V_READ:
        for (int i = 0; i < k->v_count; i++)
            t = later(t, pipe.v_ready[(k->v_from[0] + i) & 31] + 1);
        break;
    case V_WRITE:
        for (int i = 0; i < k->v_count; i++) {
            t = later(t, later(pipe.v_ready[(k->v_to + i) & 31], pipe.v_read[(k->v_to + i) & 31]));
            pipe.v_ready[(k->v_to + i) & 31] = t + 4;
        }
        break;
    case V_CONTROL:
        if (k->sets_flags)
            t = later(t, pipe.v_flags);
        else { /* these wait until all is done */
            t = later(t, later(pipe.math, pipe.divider));
            for (int i = 0; i < 32; i++)
                t = later(t, pipe.v_ready[i]);
            if (k->reads) {
                pipe.length = pipe.length == 1 ? 4 : 1;
                pipe.math = t + 4;
            }
        }
        break;
    }
    int order = 0;
    for (uint32_t set = k->writes; set; set &= set - 1, order++) {
        const int r = __builtin_ctz(set);
        uint64_t latency = k->latency;
        if (k->kind == LOAD || k->kind == RETURN)
            latency += (uint64_t)(k->memory > 1 ? order / 2 : 0);
        else if (k->kind == V_READ || k->kind == V_CONTROL)
            latency = 2;
        pipe.ready[r] = pipe.forward[r] = t + latency;
        if (k->kind == MULTIPLY)
            pipe.forward[r] = t + latency - 1;
    }
    order = 0;
    for (uint32_t set = k->kind == STORE ? k->reads : 0; set; set &= set - 1, order++)
        pipe.locked[__builtin_ctz(set)] = t + 1 + (uint64_t)(order + 1) / 2;
    if (k->base < 16) /* free for the next load or store at once: it is an early register */
        pipe.ready[k->base] = pipe.forward[k->base] = later(t, k->kind == V_LOAD || k->kind == V_STORE ? t : t);
    if (k->memory)
        pipe.port = t + k->memory;
    if (k->sets_flags == 1) {
        pipe.flags = t + (k->kind == V_CONTROL ? 2 : 1);
        pipe.flags_set = t;
    }
    pipe.now = t + k->cycles;
}

/* After a block: where execution went on tells what a branch at its end did. */
static void branch(const Block *b, uint32_t to)
{
    const Work *k = &b->work[b->count - 1];
    const uint32_t at = b->address + 4 * (b->count - 1);
    if (k->kind == RETURN) {
        if (to != at + 4)
            pipe.now += 3; /* 4 cycles: predicted by the return stack */
        return;
    }
    if (k->kind != BRANCH)
        return;
    const int taken = to != at + 4, known = predictor_tag[at / 4 % 128] == at;
    uint8_t *state = &predictor[at / 4 % 128];
    const int guess = known ? *state >= 2 : k->target <= at; /* backward ones are taken, if nothing is known */
    if (guess != taken) {
        const uint64_t since = pipe.now - pipe.flags_set;
        pipe.now += (since < 2 && k->conditional ? 7 - since : 5) - 1;
        mispredicted++;
    } else if (!known && taken)
        pipe.now += 3;
    if (!known) {
        predictor_tag[at / 4 % 128] = at;
        *state = taken ? 2 : 1;
    }
    *state = (uint8_t)(taken ? (*state < 3 ? *state + 1 : 3) : (*state ? *state - 1 : 0));
}

/* ---- Data caches ---- */

enum { LINE = 32, L1_SETS = 16384 / LINE / 4, L1_WAYS = 4, L2_SETS = 131072 / LINE / 8, L2_WAYS = 8 };

static uint32_t l1[L1_SETS][L1_WAYS], l2[L2_SETS][L2_WAYS];
static uint64_t l1_loads, l1_stores, l2_misses, prefetched;
static uint32_t last_store, draw = 1;

static int touch_l2(uint32_t line)
{
    uint32_t *set = l2[line % L2_SETS];
    int way = 0;
    while (way < L2_WAYS - 1 && set[way] != line + 1)
        way++;
    const int hit = set[way] == line + 1;
    memmove(set + 1, set, (size_t)way * sizeof *set); /* the least recently used goes */
    set[0] = line + 1;
    return hit;
}

/* L1: filled by loads only; which way goes is drawn. Stores that miss leave through the write buffer, which joins those to one
 * line. */
static void touch(uint32_t address, int store, int ahead)
{
    const uint32_t line = address / LINE;
    uint32_t *set = l1[line % L1_SETS];
    for (int way = 0; way < L1_WAYS; way++)
        if (set[way] == line + 1)
            return;
    if (store) {
        if (line + 1 == last_store)
            return;
        last_store = line + 1;
        l1_stores++;
        touch_l2(line);
        return;
    }
    int way = 0;
    while (way < L1_WAYS && set[way])
        way++;
    if (way == L1_WAYS) {
        draw = draw * 1664525u + 1013904223u;
        way = (int)(draw >> 30);
    }
    set[way] = line + 1;
    l1_loads++;
    prefetched += (uint64_t)ahead;
    l2_misses += !touch_l2(line);
}

/* ---- The plugin ---- */

static Block *blocks;
static const Block *before;
static uint64_t instructions;
static const char *out = "arm1176.txt";
static int fast, profile;

static void executed(unsigned cpu, void *data)
{
    Block *b = data;
    (void)cpu;
    if (before)
        branch(before, b->address);
    const uint64_t start = pipe.now;
    instructions += b->count;
    for (uint32_t i = 0; i < b->count; i++)
        issue(&b->work[i]);
    b->runs++;
    b->cycles += pipe.now - start;
    before = b;
}

static void accessed(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
    (void)cpu;
    (void)data;
    touch((uint32_t)address, qemu_plugin_mem_is_store(info), 0);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    const size_t count = qemu_plugin_tb_n_insns(tb);
    if (fast) {
        qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD, &instructions, count);
        return;
    }
    Block *b = calloc(1, sizeof *b);
    b->address = (uint32_t)qemu_plugin_tb_vaddr(tb);
    b->count = (uint32_t)count;
    b->work = calloc(count, sizeof *b->work);
    b->next = blocks;
    blocks = b;
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(instruction), 4);
        decode(word, b->address + 4 * (uint32_t)i, &b->work[i]);
        qemu_plugin_register_vcpu_mem_cb(instruction, accessed, NO_REGISTERS, READS_AND_WRITES, 0);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, NO_REGISTERS, b);
}

static void finish(qemu_plugin_id_t id, void *data)
{
    (void)id;
    (void)data;
    FILE *file = fopen(out, "w");
    if (!file)
        return;
    fprintf(file, "instructions %llu cycles %llu l1_loads %llu l1_stores %llu l2 %llu mispredicted %llu\n",
            (unsigned long long)instructions, (unsigned long long)pipe.now, (unsigned long long)l1_loads,
            (unsigned long long)l1_stores, (unsigned long long)l2_misses, (unsigned long long)mispredicted);
    for (const Block *b = profile ? blocks : 0; b; b = b->next)
        fprintf(file, "%x %u %llu %llu\n", b->address, b->count, (unsigned long long)b->runs, (unsigned long long)b->cycles);
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int count, char **arguments)
{
    (void)info;
    for (int i = 0; i < count; i++) {
        if (!strncmp(arguments[i], "out=", 4))
            out = strdup(arguments[i] + 4);
        fast |= !strcmp(arguments[i], "fast=on");
        profile |= !strcmp(arguments[i], "profile=on");
    }
    pipe.length = 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finish, 0);
    return 0;
}

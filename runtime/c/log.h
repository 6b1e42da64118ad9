/* The natural logarithm and the exponential, without the machine's library: the same bits everywhere. Part of mednca.c. */

/* ln 2 in two parts: the first has zeros at its end, so that its product with a small whole number is exact. */
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10

/* Of a finite number above 0. */
static double logarithm(double x)
{
    static const double parts[] = {1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1};
    uint64_t bits;
    int exponent = -1023;
    if (x < 2.2250738585072014e-308) { /* subnormal */
        x *= 18014398509481984.0;
        exponent -= 54;
    }
    memcpy(&bits, &x, 8);
    exponent += (int)(bits >> 52);
    bits = (bits & (((uint64_t)1 << 52) - 1)) | (uint64_t)1023 << 52;
    memcpy(&x, &bits, 8);
    if (x > 1.4142135623730951) {
        x *= 0.5;
        exponent++;
    }
    const double s = (x - 1) / (x + 1), square = s * s; /* log x = 2 (s + s^3 / 3 + s^5 / 5 + ...), |s| < 0.172 */
    double sum = 0;
    for (int i = 0; i < 10; i++)
        sum = sum * square + parts[i];
    return (double)exponent * LN2_HIGH + ((double)exponent * LN2_LOW + 2 * s * sum);
}

/* Of a number from -700 to 700. */
static double exponential(double x)
{
    static const double parts[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                   1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1,
                                   1};
    const int64_t twos = (int64_t)(x * 1.4426950408889634 + (x < 0 ? -0.5 : 0.5));
    const double rest = (x - (double)twos * LN2_HIGH) - (double)twos * LN2_LOW; /* |rest| < 0.347 */
    const uint64_t bits = (uint64_t)(1023 + twos) << 52;
    double power, sum = 0;
    memcpy(&power, &bits, 8);
    for (int i = 0; i < 13; i++)
        sum = sum * rest + parts[i];
    return sum * power;
}

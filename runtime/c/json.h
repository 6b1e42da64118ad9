/* JSON, read in place and never trusted. Part of mednca.c. */

typedef struct {
    const char *at, *end; /* a value; at is null where there is none */
} Json;

static const char *skip_space(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t'))
        p++;
    return p;
}

/* Start of a value -> just after it, or null where it is no JSON. */
static const char *skip_value(const char *p, const char *end, int depth)
{
    if ((p = skip_space(p, end)) >= end || depth > 32)
        return 0;
    if (*p == '"') {
        for (p++; p < end && *p != '"'; p++)
            if (*p == '\\')
                p++;
        return p < end ? p + 1 : 0;
    }
    if (*p == '{' || *p == '[') {
        const char close = *p == '{' ? '}' : ']';
        p = skip_space(p + 1, end);
        if (p < end && *p == close)
            return p + 1;
        while (p && p < end) {
            if (close == '}') {
                p = skip_space(p, end);
                if (p >= end || *p != '"' || !(p = skip_value(p, end, depth + 1)))
                    return 0;
                p = skip_space(p, end);
                if (p >= end || *p++ != ':')
                    return 0;
            }
            if (!(p = skip_value(p, end, depth + 1)) || (p = skip_space(p, end)) >= end)
                return 0;
            if (*p == close)
                return p + 1;
            if (*p++ != ',')
                return 0;
        }
        return 0;
    }
    const char *start = p;
    while (p < end && *p != ',' && *p != '}' && *p != ']' && *p != ' ' && *p != '\n' && *p != '\r' && *p != '\t')
        p++;
    return p > start ? p : 0;
}

/* The next entry of an object or array that has been skipped over once; *p starts at its bracket + 1. */
static int next_entry(const char **p, const char *end, int keyed, Json *key, Json *value)
{
    *p = skip_space(*p, end);
    if (*p < end && **p == ',')
        *p = skip_space(*p + 1, end);
    if (*p >= end || **p == '}' || **p == ']')
        return 0;
    if (keyed) {
        key->at = *p;
        *p = key->end = skip_value(*p, end, 0);
        if (!*p || (*p = skip_space(*p, end)) >= end)
            return 0;
        ++*p;
    }
    value->at = skip_space(*p, end);
    *p = value->end = skip_value(value->at, end, 0);
    return *p != 0;
}

static Json member(Json object, const char *name)
{
    Json key, value, none = {0, 0};
    if (!object.at || *object.at != '{' || !skip_value(object.at, object.end, 0))
        return none;
    const char *p = object.at + 1;
    while (next_entry(&p, object.end, 1, &key, &value)) {
        size_t length = strlen(name);
        if ((size_t)(key.end - key.at) == length + 2 && !memcmp(key.at + 1, name, length))
            return value;
    }
    return none;
}

/* Array of numbers -> how many there are, the first `most` of them in out; -1 where it is no such array. */
static int64_t numbers(Json array, double *out, int64_t most);

/* Number -> 1 and its value, else 0. Digits are taken as they are, so that no locale and no library has a say. */
static int number(Json value, double *out)
{
    static const double tens[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11};
    const char *p = value.at, *end = value.end;
    if (!p)
        return 0;
    int negative = p < end && *p == '-', digits = 0, exponent = 0, sign = 1, more = 0;
    uint64_t mantissa = 0;
    for (p += negative; p < end && (*p == '.' || (*p >= '0' && *p <= '9')); p++) {
        if (*p == '.') {
            if (more++)
                return 0;
            continue;
        }
        digits++;
        if (mantissa < 100000000000000000u) {
            mantissa = mantissa * 10 + (uint64_t)(*p - '0');
            exponent -= more;
        } else
            exponent += !more;
    }
    if (!digits)
        return 0;
    if (p < end && (*p == 'e' || *p == 'E')) {
        int power = 0;
        p++;
        if (p < end && (*p == '-' || *p == '+'))
            sign = *p++ == '-' ? -1 : 1;
        if (p >= end)
            return 0;
        for (; p < end && *p >= '0' && *p <= '9'; p++)
            power = power < 1000 ? power * 10 + (*p - '0') : power;
        exponent += sign * power;
    }
    if (p != end)
        return 0;
    double x = (double)mantissa;
    if (exponent > 400 || exponent < -400)
        exponent = exponent < 0 ? -400 : 400;
    for (; exponent < 0; exponent += exponent < -11 ? 11 : -exponent)
        x /= tens[exponent < -11 ? 11 : -exponent];
    for (; exponent > 0; exponent -= exponent > 11 ? 11 : exponent)
        x *= tens[exponent > 11 ? 11 : exponent];
    *out = negative ? -x : x;
    return 1;
}

static int64_t numbers(Json array, double *out, int64_t most)
{
    Json value, key;
    if (!array.at || *array.at != '[' || !skip_value(array.at, array.end, 0))
        return -1;
    const char *p = array.at + 1;
    int64_t count = 0;
    double x;
    while (next_entry(&p, array.end, 0, &key, &value)) {
        if (!number(value, &x))
            return -1;
        if (count < most)
            out[count] = x;
        count++;
    }
    return count;
}

static int is(Json value, const char *text)
{
    return value.at && (size_t)(value.end - value.at) == strlen(text) && !memcmp(value.at, text, strlen(text));
}

/* Member that is a whole number from low to high -> 1, else 0. */
static int whole(Json object, const char *name, int64_t low, int64_t high, int32_t *out)
{
    double x;
    if (!number(member(object, name), &x) || !(x >= (double)low && x <= (double)high) || x != (double)(int64_t)x)
        return 0;
    *out = (int32_t)x;
    return 1;
}

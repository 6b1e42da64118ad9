/* An opened model: read from a .safetensors file, checked, rewritten and packed. Part of mednca.c.
 *
 * All arithmetic here is +, -, x and / on doubles, each rounded on its own (no fused operations, no library
 * functions), so that every machine gets the same bits: the int16 path rests on that.
 */

/* Numbers that tell the usual shading of a channel, see field.h; points of a profile of its lines of k-space, and numbers that
 * tell what is usual of them, see spectrum.h. */
enum { FIELD_TERMS = 20, SPECTRUM_GRID = 24, SPECTRUM_TERMS = 1 + 3 * SPECTRUM_GRID };

struct mednca_model {
    mednca_facts facts;
    mednca_options options;
    const Kernels *kernels;
    int per_slice, has_spacing, has_size, has_roi, field; /* preprocessing */
    int32_t margin;
    double shadings[MEDNCA_MODALITIES][FIELD_TERMS]; /* for each channel the limit, and the usual terms */
    int spectrum; /* whether it is known what lines of k-space are usual */
    double spectra[MEDNCA_MODALITIES][SPECTRUM_TERMS]; /* for each channel the limit, and the profiles along x, y and z */
    int coarse; /* whether scans of coarse voxels are drawn on */
    double ways[3]; /* of coarse.h: the longest way (mm) from slice to slice in training, along each axis */
    double sizes[6]; /* of sizes.h: what is usual along each axis (mm), and the ratio to it that still is */
    double roi[6]; /* shares of the field of view: x from, to, y from, to, z from, to */
    double spacing[2];
    int64_t size[2];
    int32_t mirrors, mirror_axes[3]; /* of the body; run i mirrors axis k where bit k of i is set */
    double threshold;
    float logit, no_logit; /* of a class: above, the cell is foreground; at or below, with no other class above, it is not */
    uint32_t fire_threshold;
    int64_t n; /* channels, padded */
    Rule rules[MEDNCA_LEVELS];
    void *memory[12 * MEDNCA_LEVELS]; /* what to free */
    int memories;
};

static void find_logits(mednca_model *m);

static int fail(char *message, size_t size, const char *text)
{
    if (message && size) {
        size_t length = strlen(text) < size - 1 ? strlen(text) : size - 1;
        memcpy(message, text, length);
        message[length] = 0;
    }
    return 1;
}

/* ---- The file ---- */

/* A string value with the escapes of JSON taken out, in new memory. Escaped characters other than ASCII become '?'. */
static char *unescaped(Json text, size_t *length)
{
    char *out = malloc((size_t)(text.end - text.at) + 1), *to = out;
    if (!out)
        return 0;
    for (const char *p = text.at + 1; p < text.end - 1; p++) {
        if (*p != '\\') {
            *to++ = *p;
        } else if (++p < text.end - 1) {
            const char *pair = "\"\"\\\\//b\bf\fn\nr\rt\t"; /* what stands behind the backslash, what it means */
            while (*pair && *pair != *p)
                pair += 2;
            *to++ = *pair ? pair[1] : '?';
            if (*p == 'u')
                p += text.end - 1 - p > 4 ? 4 : 0;
        }
    }
    *length = (size_t)(to - out);
    return out;
}

/* Up to three numbers of axes, each once; returns 0 where they are not that. */
static int are_axes(const double *x, int64_t count, int32_t *axes)
{
    for (int64_t i = 0; i < count && count <= 3; i++) {
        if (!(x[i] == 0 || x[i] == 1 || x[i] == 2))
            return 0;
        axes[i] = (int32_t)x[i];
        for (int64_t k = 0; k < i; k++)
            if (axes[k] == axes[i])
                return 0;
    }
    return count >= 0 && count <= 3;
}

/* The axes to cut across; a file of version 1 may name one. Returns 0 where they are not one to three different ones. */
static int read_axes(mednca_facts *f, Json prepare)
{
    double x[3];
    Json several = member(prepare, "axes");
    f->views = several.at ? (int32_t)numbers(several, x, 3) : 1;
    if (!several.at && !number(member(prepare, "axis"), x))
        return 0;
    return f->views >= 1 && are_axes(x, f->views, f->axes);
}

/* The axes that runs mirror; a file may name none. */
static int read_mirrors(mednca_model *m, Json predict)
{
    double x[3];
    Json axes = member(predict, "mirror");
    m->mirrors = axes.at ? (int32_t)numbers(axes, x, 3) : 0;
    return are_axes(x, m->mirrors, m->mirror_axes);
}

static int read_config(mednca_model *m, Json config, char *message, size_t size)
{
    mednca_facts *f = &m->facts;
    Json rule = member(config, "model"), prepare = member(config, "preprocess"), predict = member(config, "predict");
    double x[256];
    Json baseline = member(config, "baseline"); /* another network, or an automaton of the same form */
    if (baseline.at && !is(baseline, "null") && !is(member(baseline, "name"), "\"seg_nca\""))
        return fail(message, size, "the model is no cellular automaton but a baseline, which needs PyTorch");
    if (!whole(rule, "image_channels", 1, 4096, &f->image_channels) || !whole(rule, "classes", 1, MEDNCA_CLASSES, &f->classes) ||
        !whole(rule, "channels", 2, 4096, &f->channels) || !whole(rule, "hidden", 1, 65536, &f->hidden))
        return fail(message, size, "the model's sizes are missing or out of range; get the file again");
    f->depthwise = is(member(rule, "perception"), "\"depthwise\"");
    if (!f->depthwise && !is(member(rule, "perception"), "\"dense\""))
        return fail(message, size, "the model's perception must be dense or depthwise; get the file again");
    int64_t levels = numbers(member(rule, "scales"), x, MEDNCA_LEVELS);
    if (levels < 1 || levels > MEDNCA_LEVELS)
        return fail(message, size, "the model must have 1 to 8 levels");
    f->levels = (int32_t)levels;
    for (int i = 0; i < levels; i++) {
        if (!(x[i] >= 1 && x[i] <= 1024) || x[i] != (double)(int32_t)x[i])
            return fail(message, size, "the model's scales must be whole numbers from 1 to 1024");
        f->scales[i] = (int32_t)x[i];
        if (i && (f->scales[i] >= f->scales[i - 1] || f->scales[i - 1] % f->scales[i]))
            return fail(message, size, "each of the model's scales must be a multiple of the next");
    }
    if (f->scales[levels - 1] != 1)
        return fail(message, size, "the model's last scale must be 1");
    if (numbers(member(rule, "steps"), x, MEDNCA_LEVELS) != levels)
        return fail(message, size, "the model must have a number of steps for each level");
    for (int i = 0; i < levels; i++) {
        if (!(x[i] >= 1 && x[i] <= 100000) || x[i] != (double)(int32_t)x[i])
            return fail(message, size, "the model's steps must be whole numbers from 1 to 100000");
        f->steps[i] = (int32_t)x[i];
    }
    if (!number(member(rule, "fire_rate"), x) || !(x[0] > 0 && x[0] <= 1))
        return fail(message, size, "the model's fire rate must be in (0, 1]");
    m->fire_threshold = (uint32_t)even(x[0] * 16777216.0);
    if (f->image_channels + f->classes > f->channels)
        return fail(message, size, "the model has fewer channels than image and classes need");
    if (!whole(prepare, "modalities", 1, MEDNCA_MODALITIES, &f->modalities) || !whole(prepare, "context", 0, 2048, &f->context) ||
        !read_axes(f, prepare) || f->modalities * (2 * f->context + 1) != f->image_channels)
        return fail(message, size, "the model's preprocessing is missing or does not fit its rule");
    m->per_slice = is(member(prepare, "normalise"), "\"slice\"");
    if (!m->per_slice && !is(member(prepare, "normalise"), "\"volume\""))
        return fail(message, size, "the model's normalisation must be per volume or per slice");
    Json field = member(prepare, "field"); /* a file may leave it out; true, of old files, is a limit of 0 */
    m->field = field.at && !is(field, "false") && !is(field, "null");
    const int64_t told = (int64_t)f->modalities * FIELD_TERMS;
    if (m->field && (m->per_slice || (!is(field, "true") && numbers(field, &m->shadings[0][0], told) != told)))
        return fail(message, size, "the usual bias field must be 20 numbers for each channel, with volumes only");
    for (int32_t c = 0; m->field && c < f->modalities; c++)
        if (!(m->shadings[c][0] >= 0))
            return fail(message, size, "the limit of a bias field must not be negative");
    m->margin = 0; /* a file may leave it out */
    if (member(prepare, "margin").at && !whole(prepare, "margin", 0, 1024, &m->margin))
        return fail(message, size, "the margin of the model's slices must be a whole number from 0 to 1024");
    m->has_spacing = !is(member(prepare, "spacing"), "null");
    if (m->has_spacing && (numbers(member(prepare, "spacing"), m->spacing, 2) != 2 || !(m->spacing[0] > 0 && m->spacing[1] > 0)))
        return fail(message, size, "the model's spacing must be two numbers > 0");
    m->has_size = !is(member(prepare, "size"), "null");
    if (m->has_size) {
        if (numbers(member(prepare, "size"), x, 2) != 2 || !(x[0] >= 2 && x[1] >= 2 && x[0] <= 65536 && x[1] <= 65536))
            return fail(message, size, "the model's slice size must be two numbers >= 2");
        m->size[0] = (int64_t)x[0];
        m->size[1] = (int64_t)x[1];
    }
    Json roi = member(prepare, "roi");
    m->has_roi = roi.at && !is(roi, "null");
    if (m->has_roi && numbers(roi, m->roi, 6) != 6)
        return fail(message, size, "the model's region of interest must be six numbers");
    for (int i = 0; m->has_roi && i < 6; i += 2)
        if (!(m->roi[i] >= 0 && m->roi[i] < m->roi[i + 1] && m->roi[i + 1] <= 1))
            return fail(message, size, "the model's region of interest must be three pairs of rising shares from 0 to 1");
    if (f->views > 1 && !m->has_size && m->has_spacing && m->spacing[0] != m->spacing[1])
        return fail(message, size, "a model of several axes must have one spacing for all, or a slice size");
    if (!number(member(predict, "threshold"), &m->threshold) || !(m->threshold > 0 && m->threshold < 1) ||
        !whole(predict, "ensemble", 1, 10000, &f->ensemble))
        return fail(message, size, "the model's threshold or ensemble is missing or out of range");
    if (!read_mirrors(m, predict))
        return fail(message, size, "the axes that the model's runs mirror must be different ones of 0, 1 and 2");
    Json sizes = member(predict, "sizes"); /* a file may leave it out */
    f->second_look = sizes.at && !is(sizes, "null");
    if (f->second_look && numbers(sizes, m->sizes, 6) != 6)
        return fail(message, size, "the usual sizes of the organ must be six numbers");
    for (int i = 0; f->second_look && i < 3; i++)
        if (!(m->sizes[i] > 0 && m->sizes[3 + i] > 1))
            return fail(message, size, "the usual sizes of the organ must be positive, and the ratios above 1");
    Json lines = member(predict, "spectrum"); /* a file may leave it out */
    m->spectrum = lines.at && !is(lines, "null");
    const int64_t points = (int64_t)f->modalities * SPECTRUM_TERMS;
    if (m->spectrum && numbers(lines, &m->spectra[0][0], points) != points)
        return fail(message, size, "the usual lines of k-space must be 73 numbers for each channel");
    for (int32_t c = 0; m->spectrum && c < f->modalities; c++) {
        for (int i = 0; i < SPECTRUM_TERMS; i++)
            if (!(m->spectra[c][i] - m->spectra[c][i] == 0))
                return fail(message, size, "the usual lines of k-space must be finite numbers");
        if (!(m->spectra[c][0] > 0))
            return fail(message, size, "the limit of unusual lines of k-space must be above 0");
    }
    Json ways = member(predict, "coarse"); /* a file may leave it out */
    m->coarse = ways.at && !is(ways, "null");
    if (m->coarse && numbers(ways, m->ways, 3) != 3)
        return fail(message, size, "the usual distances of slices must be three numbers");
    for (int i = 0; m->coarse && i < 3; i++)
        if (!(m->ways[i] > 0 && m->ways[i] - m->ways[i] == 0))
            return fail(message, size, "the usual distances of slices must be above 0");
    f->smoothing = 0;
    if (member(predict, "smoothing").at && !whole(predict, "smoothing", 0, 1000, &f->smoothing))
        return fail(message, size, "how often the model's slices are smoothed must be a whole number from 0 to 1000");
    f->largest_component = is(member(predict, "largest_component"), "true");
    Json piece = member(predict, "piece"); /* a file may leave it out */
    if (piece.at && !is(piece, "\"largest\"") && !is(piece, "\"surest\""))
        return fail(message, size, "the piece of the model's mask that is kept must be the largest or the surest");
    if (f->largest_component && is(piece, "\"surest\""))
        f->largest_component = 2;
    if (numbers(member(config, "values"), x, 256) != f->classes)
        return fail(message, size, "the model must have a mask value for each class");
    for (int k = 0; k < f->classes; k++) {
        if (!(x[k] >= 1 && x[k] <= 255))
            return fail(message, size, "the model's mask values must be from 1 to 255");
        f->values[k] = (uint8_t)x[k];
    }
    return 0;
}

/* The tensor levels.LEVEL.NAME of the file as doubles, `count` of them, into out. */
static int tensor(Json header, const char *data, size_t data_size, int level, const char *name, int64_t count, double *out,
                  char *message, size_t size)
{
    char full[64], text[160];
    double offsets[2], shape[8];
    snprintf(full, sizeof full, "levels.%d.%s", level, name);
    Json entry = member(header, full);
    int64_t axes = numbers(member(entry, "shape"), shape, 8), elements = 1;
    int good = entry.at && is(member(entry, "dtype"), "\"F32\"") && axes > 0 && axes <= 8 &&
               numbers(member(entry, "data_offsets"), offsets, 2) == 2;
    for (int64_t i = 0; good && i < axes; i++) {
        good = shape[i] >= 1 && shape[i] <= (double)count;
        elements *= good ? (int64_t)shape[i] : 1;
        good = good && elements <= count;
    }
    good = good && elements == count && offsets[0] >= 0 && offsets[1] == offsets[0] + 4.0 * (double)count &&
           offsets[1] <= (double)data_size;
    if (!good) {
        snprintf(text, sizeof text, "weights %s are missing or of another shape than the model's sizes; get the file again", full);
        return fail(message, size, text);
    }
    const unsigned char *p = (const unsigned char *)data + (size_t)offsets[0];
    for (int64_t i = 0; i < count; i++, p += 4) {
        uint32_t bits = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        float value;
        memcpy(&value, &bits, 4);
        if ((bits >> 23 & 255) == 255) {
            snprintf(text, sizeof text, "weights %s are not finite; get the file again", full);
            return fail(message, size, text);
        }
        out[i] = (double)value;
    }
    return 0;
}

/* ---- The rule, rewritten ---- */

/* A level's weights as doubles. Rows of filters: view; columns: tap, channel (dense) or tap (depthwise). */
typedef struct {
    int64_t n, v, h; /* channels, views, hidden units; not padded */
    double *filters, *bias, *w1, *b1, *w2;       /* (v, 9n or 9), (v), (h, n + v), (h), (n, h) */
    double *state_range, *view_range, *hidden_range;
    int32_t *order; /* of the hidden units: those that became views, then the others */
    double condition;
} Exact;

/* Conv and first dense layer have no nonlinearity between them: v of the hidden units can take the place of the views.
 * They are chosen by pivoted Gram-Schmidt, and everything is expressed in them. Exact but for rounding, which grows with
 * the condition number (Frobenius norm, an upper bound of the usual one); refused above 1000. memory: doubles. */
static int rewrite(Exact *e, double *memory)
{
    const int64_t n = e->n, v = e->v, h = e->h, wide = 9 * n, in = n + v;
    double *rest = memory, *inverse = rest + h * v, *g = inverse + v * v, *filters = g + v * v, *bias = filters + v * wide;
    double *coefficients = bias + v;
    if (h < v)
        return 0;
    for (int64_t i = 0; i < h; i++) {
        e->order[i] = (int32_t)i;
        memcpy(rest + i * v, e->w1 + i * in + n, (size_t)v * sizeof(double));
    }
    for (int64_t pick = 0; pick < v; pick++) {
        int64_t best = pick;
        double most = -1;
        for (int64_t i = pick; i < h; i++) {
            double norm = 0, *r = rest + e->order[i] * v;
            for (int64_t j = 0; j < v; j++)
                norm += r[j] * r[j];
            if (norm > most) {
                most = norm;
                best = i;
            }
        }
        if (!(most > 0))
            return 0;
        int32_t chosen = e->order[best];
        e->order[best] = e->order[pick];
        e->order[pick] = chosen;
        for (int64_t i = pick + 1; i < h; i++) {
            double *r = rest + e->order[i] * v, *p = rest + chosen * v, dot = 0;
            for (int64_t j = 0; j < v; j++)
                dot += r[j] * p[j];
            dot /= most;
            for (int64_t j = 0; j < v; j++)
                r[j] -= dot * p[j];
        }
    }
    double norm = 0, inverse_norm = 0;
    for (int64_t i = 0; i < v; i++)
        for (int64_t j = 0; j < v; j++) {
            g[i * v + j] = rest[i * v + j] = e->w1[e->order[i] * in + n + j]; /* rest: worked on below */
            inverse[i * v + j] = i == j;
            norm += g[i * v + j] * g[i * v + j];
        }
    for (int64_t k = 0; k < v; k++) { /* Gauss-Jordan with row pivots */
        int64_t best = k;
        for (int64_t i = k + 1; i < v; i++)
            if ((rest[i * v + k] < 0 ? -rest[i * v + k] : rest[i * v + k]) >
                (rest[best * v + k] < 0 ? -rest[best * v + k] : rest[best * v + k]))
                best = i;
        double pivot = rest[best * v + k];
        if (pivot == 0)
            return 0;
        for (int64_t j = 0; j < v; j++) {
            double a = rest[best * v + j], b = inverse[best * v + j];
            rest[best * v + j] = rest[k * v + j];
            inverse[best * v + j] = inverse[k * v + j];
            rest[k * v + j] = a / pivot;
            inverse[k * v + j] = b / pivot;
        }
        for (int64_t i = 0; i < v; i++) {
            double factor = rest[i * v + k];
            if (i == k || factor == 0)
                continue;
            for (int64_t j = 0; j < v; j++) {
                rest[i * v + j] -= factor * rest[k * v + j];
                inverse[i * v + j] -= factor * inverse[k * v + j];
            }
        }
    }
    for (int64_t i = 0; i < v * v; i++)
        inverse_norm += inverse[i] * inverse[i];
    if (!(norm * inverse_norm <= 1e6))
        return 0;
    e->condition = norm * inverse_norm; /* its square root, by Newton's method */
    for (int i = 0; i < 40; i++)
        e->condition = (e->condition + norm * inverse_norm / e->condition) / 2;
    for (int64_t i = 0; i < v; i++) { /* the chosen hidden units as filters */
        const double *row = e->w1 + e->order[i] * in;
        for (int64_t k = 0; k < wide; k++) {
            double sum = k / n == 4 ? row[k % n] : 0;
            for (int64_t j = 0; j < v; j++)
                sum += g[i * v + j] * e->filters[j * wide + k];
            filters[i * wide + k] = sum;
        }
        bias[i] = e->b1[e->order[i]];
        for (int64_t j = 0; j < v; j++)
            bias[i] += g[i * v + j] * e->bias[j];
    }
    for (int64_t r = v; r < h; r++) { /* the others in terms of them */
        double *row = e->w1 + e->order[r] * in;
        for (int64_t i = 0; i < v; i++) {
            coefficients[i] = 0;
            for (int64_t j = 0; j < v; j++)
                coefficients[i] += row[n + j] * inverse[j * v + i];
        }
        for (int64_t i = 0; i < v; i++) {
            const double *chosen = e->w1 + e->order[i] * in;
            for (int64_t c = 0; c < n; c++)
                row[c] -= coefficients[i] * chosen[c];
            e->b1[e->order[r]] -= coefficients[i] * e->b1[e->order[i]];
            row[n + i] = coefficients[i];
        }
    }
    memcpy(e->filters, filters, (size_t)(v * wide) * sizeof(double));
    memcpy(e->bias, bias, (size_t)v * sizeof(double));
    return 1;
}

/* ---- Packing ---- */

static void *keep(mednca_model *m, size_t bytes)
{
    void *memory = m->memories < 12 * MEDNCA_LEVELS ? malloc(bytes + 64) : 0;
    if (!memory)
        return 0;
    memset(memory, 0, bytes + 64);
    m->memory[m->memories++] = memory;
    return (void *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
}

/* Where weight (k, column) lies. Columns come in panels that the kernels hold in registers; within a panel rows follow each
 * other, in int16 in pairs: that is what the instructions multiply at a time. */
static int64_t place(const Kernels *kernels, const Layer *layer, int64_t k, int64_t column, int int16)
{
    if (layer->plain)
        return k * layer->width + column;
    const int64_t panel = column / kernels->panel * kernels->panel;
    const int64_t wide = layer->width - panel < kernels->panel ? layer->width - panel : kernels->panel;
    if (int16 && kernels->pairs)
        return panel * layer->depth + (k / 2 * wide + column - panel) * 2 + k % 2;
    return panel * layer->depth + k * wide + column - panel;
}

/* Room for a layer. */
static int lay(mednca_model *m, Layer *layer, int64_t depth, int64_t width)
{
    const int int16 = m->options.numbers == MEDNCA_INT16;
    layer->depth = depth;
    layer->width = width;
    layer->weights = keep(m, (size_t)(depth * width) * (int16 ? 2 : 4));
    layer->start = keep(m, (size_t)width * 4);
    layer->shift = keep(m, (size_t)width * 4);
    return layer->weights && layer->start && layer->shift;
}

/* One column of a layer: `count` weights that belong to the inputs at[], and its start. In int16 in[] are the units of the
 * inputs, and out that of the result; a shift is chosen with which no sum can leave 32 bits, whatever the inputs.
 * positive: inputs are never negative. Returns 1 where there is no such shift. */
static int column(const mednca_model *m, Layer *layer, int64_t to, int64_t count, const double *weights, const int64_t *at,
                  double start, const double *in, double out, int positive)
{
    if (m->options.numbers == MEDNCA_FP32) {
        for (int64_t k = 0; k < count; k++)
            ((float *)layer->weights)[place(m->kernels, layer, at[k], to, 0)] = (float)weights[k];
        ((float *)layer->start)[to] = (float)start;
        return 0;
    }
    double power = 16777216.0;
    for (int shift = 24; shift >= 0; shift--, power /= 2) {
        double up = 0, down = 0, most = 0;
        for (int64_t k = 0; k < count; k++) {
            double q = weights[k] * in[k] * power / out;
            q = q < 0 ? -q : q;
            most = q > most ? q : most;
            up += weights[k] > 0 ? q + 0.5 : 0;
            down += weights[k] < 0 ? q + 0.5 : 0;
        }
        double bias = start * power / out, sum = positive ? (up > down ? up : down) : up + down;
        if (!(most < 32767 && sum * 32767 + (bias < 0 ? -bias : bias) + power < 2147483000.0))
            continue;
        int16_t *packed = layer->weights;
        for (int64_t k = 0; k < count; k++)
            packed[place(m->kernels, layer, at[k], to, 1)] = (int16_t)nearest(weights[k] * in[k] * power / out);
        ((int32_t *)layer->start)[to] = (int32_t)nearest(bias) + (shift ? (int32_t)1 << (shift - 1) : 0);
        layer->shift[to] = shift;
        return 0;
    }
    return 1;
}

/* ---- Opening ---- */

static int64_t padded(int64_t count, int64_t multiple)
{
    return (count + multiple - 1) / multiple * multiple;
}

/* Ranges of a level -> e; the header's {"levels": [{"state": [...], "views": [...], "hidden": [...]}, ...]}. */
static int read_range(Json range, int level, Exact *e)
{
    Json key, entry, list = member(range, "levels");
    if (!list.at || *list.at != '[' || !skip_value(list.at, list.end, 0))
        return 0;
    const char *p = list.at + 1;
    for (int i = 0; next_entry(&p, list.end, 0, &key, &entry); i++)
        if (i == level) {
            int good = numbers(member(entry, "state"), e->state_range, e->n) == e->n &&
                       numbers(member(entry, "views"), e->view_range, e->v) == e->v &&
                       numbers(member(entry, "hidden"), e->hidden_range, e->h) == e->h;
            for (int64_t k = 0; good && k < e->n + e->v + e->h; k++)
                good = e->state_range[k] >= 0 && e->state_range[k] < 1e30; /* the three lie one after the other */
            return good;
        }
    return 0;
}

/* Half of the numbers are kept for states that are larger than what was seen. */
static double unit(double range)
{
    return (range > 1e-3 ? range : 1e-3) * 2 / 32767;
}

/* Rule in doubles -> layers. Returns 1 where memory ran out, 2 where int16 cannot hold it. */
static int build(mednca_model *m, Rule *r, const Exact *e, double *scratch)
{
    const Kernels *k = m->kernels;
    const int64_t n = e->n, v = e->v, h = e->h, wide = padded(n, k->lanes), first = r->rewritten ? v : 0;
    const int depthwise = m->facts.depthwise;
    const int64_t views = depthwise ? 2 * wide : padded(v, k->lanes), hidden = padded(h - first, k->lanes);
    double *state_unit = scratch, *view_unit = state_unit + n, *hidden_unit = view_unit + v, *in = hidden_unit + h;
    double *weights = in + 9 * n + n + v + h;
    int64_t *at = (int64_t *)(weights + 9 * n + n + v + h);
    int bad = 0;
#define VIEW(j) (depthwise ? (j) / n * wide + (j) % n : (j))
    for (int64_t c = 0; c < n; c++)
        state_unit[c] = c < m->facts.image_channels ? 1.0 / 32767 : unit(e->state_range[c]);
    for (int64_t j = 0; j < v; j++)
        view_unit[j] = unit(first ? e->hidden_range[e->order[j]] : e->view_range[j]);
    for (int64_t j = 0; j < h; j++)
        hidden_unit[j] = unit(e->hidden_range[e->order[j]]);
    r->views.plain = depthwise;
    r->scale = keep(m, (size_t)wide * sizeof(float));
    if (!r->scale || !lay(m, &r->views, depthwise ? 9 : 9 * wide, views) || !lay(m, &r->hidden, wide + views, hidden) ||
        !lay(m, &r->out, (first ? views : 0) + hidden, wide))
        return 1;
    for (int64_t c = 0; c < wide; c++)
        r->scale[c] = c < n ? (float)state_unit[c] : 1.0f;
    for (int64_t j = 0; j < v; j++) { /* views */
        const int64_t count = depthwise ? 9 : 9 * n;
        for (int64_t i = 0; i < count; i++) {
            at[i] = depthwise ? i : i / n * wide + i % n;
            in[i] = state_unit[depthwise ? j % n : i % n];
        }
        bad |= column(m, &r->views, VIEW(j), count, e->filters + j * count, at, e->bias[j], in, view_unit[j], 0);
    }
    for (int64_t i = 0; i < n + v; i++) { /* hidden units */
        at[i] = i < n ? i : wide + VIEW(i - n);
        in[i] = i < n ? state_unit[i] : view_unit[i - n];
    }
    for (int64_t j = first; j < h; j++)
        bad |= column(m, &r->hidden, j - first, n + v, e->w1 + e->order[j] * (n + v), at, e->b1[e->order[j]], in,
                      hidden_unit[j], 0);
    for (int64_t j = 0; j < h; j++) { /* the residual */
        at[j] = j < first ? j : (first ? views : 0) + j - first;
        in[j] = j < first ? view_unit[j] : hidden_unit[j];
    }
    for (int64_t c = m->facts.image_channels; c < n; c++) {
        for (int64_t j = 0; j < h; j++)
            weights[j] = e->w2[c * h + e->order[j]];
        bad |= column(m, &r->out, c, h, weights, at, 0, in, state_unit[c], 1);
    }
    return bad ? 2 : 0;
#undef VIEW
}

static int open_level(mednca_model *m, Json header, Json range, const char *data, size_t data_size, int level, char *message,
                      size_t size)
{
    const mednca_facts *f = &m->facts;
    Rule *r = &m->rules[level];
    Exact e = {.n = f->channels, .v = 2 * f->channels, .h = f->hidden};
    const int64_t n = e.n, v = e.v, h = e.h, taps = f->depthwise ? 9 : 9 * n;
    const int64_t doubles = v * taps + v + h * (n + v) + h + n * h + n + v + h + h;
    const int64_t work = h * v + 2 * v * v + 9 * v * n + 2 * v + 3 * (10 * n + v + h) + n + v + h;
    double *memory = doubles + work < ((int64_t)1 << 27) ? malloc((size_t)(doubles + work) * sizeof(double)) : 0;
    if (!memory)
        return fail(message, size, "no memory for the model");
    e.filters = memory;
    e.bias = e.filters + v * taps;
    e.w1 = e.bias + v;
    e.b1 = e.w1 + h * (n + v);
    e.w2 = e.b1 + h;
    e.state_range = e.w2 + n * h;
    e.view_range = e.state_range + n;
    e.hidden_range = e.view_range + v;
    e.order = (int32_t *)(e.hidden_range + h);
    double *scratch = memory + doubles;
    int status = 0;
    for (int view = 0; view < 2 && !status; view++) { /* (out, in, 3, 3) -> view; tap, channel */
        status = tensor(header, data, data_size, level, view ? "perceive_b.weight" : "perceive_a.weight", n * taps, scratch,
                        message, size) ||
                 tensor(header, data, data_size, level, view ? "perceive_b.bias" : "perceive_a.bias", n, e.bias + view * n,
                        message, size);
        for (int64_t i = 0; !status && i < n * taps; i++) {
            const int64_t out = i / taps, channel = i % taps / 9, tap = i % 9;
            e.filters[(view * n + out) * taps + (f->depthwise ? tap : tap * n + channel)] = scratch[i];
        }
    }
    status = status ||
             tensor(header, data, data_size, level, "update_in.weight", h * (n + v), e.w1, message, size) ||
             tensor(header, data, data_size, level, "update_in.bias", h, e.b1, message, size) ||
             tensor(header, data, data_size, level, "update_out.weight", n * h, e.w2, message, size);
    if (!status) {
        for (int64_t j = 0; j < h; j++)
            e.order[j] = (int32_t)j;
        for (int64_t j = 0; j < n + v + h; j++)
            e.state_range[j] = 1; /* unused in fp32 */
        const int ranged = read_range(range, level, &e);
        m->facts.has_range = (level == 0 || m->facts.has_range) && ranged;
        if (m->options.numbers == MEDNCA_INT16 && !ranged)
            status = fail(message, size, "the model holds no ranges of its states, which int16 needs; "
                                         "add them with 'mednca calibrate' or take fp32");
        r->rewritten = !status && m->options.gauge && !f->depthwise && rewrite(&e, scratch);
        if (!r->rewritten) /* a refused rewrite may have changed the order */
            for (int64_t j = 0; j < h; j++)
                e.order[j] = (int32_t)j;
        m->facts.condition[level] = r->rewritten ? e.condition : 0;
    }
    if (!status && (status = build(m, r, &e, scratch)) != 0)
        fail(message, size, status == 1 ? "no memory for the model" : "the model's numbers do not fit int16; take fp32");
    free(memory);
    return status != 0;
}

mednca_model *mednca_open(const void *bytes, size_t size, const mednca_options *options, char *message, size_t message_size)
{
    static const mednca_options standard = {.numbers = MEDNCA_FP32, .gauge = 1, .gate = -1};
    const unsigned char *file = bytes;
    uint64_t length = 0;
    for (int i = 7; file && size >= 8 && i >= 0; i--)
        length = length << 8 | file[i];
    if (!file || size < 8 || length < 2 || length > size - 8 || length > 100000000) {
        fail(message, message_size, "not a complete .safetensors file; get it again");
        return 0;
    }
    mednca_model *m = malloc(sizeof *m);
    if (!m) {
        fail(message, message_size, "no memory for the model");
        return 0;
    }
    memset(m, 0, sizeof *m);
    m->options = options ? *options : standard;
    char *text = 0;
    size_t text_length = 0;
    int status = 1;
    const char *name = m->options.instructions;
    for (int i = 0; mednca_instructions(i) && !m->kernels; i++)
        if (!name || !strcmp(name, mednca_instructions(i)))
            m->kernels = find_kernels(mednca_instructions(i));
    Json header = {(const char *)file + 8, (const char *)file + 8 + length};
    header.at = skip_space(header.at, header.end);
    if (!m->kernels)
        fail(message, message_size, "this machine or this build does not have these instructions");
    else if (header.at >= header.end || *header.at != '{' || !skip_value(header.at, header.end, 0))
        fail(message, message_size, "not a complete .safetensors file; get it again");
    else {
        Json told = member(member(header, "__metadata__"), "mednca"), config;
        int32_t version = 0;
        if (told.at && *told.at == '"')
            text = unescaped(told, &text_length);
        Json about = {text, text ? text + text_length : 0};
        if (text)
            about.at = skip_space(about.at, about.end);
        if (!text || about.at >= about.end || !skip_value(about.at, about.end, 0) ||
            !is(member(about, "format"), "\"mednca-model\""))
            fail(message, message_size, "a .safetensors file, but not a mednca model");
        else if (!whole(about, "version", 1, 1000000, &version) || version > MEDNCA_VERSION)
            fail(message, message_size, "the model is of a newer format than this program reads; get a newer one");
        else if (config = member(about, "config"), !read_config(m, config, message, message_size)) {
            status = 0;
            for (int level = 0; level < m->facts.levels && !status; level++)
                status = open_level(m, header, member(about, "range"), (const char *)file + 8 + length,
                                    size - 8 - (size_t)length, level, message, message_size);
        }
    }
    free(text);
    if (status) {
        mednca_close(m);
        return 0;
    }
    mednca_facts *f = &m->facts;
    f->parameters = 0;
    for (int level = 0; level < f->levels; level++) {
        f->parameters += 2 * f->channels * ((f->depthwise ? 9 : 9 * f->channels) + 1) + f->hidden * (4 * f->channels + 1);
        if (m->options.steps[level] > 0)
            f->steps[level] = m->options.steps[level];
    }
    if (m->options.ensemble > 0)
        f->ensemble = m->options.ensemble;
    f->numbers = m->options.numbers;
    find_logits(m);
    strncpy(f->instructions, m->kernels->name, sizeof f->instructions - 1);
    m->n = padded(f->channels, m->kernels->lanes);
    return m;
}

void mednca_close(mednca_model *model)
{
    if (!model)
        return;
    for (int i = 0; i < model->memories; i++)
        free(model->memory[i]);
    free(model);
}

void mednca_about(const mednca_model *model, mednca_facts *facts)
{
    *facts = model->facts;
}

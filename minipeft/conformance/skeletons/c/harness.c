/* LoRA in C99, judged by recorded cases: README.md says how to run this, and how to go on.
 *
 * What goes wrong in a case ends it with give_up(), which jumps back to answer(); all memory is freed after every answer. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 64, RANKS = 8, LONGEST = 1 << 28 };

/* --- giving up, and memory ------------------------------------------------------------------------------------------ */

static jmp_buf given_up;
static int answering;
static const char *status, *id; /* id: of the question, NULL if it has none */
static char reason[400];

/* End the case with a status of the protocol: "unsupported", "rejected", or "error". Does not return. */
static void give_up(const char *with, const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    vsnprintf(reason, sizeof reason, format, rest);
    va_end(rest);
    status = with;
    if (answering) longjmp(given_up, 1);
    fprintf(stderr, "%s\n", reason);
    exit(1);
}

typedef union Block {
    union Block *next;
    long double aligned;
} Block;

static Block *blocks;

/* n zeroed things of a size, until the case is answered. */
static void *room(size_t n, size_t size) {
    if (size && n > (SIZE_MAX - sizeof(Block)) / size) give_up("error", "more memory is asked for than there can be");
    Block *block = calloc(1, sizeof *block + n * size);
    if (!block) give_up("error", "no memory is left");
    block->next = blocks;
    blocks = block;
    return block + 1;
}

static void free_all(void) {
    while (blocks) {
        Block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
}

/* Bytes that grow. A zero always follows the last. */
typedef struct {
    char *bytes;
    size_t size, held;
} Text;

static void push(Text *text, const void *bytes, size_t n) {
    if (n > LONGEST - text->size) give_up("error", "more than %d bytes", (int)LONGEST);
    if (text->size + n + 1 > text->held) {
        size_t held = 2 * (text->size + n + 1);
        char *grown = room(held, 1);
        if (text->size) memcpy(grown, text->bytes, text->size);
        text->bytes = grown;
        text->held = held;
    }
    if (n) memcpy(text->bytes + text->size, bytes, n);
    text->size += n;
    text->bytes[text->size] = 0;
}

static void push_words(Text *text, const char *format, ...) {
    char words[200];
    va_list rest;
    va_start(rest, format);
    int n = vsnprintf(words, sizeof words, format, rest);
    va_end(rest);
    if (n < 0 || (size_t)n >= sizeof words) give_up("error", "a name is too long");
    push(text, words, (size_t)n);
}

/* --- JSON ----------------------------------------------------------------------------------------------------------- */
/* Bytes that are no ASCII pass through strings as they are: a path is what the system says it is. */

typedef enum { NOTHING, TRUTH, NUMBER, STRING, ARRAY, OBJECT } Kind;

typedef struct Json {
    Kind kind;
    double number;              /* 0 or 1 for a truth */
    const char *key, *string;   /* key: its name, if it stands in an object */
    struct Json *first, *next;  /* first: of an array or object; next: beside it */
} Json;

/* All text read ends with a zero, which no rule below accepts: so nothing is read beyond the end. */
typedef struct {
    const char *at;
    int depth;
} Reader;

static void space(Reader *in) {
    while (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r') in->at++;
}

static int accept(Reader *in, char c) {
    space(in);
    if (*in->at != c) return 0;
    in->at++;
    return 1;
}

static void expect(Reader *in, char c) {
    if (!accept(in, c)) give_up("error", "JSON: expected '%c', found '%.10s'", c, in->at);
}

static unsigned long hex4(Reader *in) {
    unsigned long found = 0;
    for (int i = 0; i < 4; i++, in->at++) {
        const char *digits = "0123456789abcdef0123456789ABCDEF", *digit = *in->at ? strchr(digits, *in->at) : NULL;
        if (!digit) give_up("error", "JSON: expected four hexadecimal digits after \\u");
        found = found * 16 + (unsigned long)(digit - digits) % 16;
    }
    return found;
}

/* The character after \u, as UTF-8; two halves of a surrogate pair are one. */
static void push_unicode(Text *out, Reader *in) {
    unsigned long c = hex4(in);
    if (c >= 0xD800 && c < 0xDC00 && in->at[0] == '\\' && in->at[1] == 'u') {
        in->at += 2;
        unsigned long low = hex4(in);
        if (low < 0xDC00 || low > 0xDFFF) give_up("error", "JSON: half a surrogate pair");
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    if (c == 0 || (c >= 0xD800 && c <= 0xDFFF)) give_up("error", "JSON: \\u%04lx is not read here", c);
    unsigned char bytes[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; c >>= 6) bytes[i] = (unsigned char)(0x80 | (c & 0x3F));
    bytes[0] = (unsigned char)((n == 1 ? 0 : n == 2 ? 0xC0 : n == 3 ? 0xE0 : 0xF0) | c);
    push(out, bytes, n);
}

static const char *read_string(Reader *in) {
    Text out = {0};
    expect(in, '"');
    push(&out, "", 0);
    while (*in->at != '"') {
        if ((unsigned char)*in->at < 0x20) give_up("error", "JSON: a string does not end");
        if (*in->at != '\\') {
            push(&out, in->at++, 1);
            continue;
        }
        const char *names = "\"\\/bfnrt", *stand_for = "\"\\/\b\f\n\r\t";
        in->at++;
        const char *name = *in->at ? strchr(names, *in->at) : NULL;
        if (name) {
            push(&out, stand_for + (name - names), 1);
            in->at++;
        } else if (*in->at == 'u') {
            in->at++;
            push_unicode(&out, in);
        } else {
            give_up("error", "JSON: an unknown escape in a string");
        }
    }
    in->at++;
    return out.bytes;
}

static void digits(Reader *in) {
    if (*in->at < '0' || *in->at > '9') give_up("error", "JSON: expected a digit, found '%.10s'", in->at);
    while (*in->at >= '0' && *in->at <= '9') in->at++;
}

static double read_number(Reader *in) {
    const char *begin = in->at;
    if (*in->at == '-') in->at++;
    if (*in->at == '0') in->at++;
    else digits(in);
    if (*in->at == '.') {
        in->at++;
        digits(in);
    }
    if (*in->at == 'e' || *in->at == 'E') {
        in->at++;
        if (*in->at == '+' || *in->at == '-') in->at++;
        digits(in);
    }
    double found = strtod(begin, NULL); /* it reads all that was just seen, and no more */
    if (!isfinite(found)) give_up("error", "JSON: a number is too large");
    return found;
}

static Json *read_value(Reader *in) {
    Json *value = room(1, sizeof *value);
    space(in);
    if (*in->at == '{' || *in->at == '[') {
        char end = *in->at == '{' ? '}' : ']';
        value->kind = end == '}' ? OBJECT : ARRAY;
        in->at++;
        if (++in->depth > DEEPEST) give_up("error", "JSON: nested deeper than %d", (int)DEEPEST);
        Json **last = &value->first;
        if (!accept(in, end)) {
            do {
                const char *key = NULL;
                if (end == '}') {
                    key = read_string(in);
                    expect(in, ':');
                }
                *last = read_value(in);
                (*last)->key = key;
                last = &(*last)->next;
            } while (accept(in, ','));
            expect(in, end);
        }
        in->depth--;
    } else if (*in->at == '"') {
        value->kind = STRING;
        value->string = read_string(in);
    } else if (!strncmp(in->at, "true", 4) || !strncmp(in->at, "null", 4)) {
        value->kind = *in->at == 't' ? TRUTH : NOTHING;
        value->number = *in->at == 't';
        in->at += 4;
    } else if (!strncmp(in->at, "false", 5)) {
        value->kind = TRUTH;
        in->at += 5;
    } else {
        value->kind = NUMBER;
        value->number = read_number(in);
    }
    return value;
}

static const Json *read_json(Text text) {
    Reader in = {text.bytes, 0};
    const Json *value = read_value(&in);
    space(&in);
    if (in.at != text.bytes + text.size) give_up("error", "JSON: expected its end, found '%.10s'", in.at);
    return value;
}

/* The value of a key, NULL if there is none. */
static const Json *member(const Json *object, const char *key) {
    const Json *found = NULL;
    if (object->kind != OBJECT) give_up("error", "expected a JSON object with %s", key);
    for (const Json *i = object->first; i; i = i->next) {
        if (strcmp(i->key, key)) continue;
        if (found) give_up("error", "%s is there twice", key);
        found = i;
    }
    return found;
}

/* The value of a key, which must be there and of a kind. */
static const Json *wanted(const Json *object, const char *key, Kind kind) {
    static const char *names[] = {"null", "true or false", "a number", "a string", "an array", "an object"};
    const Json *found = member(object, key);
    if (!found || found->kind != kind) give_up("error", "expected %s named %s", names[kind], key);
    return found;
}

static size_t whole(const Json *value) {
    double n = value->kind == NUMBER ? value->number : -1;
    if (!(n >= 0 && n <= 9007199254740992.0 && n <= (double)(SIZE_MAX / 2) && floor(n) == n))
        give_up("error", "expected a whole number that is not negative");
    return (size_t)n;
}

/* --- files ---------------------------------------------------------------------------------------------------------- */

typedef struct Tensor {
    const char *name;
    size_t rank, shape[RANKS], size; /* size: how many numbers */
    double *data;
    struct Tensor *next;
} Tensor;

static Text read_file(const char *folder, const char *name) {
    Text path = {0}, out = {0};
    push(&path, folder, strlen(folder));
    push(&path, "/", 1);
    push(&path, name, strlen(name));
    FILE *file = fopen(path.bytes, "rb");
    if (!file) give_up("error", "%.300s cannot be opened", path.bytes);
    char part[4096];
    size_t n, total = 0;
    push(&out, "", 0);
    while ((n = fread(part, 1, sizeof part, file)) > 0 && (total += n) < LONGEST) push(&out, part, n);
    int bad = ferror(file) || total >= LONGEST;
    fclose(file);
    if (bad) give_up("error", "%.300s cannot be read, or is too large", path.bytes);
    return out;
}

static uint64_t little_endian(const char *bytes, size_t n) {
    uint64_t found = 0;
    while (n-- > 0) found = found << 8 | (unsigned char)bytes[n];
    return found;
}

/* The bytes of a number, 0 for a dtype that is not read here. */
static size_t width_of(const char *dtype) {
    if (!strcmp(dtype, "F64") || !strcmp(dtype, "I64")) return 8;
    if (!strcmp(dtype, "F32") || !strcmp(dtype, "I32")) return 4;
    return !strcmp(dtype, "U8");
}

static double number_of(const char *dtype, uint64_t bits) {
    uint32_t few = (uint32_t)bits;
    double wide;
    float narrow;
    memcpy(&wide, &bits, sizeof wide);
    memcpy(&narrow, &few, sizeof narrow);
    if (!strcmp(dtype, "F64")) return wide;
    if (!strcmp(dtype, "F32")) return narrow;
    if (!strcmp(dtype, "I64")) return (double)(int64_t)bits;
    return !strcmp(dtype, "I32") ? (double)(int32_t)few : (double)few;
}

/* The last axis is `columns`, all others are rows. */
static size_t columns(const Tensor *t) { return t->rank ? t->shape[t->rank - 1] : 1; }

static Tensor *read_tensors(const char *folder, const char *name) {
    Text file = read_file(folder, name), header = {0};
    if (file.size < 8 || little_endian(file.bytes, 8) > file.size - 8)
        give_up("error", "%s: the header is longer than the file", name);
    size_t n = (size_t)little_endian(file.bytes, 8), left = file.size - 8 - n;
    push(&header, file.bytes + 8, n);
    const char *data = file.bytes + 8 + n;
    const Json *entries = read_json(header);
    if (entries->kind != OBJECT) give_up("error", "%s: the header is no JSON object", name);
    Tensor *found = NULL;
    for (const Json *entry = entries->first; entry; entry = entry->next) {
        if (!strcmp(entry->key, "__metadata__")) continue;
        Tensor *t = room(1, sizeof *t);
        t->name = entry->key;
        t->size = 1;
        for (const Json *d = wanted(entry, "shape", ARRAY)->first; d; d = d->next) {
            if (t->rank == RANKS) give_up("error", "%.200s has more than %d axes", t->name, (int)RANKS);
            size_t wide = t->shape[t->rank++] = whole(d);
            if (wide && t->size > LONGEST / wide) give_up("error", "%.200s is too large", t->name);
            t->size *= wide;
        }
        const char *dtype = wanted(entry, "dtype", STRING)->string;
        size_t width = width_of(dtype);
        if (!width) give_up("error", "%.200s is of dtype %.20s, which is not read here", t->name, dtype);
        const Json *offset = wanted(entry, "data_offsets", ARRAY)->first;
        if (!offset || !offset->next || offset->next->next) give_up("error", "%.200s has no two offsets", t->name);
        size_t begin = whole(offset), end = whole(offset->next);
        if (begin > end || end > left || end - begin != t->size * width)
            give_up("error", "the data of %.200s do not have its shape", t->name);
        t->data = room(t->size, sizeof *t->data);
        for (size_t i = 0; i < t->size; i++)
            t->data[i] = number_of(dtype, little_endian(data + begin + i * width, width));
        t->next = found;
        found = t;
    }
    return found;
}

static void write_tensors(const char *path, const Tensor *tensors) {
    Text header = {0}, out = {0};
    size_t at = 0;
    push(&header, "{", 1);
    for (const Tensor *t = tensors; t; t = t->next) {
        push_words(&header, "%s\"%s\":{\"dtype\":\"F64\",\"shape\":[", t == tensors ? "" : ",", t->name);
        for (size_t i = 0; i < t->rank; i++) push_words(&header, "%s%zu", i ? "," : "", t->shape[i]);
        push_words(&header, "],\"data_offsets\":[%zu,%zu]}", at, at + 8 * t->size);
        at += 8 * t->size;
    }
    push(&header, "}", 1);
    while (header.size % 8) push(&header, " ", 1);
    for (int i = 0; i < 8; i++) push(&out, &(char){(char)((uint64_t)header.size >> 8 * i & 0xFF)}, 1);
    push(&out, header.bytes, header.size);
    for (const Tensor *t = tensors; t; t = t->next) {
        for (size_t i = 0; i < t->size; i++) {
            uint64_t bits;
            memcpy(&bits, &t->data[i], 8);
            unsigned char bytes[8];
            for (int k = 0; k < 8; k++) bytes[k] = (unsigned char)(bits >> 8 * k & 0xFF);
            push(&out, bytes, 8);
        }
    }
    FILE *file = fopen(path, "wb");
    if (!file) give_up("error", "%.300s cannot be written", path);
    size_t written = fwrite(out.bytes, 1, out.size, file);
    if (fclose(file) || written != out.size) give_up("error", "%.300s cannot be written whole", path);
}

/* --- a case --------------------------------------------------------------------------------------------------------- */

typedef struct {
    const Json *config;
    const Tensor *given;
    Tensor *results;
} Case;

/* A tensor given, NULL if there is none. */
static const Tensor *find(const Case *the, const char *name) {
    const Tensor *t = the->given;
    while (t && strcmp(t->name, name)) t = t->next;
    return t;
}

static const Tensor *need(const Case *the, const char *name) {
    const Tensor *t = find(the, name);
    if (!t) give_up("error", "the tensor %s is missing", name);
    return t;
}

/* A result with the axes of another tensor, but the last of them `wide`; it holds zeros. */
static double *give(Case *the, const char *name, const Tensor *like, size_t wide) {
    Tensor *t = room(1, sizeof *t), **last = &the->results;
    *t = *like;
    t->name = name;
    t->next = NULL;
    t->shape[t->rank - 1] = wide;
    t->size = 1;
    for (size_t i = 0; i < t->rank; i++) t->size *= t->shape[i];
    t->data = room(t->size, sizeof *t->data);
    while (*last) last = &(*last)->next;
    *last = t;
    return t->data;
}

/* A result that begins as a copy of a tensor given. */
static double *give_copy(Case *the, const char *name, const Tensor *of) {
    double *data = give(the, name, of, columns(of));
    memcpy(data, of->data, of->size * sizeof *data);
    return data;
}

/* A matrix is data and the steps from row to row and from column to column: turned round, it is the same data. */
typedef struct {
    const double *data;
    size_t rows, columns, down, right;
} Matrix;

static Matrix matrix(const double *data, size_t rows, size_t columns) {
    return (Matrix){data, rows, columns, columns, 1};
}

static Matrix turned(Matrix a) { return (Matrix){a.data, a.columns, a.rows, a.right, a.down}; }

/* C ← C + s A B */
static void add_product(double *c, double s, Matrix a, Matrix b) {
    if (a.columns != b.rows) give_up("error", "matrices of %zu and %zu do not multiply", a.columns, b.rows);
    for (size_t i = 0; i < a.rows; i++) {
        for (size_t j = 0; j < b.columns; j++) {
            double sum = 0;
            for (size_t k = 0; k < a.columns; k++)
                sum += a.data[i * a.down + k * a.right] * b.data[k * b.down + j * b.right];
            c[i * b.columns + j] += s * sum;
        }
    }
}

/* --- methods: a method more is functions here, and a line in METHODS ------------------------------------------------ */

/* What LoRA computes with: y = x Wᵀ + b + s (x Aᵀ) Bᵀ + s c. */
typedef struct {
    size_t rows, in, out, r;
    const Tensor *x_as_given, *c_as_given, *A_as_given, *B_as_given;
    Matrix x, seen, W, A, B; /* seen: x as A sees it */
    const double *b, *c, *keep;
    double s, kept;
} LoRA;

static const double *of_shape(const Tensor *t, size_t rows, size_t wide) {
    if (!t->rank || !wide || columns(t) != wide || t->size % wide || t->size / wide != rows) /* no product overflows */
        give_up("error", "%.200s has another shape", t->name);
    return t->data;
}

/* `seen`, or the gradient through it: a ∘ keep / (1 − p), if there is a dropout mask. */
static Matrix dropped(const LoRA *l, Matrix a) {
    if (!l->keep) return a;
    double *data = room(l->rows * l->in, sizeof *data);
    for (size_t i = 0; i < l->rows * l->in; i++) data[i] = a.data[i] * l->keep[i] / l->kept;
    return matrix(data, l->rows, l->in);
}

/* LoRA's tensors and settings; x only where an ask needs it. */
static LoRA lora_of(const Case *the, int with_x) {
    const Tensor *W = need(the, "W"), *keep = find(the, "keep");
    LoRA l = {0};
    size_t r = whole(wanted(the->config, "r", NUMBER));
    double alpha = wanted(the->config, "alpha", NUMBER)->number;
    if (W->rank != 2 || !W->size || !r) give_up("error", "W has no rows and columns, or r is 0");
    l.out = W->shape[0], l.in = W->shape[1], l.r = r;
    l.s = alpha / (wanted(the->config, "rslora", TRUTH)->number ? sqrt((double)r) : (double)r);
    l.A_as_given = need(the, "A"), l.B_as_given = need(the, "B"), l.c_as_given = find(the, "c");
    l.W = matrix(W->data, l.out, l.in);
    l.A = matrix(of_shape(l.A_as_given, l.r, l.in), l.r, l.in);
    l.B = matrix(of_shape(l.B_as_given, l.out, l.r), l.out, l.r);
    l.b = of_shape(need(the, "b"), 1, l.out);
    l.c = l.c_as_given ? of_shape(l.c_as_given, 1, l.out) : NULL;
    if (!with_x) return l;
    l.x_as_given = need(the, "x");
    l.rows = l.x_as_given->size / l.in;
    l.x = matrix(of_shape(l.x_as_given, l.rows, l.in), l.rows, l.in);
    l.keep = keep ? of_shape(keep, l.rows, l.in) : NULL;
    l.kept = 1 - wanted(the->config, "dropout", NUMBER)->number;
    l.seen = dropped(&l, l.x);
    return l;
}

/* y, and on the way there what a trace holds. */
static void lora_forward(Case *the) {
    LoRA l = lora_of(the, 1);
    double *base = give(the, "0.base", l.x_as_given, l.out), *h = give(the, "1.h", l.x_as_given, l.r);
    double *low = give(the, "2.low", l.x_as_given, l.out), *y = give(the, "6.y", l.x_as_given, l.out);
    for (size_t i = 0; i < l.rows * l.out; i++) base[i] = l.b[i % l.out];
    add_product(base, 1, l.x, turned(l.W));
    add_product(h, 1, l.seen, turned(l.A));
    add_product(low, 1, matrix(h, l.rows, l.r), turned(l.B));
    for (size_t i = 0; i < l.rows * l.out; i++) y[i] = base[i] + l.s * (low[i] + (l.c ? l.c[i % l.out] : 0));
}

static void lora_vjp(Case *the) {
    LoRA l = lora_of(the, 1);
    Matrix g = matrix(of_shape(need(the, "g.y"), l.rows, l.out), l.rows, l.out);
    double *low = room(l.rows * l.r, sizeof *low), *g_low = room(l.rows * l.r, sizeof *low);
    double *g_seen = room(l.rows * l.in, sizeof *g_seen), *g_x = give(the, "x", l.x_as_given, l.in);
    add_product(low, 1, l.seen, turned(l.A));
    add_product(g_low, l.s, g, l.B);
    add_product(g_seen, 1, matrix(g_low, l.rows, l.r), l.A);
    memcpy(g_x, dropped(&l, matrix(g_seen, l.rows, l.in)).data, l.rows * l.in * sizeof *g_x);
    add_product(g_x, 1, g, l.W);
    add_product(give(the, "A", l.A_as_given, l.in), 1, turned(matrix(g_low, l.rows, l.r)), l.seen);
    add_product(give(the, "B", l.B_as_given, l.r), l.s, turned(g), matrix(low, l.rows, l.r));
    if (!l.c) return;
    double *g_c = give(the, "c", l.c_as_given, l.out);
    for (size_t i = 0; i < l.rows * l.out; i++) g_c[i % l.out] += l.s * g.data[i];
}

/* Makes W and b, copies of the base's, the merged ones. */
static void lora_merged(const Case *the, double *W, double *b) {
    LoRA l = lora_of(the, 0);
    add_product(W, l.s, l.B, l.A);
    for (size_t i = 0; l.c && i < l.out; i++) b[i] += l.s * l.c[i];
}

/* A function that is NULL is answered `unsupported`. */
typedef struct {
    const char *name;
    void (*forward)(Case *), (*vjp)(Case *);
    void (*merged)(const Case *, double *W, double *b);
} Method;

static const Method METHODS[] = {
    {"lora", lora_forward, lora_vjp, lora_merged},
};

/* --- asks, and the protocol ----------------------------------------------------------------------------------------- */

static void solve(Case *the, const Method *method, const char *ask) {
    int forward = !strcmp(ask, "forward"), vjp = !strcmp(ask, "vjp");
    int merge = !strcmp(ask, "merge"), delta = !strcmp(ask, "delta");
    if (forward && method->forward) {
        method->forward(the);
        while (strcmp(the->results->name, "6.y")) the->results = the->results->next;
        the->results->name = "y";
    } else if (vjp && method->vjp) {
        method->vjp(the);
    } else if ((merge || delta) && method->merged) {
        const Tensor *base = need(the, "W"), *bias = need(the, "b");
        if (!base->rank || !bias->rank) give_up("error", "W or b is a single number");
        double *W = give_copy(the, delta ? "delta" : "W", base), *b = give_copy(the, "b", bias);
        method->merged(the, W, b);
        for (size_t i = 0; delta && i < base->size; i++) W[i] -= base->data[i];
    } else {
        give_up("unsupported", "%.40s of %s is not there", ask, method->name);
    }
}

/* Write the intermediates of the outputs, for `minipeft verify bisect`. */
static void trace(Case the, const Method *method, const char *path) {
    the.results = NULL;
    method->forward(&the);
    method->merged(&the, give_copy(&the, "5.merged", need(&the, "W")), give_copy(&the, "b", need(&the, "b")));
    write_tensors(path, the.results);
}

/* A JSON string of ASCII. */
static void print_string(const char *text) {
    putchar('"');
    for (const char *c = text; *c; c++) {
        if (*c < 0x20 || *c > 0x7E) putchar('?'); /* a reason may be cut within a character */
        else printf(*c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    }
    putchar('"');
}

/* An answer begins with the id of its question. */
static void begin_answer(const char *with) {
    printf("{");
    if (id) {
        printf("\"id\": ");
        print_string(id);
        printf(", ");
    }
    printf("\"status\": \"%s\"", with);
}

static void answer_case(const Json *asked) {
    const char *folder = wanted(asked, "folder", STRING)->string;
    const Json *dtype = member(asked, "dtype"), *traced = member(asked, "trace"), *about = read_json(read_file(folder, "case.json"));
    const char *name = wanted(about, "method", STRING)->string, *place = wanted(about, "place", STRING)->string;
    const Method *method = NULL;
    for (size_t i = 0; i < sizeof METHODS / sizeof *METHODS; i++)
        if (!strcmp(METHODS[i].name, name)) method = &METHODS[i];
    if (!method) give_up("unsupported", "%.40s is not there", name);
    if (strcmp(place, "linear")) give_up("unsupported", "the place %.40s is not there", place);
    if (dtype && (dtype->kind != STRING || strcmp(dtype->string, "float64")))
        give_up("unsupported", "only float64 is there");
    Case the = {wanted(about, "config", OBJECT), read_tensors(folder, "in.safetensors"), NULL};
    solve(&the, method, wanted(about, "ask", STRING)->string);
    write_tensors(wanted(asked, "out", STRING)->string, the.results);
    if (traced && traced->kind == STRING && method->forward && method->merged) trace(the, method, traced->string);
    begin_answer("done");
    printf("}\n");
}

static void answer_start(const Json *asked) {
    const Json *format = member(asked, "format");
    if (!format || format->kind != NUMBER || format->number != 1) {
        fprintf(stderr, "expected format 1\n");
        exit(1);
    }
    printf("{\"name\": \"mine\", \"version\": \"0.1\", \"language\": \"C\", \"dtypes\": [\"float64\"], \"methods\": [");
    for (size_t i = 0; i < sizeof METHODS / sizeof *METHODS; i++) printf("%s\"%s\"", i ? ", " : "", METHODS[i].name);
    printf("], \"readings\": {}}\n");
}

static void answer(Text line) {
    if (setjmp(given_up)) {
        begin_answer(status);
        printf(", \"reason\": ");
        print_string(reason);
        printf(", \"url\": \"\"}\n");
        return;
    }
    answering = 1;
    id = NULL;
    const Json *asked = read_json(line), *question = member(asked, "id");
    if (question && question->kind == STRING) id = question->string;
    const char *what = wanted(asked, "do", STRING)->string;
    if (!strcmp(what, "stop")) exit(0);
    else if (!strcmp(what, "start")) answer_start(asked);
    else if (!strcmp(what, "case")) answer_case(asked);
    else give_up("error", "expected start, case or stop, found %.40s", what);
}

int main(void) {
    for (;;) {
        Text line = {0};
        int c = getchar();
        if (c == EOF) return 0;
        push(&line, "", 0);
        for (; c != EOF && c != '\n'; c = getchar()) push(&line, &(char){(char)c}, 1);
        answer(line);
        answering = 0;
        fflush(stdout);
        free_all();
    }
}

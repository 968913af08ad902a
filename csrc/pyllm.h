/* pyllm: run language models from GGUF files on the CPU. The one public header; C11, compiles alone.
 *
 * Every fallible function returns PYLLM_OK (0) or a negative pyllm_status and fills *err (caller-owned, may be NULL).
 * Nothing prints, aborts or exits. Objects are freed by their own _free / _close function, NULL is fine there. Unless
 * said otherwise an object may be used by one thread at a time; different objects are independent. */
#ifndef PYLLM_H
#define PYLLM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define PYLLM_API __declspec(dllexport)
#else
#define PYLLM_API __attribute__((visibility("default")))
#endif

#pragma GCC visibility push(default)
/* The part between the marks is also read by the Python build (cffi); keep it free of other preprocessor lines. */
/* cdef begin */

/* ---- errors ---------------------------------------------------------------------------------------------------- */
enum pyllm_status {
    PYLLM_OK = 0,
    PYLLM_ERR_ARG = -1,         /* a wrong argument */
    PYLLM_ERR_MEMORY = -2,      /* memory or threads ran out; nothing was changed */
    PYLLM_ERR_IO = -3,          /* the system refused to open, read or write */
    PYLLM_ERR_FORMAT = -4,      /* a file that breaks its format's rules */
    PYLLM_ERR_UNSUPPORTED = -5, /* valid, but not something this build can run */
    PYLLM_ERR_FULL = -6,        /* no free page or no room in the context; nothing was changed */
    PYLLM_ERR_CANCELLED = -7,   /* the cancel flag was seen; the step left every sequence as before it */
    PYLLM_ERR_STATE = -8        /* a saved state that does not fit this model or fails its checksum */
};

typedef struct pyllm_error {
    int32_t code;
    char message[1020];         /* UTF-8; "what, where" and, on a second line, "hint: next step" */
} pyllm_error;

/* Version of this header's binary interface; the Python package refuses a library that differs. */
int pyllm_abi_version(void);

/* ---- CPU and kernels --------------------------------------------------------------------------------------------- */
/* Levels compiled in and supported by this CPU, best last, space-separated: "ref avx2 avx512vnni". Static storage. */
const char *pyllm_cpu_levels(void);
/* The level that PYLLM_CPU or detection selects. NULL level = that one. The k-th kernel of the level's table as
   "slot=symbol" (symbol ends in the level it was written for), NULL past the end. Static storage. */
const char *pyllm_cpu_level(void);
const char *pyllm_kernel_name(const char *level, int k);
/* Threads that a model gets by default: physical cores allowed by affinity mask and cgroup quota. */
int pyllm_threads_default(void);
/* Measures how many bytes a second n_threads workers (1 to 1024) read from memory together: the median of several passes over a
   buffer of `bytes` (at least 1 MB; take several times the size of the caches), which is taken and given back. */
int pyllm_read_bandwidth(int n_threads, int64_t bytes, double *bytes_per_s, pyllm_error *err);
/* Measures how many 8-bit multiply-adds a second n_threads workers do together with the level's dot product (NULL: the one in force) and nothing
   else: the bound of a quantized matmul. */
int pyllm_dot_peak(const char *level, int n_threads, double *macs_per_s, pyllm_error *err);

/* ---- float environment: rounding to nearest, subnormals kept --------------------------------------------------------
   Every function here that computes sets it and gives the caller's back. Callers whose own arithmetic goes on a tape or into
   parameters set it too: enter returns what restore takes. Of the calling thread. */
uint64_t pyllm_float_env_enter(void);
void pyllm_float_env_restore(uint64_t saved);

/* ---- deterministic mathematics (base/math): the only source of transcendental numbers on a tape -------------------- */
double pyllm_math_exp(double x);
double pyllm_math_log(double x);
double pyllm_math_pow(double x, double y);
double pyllm_math_sin(double x);
double pyllm_math_cos(double x);

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */
typedef struct pyllm_gguf pyllm_gguf;

typedef struct pyllm_kv {
    const char *key;            /* NUL-terminated, owned by the file object */
    uint32_t type;              /* GGUF value type: 0 u8 1 i8 2 u16 3 i16 4 u32 5 i32 6 f32 7 bool 8 string 9 array 10 u64 11 i64 12 f64 */
    uint32_t item_type;         /* of an array; otherwise equal to type */
    uint64_t count;             /* items of an array; otherwise 1 */
    const void *data;           /* count packed little-endian items (possibly unaligned); strings: see pyllm_gguf_string */
} pyllm_kv;

typedef struct pyllm_tensor {
    const char *name;           /* NUL-terminated, owned by the file object */
    uint32_t type;              /* GGUF tensor type id */
    uint32_t n_dims;            /* 1..4 */
    int64_t ne[4];              /* elements per dimension, ne[0] contiguous; unused = 1 */
    uint64_t bytes;             /* of the tensor's data */
    int32_t file;               /* index of the file that holds it: of a split set, then added ones */
    uint64_t offset;            /* of the data in that file */
} pyllm_tensor;

/* Reads and checks the header of a GGUF v2/v3 file, of all files of a split set when path is its first one. Tensor data is
   read with pread on demand; nothing is mapped. */
int pyllm_gguf_open(const char *path, pyllm_gguf **out, pyllm_error *err);
/* Adds the tensors of another file, an adapter's, under names that begin with prefix; its keys are not kept. Pointers that g gave before are
   no longer valid. After an error g can only be closed. */
int pyllm_gguf_add(pyllm_gguf *g, const char *path, const char *prefix, pyllm_error *err);
void pyllm_gguf_close(pyllm_gguf *g);
int64_t pyllm_gguf_n_kv(const pyllm_gguf *g);
int64_t pyllm_gguf_n_tensors(const pyllm_gguf *g);
/* Entry i in file order. Out of range: PYLLM_ERR_ARG. */
int pyllm_gguf_kv(const pyllm_gguf *g, int64_t i, pyllm_kv *out);
int pyllm_gguf_tensor(const pyllm_gguf *g, int64_t i, pyllm_tensor *out);
/* Item j of a string value or string array (bytes, not NUL-terminated; *len bytes, owned by g); NULL if there is none. */
const char *pyllm_gguf_string(const pyllm_gguf *g, int64_t i, uint64_t j, uint64_t *len);
/* Copies raw bytes [begin, begin + n) of tensor i into dst. PYLLM_ERR_IO also if the file was written to since it was opened. */
int pyllm_gguf_read(const pyllm_gguf *g, int64_t i, uint64_t begin, uint64_t n, void *dst, pyllm_error *err);
/* Tensor types by id: name ("q4_k") or NULL; elements and bytes of a block (0 if unknown). */
const char *pyllm_type_name(uint32_t type);
int64_t pyllm_type_elems(uint32_t type);
int64_t pyllm_type_bytes(uint32_t type);
/* n elements (a multiple of the block) of src to f32, exactly as the format defines; integers convert by value. */
int pyllm_dequantize(uint32_t type, const void *src, int64_t n, float *dst, pyllm_error *err);
/* n_rows rows of `width` floats, row-major, to blocks of `type`, row after row in dst (n_rows * width / elems * bytes), with the sum of
   weights[column] * (x - decoded)^2 as small as the encoder gets it. weights: [width] importance per column (>= 0, finite), or NULL for 1.
   n_threads (1 to 1024) workers share the blocks; the bytes don't depend on their number nor on the CPU. f16 and bf16 values and scales that
   would overflow become the largest finite ones. PYLLM_ERR_ARG: a width that is not whole blocks, a value that is not finite (the first one
   is named), a wrong weight; PYLLM_ERR_UNSUPPORTED: a type without encoder. On an error dst's contents are undefined. */
int pyllm_quantize(uint32_t type, const float *src, int64_t n_rows, int64_t width, const float *weights, int n_threads, void *dst,
                   pyllm_error *err);

/* ---- tokenizer --------------------------------------------------------------------------------------------------- */
typedef struct pyllm_tokenizer pyllm_tokenizer;

/* Builds the tokenizer that the file's tokenizer.ggml.* keys describe. The file may be closed afterwards. After creation the
   object is immutable: all functions below may be called from any number of threads. */
int pyllm_tokenizer_new(const pyllm_gguf *g, pyllm_tokenizer **out, pyllm_error *err);
void pyllm_tokenizer_free(pyllm_tokenizer *t);
int32_t pyllm_tokenizer_size(const pyllm_tokenizer *t);
/* Text (n bytes, any bytes) to ids. add_special: BOS/EOS as the file asks; parse_special: control tokens in the text become their
   ids. Returns the number of ids; writes at most max of them, so a call with max 0 sizes the buffer. */
int64_t pyllm_tokenize(const pyllm_tokenizer *t, const char *text, int64_t n, int add_special, int parse_special,
                       int32_t *ids, int64_t max, pyllm_error *err);
/* Bytes of one token as it appears in text (control tokens: their name if special, else nothing). *len bytes, owned by t;
   NULL if id is out of range. Concatenated bytes of a text's tokens are the text, except that sentencepiece families put a
   space in front of the first token; pyllm_detokenize takes it off again. */
const char *pyllm_token_bytes(const pyllm_tokenizer *t, int32_t id, int special, int64_t *len);
/* Ids to bytes; returns the number of bytes, writes at most max. special: write control tokens by name. */
int64_t pyllm_detokenize(const pyllm_tokenizer *t, const int32_t *ids, int64_t n, int special, char *out, int64_t max,
                         pyllm_error *err);
/* The vocabulary's own text of a token (as in the file) and its type (1 normal 2 unknown 3 control 4 user-defined 5 unused 6 byte). */
const char *pyllm_token_text(const pyllm_tokenizer *t, int32_t id, int64_t *len);
int32_t pyllm_token_type(const pyllm_tokenizer *t, int32_t id);
/* Special ids; -1 where the file has none. kind: 0 bos 1 eos 2 eot 3 eom 4 unknown 5 separator 6 padding 7 mask. */
int32_t pyllm_token_special(const pyllm_tokenizer *t, int kind);
/* 1 if generation ends with this token (eos, eot, eom and the families' end-of-turn tokens). */
int pyllm_token_is_end(const pyllm_tokenizer *t, int32_t id);

/* ---- model: a tape over packed weights ----------------------------------------------------------------------------- */
typedef struct pyllm_model pyllm_model;

/* Loads the weights that the tape (text, see docs/tape.md) names, packs them for the CPU level in force with n_threads
   threads, and checks every shape. level: NULL = PYLLM_CPU or the best; "metal" = the GPU through Metal, weights as they are in the file
   (PYLLM_ERR_UNSUPPORTED: there is none, or it cannot run a step of the tape, which the message names). cancel may be NULL. The file may be closed afterwards unless
   the tape reads an embedding that is not also an output matrix: the model keeps its own descriptor.
   pack: NULL, or a file that pyllm_model_store has written, which is mapped instead. PYLLM_ERR_IO: it cannot be read; PYLLM_ERR_STATE: it
   is damaged, or not of this model as it is now. Should somebody change that file while the model lives, steps fail with PYLLM_ERR_IO. */
int pyllm_model_load(const pyllm_gguf *g, const char *tape, int64_t tape_len, const char *level, const char *pack, int n_threads,
                     const volatile int32_t *cancel, pyllm_model **out, pyllm_error *err);
void pyllm_model_free(pyllm_model *m);
/* Bytes of packed weights that loading this tape would take, without loading. *key: a name for them; tapes of one file that read the same weights
   share it. */
int pyllm_model_plan(const pyllm_gguf *g, const char *tape, int64_t tape_len, int64_t *weight_bytes, uint64_t *key, pyllm_error *err);
/* Writes the packed weights of a model that was loaded from g to a file. In its place there is always the old file or the new one, whole.
   While it is written there is a locked (flock) file with the same beginning that ends in .tmp. PYLLM_ERR_STATE: the model's file was
   changed meanwhile, or moments before it was opened. */
int pyllm_model_store(const pyllm_model *m, const pyllm_gguf *g, const char *pack, int n_threads, const volatile int32_t *cancel,
                      pyllm_error *err);
/* What a file of packed weights says of itself. */
typedef struct pyllm_pack {
    int64_t bytes;              /* of the weights */
    char model[4096];           /* path of the model's (first) file, without symbolic links */
} pyllm_pack;
int pyllm_pack_info(const char *path, pyllm_pack *out, pyllm_error *err);
int64_t pyllm_model_weight_bytes(const pyllm_model *m);
int32_t pyllm_model_n_vocab(const pyllm_model *m);
/* Values of a row that a step gives: n_vocab, or the width of the embedding where the tape's last value is one. */
int32_t pyllm_model_width(const pyllm_model *m);
int32_t pyllm_model_n_steps(const pyllm_model *m);
/* The k-th kernel that a run of this model calls, as "slot=symbol"; NULL past the end. */
const char *pyllm_model_kernel(const pyllm_model *m, int k);

/* Overwrites rows [first, first + n) of a matrix with `rows`, in the tensor's own type as in its file; both ends are multiples of 16 or the tensor's
   last row. For studies of what a change does to the results: no step of an engine of this model may run meanwhile, and the file is not touched. An
   embedding that is read from the file moves into memory first. Names, rows or a vector that do not fit: PYLLM_ERR_ARG, nothing is changed. */
int pyllm_model_write(pyllm_model *m, const char *tensor, int64_t first, int64_t n, const void *rows, pyllm_error *err);

/* ---- engine: sequences over a paged KV cache -------------------------------------------------------------------------- */
typedef struct pyllm_engine pyllm_engine;

enum pyllm_kv_type { PYLLM_KV_F32 = 0, PYLLM_KV_F16 = 1, PYLLM_KV_Q8_0 = 2, PYLLM_KV_Q4_0 = 3 };

typedef struct pyllm_engine_params {
    int32_t n_threads;          /* workers, the calling thread included */
    int32_t kv_type;            /* enum pyllm_kv_type */
    int32_t max_rows;           /* largest batch of one step */
    int32_t max_seqs;           /* sequences that may live at once */
    int64_t n_positions;        /* KV room in tokens, all sequences together (rounded up to pages of 16) */
    int32_t max_logits;         /* rows with logits in one step, at most max_rows */
    int32_t rewind;             /* tokens by which a sequence can always be cut: so many more stay behind a sliding window; 0 to 1024 */
} pyllm_engine_params;

/* KV and activation bytes that an engine with these parameters takes; page tables (4 bytes a page, sequence and window) come on top. */
int pyllm_engine_plan(const pyllm_gguf *g, const char *tape, int64_t tape_len, const pyllm_engine_params *p,
                      int64_t *kv_bytes, int64_t *activation_bytes, pyllm_error *err);
int pyllm_engine_new(pyllm_model *m, const pyllm_engine_params *p, pyllm_engine **out, pyllm_error *err);
void pyllm_engine_free(pyllm_engine *e);    /* before its model */

/* From now on an engine works with the workers of another one, which must have as many, must live longer, and runs nothing meanwhile: models that
   take turns do not wake each other's threads. */
int pyllm_engine_share(pyllm_engine *e, pyllm_engine *other, pyllm_error *err);

/* Sequences are small integers. New ones are empty. PYLLM_ERR_FULL when max_seqs are alive. */
int32_t pyllm_seq_new(pyllm_engine *e, pyllm_error *err);
void pyllm_seq_free(pyllm_engine *e, int32_t seq);
int64_t pyllm_seq_length(const pyllm_engine *e, int32_t seq);       /* tokens stored; -1 if there is no such sequence */
/* Forgets positions >= n. With sliding windows n must be the length, 0, or recent enough that no page behind the window was
   freed, as the last `rewind` ones are: otherwise PYLLM_ERR_ARG and nothing changes. */
int pyllm_seq_truncate(pyllm_engine *e, int32_t seq, int64_t n, pyllm_error *err);
/* Room in tokens that no sequence holds, in the layers without a window (in those of the first window if all have one). Kept pages count. */
int64_t pyllm_engine_free_positions(const pyllm_engine *e);

/* ---- pages: equal beginnings are stored once. A page holds K and V of 16 tokens for a group of layers, those of one window; groups are numbered from 0.
   Sequences that begin with the same tokens may hold the same pages. A row never changes a page that others hold: it is copied first.
   Kept pages outlive their sequences, until the host drops them. Lists of pages: int32_t [groups][n], -1: none. */
typedef struct pyllm_group {
    int64_t window;             /* positions that a row sees, its own included; 0: all */
    int32_t n_pages, n_free;    /* in all, and those that nobody holds */
    int32_t n_idle;             /* kept, and no sequence holds them */
    int32_t recurrent;          /* 1: a page is the state of the recurrent steps after one token, its window is 2. A sequence has only that after its last
                                   token; pages of positions before that, and kept ones, hold others */
    int64_t page_bytes;
} pyllm_group;
int32_t pyllm_engine_n_groups(const pyllm_engine *e);
int pyllm_engine_group(const pyllm_engine *e, int32_t group, pyllm_group *out);     /* PYLLM_ERR_ARG: there is no such group */
/* Pages [first, first + n) of a sequence; -1 where they were given back behind a window. */
int pyllm_seq_pages(const pyllm_engine *e, int32_t seq, int64_t first, int64_t n, int32_t *pages, pyllm_error *err);
/* An empty sequence begins with `length` tokens whose K and V are in these pages, ceil(length / 16) a group; the last one is copied if it is not full
   (PYLLM_ERR_FULL: no page is free for that). Pages that no later row sees, behind the window, may be -1. */
int pyllm_seq_attach(pyllm_engine *e, int32_t seq, int64_t length, const int32_t *pages, pyllm_error *err);
/* Full pages [first, first + n) of a sequence change places with others of the same content; -1: this one stays. */
int pyllm_seq_adopt(pyllm_engine *e, int32_t seq, int64_t first, int64_t n, const int32_t *pages, pyllm_error *err);
/* Keeps pages that sequences hold; drops kept ones, which are then free as soon as no sequence holds them. Keeping twice is as keeping once. */
int pyllm_pages_keep(pyllm_engine *e, const int32_t *pages, int64_t n, pyllm_error *err);
int pyllm_pages_drop(pyllm_engine *e, const int32_t *pages, int64_t n, pyllm_error *err);
/* Page i of a sequence in one group, of *bytes bytes, good until the sequence changes; NULL if it has none there. Other threads may read full
   pages meanwhile. Slots past the sequence's length are zero if the page is its alone. */
const void *pyllm_seq_page(pyllm_engine *e, int32_t seq, int32_t group, int64_t i, int64_t *bytes);
uint64_t pyllm_checksum(const void *data, int64_t n);
/* An empty sequence begins with `length` tokens whose pages lie in a file: page i of group g at offsets[g] + i * its bytes, with the checksum
   sums[g * n + i], n pages in all; those behind a window are not read. PYLLM_ERR_IO; PYLLM_ERR_STATE: damaged; the sequence is empty then. */
int pyllm_seq_load(pyllm_engine *e, int32_t seq, int64_t length, const char *path, const int64_t *offsets, const uint64_t *sums, pyllm_error *err);
/* How many of n pages of one group are kept and held by no sequence. */
int64_t pyllm_pages_idle(const pyllm_engine *e, int32_t group, const int32_t *pages, int64_t n);

/* Runs one batch: row r appends tokens[r] to sequence seqs[r] at its next position; rows of one sequence ascend. Rows with
   want[r] != 0 get logits: float32 [number of such rows, pyllm_model_width] in row order, caller's memory. Any mix of prompts and single
   tokens; results do not depend on the mix. A model that embeds texts takes each as a whole, its rows one after the other in one step, and
   what row r gets is of the text up to it (of all of it if r is the last). On any error every sequence is as before the call. *cancel (may be NULL) is polled
   between tiles. The engine allocates nothing here. */
int pyllm_step(pyllm_engine *e, int32_t n_rows, const int32_t *tokens, const int32_t *seqs, const uint8_t *want,
               float *logits, const volatile int32_t *cancel, pyllm_error *err);
/* From now on every step of the tape adds the seconds it takes to seconds[its index], caller's array of pyllm_model_n_steps; NULL: no longer. */
void pyllm_engine_profile(pyllm_engine *e, double *seconds);
/* From now on step i of the tape adds the squares of its first input, column by column, to sums[i], caller's [width of that input], or for a step
   over a stack of matrices [matrices][width of one + 1], each with the number of its rows last; sums has pyllm_model_n_steps entries, NULL where
   nothing is wanted. Doubles, rows in batch order: the sums depend on the batches' order alone. A step that
   fails may have added some. NULL: no longer. */
void pyllm_engine_observe(pyllm_engine *e, double *const *sums);
/* From now on a batch runs only the tape's steps [first, last): what the earlier ones would have computed and is still needed comes from
   `before`, what the later ones will need goes to `after`; both are the caller's, pyllm_engine_live() floats at that place for each row of the
   batch, and may be one. A batch of the same rows and wants, at the same positions, then gives the bits of a whole run. The KV cache is that of a
   run of these steps alone: sequences that are run in parts are of no other use. first = 0, last = pyllm_model_n_steps: whole again. */
int pyllm_engine_part(pyllm_engine *e, int32_t first, int32_t last, const float *before, float *after, pyllm_error *err);
int64_t pyllm_engine_live(const pyllm_engine *e, int32_t step);     /* floats a row that are needed from this step on and computed before it */
/* Sets a flag that another thread's running call polls as *cancel. Any thread, any time. */
void pyllm_cancel_set(volatile int32_t *flag, int32_t value);

/* A sequence as bytes: checksummed, bound to model, KV type and layout. Returns the size; writes only if max suffices. */
int64_t pyllm_seq_save(const pyllm_engine *e, int32_t seq, void *out, int64_t max, pyllm_error *err);
/* Replaces the content of seq; on any error seq is unchanged. */
int pyllm_seq_restore(pyllm_engine *e, int32_t seq, const void *data, int64_t n, pyllm_error *err);

/* ---- sampling -------------------------------------------------------------------------------------------------------- */
typedef struct pyllm_sampler pyllm_sampler;

typedef struct pyllm_sampling {
    uint64_t seed;
    int32_t choice;             /* index of this choice among n of one prompt */
    int32_t top_k;              /* 0 = off */
    float temperature;          /* <= 0: greedy */
    float top_p;                /* 1 = off */
    float min_p;                /* 0 = off */
    float typical_p;            /* 1 = off */
    float top_n_sigma;          /* <= 0 = off */
    float xtc_probability;      /* 0 = off */
    float xtc_threshold;
    int32_t penalty_last_n;     /* tokens looked back on; -1 = all, 0 = off */
    float repeat_penalty;       /* 1 = off */
    float frequency_penalty;    /* 0 = off */
    float presence_penalty;     /* 0 = off */
    float dry_multiplier;       /* 0 = off */
    float dry_base;
    int32_t dry_allowed_length;
    int32_t dry_last_n;         /* -1 = all, 0 = off */
    int32_t min_keep;           /* tokens that every filter leaves at least; 0 means 1 */
    char order[16];             /* chain as letters: e penalties d dry s top_n_sigma k top_k y typical_p p top_p m min_p x xtc t temperature;
                                   NUL-terminated; empty = "edskypmxt" */
} pyllm_sampling;

typedef struct pyllm_logprob { int32_t id; float logprob; } pyllm_logprob;

/* Peers' defaults: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, penalties and the rest off. */
void pyllm_sampling_defaults(pyllm_sampling *s);
/* bias: n_bias (id, addend) pairs, applied first (-inf bans). breakers: n_breakers ids, each of which ends a DRY match. Copies everything. */
int pyllm_sampler_new(int32_t n_vocab, const pyllm_sampling *s, const pyllm_logprob *bias, int32_t n_bias,
                      const int32_t *breakers, int32_t n_breakers, pyllm_sampler **out, pyllm_error *err);
void pyllm_sampler_free(pyllm_sampler *s);
/* Appends ids to the history that penalties look at (the prompt, then every chosen token). */
int pyllm_sampler_accept(pyllm_sampler *s, const int32_t *ids, int64_t n, pyllm_error *err);
/* Chooses the token for absolute position `position` from logits [n_vocab] (read only) and stores it in *id. n_top > 0: also the
   n_top most likely tokens of the untouched distribution, best first, and in top[n_top] the chosen one: top holds n_top + 1
   entries (natural logarithms). n_top 0 with top != NULL: only the chosen one. Non-finite logits (NaN or +inf): PYLLM_ERR_ARG.
   mask: NULL, or [(n_vocab + 31) / 32] words in which bit i % 32 of word i / 32 is set if token i may be chosen; it comes before every filter. */
int pyllm_sampler_sample(pyllm_sampler *s, const float *logits, const uint32_t *mask, int64_t position, int32_t *id,
                         pyllm_logprob *top, int32_t n_top, pyllm_error *err);
/* Takes back the last n tokens of the history. */
int pyllm_sampler_rewind(pyllm_sampler *s, int64_t n, pyllm_error *err);
/* Guesses how the history goes on: where its last tokens stood before (the longest match, then the latest), with what followed there. Writes max
   ids and returns their number, or 0 if the last token is new. *length: tokens that match, at most 32. */
int32_t pyllm_sampler_lookup(pyllm_sampler *s, int32_t *ids, int32_t max, int32_t *length);

/* What pyllm_choose does for one request. The first row of logits is that of the next token; row i + 1 was computed as if tokens[0, i] of
   drafts had been chosen, and counts if they are. */
typedef struct pyllm_choice {
    pyllm_sampler *sampler;     /* each at most once in a call */
    const float *logits;        /* [n_drafts + 1][n_logits] */
    const uint32_t *mask;       /* as for pyllm_sampler_sample; only without drafts; or NULL */
    const int32_t *drafts;      /* [n_drafts] */
    int32_t *ids;               /* out [n_drafts + 1]: the tokens that were chosen */
    pyllm_logprob *top;         /* out [n_drafts + 1][n_top + 1], or NULL */
    pyllm_error *err;           /* of this choice, or NULL */
    int64_t position;           /* of the next token */
    int32_t n_logits;           /* tokens that there are logits of; less than the sampler's only with n_top 0: others cannot be chosen */
    int32_t n_drafts, n_top;
    int32_t n;                  /* out: number of tokens */
    int32_t rc;                 /* out: 0, or why there is no token after these n */
    int32_t pad;
} pyllm_choice;
/* Chooses tokens for n requests at once, with the engine's workers, and appends them to the samplers' histories: the same tokens as one
   pyllm_sampler_sample and pyllm_sampler_accept after the other. PYLLM_ERR_ARG: a choice is incomplete, nothing is chosen. */
int pyllm_choose(pyllm_engine *e, pyllm_choice *choices, int32_t n, pyllm_error *err);

/* cdef end */
#pragma GCC visibility pop
#endif

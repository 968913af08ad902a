/* A chat in C over csrc/pyllm.h, without Python: chat MODEL.gguf MODEL.tape [SYSTEM MESSAGE]. Questions are lines of stdin; Ctrl-C stops an answer.
 *   pyllm inspect MODEL.gguf --save MODEL.tape
 *   cc -O3 -ffp-contract=off -I csrc examples/c-chat/chat.c pyllm/libpyllm.so -Wl,-rpath,$PWD/pyllm -o chat */
#include "pyllm.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CTX = 2048, BATCH = 256, REPLY = 512, TEXT = 64 << 10, LINE = 4096 };

static volatile int32_t stop;               /* set by Ctrl-C, polled by steps */
static pyllm_error error;
static char chat[TEXT];                     /* the conversation as the model reads it */
static size_t chat_bytes;

static void interrupted(int sig) { signal(sig, interrupted); pyllm_cancel_set(&stop, 1); }
static void check(int rc) {
    if (rc >= 0) return;
    fprintf(stderr, "error: %s\n", error.message);
    exit(1);
}
static void say(const char *text, size_t n) {
    if (chat_bytes + n >= sizeof chat) fputs("error: the conversation is too long\n", stderr), exit(1);
    memcpy(chat + chat_bytes, text, n);
    chat_bytes += n;
}

/* The text of "# chat NAME TEXT" in a tape, its escapes undone; NULL if there is no such line. To be freed. */
static char *piece(const char *tape, const char *name) {
    char key[64];
    snprintf(key, sizeof key, "\n# chat %s", name);
    const char *p = strstr(tape, key);
    while (p && p[strlen(key)] != ' ' && p[strlen(key)] != '\n') p = strstr(p + 1, key);
    if (!p) return NULL;
    p += strlen(key) + (p[strlen(key)] == ' ');
    char *out = calloc(1, strcspn(p, "\n") + 1), *to = out;
    while (to && *p && *p != '\n') {
        unsigned byte = (unsigned char)*p++;
        if (byte == '\\' && *p == 'x' && sscanf(p + 1, "%2x", &byte) == 1) p += 3;
        else if (byte == '\\') byte = *p++ == 'n' ? '\n' : '\\';
        *to++ = (char)byte;
    }
    return out;
}

static char *read_file(const char *path) {
    FILE *f = fopen(path, "rb");
    char *text = calloc(1, 4 << 20);
    if (!f || !text || !fread(text, 1, (4 << 20) - 1, f)) fprintf(stderr, "error: %s cannot be read\n", path), exit(1);
    fclose(f);
    return text;
}

/* Runs what the sequence does not hold yet of ids[n]; the logits of the last one. */
static int run(pyllm_engine *e, int32_t seq, const int32_t *ids, int64_t n, int32_t *held, float *logits) {
    int64_t same = 0, length = pyllm_seq_length(e, seq);
    while (same < length && same < n - 1 && held[same] == ids[same]) same++;
    int rc = pyllm_seq_truncate(e, seq, same, &error);
    if (rc == PYLLM_ERR_ARG) same = 0, rc = pyllm_seq_truncate(e, seq, 0, &error);      /* pages behind a sliding window are gone */
    while (!rc && same < n) {
        int32_t seqs[BATCH], m = (int32_t)(n - same < BATCH ? n - same : BATCH);
        uint8_t want[BATCH] = {0};
        for (int i = 0; i < m; i++) seqs[i] = seq;
        want[m - 1] = same + m == n;
        rc = pyllm_step(e, m, ids + same, seqs, want, logits, &stop, &error);
        if (!rc) memcpy(held + same, ids + same, (size_t)m * sizeof *ids), same += m;
    }
    return rc;
}

int main(int argc, char **argv) {
    if (argc < 3) return fputs("usage: chat MODEL.gguf MODEL.tape [SYSTEM MESSAGE]\n", stderr), 2;
    char *tape = read_file(argv[2]), *start = piece(tape, argc > 3 ? "system" : "start"), *system_end = piece(tape, "system_end");
    char *reply = piece(tape, "reply"), *answer = piece(tape, "answer"), *answer_end = piece(tape, "answer_end"), line[LINE];
    if (!start || !reply || !answer || !answer_end || (argc > 3 && !system_end)) return fputs("error: the tape has no such chat\n", stderr), 1;

    pyllm_gguf *file;
    pyllm_tokenizer *t;
    pyllm_model *model;
    pyllm_engine *e;
    pyllm_sampler *sampler;
    pyllm_sampling how;
    int threads = pyllm_threads_default();
    check(pyllm_gguf_open(argv[1], &file, &error));
    check(pyllm_tokenizer_new(file, &t, &error));
    check(pyllm_model_load(file, tape, (int64_t)strlen(tape), NULL, NULL, threads, &stop, &model, &error));
    pyllm_gguf_close(file);
    pyllm_engine_params p = {.n_threads = threads, .kv_type = PYLLM_KV_F16, .max_rows = BATCH, .max_seqs = 1, .n_positions = CTX, .max_logits = 1};
    check(pyllm_engine_new(model, &p, &e, &error));
    pyllm_sampling_defaults(&how);
    how.temperature = getenv("GREEDY") ? 0 : how.temperature;
    check(pyllm_sampler_new(pyllm_model_n_vocab(model), &how, NULL, 0, NULL, 0, &sampler, &error));
    int32_t seq = pyllm_seq_new(e, &error), ids[CTX], held[CTX];
    float *logits = malloc((size_t)pyllm_model_n_vocab(model) * sizeof *logits);
    if (seq < 0 || !logits) return fprintf(stderr, "error: %s\n", error.message), 1;
    signal(SIGINT, interrupted);

    say(start, strlen(start));
    if (argc > 3) say(argv[3], strlen(argv[3])), say(system_end, strlen(system_end));
    while (fputs("> ", stderr), fgets(line, sizeof line, stdin)) {
        pyllm_cancel_set(&stop, 0);
        say(line, strcspn(line, "\r\n"));
        size_t turn = chat_bytes;               /* the next prompt has `answer` here, which may differ from `reply` */
        say(reply, strlen(reply));
        int64_t n = pyllm_tokenize(t, chat, (int64_t)chat_bytes, 0, 1, ids, CTX, &error), bytes;
        check((int)(n < 0 ? n : 0));
        if (n + 1 >= CTX) return fputs("error: the conversation is longer than the context\n", stderr), 1;
        int64_t prompt = n;
        int rc = 0;
        char text[TEXT / 4];
        size_t text_bytes = 0;
        while (n < CTX && n - prompt < REPLY && !(rc = run(e, seq, ids, n, held, logits))) {
            check(pyllm_sampler_sample(sampler, logits, NULL, n, &ids[n], NULL, 0, &error));
            if (pyllm_token_is_end(t, ids[n])) break;
            const char *token = pyllm_token_bytes(t, ids[n++], 0, &bytes);
            if (text_bytes + (size_t)bytes > sizeof text) break;
            memcpy(text + text_bytes, token, (size_t)bytes);
            text_bytes += (size_t)bytes;
            fwrite(token, 1, (size_t)bytes, stdout), fflush(stdout);
        }
        if (rc != PYLLM_ERR_CANCELLED) check(rc);
        puts(""), fflush(stdout);
        chat_bytes = turn;
        say(answer, strlen(answer)), say(text, text_bytes), say(answer_end, strlen(answer_end));
    }
    free(logits), free(start), free(system_end), free(reply), free(answer), free(answer_end), free(tape);
    pyllm_sampler_free(sampler), pyllm_engine_free(e), pyllm_model_free(model), pyllm_tokenizer_free(t);
    return 0;
}

/* nethook.c for a fuzzer: what it reads from others, the state and the plan, with its `main` renamed.
 *
 * Bytes: the first chooses the parser, the rest is what it reads. With -DLIBFUZZER the entry of libFuzzer is here too.
 */
#define _GNU_SOURCE
#define main nethook_main
#define value nethook_value /* names that launcher.c has as well, where both are one library */
#define fail nethook_fail
#include "nethook.c"
#undef main
#undef value

int fuzz_pid(const char *text);
int fuzz_plan(const unsigned char *data, size_t size);

int fuzz_pid(const char *text) {
    return pid_of(text);
}

/* Whether the bytes are a plan that the hook would run. */
int fuzz_plan(const unsigned char *data, size_t size) {
    if (size > sizeof plan - 4)
        return 0;
    memset(plan, 0, sizeof plan < size + 64 ? sizeof plan : size + 64);
    memcpy(plan, data, size);
    return check_plan(size) == NULL;
}

#ifdef LIBFUZZER
/* Every byte that a step would send lies in what was read, and every message in its step. */
static void walk(size_t size) {
    const unsigned char *begin = (const unsigned char *)plan, *end = begin + size;
    for (uint32_t i = 0; i < plan[2]; i++)
        for (int which = DO; which <= UNDO; which++) {
            const unsigned char *bytes = bytes_of(steps[i], which);
            if (bytes < begin || bytes + steps[i]->length[which] > end)
                abort();
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 || size > 65536)
        return 0;
    if (data[0] % 2) {
        if (fuzz_plan(data + 1, size - 1))
            walk(size - 1);
        return 0;
    }
    char *text = malloc(size); /* exactly as long as it is: a read behind its end is seen */
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    int pid = strlen(text) == size - 1 ? pid_of(text) : -1;
    if (pid == 0 || pid < -1 || pid > 9999999)
        abort();
    free(text);
    return 0;
}
#endif

/* launcher.c for a fuzzer: its parsers with their `main` renamed, and an end that comes back instead of ending.
 *
 * Bytes: the first chooses the parser, the rest is what it reads. Each check here is written from the manuals, not from
 * launcher.c. With -DLIBFUZZER the entry of libFuzzer is here too; without it, this is a library for ctypes.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

static jmp_buf ended;
static _Noreturn void came_back(int code) {
    longjmp(ended, code + 1000);
}
int fuzz_openat(int dir, const char *name, int flags, ...);
int fuzz_dprintf(int fd, const char *format, ...);

#define main launcher_main
#define _exit came_back
#define openat fuzz_openat
#define dprintf fuzz_dprintf
#define UNSEEN "/nonexistent/unseen"
#ifdef LIBFUZZER
#define CONF_DIR "/proc/self/fd" /* any directory that only root can write; the file comes from fuzz_openat */
#endif
#include "launcher.c"
#undef main
#undef _exit
#undef openat
#undef dprintf

#include <stdarg.h>
#include <sys/mman.h>

static const uint8_t *content;
static size_t content_size;
static char delegate_found[PATH_MAX];
static char line[3 * PATH_MAX];

/* The file that read_conf opens: the fuzzer's bytes, in a descriptor that looks like a file of root's. */
int fuzz_openat(int dir, const char *name, int flags, ...) {
    (void)dir, (void)name, (void)flags;
    int fd = memfd_create("conf", MFD_CLOEXEC);
    if (fd < 0 || fchmod(fd, 0644) || write(fd, content, content_size) < 0)
        abort();
    lseek(fd, 0, SEEK_SET);
    return fd;
}

int fuzz_dprintf(int fd, const char *format, ...) {
    (void)fd;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return n;
}

const char *fuzz_verb(char **argv) {
    return parse(argv).verb;
}

int fuzz_passes(char **argv) {
    struct call call = parse(argv);
    unsetenv("NOTIFY_SOCKET");
    return passes(&call);
}

/* Whether config.toml's text is understood; fuzz_delegate() then says whom it names. */
int fuzz_configured(const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = malloc(size);
    const char *delegate = NULL;
    memcpy(copy, text, size);
    int understood = configured(copy, &delegate) == 0;
    delegate_found[0] = '\0';
    if (understood && delegate)
        snprintf(delegate_found, sizeof delegate_found, "%s", delegate);
    else
        delegate_found[0] = '\1';
    free(copy);
    return understood;
}

const char *fuzz_delegate(void) {
    return delegate_found[0] == '\1' ? NULL : delegate_found;
}

#ifdef LIBFUZZER
/* Words behind newlines. */
static void fuzz_words(char *text) {
    char *argv[64] = {(char[]){"agentshim"}};
    size_t n = 1;
    for (char *word = text; word && n < COUNT(argv) - 1; n++) {
        argv[n] = word;
        if ((word = strchr(word, '\n')))
            *word++ = '\0';
    }
    argv[n] = NULL;
    struct call call = parse(argv);
    if (!passes(&call))
        return;
    /* A verb stands where the first word without a dash does that is no option's value. */
    bool known = false;
    for (size_t i = 1; i < n; i++)
        known = known || argv[i] == call.verb;
    for (size_t i = 1; argv[i] != call.verb; i++)
        known = known && (argv[i][0] == '-' || argv[i - 1][0] == '-');
    if (!known || call.decide)
        abort();
    (void)!fuzz_passes(argv);
}

static void fuzz_launch_conf(const uint8_t *data, size_t size) {
    static struct place place;
    struct call call = {0};
    content = data;
    content_size = size;
    memset(&place, 0, sizeof place);
    if (setjmp(ended)) {
        for (const char *c = line; *c && *c != '\n'; c++)
            if (*c < ' ' || *c > '~')
                abort(); /* a message that is not one printable line */
        return;
    }
    read_launch_conf(&call, &place);
    if ((place.python[0] && place.python[0] != '/') || (place.lib[0] && place.lib[0] != '/'))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 || size > 4096)
        return 0;
    uint8_t which = data[0];
    char *text = malloc(size);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    if (which % 4 == 0)
        fuzz_words(text);
    else if (which % 4 == 1)
        (void)fuzz_configured(text);
    else if (which % 4 == 2)
        fuzz_launch_conf(data + 1, size - 1);
    else
        clean(text);
    free(text);
    return 0;
}
#endif

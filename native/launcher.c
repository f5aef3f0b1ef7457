/* agentshim: the executable that engines call in place of runc.
 *
 * Belongs here: telling the calls that need no decision from all others. The former are handed to the delegate, the
 * latter to Python, both by execve, so that pid, parent-death signal, signal dispositions, file descriptors and
 * environment arrive as they came. Next door: shim/cli.py decides. No policy is decided here, nothing is closed,
 * created or set; nothing is forked but `hasten`'s, which outlives no decision; and no file is written but the engine's
 * own --log, when Python cannot be started.
 *
 * The one rule: it may err only toward Python. The delegate is run only if every token up to the verb is understood.
 * Functions that can fail return 0 (or a length) or -errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef CONF_DIR /* tests build a launcher that reads elsewhere; nothing at run time can move it */
#define CONF_DIR "/etc/agentshim"
#endif
#ifndef DELEGATES
#define DELEGATES "/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc", "/usr/local/bin/runc", \
                  "/usr/bin/crun", "/usr/sbin/crun"
#endif

extern char **environ;

/* What the command line says before its first operand. */
struct call {
    const char *verb; /* NULL where there is none, or where a token before it was not understood */
    const char *log;  /* the value of --log, NULL without */
    bool json;        /* --log-format json */
    bool decide;      /* an option that carries authority was given */
};

/* runc's global options (runc(8)); crun reads the same tokens alike or fails on them. */
static const struct option {
    const char *name;
    bool value;  /* takes one, in the same token after '=' or in the next */
    bool decide; /* carries authority */
} OPTIONS[] = {
    {"debug", false, false},
    {"log", true, false},
    {"log-format", true, false},
    {"root", true, false},
    {"criu", true, false}, /* read by checkpoint and restore only, and those are decided */
    {"systemd-cgroup", false, false},
    {"rootless", true, true},
};

/* Verbs that neither read a bundle nor widen a container. */
static const char *const PASS[] = {"state", "kill",   "list",     "ps",   "pause", "resume",
                                   "events", "features", "spec", "start", "delete"};

/* Verbs of which the delegate moves a process into control groups. */
static const char *const MOVES[] = {"create", "run", "restore", "exec"};
static const char *const RUNTIMES[] = {DELEGATES};

#define CONF CONF_DIR "/launch.conf"
#ifndef UNSEEN
#define UNSEEN "/run/agentshim/unseen"
#endif

/* Where Python and our code are. */
struct place {
    char python[PATH_MAX];
    char lib[PATH_MAX];
    char main[PATH_MAX];
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* The option that `token` spells with one dash or two, NULL if none; *value is what follows '=', or NULL.
 * Exact names only: crun would take an abbreviation, runc would not. */
static const struct option *option_of(const char *token, const char **value) {
    const char *name = token + 1 + (token[1] == '-');
    size_t length = strcspn(name, "=");
    *value = name[length] == '=' ? name + length + 1 : NULL;
    for (size_t i = 0; i < COUNT(OPTIONS); i++)
        if (strlen(OPTIONS[i].name) == length && memcmp(OPTIONS[i].name, name, length) == 0)
            return &OPTIONS[i];
    return NULL;
}

/* Keep what a report of our own failure needs. */
static void note(struct call *call, const struct option *option, const char *value) {
    if (strcmp(option->name, "log") == 0)
        call->log = value;
    else if (strcmp(option->name, "log-format") == 0)
        call->json = strcmp(value, "json") == 0;
    call->decide = call->decide || option->decide;
}

static struct call parse(char **argv) {
    struct call call = {NULL, NULL, false, false};
    for (char **token = argv + 1; *token; token++) {
        if ((*token)[0] != '-' || (*token)[1] == '\0') {
            call.verb = *token;
            break;
        }
        const char *value;
        const struct option *option = option_of(*token, &value);
        if (!option || (!option->value && value))
            break; /* unknown, "--", or a flag with a value: runc takes --debug=1, crun fails */
        if (option->value && !value && !(value = *++token))
            break;
        if (option->value)
            note(&call, option, value);
    }
    return call;
}

/* The verb needs no decision. start serves NOTIFY_SOCKET on the host's side, and that is authority; and while a filter
 * waits to be compared (shim/state.py, mark), Python does that first. */
static bool passes(const struct call *call) {
    if (!call->verb || call->decide)
        return false;
    for (size_t i = 0; i < COUNT(PASS); i++)
        if (strcmp(call->verb, PASS[i]) == 0)
            return strcmp(call->verb, "start") != 0 || (!getenv("NOTIFY_SOCKET") && access(UNSEEN, F_OK) != 0);
    return false;
}

/* This process is in a user namespace other than the host's; false where that cannot be read. */
static bool in_user_namespace(void) {
    char map[64] = "";
    int fd = open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, map, sizeof map - 1);
    if (fd >= 0)
        close(fd);
    return length >= 0 && strcmp(map, "         0          0 4294967295\n") != 0; /* user_namespaces(7) */
}

/* Only the host's root can have written it. Inside a user namespace the host's root shows as the overflow uid. */
static bool trusted(const struct stat *st) {
    if (st->st_mode & (S_IWGRP | S_IWOTH))
        return false;
    return st->st_uid == 0 || (st->st_uid == 65534 && in_user_namespace());
}

static bool trusted_path(const char *path, mode_t type) {
    struct stat st;
    return path[0] == '/' && stat(path, &st) == 0 && (st.st_mode & S_IFMT) == type && trusted(&st);
}

/* The whole of a trusted regular file as a string of at most size - 1 bytes; its length, or -EPERM where it is not
 * trusted, -EFBIG, -EINVAL where it holds a NUL. */
static int read_trusted(int dir, const char *name, char *buffer, size_t size) {
    struct stat st;
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return -errno;
    size_t length = 0;
    ssize_t got = fstat(fd, &st) || !S_ISREG(st.st_mode) || !trusted(&st) ? -EPERM : 1;
    while (got > 0 && length < size - 1) {
        got = read(fd, buffer + length, size - 1 - length);
        length += got > 0 ? (size_t)got : 0;
    }
    close(fd);
    if (got != 0)
        return got == -EPERM ? -EPERM : got < 0 ? -EIO : -EFBIG;
    buffer[length] = '\0';
    return memchr(buffer, '\0', length) ? -EINVAL : (int)length;
}

/* A trusted file of the configuration's directory. -ENOENT only where the file or the whole directory is absent. */
static int read_conf(const char *name, char *buffer, size_t size) {
    struct stat st;
    int dir = open(CONF_DIR, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0)
        return -errno;
    int length = fstat(dir, &st) == 0 && trusted(&st) ? read_trusted(dir, name, buffer, size) : -EPERM;
    close(dir);
    return length;
}

enum line { BLANK, TABLE, QUOTED, BARE, LIST, UNCLEAR };

static const char *const BLANKS = " \t";

/* What follows the array of plain strings that `text` begins with; NULL where it is more than one line of those. */
static char *list_end(char *text) {
    for (char *at = text + 1;; at += *at == ',') {
        at += strspn(at, BLANKS);
        if (*at == ']')
            return at + 1;
        char *end = at + 1;
        if (*at != '"' || *(end += strcspn(end, "\"\\")) != '"')
            return NULL;
        at = end + 1 + strspn(end + 1, BLANKS);
        if (*at != ',' && *at != ']')
            return NULL;
    }
}

/* Whether a LIST has `word`; an empty one has every word. */
static bool has(const char *list, const char *word) {
    size_t length = strlen(word), one;
    bool empty = true;
    for (const char *at = list; (at = strchr(at, '"')); at += one + 1) {
        one = strcspn(++at, "\"");
        if (one == length && memcmp(at, word, length) == 0)
            return true;
        empty = false;
    }
    return empty;
}

/* What one line is, of the part of TOML that cannot be misread: `key = "plain string"`, a bare word or a list of plain
 * strings; all else is UNCLEAR. *key and *value point into the line, which is cut. */
static enum line read_line(char *line, char **key, char **value) {
#define KEY "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    *key = line + strspn(line, BLANKS);
    if (**key == '\0' || **key == '#')
        return BLANK;
    if (**key == '[')
        return TABLE;
    char *key_end = *key + strspn(*key, KEY), *equals = key_end + strspn(key_end, BLANKS);
    if (key_end == *key || *equals != '=')
        return UNCLEAR;
    char *start = equals + 1 + strspn(equals + 1, BLANKS);
    bool quoted = *start == '"', list = *start == '[';
    *value = start + quoted;
    char *end = list ? list_end(start) : *value + (quoted ? strcspn(*value, "\"\\") : strspn(*value, KEY "+./"));
    if (!end || (quoted ? *end != '"' : end == start))
        return UNCLEAR;
    char *rest = end + quoted + strspn(end + quoted, BLANKS);
    if (*rest != '\0' && *rest != '#')
        return UNCLEAR;
    *key_end = *end = '\0';
    return list ? LIST : quoted ? QUOTED : BARE;
}

/* The line at *rest, cut off; *rest moves on. NULL at the end. */
static char *next_line(char **rest) {
    char *line = *rest;
    if (line && (*rest = strchr(line, '\n')))
        *(*rest)++ = '\0';
    return line;
}

/* The `delegate = "..."` line of config.toml before its first table. 0 without one; -EINVAL: a line before it is more
 * than we understand (so `delegate` is best written first), or `delegates` does not hold it. A key can be spelled with
 * escapes: only where the file has neither that word nor a backslash does the line end the search. */
static int configured(char *text, const char **delegate) {
    bool bounded = strstr(text, "delegates") || strchr(text, '\\');
    char *line, *key, *value, *delegates = NULL;
    while ((bounded || !*delegate) && (line = next_line(&text))) {
        enum line kind = read_line(line, &key, &value);
        if (kind == TABLE)
            break;
        if (kind == UNCLEAR)
            return -EINVAL;
        if (kind == BLANK)
            continue;
        if (strcmp(key, "delegates") == 0) {
            if (kind != LIST || delegates)
                return -EINVAL;
            delegates = value;
        } else if (strcmp(key, "delegate") == 0) {
            if (kind != QUOTED || *delegate)
                return -EINVAL;
            *delegate = value;
        }
    }
    return !*delegate || !delegates || has(delegates, *delegate) ? 0 : -EINVAL;
}

/* 0: a trusted file, and not this very one, which would exec itself for ever. -ENOENT: absent. */
static int inspect(const char *path) {
    struct stat us, st;
    if (path[0] != '/' || stat(path, &st))
        return path[0] == '/' ? -errno : -EINVAL;
    bool ours = stat("/proc/self/exe", &us) || (us.st_dev == st.st_dev && us.st_ino == st.st_ino);
    return S_ISREG(st.st_mode) && trusted(&st) && !ours ? 0 : -EPERM;
}

/* The delegate's path, NULL where that needs more than we understand: Python then says what is wrong. */
static const char *find_delegate(void) {
    static char text[65536];
    const char *delegate = NULL;
    int length = read_conf("config.toml", text, sizeof text);
    if (length != -ENOENT && (length < 0 || configured(text, &delegate) < 0))
        return NULL;
    if (delegate)
        return inspect(delegate) == 0 ? delegate : NULL;
    for (size_t i = 0; i < COUNT(RUNTIMES); i++) {
        int found = inspect(RUNTIMES[i]);
        if (found != -ENOENT)
            return found == 0 ? RUNTIMES[i] : NULL;
    }
    return NULL;
}

/* One line of printable ASCII without quotes, so that it is the same in JSON. */
static void clean(char *text) {
    for (; *text; text++)
        if (*text < ' ' || *text > '~' || *text == '"' || *text == '\\')
            *text = '?';
}

/* Append the error where containerd looks for it. A log that cannot be written changes nothing: stderr has it. */
static void log_error(const char *path, const char *text) {
    char when[32], line[3 * PATH_MAX];
    time_t now = time(NULL);
    struct tm tm;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0644);
    if (fd < 0 || !gmtime_r(&now, &tm))
        return;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm); /* not RFC 3339, and containerd fails to parse the log */
    int n = snprintf(line, sizeof line, "{\"level\":\"error\",\"msg\":\"%s\",\"time\":\"%s\"}\n", text, when);
    (void)!write(fd, line, (size_t)n);
}

/* Say why nothing is run, and end as runc would: 255 from exec, 1 from all else. */
static _Noreturn void fail(const struct call *call, const char *asked, const char *ceiling, const char *todo) {
    char text[2 * PATH_MAX];
    snprintf(text, sizeof text, "launcher: python: asked %.*s, ceiling %s: %s", PATH_MAX, asked, ceiling, todo);
    clean(text);
    if (call->log && call->json)
        log_error(call->log, text); /* before stderr, where SIGPIPE may wait */
    dprintf(STDERR_FILENO, "%s\n", text);
    _exit(call->verb && strcmp(call->verb, "exec") == 0 ? 255 : 1);
}

/* `a` then `b` into a buffer of PATH_MAX; false where it does not fit. */
static bool join(char *out, const char *a, const char *b) {
    return (size_t)snprintf(out, PATH_MAX, "%s%s", a, b) < PATH_MAX;
}

/* Fill what launch.conf names. Absent is well; anything wrong in it is the end. */
static void read_launch_conf(const struct call *call, struct place *place) {
    static char buffer[2 * PATH_MAX];
    char *text = buffer, *line, *key, *value;
    int length = read_conf("launch.conf", buffer, sizeof buffer);
    if (length == -ENOENT)
        return;
    if (length < 0)
        fail(call, CONF, "a regular file of root's that only root can write", "correct its type, owner and mode");
    while ((line = next_line(&text))) {
        enum line kind = read_line(line, &key, &value);
        if (kind == BLANK)
            continue;
        char *slot = NULL;
        if (kind == QUOTED || kind == BARE)
            slot = strcmp(key, "python") == 0 ? place->python : strcmp(key, "lib") == 0 ? place->lib : NULL;
        if (!slot || slot[0] || value[0] != '/' || !join(slot, value, ""))
            fail(call, CONF, "lines `python = PATH` and `lib = PATH`, each at most once", "correct it or remove it");
    }
}

/* Cut the last component of a path; false where nothing is left. */
static bool up(char *path) {
    char *slash = strrchr(path, '/');
    if (slash)
        *slash = '\0';
    return slash && slash != path;
}

/* Fill what launch.conf left open from where this executable is: PREFIX/bin/agentshim has PREFIX/lib/agentshim with
 * the interpreter's path in the file `python`, or PREFIX/bin/python3 (a virtual environment, a wheel); in the
 * development tree REPO/native/build/agentshim has REPO, and `python` beside itself. */
static void look_beside(const struct call *call, struct place *place) {
    char prefix[PATH_MAX], record[PATH_MAX], dir[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", dir, sizeof dir - 1);
    dir[n > 0 ? n : 0] = '\0';
    if (n <= 0 || !up(dir) || !join(prefix, dir, "") || !up(prefix))
        fail(call, "/proc/self/exe", "the path of this executable", "mount /proc, install below a directory");
    bool tree = strlen(dir) > 13 && strcmp(dir + strlen(dir) - 13, "/native/build") == 0;
    if (tree)
        up(prefix);
    if (!place->lib[0] && !join(place->lib, prefix, tree ? "" : "/lib/agentshim"))
        fail(call, prefix, "a shorter path", "install elsewhere");
    if (place->python[0])
        return;
    bool fits = join(record, tree ? dir : place->lib, "/python");
    int length = fits ? read_trusted(AT_FDCWD, record, place->python, sizeof place->python) : -ENAMETOOLONG;
    if (length > 0 && place->python[length - 1] == '\n')
        place->python[length - 1] = '\0';
    else if (length != -ENOENT || !join(place->python, prefix, "/bin/python3"))
        fail(call, record, "one line, in a file that only root can write", "install again, as root");
}

/* Whether main.pyc was made of this main.py by this interpreter: hotfile.py says so where Python skips its head. */
static bool made_of(const char *code, const char *source, const char *python) {
    struct stat of, by;
    uint32_t head[4] = {0};
    int fd = open(code, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool whole = fd >= 0 && read(fd, head, sizeof head) == (ssize_t)sizeof head;
    if (fd >= 0)
        close(fd);
    return whole && stat(source, &of) == 0 && stat(python, &by) == 0 && head[1] == (uint32_t)of.st_mtime &&
           head[2] == (uint32_t)by.st_mtime && head[3] == (uint32_t)by.st_size;
}

static void find_python(const struct call *call, struct place *place) {
    char dir[PATH_MAX], code[PATH_MAX];
    read_launch_conf(call, place);
    if (!place->lib[0] || !place->python[0])
        look_beside(call, place);
    if (!trusted_path(place->python, S_IFREG))
        fail(call, place->python, "an interpreter of root's that only root can write", "name one in " CONF);
    if (!join(dir, place->lib, "/shim") || !join(place->main, dir, "/main.py") || !trusted_path(place->lib, S_IFDIR) ||
        !trusted_path(dir, S_IFDIR) || !trusted_path(place->main, S_IFREG))
        fail(call, place->lib, "a directory with shim/main.py that only root can write", "install again, as root");
    if (join(code, place->main, "c") && trusted_path(code, S_IFREG) && made_of(code, place->main, place->python))
        join(place->main, code, "");
}

/* Move this process to the control group of version 2 in which it is: nothing changes. */
static void stay(void) {
    static const char *const MOUNTS[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}; /* unified and hybrid hosts */
    char groups[2 * PATH_MAX], place[PATH_MAX];
    ssize_t n = -1;
    int fd = open("/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        n = read(fd, groups, sizeof groups - 1);
    groups[n > 0 ? n : 0] = '\0';
    char *own = strstr(groups, "0::/"); /* the last line; no other holds an empty list of controllers */
    if (!own || !own[3 + strcspn(own + 3, "\n")])
        return;
    own[3 + strcspn(own + 3, "\n")] = '\0';
    for (size_t i = 0; i < COUNT(MOUNTS); i++) {
        int length = snprintf(place, sizeof place, "%s%s/cgroup.procs", MOUNTS[i], own + 3);
        fd = length < (int)sizeof place ? open(place, O_WRONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
        if (fd >= 0) {
            (void)!write(fd, "0", 1);
            return;
        }
    }
}

/* Begin now what the delegate will wait for. On a quiet host the first move of a process between control groups waits
 * for a grace period of the kernel (10 ms: cgroup_threadgroup_rwsem, rcu_sync), and those shortly after it do not. So
 * one waits beside our decision, in a process of its own that is nobody's child; without it all goes well, but later. */
static void hasten(const struct call *call) {
    bool moves = false;
    for (size_t i = 0; i < COUNT(MOVES) && call->verb; i++)
        moves = moves || strcmp(call->verb, MOVES[i]) == 0;
    pid_t child = moves ? fork() : -1;
    if (child > 0)
        waitpid(child, NULL, 0);
    if (child != 0)
        return;
    if (fork() == 0) {
        syscall(SYS_close_range, 0U, ~0U, 0U); /* whoever waits for the end of our output waits for ours alone */
        stay();
    }
    _exit(0);
}

static bool is_ignored(int signal) {
    struct sigaction now;
    return sigaction(signal, NULL, &now) == 0 && now.sa_handler == SIG_IGN;
}

/* -I: no environment, no user site. -S: no site (3 ms, and .pth files run code). -B: a container's start writes no
 * byte code. -X utf8: arguments decode alike under every locale. */
static _Noreturn void run_python(const struct call *call, int argc, char **argv, const char *delegate) {
    static struct place place;
    static char mask[2] = "0";
    find_python(call, &place);
    const char *execfn = (const char *)getauxval(AT_EXECFN);
    mask[0] = (char)('0' + is_ignored(SIGPIPE) + 2 * is_ignored(SIGXFSZ)); /* Python ignores both: it must undo that */
    const char *const head[] = {place.python, "-I", "-S", "-B", "-X", "utf8", place.main,
                                mask, execfn ? execfn : argv[0], delegate ? delegate : "-"};
    char **args = calloc(COUNT(head) + (size_t)argc, sizeof *args);
    if (!args)
        fail(call, "memory for the arguments", "none", "free some");
    memcpy(args, head, sizeof head);
    memcpy(args + COUNT(head), argv + 1, (size_t)argc * sizeof *args); /* with the final NULL */
    execve(place.python, args, environ);
    fail(call, place.python, "an interpreter that the kernel can start", strerror(errno));
}

int main(int argc, char **argv) {
    struct call call = argc > 0 ? parse(argv) : (struct call){0};
    if (argc < 1 || getauxval(AT_SECURE))
        fail(&call, argc < 1 ? "no argument at all" : "a set-id executable", "a plain call", "remove what makes it so");
    hasten(&call);
    const char *delegate = find_delegate();
    if (delegate && passes(&call)) {
        char *name = argv[0];
        argv[0] = (char *)(uintptr_t)delegate;
        execve(delegate, argv, environ);
        argv[0] = name; /* not executable: Python says so */
    }
    run_python(&call, argc, argv, delegate);
}

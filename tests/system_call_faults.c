/* Makes system calls of a process fail, wait or kill the process, for chosen files. Loaded with LD_PRELOAD.

   SYSTEM_CALL_FAULTS has one rule per line: CALLS|PATTERN|AFTER|TIMES|ACTION
     CALLS    names separated by commas, as in RULES below; "open" applies to files opened for writing
     PATTERN  of fnmatch, for absolute paths
     AFTER    number of matching calls that succeed first
     TIMES    number of calls that fail after that; 0 for all
     ACTION   errno:NUMBER, kill (SIGKILL before the call) or delay:MILLISECONDS
   SYSTEM_CALL_FAULTS_LOG is a file to which each fault is appended as a line "CALL PATH".
   CLOCK_OFFSET is a number of seconds that is added to the time of day, CLOCK_OFFSET_AFTER seconds after the start.

   tests/system_call_faults.py compiles this file and writes the variables. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_RULES 32

struct rule {
    char calls[256], pattern[PATH_MAX], action[32];
    long after, times, count;
};

static struct rule rules[MAX_RULES];
static int rule_count;
static double clock_offset, clock_offset_after, start_seconds;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static double monotonic(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

__attribute__((constructor)) static void read_rules(void) {
    const char *offset = getenv("CLOCK_OFFSET"), *after = getenv("CLOCK_OFFSET_AFTER");
    clock_offset = offset ? atof(offset) : 0;
    clock_offset_after = after ? atof(after) : 0;
    start_seconds = monotonic();
    const char *variable = getenv("SYSTEM_CALL_FAULTS");
    if (variable == NULL) return;
    char *text = strdup(variable), *position = NULL;
    for (char *line = strtok_r(text, "\n", &position); line != NULL && rule_count < MAX_RULES;
         line = strtok_r(NULL, "\n", &position)) {
        struct rule *rule = &rules[rule_count];
        if (sscanf(line, "%255[^|]|%4095[^|]|%ld|%ld|%31s", rule->calls, rule->pattern, &rule->after, &rule->times,
                   rule->action) == 5)
            rule_count++;
        else
            fprintf(stderr, "invalid rule in SYSTEM_CALL_FAULTS: %s\n", line);
    }
    free(text);
}

static int has_call(const struct rule *rule, const char *call) {
    size_t length = strlen(call);
    for (const char *match = rule->calls; (match = strstr(match, call)) != NULL; match += length)
        if ((match == rule->calls || match[-1] == ',') && (match[length] == '\0' || match[length] == ','))
            return 1;
    return 0;
}

static void write_log(const char *call, const char *path) {
    const char *log = getenv("SYSTEM_CALL_FAULTS_LOG");
    if (log == NULL) return;
    char line[PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path);
    int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT, 0666);
    if (file >= 0) {
        syscall(SYS_write, file, line, (size_t)length);
        syscall(SYS_close, file);
    }
}

/* Returns whether the call is to fail, with errno set. */
static int fails(const char *call, const char *path) {
    for (int index = 0; index < rule_count; index++) {
        struct rule *rule = &rules[index];
        if (!has_call(rule, call) || fnmatch(rule->pattern, path, 0) != 0) continue;
        pthread_mutex_lock(&mutex);
        long number = rule->count++;
        pthread_mutex_unlock(&mutex);
        if (number < rule->after || (rule->times > 0 && number >= rule->after + rule->times)) continue;
        write_log(call, path);
        if (strcmp(rule->action, "kill") == 0) kill(getpid(), SIGKILL);
        if (strncmp(rule->action, "delay:", 6) == 0) {
            long milliseconds = atol(rule->action + 6);
            struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
            nanosleep(&pause, NULL);
            continue;
        }
        errno = atoi(rule->action + strlen("errno:"));
        return 1;
    }
    return 0;
}

static int has_rule(const char *call) {
    for (int index = 0; index < rule_count; index++)
        if (has_call(&rules[index], call)) return 1;
    return 0;
}

static int fails_at(const char *call, int folder, const char *path) {
    if (path == NULL || !has_rule(call)) return 0;
    char absolute[2 * PATH_MAX];
    if (path[0] == '/') return fails(call, path);
    char link[64], base[PATH_MAX];
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return 0;
    base[length] = '\0';
    snprintf(absolute, sizeof absolute, "%s/%s", base, path);
    return fails(call, absolute);
}

static int fails_fd(const char *call, int file) {
    if (!has_rule(call)) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = '\0';
    return fails(call, path);
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (next == NULL) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define WRITES(flags) (((flags) & (O_WRONLY | O_RDWR | O_CREAT)) != 0)
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list arguments; \
        va_start(arguments, flags); \
        mode = va_arg(arguments, mode_t); \
        va_end(arguments); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        NEXT(name); \
        return WRITES(flags) && fails_at("open", AT_FDCWD, path) ? -1 : next(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        MODE(flags) \
        NEXT(name); \
        return WRITES(flags) && fails_at("open", folder, path) ? -1 : next(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        NEXT(name); \
        return strpbrk(mode, "wa+") && fails_at("open", AT_FDCWD, path) ? NULL : next(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define CALL_FD(name, kind, type, failure, parameters, ...) \
    type name parameters { \
        NEXT(name); \
        return fails_fd(kind, file) ? failure : next(__VA_ARGS__); \
    }
CALL_FD(write, "write", ssize_t, -1, (int file, const void *data, size_t size), file, data, size)
CALL_FD(writev, "write", ssize_t, -1, (int file, const struct iovec *parts, int count), file, parts, count)
CALL_FD(pwrite, "write", ssize_t, -1, (int file, const void *data, size_t size, off_t at), file, data, size, at)
CALL_FD(pwrite64, "write", ssize_t, -1, (int file, const void *data, size_t size, off64_t at), file, data, size, at)
CALL_FD(pwritev, "write", ssize_t, -1, (int file, const struct iovec *parts, int count, off_t at), file, parts, count, at)
CALL_FD(pwritev64, "write", ssize_t, -1, (int file, const struct iovec *parts, int count, off64_t at), file, parts, count, at)
CALL_FD(fsync, "fsync", int, -1, (int file), file)
CALL_FD(fdatasync, "fsync", int, -1, (int file), file)
CALL_FD(ftruncate, "truncate", int, -1, (int file, off_t size), file, size)
CALL_FD(ftruncate64, "truncate", int, -1, (int file, off64_t size), file, size)

size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
    NEXT(fwrite);
    return fails_fd("write", fileno(stream)) ? 0 : next(data, size, count, stream);
}

int fflush(FILE *stream) {
    NEXT(fflush);
    return stream != NULL && fails_fd("write", fileno(stream)) ? EOF : next(stream);
}

#define CALL_PATH(name, kind, parameters, path, ...) \
    int name parameters { \
        NEXT(name); \
        return fails_at(kind, AT_FDCWD, path) ? -1 : next(__VA_ARGS__); \
    }
CALL_PATH(mkdir, "mkdir", (const char *path, mode_t mode), path, path, mode)
CALL_PATH(truncate, "truncate", (const char *path, off_t size), path, path, size)
CALL_PATH(truncate64, "truncate", (const char *path, off64_t size), path, path, size)
CALL_PATH(rename, "rename", (const char *from, const char *to), to, from, to)
CALL_PATH(link, "link", (const char *from, const char *to), to, from, to)
CALL_PATH(unlink, "unlink", (const char *path), path, path)

int renameat(int old_folder, const char *from, int folder, const char *to) {
    NEXT(renameat);
    return fails_at("rename", folder, to) ? -1 : next(old_folder, from, folder, to);
}

int linkat(int old_folder, const char *from, int folder, const char *to, int flags) {
    NEXT(linkat);
    return fails_at("link", folder, to) ? -1 : next(old_folder, from, folder, to, flags);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    NEXT(mkdirat);
    return fails_at("mkdir", folder, path) ? -1 : next(folder, path, mode);
}

static double current_offset(void) {
    return clock_offset != 0 && monotonic() - start_seconds >= clock_offset_after ? clock_offset : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    NEXT(clock_gettime);
    int result = next(clock, now);
    if (clock == CLOCK_REALTIME && result == 0) now->tv_sec += (time_t)current_offset();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    NEXT(gettimeofday);
    int result = next(now, zone);
    if (result == 0) now->tv_sec += (time_t)current_offset();
    return result;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result != NULL) *result = now.tv_sec;
    return now.tv_sec;
}

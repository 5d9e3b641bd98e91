/* Kills this process in the middle of the n-th call that changes what is on the disk, or sends. Preloaded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <sys/types.h>
#include <unistd.h>

enum { BEFORE, HALF, AFTER };

static long left; /* calls until the kill; 0 = none is due */
static int when;
static long counted;

/* Let the n-th call from now on be the last: before it does anything, when half is written, or when it is done. */
void kill_at(long nth, int moment) {
    left = nth;
    when = moment;
    counted = 0;
}

/* Return how many calls there were since. */
long calls(void) { return counted; }

static int due(void) {
    counted++;
    return left > 0 && --left == 0;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

#define WRITING(name, parameters, whole, half)                                                                         \
    ssize_t name parameters {                                                                                          \
        static ssize_t(*real) parameters;                                                                              \
        if (!real)                                                                                                     \
            real = dlsym(RTLD_NEXT, #name);                                                                            \
        if (!due())                                                                                                    \
            return real whole;                                                                                         \
        if (when == HALF)                                                                                              \
            (void)!real half;                                                                                          \
        if (when == AFTER)                                                                                             \
            (void)!real whole;                                                                                         \
        die();                                                                                                         \
        return -1;                                                                                                     \
    }

WRITING(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), (fd, data, size / 2, at))
WRITING(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), (fd, data, size / 2, at))
WRITING(send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags), (fd, data, size / 2, flags))

#define CHANGING(name, parameters, whole)                                                                              \
    int name parameters {                                                                                              \
        static int(*real) parameters;                                                                                  \
        if (!real)                                                                                                     \
            real = dlsym(RTLD_NEXT, #name);                                                                            \
        if (!due())                                                                                                    \
            return real whole;                                                                                         \
        if (when == AFTER)                                                                                             \
            (void)!real whole;                                                                                         \
        die();                                                                                                         \
        return -1;                                                                                                     \
    }

CHANGING(fsync, (int fd), (fd))
CHANGING(fdatasync, (int fd), (fd))
CHANGING(ftruncate, (int fd, off_t size), (fd, size))
CHANGING(ftruncate64, (int fd, off64_t size), (fd, size))
CHANGING(unlink, (const char *path), (path))
CHANGING(rename, (const char *from, const char *to), (from, to))

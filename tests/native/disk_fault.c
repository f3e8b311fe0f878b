// A disk that refuses, for LD_PRELOAD: while the file DISK_FAULT_FILE holds the number of an error, whatever would change
// files below a folder named DISK_FAULT_DIR fails with it. Without the file all goes its usual way. And a disk that is slow:
// DISK_SYNC_MS is how long each sync of a file takes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int fault_now(void) {
  const char *control = getenv("DISK_FAULT_FILE");
  char text[16] = "";
  if (!control) return 0;
  int file = REAL(open)(control, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t count = read(file, text, sizeof text - 1);
  close(file);
  return count > 0 ? atoi(text) : 0;
}

// a part of the path, and not only the end of a longer name, is the folder
static int is_below(const char *path) {
  const char *folder = getenv("DISK_FAULT_DIR");
  size_t length = folder ? strlen(folder) : 0;
  if (!length) return 0;
  for (const char *at = strstr(path, folder); at; at = strstr(at + 1, folder)) {
    if ((at == path || at[-1] == '/') && (at[length] == '/' || !at[length])) return 1;
  }
  return 0;
}

static int refuses(const char *path) {
  int saved = errno, fault = path && is_below(path) ? fault_now() : 0;
  errno = fault ? fault : saved;
  return fault;
}

static int refuses_fd(int fd) {
  char name[40], path[PATH_MAX];
  int saved = errno;
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(name, path, sizeof path - 1);
  errno = saved;
  if (length <= 0) return 0;
  path[length] = 0;
  return refuses(path);
}

static int would_write(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

#define OPEN(name)                                                        \
  int name(const char *path, int flags, ...) {                            \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                         \
    if (would_write(flags) && refuses(path)) return -1;                   \
    return REAL(name)(path, flags, mode);                                 \
  }
#define OPENAT(name)                                                      \
  int name(int folder, const char *path, int flags, ...) {                \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                         \
    if (would_write(flags) && refuses(path)) return -1;                   \
    return REAL(name)(folder, path, flags, mode);                         \
  }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *bytes, size_t count) { return refuses_fd(fd) ? -1 : REAL(write)(fd, bytes, count); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
  return refuses_fd(fd) ? -1 : REAL(writev)(fd, parts, count);
}

static int refuses_sync(int fd) {
  const char *sync_ms = getenv("DISK_SYNC_MS");
  if (sync_ms) usleep(1000 * atoi(sync_ms));
  return refuses_fd(fd);
}

int fsync(int fd) { return refuses_sync(fd) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return refuses_sync(fd) ? -1 : REAL(fdatasync)(fd); }

int mkdir(const char *path, mode_t mode) { return refuses(path) ? -1 : REAL(mkdir)(path, mode); }

int rename(const char *from, const char *to) { return refuses(to) ? -1 : REAL(rename)(from, to); }

int renameat(int old_folder, const char *from, int new_folder, const char *to) {
  return refuses(to) ? -1 : REAL(renameat)(old_folder, from, new_folder, to);
}

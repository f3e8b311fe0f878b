// A clock that is wrong, for LD_PRELOAD: the time of day is CLOCK_SHIFT_S seconds later than it is. Durations stay right.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static time_t shift(void) {
  const char *seconds = getenv("CLOCK_SHIFT_S");
  return seconds ? atol(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = REAL(clock_gettime)(clock, at);
  if (!failed && clock == CLOCK_REALTIME) at->tv_sec += shift();
  return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  int failed = REAL(gettimeofday)(at, zone);
  if (!failed && at) at->tv_sec += shift();
  return failed;
}

time_t time(time_t *at) {
  time_t now = REAL(time)(NULL) + shift();
  if (at) *at = now;
  return now;
}

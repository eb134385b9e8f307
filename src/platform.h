/* The few things that the simulated providers need of an operating system: a lock, a condition
   with a time limit.  Nothing on the path to the real Winsock uses them. */
#ifndef WFPIOCTL_PLATFORM_H
#define WFPIOCTL_PLATFORM_H

#include <stdbool.h>

#ifdef _WIN32

#include "winsock_types.h"

typedef SRWLOCK Mutex;
typedef CONDITION_VARIABLE Condition;

#define MUTEX_INIT SRWLOCK_INIT
#define CONDITION_INIT CONDITION_VARIABLE_INIT

static inline void mutex_init(Mutex *mutex) { InitializeSRWLock(mutex); }
static inline void mutex_lock(Mutex *mutex) { AcquireSRWLockExclusive(mutex); }
static inline void mutex_unlock(Mutex *mutex) { ReleaseSRWLockExclusive(mutex); }
static inline void condition_wake_all(Condition *condition) { WakeAllConditionVariable(condition); }

static inline double clock_seconds(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (double)now.QuadPart / (double)frequency.QuadPart;
}

static inline void condition_wait(Condition *condition, Mutex *mutex, double seconds) {
    DWORD milliseconds = seconds > 3600.0 ? 3600000u : (DWORD)(seconds * 1000.0) + 1u;
    SleepConditionVariableSRW(condition, mutex, milliseconds, 0);
}

#else

#include <pthread.h>
#include <time.h>

typedef pthread_mutex_t Mutex;
typedef pthread_cond_t Condition;

#define MUTEX_INIT PTHREAD_MUTEX_INITIALIZER
#define CONDITION_INIT PTHREAD_COND_INITIALIZER

static inline void mutex_init(Mutex *mutex) { pthread_mutex_init(mutex, NULL); }
static inline void mutex_lock(Mutex *mutex) { pthread_mutex_lock(mutex); }
static inline void mutex_unlock(Mutex *mutex) { pthread_mutex_unlock(mutex); }
static inline void condition_wake_all(Condition *condition) { pthread_cond_broadcast(condition); }

static inline double clock_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* A statically initialised condition counts in wall time; callers loop against clock_seconds(). */
static inline void condition_wait(Condition *condition, Mutex *mutex, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    double limit = seconds > 3600.0 ? 3600.0 : seconds;
    long nanoseconds = until.tv_nsec + (long)((limit - (double)(long)limit) * 1e9);
    until.tv_sec += (time_t)limit + nanoseconds / 1000000000L;
    until.tv_nsec = nanoseconds % 1000000000L;
    pthread_cond_timedwait(condition, mutex, &until);
}

#endif /* _WIN32 */

/* Wait until woken or `deadline` (clock_seconds(); may be infinite); true while it is not yet past.
 */
static inline bool condition_wait_until(Condition *condition, Mutex *mutex, double deadline) {
    double left = deadline - clock_seconds();
    if (left <= 0.0) {
        return false;
    }
    condition_wait(condition, mutex, left);
    return true;
}

#endif

/* The few things that the code needs of an operating system: a lock, a condition with a time limit,
   an event as OVERLAPPED's hEvent, a thread.  The synchronous path to the real Winsock uses none.

   An event is a HANDLE whose lowest bits are free on every system (W29).  It is manual-reset, and
   event_new() returns NULL with errno set where there is none to be had. */
#ifndef WFPIOCTL_PLATFORM_H
#define WFPIOCTL_PLATFORM_H

#include "winsock_types.h"

#include <stdbool.h>

#ifdef _WIN32

#include <errno.h>

typedef SRWLOCK Mutex;
typedef CONDITION_VARIABLE Condition;

#define MUTEX_INIT SRWLOCK_INIT
#define CONDITION_INIT CONDITION_VARIABLE_INIT

static inline void mutex_init(Mutex *mutex) { InitializeSRWLock(mutex); }
static inline void mutex_lock(Mutex *mutex) { AcquireSRWLockExclusive(mutex); }
static inline void mutex_unlock(Mutex *mutex) { ReleaseSRWLockExclusive(mutex); }
static inline void condition_wake_all(Condition *condition) { WakeAllConditionVariable(condition); }

static inline void at_fork(void (*before)(void), void (*parent)(void), void (*child)(void)) {
    (void)before, (void)parent, (void)child; /* Windows has no fork */
}

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

static inline HANDLE event_new(void) {
    HANDLE event = CreateEventW(NULL, TRUE, FALSE, NULL);
    if (event == NULL) {
        errno = ENOMEM; /* the only thing that an unnamed event can lack */
    }
    return event;
}

static inline void event_close(HANDLE event) { CloseHandle(event); }
static inline void event_set(HANDLE event) { SetEvent(event); }
static inline void event_reset(HANDLE event) { ResetEvent(event); }

static inline void event_wait(HANDLE event, double seconds) {
    WaitForSingleObject(event, (DWORD)(seconds * 1000.0) + 1u);
}

/* What Python and its event loops know the event by: the handle itself. */
static inline uintptr_t event_number(HANDLE event) { return (uintptr_t)event; }

static inline DWORD WINAPI thread_main(void *function) {
    ((void (*)(void))(uintptr_t)function)();
    return 0;
}

static inline bool thread_start(void (*function)(void)) {
    HANDLE thread = CreateThread(NULL, 0, thread_main, (void *)(uintptr_t)function, 0, NULL);
    if (thread != NULL) {
        CloseHandle(thread);
    }
    return thread != NULL;
}

#else

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/eventfd.h>
#endif

typedef pthread_mutex_t Mutex;
typedef pthread_cond_t Condition;

#define MUTEX_INIT PTHREAD_MUTEX_INITIALIZER
#define CONDITION_INIT PTHREAD_COND_INITIALIZER

static inline void mutex_init(Mutex *mutex) { pthread_mutex_init(mutex, NULL); }
static inline void mutex_lock(Mutex *mutex) { pthread_mutex_lock(mutex); }
static inline void mutex_unlock(Mutex *mutex) { pthread_mutex_unlock(mutex); }
static inline void condition_wake_all(Condition *condition) { pthread_cond_broadcast(condition); }

/* Around each fork from now on: a lock that another thread holds would stay locked in the child. */
static inline void at_fork(void (*before)(void), void (*parent)(void), void (*child)(void)) {
    pthread_atfork(before, parent, child);
}

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

/* A descriptor as a HANDLE like Windows': never NULL, a multiple of 4. */
static inline int event_descriptor(HANDLE event) { return (int)((uintptr_t)event / 4) - 1; }

static inline HANDLE event_new(void) {
#ifdef __linux__
    int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return descriptor < 0 ? NULL : (HANDLE)(((uintptr_t)descriptor + 1) * 4);
#else
    errno = ENOSYS;
    return NULL;
#endif
}

static inline void event_close(HANDLE event) { close(event_descriptor(event)); }

static inline void event_set(HANDLE event) {
    const uint64_t one = 1; /* a counter that is full is set already */
    ssize_t written = write(event_descriptor(event), &one, sizeof one);
    (void)written;
}

static inline void event_reset(HANDLE event) {
    uint64_t count; /* one that is not set has nothing to read */
    ssize_t got = read(event_descriptor(event), &count, sizeof count);
    (void)got;
}

/* A signal ends the wait early. */
static inline void event_wait(HANDLE event, double seconds) {
    struct pollfd descriptor = {.fd = event_descriptor(event), .events = POLLIN};
    poll(&descriptor, 1, (int)(seconds * 1000.0) + 1);
}

/* What Python and its event loops know the event by: the file descriptor. */
static inline uintptr_t event_number(HANDLE event) { return (uintptr_t)event_descriptor(event); }

static inline void *thread_main(void *function) {
    ((void (*)(void))(uintptr_t)function)();
    return NULL;
}

/* Signals go to the program's own threads, whose waits they are meant to end. */
static inline bool thread_start(void (*function)(void)) {
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(&thread, NULL, thread_main, (void *)(uintptr_t)function) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started) {
        pthread_detach(thread);
    }
    return started;
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

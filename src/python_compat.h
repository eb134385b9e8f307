/* Every #if on Python's version, its ABI and the compiler. */
#ifndef WFPIOCTL_PYTHON_COMPAT_H
#define WFPIOCTL_PYTHON_COMPAT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* The headers of 3.12 and later take None for immortal, which 3.11 does not: a wheel for 3.11 that
   was built with them would give away references that it does not own. */
#undef Py_RETURN_NONE
#define Py_RETURN_NONE return Py_NewRef(Py_None)

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* For the few functions on every connection's path whose call would cost more than their work. */
#ifdef _MSC_VER
#define HOT_INLINE static __forceinline
#else
#define HOT_INLINE static inline __attribute__((always_inline))
#endif

/* For functions with a large buffer on the stack.  They are called once the arguments are
   converted: a fileno() can come back here, and would fill Windows' stack before it is a
   RecursionError. */
#ifdef _MSC_VER
#define BIG_FRAME static __declspec(noinline)
#else
#define BIG_FRAME static __attribute__((noinline))
#endif

/* Slots that the 3.11 limited API cannot name; PyInit_ adds those that the running Python knows. */
#define SLOT_MULTIPLE_INTERPRETERS 3 /* Py_mod_multiple_interpreters, 3.12 */
#define SLOT_PER_INTERPRETER_GIL ((void *)2)
#define SLOT_GIL 4 /* Py_mod_gil, 3.13 */
#define SLOT_GIL_NOT_USED ((void *)1)

/* ISO C has no conversion from a function to the void pointer that a slot wants. */
#define SLOT_FUNCTION(function) ((void *)(uintptr_t)(function))

/* Counts calls that are under way.  With a GIL the count is only touched while holding it; without
   one it is spread over cache lines, so that threads do not share one on the hot path. */
#ifdef Py_GIL_DISABLED

#define CALL_COUNTER_STRIPES 16

typedef struct {
    struct {
        _Alignas(64) atomic_long count;
    } stripes[CALL_COUNTER_STRIPES];
} CallCounter;

/* Any stripe is right as long as a call ends where it began; a thread's stack tells threads apart.
 */
static inline atomic_long *call_begin(CallCounter *counter) {
    uintptr_t stack = (uintptr_t)&counter;
    size_t stripe = (size_t)((stack >> 16) * 0x9E3779B97F4A7C15u >> 60);
    atomic_long *count = &counter->stripes[stripe].count;
    atomic_fetch_add(count, 1);
    return count;
}

static inline void call_end(atomic_long *count) { atomic_fetch_sub(count, 1); }

static inline bool calls_under_way(CallCounter *counter) {
    for (size_t i = 0; i < CALL_COUNTER_STRIPES; i++) {
        if (atomic_load(&counter->stripes[i].count) != 0) {
            return true;
        }
    }
    return false;
}

typedef atomic_long CallCount;

#else

typedef struct {
    long count;
} CallCounter;

typedef long CallCount;

static inline CallCount *call_begin(CallCounter *counter) {
    counter->count++;
    return &counter->count;
}

static inline void call_end(CallCount *count) { --*count; }

static inline bool calls_under_way(CallCounter *counter) { return counter->count != 0; }

#endif

/* Raise a socket call's code as the socket module does.  Returns NULL. */
static inline PyObject *set_socket_error(int code) {
#ifdef MS_WINDOWS
    return PyErr_SetExcFromWindowsErr(PyExc_OSError, code);
#else
    errno = code;
    return PyErr_SetFromErrno(PyExc_OSError);
#endif
}

#endif

/* Counts how often an extension leaves the interpreter.  tests/test_gil.py preloads it into a
   Python, where it comes before the function of that name. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>

typedef void *SaveThread(void);

SaveThread PyEval_SaveThread;
extern atomic_long gil_releases;
atomic_long gil_releases;

void *PyEval_SaveThread(void) {
    SaveThread *next;
    *(void **)&next = dlsym(RTLD_NEXT, "PyEval_SaveThread");
    atomic_fetch_add(&gil_releases, 1);
    return next();
}

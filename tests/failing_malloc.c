/* The C allocator of the instrumented builds, which fails when a test says so (by ctypes), and the
   start of a thread, which fails with it.  The linker puts them in place (--wrap); in the builds
   that ship there is no trace of them. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

typedef void *ThreadMain(void *);

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, ThreadMain *function,
                          void *argument);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, ThreadMain *function,
                          void *argument);

/* The allocation that fails: 1 is the next one; 0 is none.  It counts down, and then stays 0. */
__attribute__((visibility("default"))) extern atomic_long wfpioctl_failing_malloc;
atomic_long wfpioctl_failing_malloc;

static int fails(void) {
    long number = atomic_load(&wfpioctl_failing_malloc);
    while (number > 0) {
        if (atomic_compare_exchange_weak(&wfpioctl_failing_malloc, &number, number - 1)) {
            return number == 1;
        }
    }
    return 0;
}

void *__wrap_malloc(size_t size) { return fails() ? NULL : __real_malloc(size); }

void *__wrap_calloc(size_t count, size_t size) {
    return fails() ? NULL : __real_calloc(count, size);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, ThreadMain *function,
                          void *argument) {
    return fails() ? EAGAIN : __real_pthread_create(thread, attributes, function, argument);
}

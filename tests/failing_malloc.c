/* The C allocator of the instrumented builds, which fails when a test says so (by ctypes).  The
   linker puts it in place (--wrap); in the builds that ship there is no trace of it. */
#include <stdatomic.h>
#include <stddef.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);

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

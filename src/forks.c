/* A lock that another thread holds during a fork would stay locked in the child: they are all taken
   before a fork, in the order in which calls take them, and given back after it. */
#include "forks.h"

#include "alertable.h"
#include "operation.h"
#include "platform.h"
#include "provider_engine.h"
#include "provider_scripted.h"
#include "simulated.h"

#include <stdatomic.h>

static void before(void) {
    operations_before_fork(); /* reaping an orphan may start its next try */
    script_lock();            /* a step may pend */
    engine_before_fork();
    simulated_before_fork(); /* what completes may be due in a thread */
    due_before_fork();
}

static void after(bool child) {
    due_after_fork(child);
    simulated_after_fork(child);
    engine_after_fork();
    script_after_fork(child);
    operations_after_fork(child);
}

static void after_in_parent(void) { after(false); }
static void after_in_child(void) { after(true); }

void forks_watch(void) {
    static atomic_flag watched = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&watched)) {
        at_fork(before, after_in_parent, after_in_child);
    }
}

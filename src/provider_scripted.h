/* Control of the scripted provider.  One script at most is current in a process. */
#ifndef WFPIOCTL_PROVIDER_SCRIPTED_H
#define WFPIOCTL_PROVIDER_SCRIPTED_H

#include "provider.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    char *data;
    DWORD size;
} Blob;

/* One answer, played verbatim whatever the buffer holds: that is how a provider can lie. */
typedef struct {
    DWORD code; /* 0 = success */
    Blob data;
    DWORD returned;     /* what lpcbBytesReturned says */
    double delay;       /* seconds before the answer; infinite = until the script ends */
    bool uncancellable; /* a cancellation does not end a pending operation */
    bool pending;       /* an overlapped call returns at once, and its operation pends so long */
} ScriptStep;

typedef struct {
    DWORD code;
    Blob input;
    DWORD capacity;
} ScriptCall;

#define SCRIPT_MAX_CALLS 10000 /* recorded; later ones are only counted */

typedef struct Script {
    Blob records, context; /* with no steps: the fixed answers */
    ScriptStep *steps;
    size_t step_count;
    /* the rest is guarded by the player's lock */
    size_t next_step;
    ScriptCall *calls;
    size_t call_count; /* all calls, recorded or not */
    bool stopped;
    struct Script *next_retired;
} Script;

/* Make `script` current. */
void script_start(Script *script);

/* End the current script: calls that wait in it, and operations that pend, are aborted (995).  It
   is the caller's again, but calls that were under way may still read it. */
Script *script_stop(void);

Script *script_current(void);
void script_free(Script *script);

/* Look at the recorded calls while no other call can add one. */
void script_lock(void);
void script_unlock(void);

/* After a fork before which script_lock() was called; see forks.c. */
void script_after_fork(bool child);

#endif

/* A fork while other threads are in here: the child can go on. */
#ifndef WFPIOCTL_FORKS_H
#define WFPIOCTL_FORKS_H

/* From now on, and once for the process. */
void forks_watch(void);

#endif

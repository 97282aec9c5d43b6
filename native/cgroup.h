/* cgroup.h -- finds the control groups whose limits hold for this process.
 *
 * Owns no shared bytes. Version 1 and version 2 are looked at alike: /proc/self/cgroup says on which
 * path the process stands, /proc/self/mountinfo where that hierarchy can be seen. A group's limit
 * binds everything below it, so every directory from the process's own up to the mount is visited.
 * Whatever cannot be read is no limit: a process that may not see its group is not told about it.
 */
#ifndef SHMRT_CGROUP_H
#define SHMRT_CGROUP_H

#include "base.h"

#define SHMRT_CGROUP_PATH_MAX 1024

/* `directory` is an absolute path of the file system; `group` is the same group as an administrator
 * names it ("/" and so on); `version` is 1 or 2. */
typedef void (*shmrt_cgroup_visit)(void *context, const char *directory, const char *group, int version);

/* Visits every group of `controller` ("memory", "cpu") on the process's own path, innermost first. */
void shmrt_cgroup_each(const char *controller, shmrt_cgroup_visit visit, void *context);

/* Look for `cgroup` and `mountinfo` in this directory instead of /proc/self, so that a test can show a
 * machine that it has not. The string must stay. */
void shmrt_cgroup_look_in(const char *directory);

/* The first number of directory/file. False when it is missing, is "max", or is no number. */
bool shmrt_cgroup_read(const char *directory, const char *file, uint64_t *value);
/* The number behind `key` in a file of "key number" lines. */
bool shmrt_cgroup_read_key(const char *directory, const char *file, const char *key, uint64_t *value);
/* CPUs that the quotas on the own path leave, rounded up; UINT64_MAX without a quota. */
uint64_t shmrt_cgroup_cpus(void);

#endif

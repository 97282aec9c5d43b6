/* cgroup.c -- see cgroup.h. */
#include "cgroup.h"

#include <errno.h>

static const char *proc_self = "/proc/self";

void shmrt_cgroup_look_in(const char *directory) { proc_self = directory; }

static FILE *open_file(const char *directory, const char *name) {
	char path[2 * SHMRT_CGROUP_PATH_MAX + 64];
	int length = snprintf(path, sizeof(path), "%s/%s", directory, name);
	return length < 0 || (size_t)length >= sizeof(path) ? NULL : fopen(path, "re");
}

/* True if `list` ("cpu,cpuacct") names `item`. */
static bool list_has(const char *list, const char *item) {
	size_t length = strlen(item);
	for (const char *at = list; at != NULL; at = strchr(at, ',')) {
		if (*at == ',')
			at++;
		if (strncmp(at, item, length) == 0 && (at[length] == ',' || at[length] == 0))
			return true;
	}
	return false;
}

/* mountinfo writes space, tab, newline and backslash as three octal digits. */
static void decode_octal(char *text) {
	char *to = text;
	for (char *from = text; *from != 0; to++) {
		if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' &&
		    from[2] <= '7' && from[3] >= '0' && from[3] <= '7') {
			*to = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
			from += 4;
		} else {
			*to = *from++;
		}
	}
	*to = 0;
}

/* The path of the process in the hierarchy: version 1 by its controller's name, version 2 by "0::". */
static bool find_group(const char *controller, int version, char *group) {
	FILE *file = open_file(proc_self, "cgroup");
	if (file == NULL)
		return false;
	char line[SHMRT_CGROUP_PATH_MAX + 256];
	bool found = false;
	while (!found && fgets(line, sizeof(line), file) != NULL) {
		line[strcspn(line, "\n")] = 0;
		char *controllers = strchr(line, ':');
		char *path = controllers == NULL ? NULL : strchr(controllers + 1, ':');
		if (path == NULL)
			continue;
		*path++ = 0;
		controllers++;
		found = version == 1 ? list_has(controllers, controller) : *controllers == 0;
		if (found && (strlen(path) >= SHMRT_CGROUP_PATH_MAX || *path != '/'))
			found = false;
		if (found)
			memcpy(group, path, strlen(path) + 1);
	}
	fclose(file);
	return found;
}

struct mount {
	char root[SHMRT_CGROUP_PATH_MAX];  /* which group stands at the mount point */
	char point[SHMRT_CGROUP_PATH_MAX];
};

static bool parse_mount(char *line, const char *controller, int version, struct mount *mount) {
	char *tail = strstr(line, " - ");
	if (tail == NULL)
		return false;
	char type[32], options[512];
	*tail = 0;
	if (sscanf(tail + 3, "%31s %*s %511s", type, options) != 2 ||
	    sscanf(line, "%*s %*s %*s %1023s %1023s", mount->root, mount->point) != 2)
		return false;
	decode_octal(mount->root);
	decode_octal(mount->point);
	return version == 1 ? strcmp(type, "cgroup") == 0 && list_has(options, controller)
			    : strcmp(type, "cgroup2") == 0;
}

static bool find_mount(const char *controller, int version, struct mount *mount) {
	FILE *file = open_file(proc_self, "mountinfo");
	if (file == NULL)
		return false;
	char line[4096];
	bool found = false;
	while (!found && fgets(line, sizeof(line), file) != NULL) {
		line[strcspn(line, "\n")] = 0;
		found = parse_mount(line, controller, version, mount);
	}
	fclose(file);
	return found;
}

static void visit_version(const char *controller, int version, shmrt_cgroup_visit visit, void *context) {
	char group[SHMRT_CGROUP_PATH_MAX];
	struct mount mount;
	if (!find_group(controller, version, group) || !find_mount(controller, version, &mount))
		return;
	/* A mount shows its root group and what is below; a container often sees only its own group. */
	size_t root_length = strcmp(mount.root, "/") == 0 ? 0 : strlen(mount.root);
	const char *below = group + strlen(group);
	if (strncmp(group, mount.root, root_length) == 0 &&
	    (group[root_length] == '/' || group[root_length] == 0))
		below = group + root_length;
	char directory[2 * SHMRT_CGROUP_PATH_MAX];
	int length = snprintf(directory, sizeof(directory), "%s%s", mount.point, below);
	if (length < 0 || (size_t)length >= sizeof(directory))
		return;
	size_t shown = strlen(mount.point);
	for (size_t end = (size_t)length; end >= shown; end--) {
		if (directory[end] != 0 && directory[end] != '/')
			continue;
		directory[end] = 0;
		if (end > shown && directory[end - 1] == '/')
			continue; /* "/" alone or a doubled slash: the same group again */
		char name[3 * SHMRT_CGROUP_PATH_MAX];
		snprintf(name, sizeof(name), "%.*s%s", (int)root_length, mount.root, directory + shown);
		visit(context, directory, name[0] == 0 ? "/" : name, version);
	}
}

void shmrt_cgroup_each(const char *controller, shmrt_cgroup_visit visit, void *context) {
	visit_version(controller, 1, visit, context);
	visit_version(controller, 2, visit, context);
}

static bool parse_number(const char *text, uint64_t *value) {
	if (*text < '0' || *text > '9')
		return false; /* "max", "-1", nothing */
	errno = 0;
	unsigned long long number = strtoull(text, NULL, 10);
	*value = number;
	return errno == 0;
}

bool shmrt_cgroup_read(const char *directory, const char *file_name, uint64_t *value) {
	FILE *file = open_file(directory, file_name);
	if (file == NULL)
		return false;
	char line[64];
	bool found = fgets(line, sizeof(line), file) != NULL && parse_number(line, value);
	fclose(file);
	return found;
}

bool shmrt_cgroup_read_key(const char *directory, const char *file_name, const char *key, uint64_t *value) {
	FILE *file = open_file(directory, file_name);
	if (file == NULL)
		return false;
	char line[256];
	size_t length = strlen(key);
	bool found = false;
	while (!found && fgets(line, sizeof(line), file) != NULL)
		found = strncmp(line, key, length) == 0 && line[length] == ' ' &&
			parse_number(line + length + 1, value);
	fclose(file);
	return found;
}

static void visit_cpu(void *context, const char *directory, const char *group, int version) {
	uint64_t *cpus = context, quota = 0, period = 0;
	bool limited;
	(void)group;
	if (version == 1) {
		limited = shmrt_cgroup_read(directory, "cpu.cfs_quota_us", &quota) &&
			  shmrt_cgroup_read(directory, "cpu.cfs_period_us", &period);
	} else {
		FILE *file = open_file(directory, "cpu.max");
		char line[64];
		limited = file != NULL && fgets(line, sizeof(line), file) != NULL &&
			  parse_number(line, &quota) && strchr(line, ' ') != NULL &&
			  parse_number(strchr(line, ' ') + 1, &period);
		if (file != NULL)
			fclose(file);
	}
	if (!limited || period == 0 || quota == 0)
		return;
	uint64_t allowed = quota / period + (quota % period != 0);
	if (allowed < *cpus)
		*cpus = allowed;
}

uint64_t shmrt_cgroup_cpus(void) {
	uint64_t cpus = UINT64_MAX;
	shmrt_cgroup_each("cpu", visit_cpu, &cpus);
	return cpus;
}

//go:build linux && cgo

// What the node and the program inside agree on.
#ifndef ROCKPOOL_INSIDE_H
#define ROCKPOOL_INSIDE_H

#include <stdint.h>

// The descriptors that the program inherits.
enum { STATUS_FD = 3, COMMAND_FD = 4, STDIN_FD = 5, STDOUT_FD = 6, STDERR_FD = 7 };

// report is what the program writes to STATUS_FD; command is what it reads, after the request, from COMMAND_FD.
enum { REPORT_STARTED = 1, REPORT_FAILED = 2, REPORT_EXITED = 3, REPORT_CPU_LIMIT = 4 };
enum { COMMAND_SIGNAL = 1, COMMAND_RESIZE = 2, COMMAND_KILL = 3 };
enum { FLAG_TTY = 1, FLAG_MERGE = 2, FLAG_BACKGROUND = 4 };

// What could not be done, in REPORT_FAILED.
enum { STEP_SETUP = 1, STEP_USER = 2, STEP_DIRECTORY = 3, STEP_FILTER = 4, STEP_EXECUTE = 5 };

// HELPER_ID is the user and group of the program itself, and the group that sees all of /proc. It is the last of a sandbox's
// range: images use those below. The node starts nothing else with it, whatever the accounts inside say.
enum { HELPER_ID = 65535 };

struct report {
	uint32_t kind;
	int32_t value; // wait status, or errno
	uint32_t step;
	uint32_t peak;  // KiB of the largest process
	uint64_t micro; // CPU time of all that was waited for
};

struct command {
	uint32_t kind, first, second;
};

const char *inside_code(long *length);
const char *inside_data(long *length);
const char *inside_entry(void);

#endif

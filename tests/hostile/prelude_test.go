package hostile

// prelude is what every program of a language starts with.
var prelude = map[string]string{
	"py": "import os, sys, time, errno, signal, socket, threading\n",
	// TRY prints what a call answered. ATTEMPT is for what must be refused: it says so only when it was not.
	"c": `
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/personality.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define ATTEMPT(call) do { errno = 0; if ((long)(call) >= 0) printf("DONE %s\n", #call); } while (0)
`,
}

package hostile

var kernel = []attack{
	{id: "C1", what: "new namespaces, and entering others", language: "c", root: true, program: `
int main(void) {
	char args[88] = {0};
	*(unsigned long *)args = CLONE_NEWUSER;
	ATTEMPT(unshare(CLONE_NEWUSER)); ATTEMPT(unshare(CLONE_NEWNS)); ATTEMPT(unshare(CLONE_NEWNET)); ATTEMPT(unshare(CLONE_NEWPID));
	ATTEMPT(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
	ATTEMPT(syscall(SYS_clone, 0x100000000UL | CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0));
	ATTEMPT(syscall(SYS_clone3, args, sizeof args));
	int fd = open("/proc/self/ns/net", O_RDONLY);
	ATTEMPT(setns(fd, 0));
	ATTEMPT(syscall(SYS_pidfd_open, 1, 0) >= 0 ? setns(syscall(SYS_pidfd_open, 1, 0), CLONE_NEWNS) : -1);
	return 0;
}`, want: "exit 0", stdout: ""},
	{id: "C4", what: "io_uring, bpf, perf, userfaultfd, modules", language: "c", root: true, program: `
int main(void) {
	char params[256] = {0};
	ATTEMPT(syscall(SYS_io_uring_setup, 8, params)); ATTEMPT(syscall(SYS_io_uring_enter, 0, 0, 0, 0, 0)); ATTEMPT(syscall(SYS_io_uring_register, 0, 0, 0, 0));
	ATTEMPT(syscall(SYS_bpf, 0, params, 128)); ATTEMPT(syscall(SYS_perf_event_open, params, 0, -1, -1, 0)); ATTEMPT(syscall(SYS_userfaultfd, 0));
	ATTEMPT(syscall(SYS_init_module, params, 1, "")); ATTEMPT(syscall(SYS_finit_module, 0, "", 0)); ATTEMPT(syscall(SYS_kexec_load, 0, 0, 0, 0));
	ATTEMPT(syscall(SYS_reboot, 0, 0, 0, 0)); ATTEMPT(syscall(SYS_open_by_handle_at, -100, params, 0)); ATTEMPT(syscall(SYS_fanotify_init, 0, 0));
	ATTEMPT(syscall(SYS_swapon, "x", 0)); ATTEMPT(syscall(SYS_acct, "x")); ATTEMPT(syscall(SYS_settimeofday, params, 0)); ATTEMPT(syscall(SYS_ptrace, 16, 1, 0, 0));
	ATTEMPT(syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0)); ATTEMPT(syscall(SYS_quotactl, 0, "", 0, 0)); ATTEMPT(syscall(SYS_syslog, 3, params, 100));
	return 0;
}`, want: "exit 0", stdout: ""},
	{id: "C7", what: "int 0x80 around the filter", language: "c", only: "amd64",
		program: `int main(void) { long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); puts("went on"); return 0; }`, want: "exit 159", stdout: ""},
	{id: "C7", what: "x32 calls around the filter", language: "c", only: "amd64",
		program: `int main(void) { syscall(0x40000000 + 39); puts("went on"); return 0; }`, want: "exit 159", stdout: ""},
	{id: "C12", what: "inherited descriptors", language: "sh",
		program: `cd /proc/$$/fd; for f in *; do case $f in 0|1|2|255) ;; *) echo $f; ls -l $f;; esac; done; true`, want: "exit 0", stdout: ""},
	{id: "C12", what: "inherited descriptors, as root", language: "py", root: true,
		program: `print(sorted(os.listdir("/proc/self/fd"), key=int))`, want: "exit 0", stdout: `\['0', '1', '2', '3'\]` + "\n"}, // 3 is the listing's own
}

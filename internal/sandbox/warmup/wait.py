# Run by the interpreter of a warm-up: see warm_linux.go and DESIGN.md. It runs inside the sandbox as the tenant's user, and nothing outside relies on what it does.
# It waits at the end of the interpreter's start, before a program is opened; then it puts the program's name where the interpreter's own main function will look for
# it, and returns. So the program is run by the same code, from the same state, as if it had been named from the start. Whatever it raises is the end of the
# interpreter. It is compiled at each start: a line costs some 10 µs.


def wait():
    import sys

    control, archive = 4, 5
    entry = "/proc/self/fd/%d" % archive

    # Nothing of the way in here stays.
    os, site = sys.modules["os"], sys.modules["site"]
    sys.path.remove(entry)
    sys.path_importer_cache.pop(entry, None)
    sys.modules["zipimport"]._zip_directory_cache.pop(entry, None)
    del os.environ["PYTHONPATH"]
    del sys.modules["sitecustomize"]
    if sys.version_info < (3, 10) or sys.implementation.name != "cpython":
        raise NotImplementedError

    def beginning(path):
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        text = posix.read(fd, 16384)
        posix.close(fd)
        return text

    def wide(text):  # as wchar_t, but for the last zeros; the codec would be one more module
        return "\0\0\0".join(text).encode("latin-1")

    # Where the name of the program stands: as it was given, and made absolute. Both are found before anything else is done, so that what was found is what the
    # interpreter made of its arguments. The name ends in 2000 times one letter, so a look at a few bytes of each 1984 wide ones misses none.
    name, cwd = sys.argv[0], posix.getcwd()
    if not name.startswith("rockpool-waits-for-a-program-w"):  # the command already has a program, and there is no place for another one's name
        raise LookupError
    given, before = wide(name), wide(cwd + "/\0")[:-1]
    memory = posix.open("/proc/self/mem", posix.O_RDWR | posix.O_CLOEXEC)
    (heap,) = (line for line in beginning("/proc/self/maps").split(b"\n") if line.endswith(b"[heap]"))
    low, high = (int(n, 16) for n in heap[:heap.index(b" ")].split(b"-"))
    places = set()
    try:
        for at in range(low, high, 4 * 1984):
            if posix.pread(memory, 4, at) == b"w\0\0\0":
                start = max(low, at - 4 * 2100 - len(before))
                found = posix.pread(memory, at - start, start)
                begin = found.rfind(given[:4 * 29])  # without the letters at its end
                if begin >= 0:
                    places.add((start + begin, found.endswith(before, 0, begin)))
    except OSError:  # the heap has become smaller meanwhile
        pass

    def stands():
        """The places where the name still is, in memory that was given back and taken again it is not, and whether they have it made absolute."""
        now = [(at, absolute) for at, absolute in places if posix.pread(memory, len(given), at) == given]
        if sorted({absolute for _, absolute in now}) != [False, True] or sum(absolute for _, absolute in now) != 1:
            raise LookupError
        return now

    stands()

    # What ps shows is shortened by the one call there is for it. Without it, the rest of the line is empty.
    try:
        import _ctypes

        library = _ctypes.dlopen(None, 0)
        prctl, end_of_data = _ctypes.dlsym(library, "prctl"), _ctypes.dlsym(library, "__curbrk")
    except (ImportError, OSError):
        _ctypes = None
    sys.modules.pop("_ctypes", None)

    def rename(argv):
        f = [0, 0, 0, 0, *map(int, beginning("/proc/self/stat").rpartition(b")")[2].split()[1:])]  # by the numbers of proc(5)
        begin, end, first = f[48:51]
        line = posix.pread(memory, end - begin, begin)
        text = line[:line.rindex(name.encode())] + "\0".join(argv).encode() + b"\0"
        posix.pwrite(memory, text.ljust(len(line), b"\0"), begin)
        if _ctypes:
            # The variable that led here stands before the others, where the shell has put it.
            if posix.pread(memory, 11, first) == b"PYTHONPATH=":
                first += len("PYTHONPATH=" + entry) + 1
            brk = int.from_bytes(posix.pread(memory, 8, end_of_data), "little")
            numbers = (f[26], f[27], f[45], f[46], f[47], brk, f[28], begin, begin + len(text), first, f[51], 0, 0xFFFFFFFF00000000)
            layout = b"".join(n.to_bytes(8, "little") for n in numbers)
            _ctypes.call_function(prctl, (35, 14, layout, len(layout), 0))  # PR_SET_MM, PR_SET_MM_MAP; where it fails the line stays as it is

    had = set(sys.modules)
    for module in filter(None, posix.read(control, 65536)[1:].decode().split("\0")):
        __import__(module)
    new = {m.partition(".")[0] for m in sys.modules if m not in had}

    # A start at the time of the program would find what there is then: in the directories that it searches, and the files in them that it runs.
    watched = [cwd, *sys.path, site.USER_SITE, *os.environ.get("PATH", "").split(":"), sys.executable]
    for path in (*sys.path, site.USER_SITE):
        try:
            watched += [path + "/" + entry for entry in posix.listdir(path) if entry.endswith((".pth", "customize.py"))]
        except OSError:
            pass

    def surroundings():
        found = []
        for path in watched:
            try:
                s = posix.stat(path or ".")
                found.append((s.st_dev, s.st_ino, path == cwd or s.st_mtime_ns))
            except OSError:
                found.append(None)
        return found

    then = surroundings()
    posix.write(control, b"R")

    message = posix.read(control, 65536)
    argv = message[1:].decode().split("\0")
    program = argv[0]
    if message[:1] != b"P" or surroundings() != then:
        raise LookupError
    if new:  # beside the program one of these modules would have been another
        for directory in {os.path.dirname(program) or ".", os.path.dirname(os.path.realpath(program))}:
            if any(entry.partition(".")[0] in new for entry in posix.listdir(directory)):
                raise LookupError
    now = stands()
    posix.write(control, b"Y")
    if posix.read(control, 16) != b"G":
        raise LookupError

    for at, absolute in now:
        posix.pwrite(memory, wide(program + "\0\0"), at - len(before) if absolute and program[0] == "/" else at)
    sys.argv[:] = argv
    sys.orig_argv[-1:] = argv
    rename(argv)
    for fd in memory, control, archive:
        posix.close(fd)


wait()
del wait

# Read by the interpreter of a warm-up as the first sitecustomize of its path: see warm_linux.go and DESIGN.md. It runs inside the sandbox as the tenant's user, and
# nothing outside relies on what it does. It waits at the end of the interpreter's start, before a program is opened; then it puts the program's name where the
# interpreter's own main function will look for it, and returns. So the program is run by the same code, from the same state, as if it had been named from the start.


def _wait():
    import posix
    import sys

    control, archive = 4, 5
    entry = "/proc/self/fd/%d" % archive
    if entry not in sys.path:
        raise ImportError(name="sitecustomize")

    def leave():
        posix._exit(125)

    def wide(text):  # as wchar_t; the codec would be one more module
        return b"".join(bytes((ord(c), 0, 0, 0)) for c in text)

    # Nothing of the way in here stays.
    os, site = sys.modules["os"], sys.modules["site"]
    sys.path.remove(entry)
    sys.path_importer_cache.pop(entry, None)
    sys.modules["zipimport"]._zip_directory_cache.pop(entry, None)
    del os.environ["PYTHONPATH"]
    del sys.modules["sitecustomize"]
    if sys.version_info < (3, 9) or sys.implementation.name != "cpython":
        leave()

    # Where the name of the program stands: as it was given, and made absolute. Both are found before anything else is done, so that what was found is what the
    # interpreter made of its arguments. The short pattern and the parts it is compared with lie elsewhere, in Python's own arenas.
    name, cwd = sys.argv[0], posix.getcwd()
    if not name.startswith("rockpool-waits-for-a-program-") or len(name) < 2000:
        leave()  # the command already has a program, and no place for another one's name
    memory = posix.open("/proc/self/mem", posix.O_RDWR | posix.O_CLOEXEC)

    def content(path):
        fd, text = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC), b""
        while part := posix.read(fd, 65536):
            text += part
        posix.close(fd)
        return text

    low = high = 0
    for line in content("/proc/self/maps").split(b"\n"):
        if line.endswith(b"[heap]"):
            low, high = (int(n, 16) for n in line.split()[0].split(b"-"))
    anchor, before = wide(name[:29]), wide(cwd + "/")
    given, absolute = [], []
    image = posix.pread(memory, high - low, low)
    at = image.find(anchor)
    while at >= 0:
        end = at + 4 * len(name)
        if image[at:end:4] == name.encode() and image[end:end + 4] == bytes(4):
            if image[at - len(before):at] == before:
                absolute.append(low + at - len(before))
            else:
                given.append(low + at)
        at = image.find(anchor, at + 1)
    del image
    if not given or len(absolute) != 1:
        leave()

    # What ps shows is shortened by the one call there is for it. Without it, the rest of the line is empty.
    try:
        import _ctypes

        library = _ctypes.dlopen(None, 0)
        prctl, end_of_data = _ctypes.dlsym(library, "prctl"), _ctypes.dlsym(library, "__curbrk")
        call = _ctypes.call_function
    except (ImportError, OSError):
        call = None
    sys.modules.pop("_ctypes", None)

    def rename(argv):
        fields = content("/proc/self/stat").rpartition(b")")[2].split()
        field = lambda n: int(fields[n - 3])  # noqa: E731, by the numbers of proc(5)
        begin, end = field(48), field(49)
        text = b"\0".join(map(os.fsencode, argv)) + b"\0"
        if len(text) > end - begin:
            return
        posix.pwrite(memory, text + bytes(end - begin - len(text)), begin)
        if call is None:
            return
        first = field(50)  # the variable that led here stands before the others, where the shell has put it
        if posix.pread(memory, 11, first) == b"PYTHONPATH=":
            first += len(b"PYTHONPATH=" + entry.encode() + b"\0")
        brk = int.from_bytes(posix.pread(memory, 8, end_of_data), sys.byteorder)
        numbers = (field(26), field(27), field(45), field(46), field(47), brk, field(28), begin, begin + len(text), first, field(51), 0)
        layout = b"".join(n.to_bytes(8, sys.byteorder) for n in numbers) + (0).to_bytes(4, sys.byteorder) + b"\xff\xff\xff\xff"
        call(prctl, (35, 14, layout, len(layout), 0))  # PR_SET_MM, PR_SET_MM_MAP; where it fails the line stays as it is

    # A start at the time of the program would find what there is then.
    def surroundings():
        found = []
        for path in [cwd, *sys.path, site.USER_SITE, *(os.environ.get("PATH") or "").split(":"), sys.executable]:
            try:
                s = posix.stat(path or ".")
                found.append((s.st_dev, s.st_ino) if path == cwd else (s.st_dev, s.st_ino, s.st_mtime_ns))
                if path in sys.path or path == site.USER_SITE:
                    for entry in sorted(posix.listdir(path)):
                        if entry.endswith((".pth", "customize.py")):
                            found.append((entry, posix.stat(path + "/" + entry).st_mtime_ns))
            except (OSError, TypeError, ValueError):
                found.append(None)
        return found

    def hidden(program):
        """Whether a module that was imported for the program would have been another, one beside the program."""
        new = {m.partition(".")[0] for m in sys.modules if m not in had}
        if not new:
            return False
        for directory in {os.path.dirname(program) or ".", os.path.dirname(os.path.realpath(program))}:
            try:
                if any(entry.partition(".")[0] in new for entry in posix.listdir(directory)):
                    return True
            except OSError:
                return True
        return False

    had = set(sys.modules)
    for module in filter(None, posix.read(control, 65536)[1:].decode().split("\0")):
        try:
            __import__(module)
        except BaseException:
            leave()
    then = surroundings()
    posix.write(control, b"R")

    message = posix.read(control, 65536)
    if message[:1] != b"P":
        leave()
    argv = message[1:].decode().split("\0")
    program = argv[0]
    if surroundings() != then or hidden(program):
        leave()
    posix.write(control, b"Y")
    if posix.read(control, 16) != b"G":
        leave()

    path = program if program.startswith("/") else cwd + "/" + program
    for places, value in ((given, program), (absolute, path)):
        for place in places:
            posix.pwrite(memory, wide(value + "\0"), place)
    sys.argv[:] = argv
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[-1:] = argv
    rename(sys.orig_argv if hasattr(sys, "orig_argv") else argv)
    for fd in memory, control, archive:
        posix.close(fd)


_wait()
del _wait
import sitecustomize  # noqa: E402, F401: the image's own, or the error that says that there is none

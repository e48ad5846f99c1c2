# Read by the interpreter of a warm-up as the first sitecustomize of its path. An archive's module is compiled twice, and by a function that first makes a class of
# each element of the language: so the code that waits is not in here, and comes by the descriptor that it speaks on.
import posix

try:
    exec(posix.read(4, 65536))
except BaseException:
    posix._exit(125)
del posix
import sitecustomize  # noqa: E402, F401: the image's own, or the error that says that there is none

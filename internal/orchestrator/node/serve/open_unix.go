package serve

import "golang.org/x/sys/unix"

// nonblock opens without waiting for another end.
const nonblock = unix.O_NONBLOCK

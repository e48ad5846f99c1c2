# Reads a regular file. Argument: path. The first line is the size of what was opened, or -1.
[ -f "$1" ] && exec 3<"$1" || exit 44
set -- $(ls -lnLd /proc/self/fd/3)
printf '%s\n' "${5:--1}"
exec cat <&3

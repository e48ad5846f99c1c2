# Reads the FIFO that is the stderr of a command in another exec.
# Arguments: mark, FIFO. It ends with those who write, when its input ends, or when a line comes.
mark=$1 fifo=$2
exec 2>/dev/null 6<&0
(umask 055; mkfifo "$fifo")
[ -p "$fifo" ] && exec 4<>"$fifo" && [ -p /proc/self/fd/4 ] && [ -O /proc/self/fd/4 ] || exit 1 # a program may have made it, or a link
# The writer's first line says that it has opened the FIFO. One that never comes is not waited for.
IFS= read -r -t 15 hello <&4
rm -f "$fifo"
[ "$hello" = "$mark" ] || exit 1
exec 5</proc/self/fd/4 4>&- # for reading alone, so that it sees the end
cat <&5 6<&- &
copy=$!
{ IFS= read -r line <&6; kill -KILL $copy; } 5<&- &
watch=$!
exec 5<&- 6<&-
wait $copy
printf '\036%s:eof;' "$mark"
kill -KILL $watch

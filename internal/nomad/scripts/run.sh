# Runs a command in a container and proves that its output has come whole.
# Arguments: mark, FIFO for stderr or "", user or "" for that of the container, "both" where stderr is a stream of its own, "deaf" where besides stdin may hold more than
# can be skipped; then what env is told.
# What the streams carry of ours are records: RS mark : text ; - "begin" on stdout before the command, and the last one at the end of each stream.
mark=$1 fifo=$2 user=$3 both=$4
shift 4
exec 3>&2 2>/dev/null
trap : INT QUIT TERM HUP

# finish tells the end and then waits to hear that it came, since Nomad may cut off what is written last. Nobody waits for it.
finish() {
	[ -z "$fifo" ] || printf '\036%s:%s;' "$mark" "$1" >&5
	[ -z "$both" ] || printf '\036%s:%s;' "$mark" "$1" >&3
	printf '\036%s:%s;' "$mark" "$1"
	if [ "$both" = deaf ]; then
		exec <&- # whoever still writes is let go
		sleep 0.2
		exit "$2"
	fi
	for left in 3 2 1; do # a terminal's input may have ends in it
		while IFS= read -r -t 10 line; do
			case $line in *"$mark"*) exit "$2" ;; esac
		done
		[ $? -lt 128 ] || exit "$2"
	done
	sleep 0.2 # input has ended, so nobody can say it
	exit "$2"
}

if [ -n "$fifo" ]; then
	# Whoever comes first makes it. It is opened for both directions, which waits for nobody, and kept open so: what is written stays in it until somebody reads.
	(umask 055; mkfifo "$fifo")
	# Programs can write in /tmp too: what counts is what was opened, and who made that, not what the name leads to a moment before or after.
	if ! [ -p "$fifo" ] || ! exec 4<>"$fifo" || ! [ -p /proc/self/fd/4 ] || ! [ -O /proc/self/fd/4 ] || ! exec 5>/proc/self/fd/4; then
		fifo=
		finish 'fail:no FIFO can be made in /tmp' 126
	fi
	trap 'rm -f "$fifo"' EXIT
	printf '%s\n' "$mark" >&5 # now the other side may remove its name
fi

drop=()
while IFS= read -r -d '' v; do
	case $v in NOMAD_*) drop+=(-u "${v%%=*}") ;; esac
done </proc/self/environ
set -- env "${drop[@]}" "$@"

if [ -n "$user" ]; then
	if [ -x /sbin/setuser ]; then
		set -- /sbin/setuser "$user" "$@"
	else
		found=
		while IFS=: read -r name _ uid gid _ home _; do
			[ "$name" != "$user" ] || { found=yes; break; }
		done </etc/passwd
		[ -n "$found" ] || finish "fail:the image has no user $user" 126
		set -- env "HOME=$home" "USER=$user" "UID=$uid" "$@"
		if setpriv --reuid "$uid" --regid "$gid" --init-groups true </dev/null >/dev/null; then
			set -- setpriv --reuid "$uid" --regid "$gid" --init-groups "$@"
		elif su -s /bin/bash -c true -- "$user" </dev/null >/dev/null; then
			set -- su -s /bin/bash -c 'exec "$@"' -- "$user" bash "$@"
		else
			finish "fail:the image has no setuser, setpriv or su that makes a process one of $user" 126
		fi
	fi
fi

(
	printf '\036%s:begin;' "$mark" # input comes from now on: what a terminal echoes is the program's, and its keys reach it
	if [ -n "$fifo" ]; then exec 2>&5; else exec 2>&3; fi
	exec 3>&- 4>&- 5>&-
	exec "$@"
)
code=$?
finish "exit:$code" "$code"

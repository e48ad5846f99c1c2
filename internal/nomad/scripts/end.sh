# Signals a command, or ends it with all that belongs to it.
# Arguments: both halves of the mark, so that this script is not taken for one of those that carry it; name of a signal or "" to end everything.
mark=$1$2 signal=$3
exec 2>/dev/null
declare -A parent session ours sessions

# scan reads who lives.
scan() {
	local entry text
	parent=() session=()
	for entry in /proc/[0-9]*; do
		text=
		IFS= read -r -d '' text <"$entry/stat"
		text=${text##*) } # a name may hold anything
		set -- $text
		case $1 in '' | Z | X) continue ;; esac
		parent[${entry#/proc/}]=$2 session[${entry#/proc/}]=$4
	done
}

# script is the text that a shell was started with.
script() {
	text=
	{
		IFS= read -r -d '' text
		IFS= read -r -d '' text
		IFS= read -r -d '' text
		IFS= read -r -d '' text
	} <"/proc/$1/cmdline"
}

# connected says whether a process has the terminal, the pipe or the FIFO of a command: it has left the session, but not gone.
connected() {
	local end fd
	for end in "${ends[@]}"; do
		for fd in 0 1 2; do
			[ ! "/proc/$1/fd/$fd" -ef "$end" ] || return 0
		done
	done
	return 1
}

# gather adds those who carry the mark, their sessions, all that descends from them or is connected to them, and succeeds when there were new ones.
gather() {
	local p more=yes any=1
	fresh=()
	scan
	for p in "${!parent[@]}"; do
		[ "$p" != $$ ] && [ -z "${ours[$p]}" ] || continue
		script "$p"
		case $text in *"$mark"*)
			ours[$p]=yes fresh+=("$p") any=0
			[ "${session[$p]}" != "$p" ] || sessions[$p]=yes
			case $text in "# main"*) ends+=("/proc/$p/fd/1" "/proc/$p/fd/4") ;; esac
			text=${text#*/tmp/stderr_} text=${text%%.fifo*}
			case $text in '' | *[!0-9]*) ;; *) fifos+=("/tmp/stderr_$text.fifo") ;; esac
			;;
		esac
	done
	while [ -n "$more" ]; do
		more=
		for p in "${!parent[@]}"; do
			[ "$p" != $$ ] && [ -z "${ours[$p]}" ] || continue
			if [ -n "${ours[${parent[$p]}]}${sessions[${session[$p]}]}" ] || connected "$p"; then
				ours[$p]=yes fresh+=("$p") more=yes any=0
			fi
		done
	done
	return $any
}

if [ -n "$signal" ]; then
	scan
	for p in "${!parent[@]}"; do
		script "$p"
		case $text in "# main $mark"*) ;; *) continue ;; esac
		for child in "${!parent[@]}"; do
			[ "${parent[$child]}" != "$p" ] || { kill -s "$signal" "$child" && told=yes; }
		done
	done
	[ -n "$told" ]
	exit
fi

# Stopped processes make no new ones.
for round in 1 2 3 4 5 6 7 8 9 10; do
	gather || break
	kill -STOP "${fresh[@]}"
done
rm -f "${fifos[@]}"
[ ${#ours[@]} != 0 ] || exit 0
kill -KILL "${!ours[@]}"
for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	scan
	left=
	for p in "${!ours[@]}"; do
		[ -z "${parent[$p]}" ] || left=yes
	done
	if [ -z "$left" ] && ! gather; then exit 0; fi
	kill -KILL "${!ours[@]}"
	sleep 0.05
done
exit 1

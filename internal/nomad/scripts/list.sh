# Lists. Arguments: path, "yes" to go down into directories. Names are quoted as in C, so that one line is one entry whatever they are.
path=$1 recursive=$2
export LC_ALL=C
[ -e "$path" ] || [ -L "$path" ] || exit 44
down=
[ -z "$recursive" ] || down=-R
if ls --quoting-style=c / >/dev/null 2>&1; then
	exec ls -l $down --quoting-style=c --time-style=+%s -- "$path" 2>/dev/null
fi

# An ls that cannot quote: the shell's own patterns, which sort as it does, and stat.
quoted() {
	local s=$1 i
	s=${s//\\/\\\\} s=${s//\"/\\\"} s=${s//$'\n'/\\n}
	printf '"%s"' "$s"
}
entry() { # file, name
	local mode owner group size time target
	read -r mode owner group size time < <(stat -c '%A %U %G %s %Y' -- "$1") || return
	[ -n "$time" ] || return
	printf '%s 1 %s %s %s %s ' "$mode" "$owner" "$group" "$size" "$time"
	quoted "$2"
	if [ -L "$1" ] && target=$(readlink -n -- "$1" && echo .); then
		printf ' -> '
		quoted "${target%.}"
	fi
	printf '\n'
}
walk() {
	local f
	quoted "$1"
	printf ':\n'
	for f in "${1%/}"/*; do
		entry "$f" "${f##*/}"
	done
	[ -n "$recursive" ] || return 0
	for f in "${1%/}"/*; do
		[ ! -d "$f" ] || [ -L "$f" ] || [ ! -x "$f" ] || walk "$f"
	done
}
shopt -s nullglob
exec 2>/dev/null
case $path in -*) path=./$path ;; esac
if [ -d "$path" ] && ! [ -L "$path" ]; then
	[ -r "$path" ] || exit 44
	walk "$path"
else
	entry "$path" "$path"
fi
exit 0

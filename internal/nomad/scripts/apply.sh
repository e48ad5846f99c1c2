# Deletes, then unpacks. Arguments: how many paths to delete come first on stdin, each ended by a NUL, and the size of the archive after them.
count=$1 size=$2
export LC_ALL=C
umask 022
while [ "$count" -gt 0 ] && IFS= read -r -d '' path; do
	count=$((count - 1))
	if [ "$path" = './*' ]; then
		all=(./*)
		for ((i = 0; i < ${#all[@]}; i += 500)); do
			rm -rf -- "${all[@]:i:500}" 2>/dev/null
		done
	else
		rm -rf -- "$path" 2>/dev/null
	fi
done
[ "$count" = 0 ] || { echo 'the list of what to delete was cut off' >&2; exit 3; }
# tar waits for the end of its input, which Nomad does not always hand on.
head -c "$size" | tar --extract --absolute-names --preserve-permissions --file -

package command

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// The gate of a rolling upgrade. Each server tells the others which entries it knows, and no entry is proposed that one of them does not: it would have to stop
// there. A new kind of entry is a new tag. A known kind whose struct gets fields that an older program must not overlook gets a higher row.Version, and its
// struct a method version() that answers the lowest one that is enough for this entry; a program reads all versions up to its own.

// ErrNotKnownToAll is wrapped by the refusal of an entry that a server of the cluster does not know.
var ErrNotKnownToAll = errors.New("not all servers know the entry")

// lastOfFirst is the last tag of the entries that every program knows, in their version 1.
const lastOfFirst = 11

// versionOf is the lowest version of its kind that an entry can be understood by.
func versionOf(entry any) byte {
	if v, ok := entry.(interface{ version() byte }); ok {
		return v.version()
	}
	return 1
}

// Known describes the entries that this program knows: ranges of tags, each with its version where that is not 1, such as 1-11,20,21.2.
func Known() string {
	rows := slices.Clone(table)
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.Tag, b.Tag) })
	var parts []string
	for i := 0; i < len(rows); {
		j := i
		for j+1 < len(rows) && rows[j+1].Tag == rows[j].Tag+1 && rows[j+1].Version == rows[i].Version {
			j++
		}
		part := strconv.Itoa(int(rows[i].Tag))
		if j > i {
			part += "-" + strconv.Itoa(int(rows[j].Tag))
		}
		if v := rows[i].Version; v != 1 {
			part += "." + strconv.Itoa(int(v))
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// Covers reports whether a program that described itself so understands an entry. What cannot be read is not understood.
func Covers(known string, entry any) bool {
	r, ok := byType[reflect.TypeOf(entry).Elem()]
	if !ok {
		return false
	}
	need := versionOf(entry)
	if first(r.Tag, need) {
		return true
	}
	for part := range strings.SplitSeq(known, ",") {
		tags, version, _ := strings.Cut(part, ".")
		v, err := strconv.Atoi(cmp.Or(version, "1"))
		from, to, isRange := strings.Cut(tags, "-")
		if !isRange {
			to = from
		}
		lo, lerr := strconv.Atoi(from)
		hi, herr := strconv.Atoi(to)
		if err == nil && lerr == nil && herr == nil && lo <= int(r.Tag) && int(r.Tag) <= hi && v >= int(need) {
			return true
		}
	}
	return false
}

func first(tag, version byte) bool { return tag <= lastOfFirst && version == 1 }

// Original reports whether every program understands an entry, so that nobody needs to be asked.
func Original(entry any) bool {
	r, ok := byType[reflect.TypeOf(entry).Elem()]
	return ok && first(r.Tag, versionOf(entry))
}

// Describe names an entry for an error.
func Describe(entry any) string {
	if r, ok := byType[reflect.TypeOf(entry).Elem()]; ok {
		return fmt.Sprintf("%s (tag %d, version %d)", r.Name, r.Tag, versionOf(entry))
	}
	return fmt.Sprintf("%T", entry)
}

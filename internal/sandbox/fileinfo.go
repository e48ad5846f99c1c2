package sandbox

import "time"

// FileInfo is one entry of a listing.
type FileInfo struct {
	Name        string // as the listing shows it, see ListSpec
	Type        byte   // as ls: '-' 'd' 'l' 'c' 'b' 'p' 's'
	LinkTarget  string // of a link, when it may be read
	Size        int64
	SizeUnknown bool // the kernel makes the contents as they are read (/proc)
	ModTime     time.Time
	Mode        uint32 // permission bits with setuid, setgid and sticky, as in stat(2)
	Owner       string // name in the sandbox's passwd, else the number
	Group       string
}

// ListSpec says what to list and for whom.
type ListSpec struct {
	Path      string // relative paths start at the root's WorkDir
	Recursive bool   // names are prefixed with Path as given; else they are bare, and Path itself when it names no directory
	User      string // whose rights count; "" = root
}

// Permissions are the nine characters that ls shows, with s, S, t and T for the special bits.
func (f FileInfo) Permissions() string {
	const letters = "rwxrwxrwx"
	text := []byte(letters)
	for i := range text {
		if f.Mode&(1<<(8-i)) == 0 {
			text[i] = '-'
		}
	}
	for i, special := range []struct {
		bit   uint32
		lower byte
	}{{0o4000, 's'}, {0o2000, 's'}, {0o1000, 't'}} {
		if f.Mode&special.bit == 0 {
			continue
		}
		at := 3*i + 2
		if text[at] == 'x' {
			text[at] = special.lower
		} else {
			text[at] = special.lower - 'a' + 'A'
		}
	}
	return string(text)
}

package nomad

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"regexp"
	"strconv"
	"strings"

	"rockpool/internal/fault"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/files"
	"rockpool/pkg/nullio"
)

// missingCode is what our scripts exit with where a path is missing or unreadable.
const missingCode = 44

// maxLine bounds a line of a listing: a name and what it links to, of 4,096 bytes each at most, with each byte as four characters.
const maxLine = 64 << 10

func missing() error {
	return fault.New(fault.NotFound, "file not found or insufficient permissions")
}

// applyByTar deletes and unpacks on a cluster that only has Nomad's exec. How much comes is told before, because Nomad does not always hand on the end of stdin; that
// stays open, and the archive is streamed.
func (c *Client) applyByTar(ctx context.Context, at execution.Place, deletes []string, archive io.Reader) error {
	sized, ok := archive.(interface{ Size() int64 })
	if !ok {
		return fault.New(fault.Internal, "the size of an archive is not known")
	}
	var list strings.Builder
	count := 0
	for _, d := range deletes {
		if d != "./*" {
			d = path.Clean(d)
		}
		if strings.IndexByte(d, 0) < 0 { // there is no such file
			list.WriteString(d + "\x00")
			count++
		}
	}
	argv, err := bash("", applyScript, strconv.Itoa(count), strconv.FormatInt(sized.Size(), 10))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	open := nullio.NewNull(ctx)
	stdin := struct {
		io.Reader
		io.Closer
	}{io.MultiReader(strings.NewReader(list.String()), archive, open), open}
	h, err := c.help(ctx, at, false, argv, stdin)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, h)
	code, stderr, err := h.wait()
	switch {
	case err != nil:
		return fmt.Errorf("write files: %w", err)
	case code != 0:
		return fault.New(fault.Unprocessable, "%s", stderr)
	}
	return nil
}

// listByShell lists on a cluster that only has Nomad's exec. A listing that was cut off is an error.
func (c *Client) listByShell(ctx context.Context, at execution.Place, dir string, recursive, privileged bool) iter.Seq2[files.Entry, error] {
	return func(yield func(files.Entry, error) bool) {
		deep := ""
		if recursive {
			deep = "yes"
		}
		argv, err := bash("", listScript, dir, deep)
		if err != nil {
			yield(files.Entry{}, missing())
			return
		}
		h, err := c.help(ctx, at, !privileged, argv, nil)
		if err != nil {
			yield(files.Entry{}, err)
			return
		}
		defer h.stop()
		lines := bufio.NewScanner(h)
		lines.Buffer(make([]byte, 4<<10), maxLine)
		prefix, found := "", 0
		for lines.Scan() {
			entry, header, ok := listLine(lines.Text())
			switch {
			case !ok:
			case header && recursive:
				prefix = strings.TrimSuffix(entry.Name, "/") + "/"
				found++
			case header:
				found++
			default:
				entry.Name = prefix + entry.Name
				if found++; !yield(entry, nil) {
					return
				}
			}
		}
		if err := lines.Err(); err != nil {
			yield(files.Entry{}, fault.Wrap(fault.Unavailable, err, "the listing was cut off"))
			return
		}
		switch code, _, err := h.wait(); {
		case err != nil:
			yield(files.Entry{}, fault.Wrap(fault.Unavailable, err, "the listing was cut off"))
		case code == missingCode, code >= 2 && found == 0:
			yield(files.Entry{}, missing())
		}
	}
}

const quotedName = `"((?:[^"\\]|\\.)*)"`

var (
	// Mode, links, owner, group, size or the numbers of a device, time, name, what it links to. Owners may have spaces.
	entryLine  = regexp.MustCompile(`^(\S)([^ ]{9})\S? +\d+ (.*?\S) +(\d+, +\d+|\d+|\?) +(-?\d+|\?) ` + quotedName + `(?: -> ` + quotedName + `)?$`)
	headerLine = regexp.MustCompile(`^` + quotedName + `:$`)
)

// listLine reads one line of ls -l with names quoted as in C. header says that it names the directory of the lines to come.
func listLine(line string) (e files.Entry, header, ok bool) {
	if m := headerLine.FindStringSubmatch(line); m != nil {
		return files.Entry{Name: unquote(m[1])}, true, true
	}
	m := entryLine.FindStringSubmatch(line)
	if m == nil {
		return files.Entry{}, false, false
	}
	owner := strings.Fields(m[3])
	if len(owner) == 0 { // white space that only Unicode knows
		return files.Entry{}, false, false
	}
	e = files.Entry{Type: m[1], Permissions: m[2], Owner: owner[0], Name: unquote(m[6]), LinkTarget: unquote(m[7])}
	e.Group = strings.Join(owner[1:], " ")
	e.Size, _ = strconv.ParseInt(m[4], 10, 64) // that of a device is none
	e.ModTime, _ = strconv.ParseInt(m[5], 10, 64)
	return e, false, true
}

// unquote takes C's escapes back.
func unquote(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		i++
		if end := min(i+3, len(s)); s[i] >= '0' && s[i] <= '3' && end == i+3 {
			if n, err := strconv.ParseUint(s[i:end], 8, 8); err == nil {
				b = append(b, byte(n))
				i += 2
				continue
			}
		}
		if at := strings.IndexByte("abfnrtv", s[i]); at >= 0 {
			b = append(b, "\a\b\f\n\r\t\v"[at])
		} else {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// download is a file that comes by exec.
type download struct {
	*helper
	from *bufio.Reader
	left int64 // -1 = as much as there is
}

// openByShell begins a download on a cluster that only has Nomad's exec.
func (c *Client) openByShell(ctx context.Context, at execution.Place, file string, privileged bool) (io.ReadCloser, int64, error) {
	argv, err := bash("", openScript, file)
	if err != nil {
		return nil, 0, missing()
	}
	h, err := c.help(ctx, at, !privileged, argv, nil)
	if err != nil {
		return nil, 0, err
	}
	d := &download{helper: h, from: bufio.NewReader(h)}
	line, err := d.from.ReadString('\n')
	if err != nil {
		switch code, stderr, err := h.wait(); {
		case err != nil:
			return nil, 0, err
		case code == missingCode, code == 1: // of opening, or of cat
			return nil, 0, missing()
		default:
			return nil, 0, fault.New(fault.Internal, "a file could not be read (code %d): %s", code, stderr)
		}
	}
	d.left, err = strconv.ParseInt(strings.TrimSuffix(line, "\n"), 10, 64)
	if err != nil {
		h.stop()
		return nil, 0, fault.Wrap(fault.Internal, err, "the size of a file could not be read")
	}
	if d.left == 0 { // or it is not known: a file of the kernel
		if _, err := d.from.Peek(1); err == nil {
			d.left = -1
		}
	}
	return d, d.left, nil
}

// Read never ends early without an error.
func (d *download) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	if d.left > 0 {
		p = p[:min(int64(len(p)), d.left)]
	}
	n, err := d.from.Read(p)
	if d.left > 0 {
		d.left -= int64(n)
	}
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	if d.left > 0 {
		return n, fault.Wrap(fault.Unavailable, io.ErrUnexpectedEOF, "the file became shorter while it was read")
	}
	if d.left < 0 {
		if code, stderr, err := d.wait(); err != nil {
			return n, err
		} else if code != 0 {
			return n, fault.New(fault.Unavailable, "reading a file broke off: %s", stderr)
		}
	}
	return n, io.EOF
}

// Close lets go of the rest.
func (d *download) Close() error {
	d.stop()
	return nil
}

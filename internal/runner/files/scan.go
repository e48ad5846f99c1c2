package files

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"unicode/utf16"
	"unicode/utf8"

	"rockpool/internal/fault"
)

// maxValue is how large a value may be that has to be kept whole, in bytes: a path, a member that nobody knows. Contents are
// not kept.
const maxValue = 16 << 20

// maxDepth is how deep a value may be nested, as in encoding/json.
const maxDepth = 10_000

// scanner reads JSON as it arrives. encoding/json would hold each file's content whole, several times over.
type scanner struct {
	r    *bufio.Reader
	room *Room // for values that are kept whole
	held int64 // of it, by the value that is being read
}

const bufferSize = 32 << 10 // bytes that are read or copied at a time

// Most uploads are far smaller than what they are read through, so that is used again.
var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, bufferSize) }}
	buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}
)

// newScanner makes one that is to be closed.
func newScanner(r io.Reader) *scanner {
	s := &scanner{r: readers.Get().(*bufio.Reader)}
	s.r.Reset(r)
	return s
}

func (s *scanner) close() {
	s.r.Reset(nil)
	readers.Put(s.r)
	s.r = nil
}

// pour copies everything.
func pour(to io.Writer, from io.Reader) error {
	b := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(b)
	_, err := io.CopyBuffer(to, from, b[:])
	return err
}

// valueStep is in what steps room is taken for a value, in bytes. The first is not reckoned.
const valueStep = 64 << 10

// next is the first byte that is no white space. It is not consumed. The end of the input is io.EOF.
func (s *scanner) next() (byte, error) {
	for {
		b, err := s.r.ReadByte()
		if err != nil {
			return 0, err
		}
		switch b {
		case ' ', '\t', '\r', '\n':
		default:
			return b, s.r.UnreadByte()
		}
	}
}

// expected is next within a value, where the input must not end.
func (s *scanner) expected() (byte, error) {
	b, err := s.next()
	return b, cut(err)
}

func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// object calls member for each key of the object that comes next, which has to consume the value; null is an empty object.
func (s *scanner) object(member func(key string) error) error {
	return s.composite('{', '}', "object", func() error {
		var key string
		if b, err := s.expected(); err != nil || b != '"' {
			return errors.Join(cut(err), s.unexpected(b, "a key"))
		}
		if err := s.decode(&key); err != nil {
			return err
		}
		b, err := s.expected()
		if err != nil || b != ':' {
			return errors.Join(err, s.unexpected(b, "a colon"))
		}
		_, _ = s.r.ReadByte()
		return member(key)
	})
}

// array calls element for each element of the array that comes next, which has to consume it; null is an empty array.
func (s *scanner) array(element func() error) error {
	return s.composite('[', ']', "array", element)
}

func (s *scanner) composite(open, end byte, name string, each func() error) error {
	b, err := s.next()
	if err != nil {
		return err
	}
	if b == 'n' {
		return s.decode(new(*struct{}))
	}
	if b != open {
		return s.unexpected(b, "an "+name)
	}
	_, _ = s.r.ReadByte()
	if b, err = s.expected(); err != nil || b == end {
		_, _ = s.r.ReadByte()
		return err
	}
	for {
		if err := each(); err != nil {
			return cut(err)
		}
		if b, err = s.expected(); err != nil {
			return err
		}
		_, _ = s.r.ReadByte()
		switch b {
		case end:
			return nil
		case ',':
		default:
			return s.unexpected(b, "a comma or the end of the "+name)
		}
	}
}

// unexpected says what came where something else is needed.
func (s *scanner) unexpected(b byte, wanted string) error {
	return fault.New(fault.Invalid, "json: %q where %s is needed", b, wanted)
}

// decode reads the next value whole and decodes it.
func (s *scanner) decode(into any) error {
	if _, err := s.expected(); err != nil {
		return err
	}
	raw, depth := []byte(nil), 0
	defer s.release()
	for {
		if err := s.hold(len(raw)); err != nil {
			return err
		}
		b, err := s.r.ReadByte()
		if err != nil && (depth > 0 || !errors.Is(err, io.EOF) || len(raw) == 0) {
			return cut(err)
		}
		if err != nil {
			break // a number may end with the input
		}
		if depth == 0 && len(raw) > 0 && stops(b) {
			_ = s.r.UnreadByte()
			break
		}
		raw = append(raw, b)
		switch b {
		case '"':
			if raw, err = s.quoted(raw); err != nil {
				return err
			}
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		if len(raw) > maxValue {
			return fault.New(fault.Invalid, "a value other than a file's content is larger than %d bytes", maxValue)
		}
		if depth > maxDepth {
			return fault.New(fault.Invalid, "the request body is nested deeper than %d", maxDepth)
		}
		if depth <= 0 && (b == '"' || b == '}' || b == ']' || literal(raw)) {
			break
		}
	}
	if err := s.hold(2 * len(raw)); err != nil { // what it is decoded into
		return err
	}
	return json.Unmarshal(raw, into)
}

func literal(raw []byte) bool {
	return len(raw) <= len("false") && slices.Contains([]string{"null", "true", "false"}, string(raw))
}

// stops reports whether a byte ends a number, true, false or null.
func stops(b byte) bool {
	switch b {
	case ' ', '\t', '\r', '\n', ',', ':', '}', ']', '{', '[', '"':
		return true
	}
	return false
}

// quoted appends the rest of a string, its closing quote included.
func (s *scanner) quoted(raw []byte) ([]byte, error) {
	for {
		part, err := s.r.ReadSlice('"')
		raw = append(raw, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err != nil:
			return raw, cut(err)
		case !escaped(raw):
			return raw, nil
		}
		if len(raw) > maxValue {
			return raw, fault.New(fault.Invalid, "a value other than a file's content is larger than %d bytes", maxValue)
		}
		if err := s.hold(len(raw)); err != nil {
			return raw, err
		}
	}
}

// hold takes room for a value of which n bytes are kept.
func (s *scanner) hold(n int) error {
	more := int64(n) - s.held
	if more <= valueStep {
		return nil
	}
	if err := s.room.take(more, 0); err != nil {
		return err
	}
	s.held += more
	return nil
}

func (s *scanner) release() {
	s.room.give(s.held, 0)
	s.held = 0
}

// escaped reports whether the quote at the end is a part of the string.
func escaped(raw []byte) bool {
	n := 0
	for i := len(raw) - 2; i >= 0 && raw[i] == '\\'; i-- {
		n++
	}
	return n%2 == 1
}

// bytes writes what encoding/json would decode into a []byte: a string in base64, as it arrives.
func (s *scanner) bytes(to io.Writer) error {
	b, err := s.expected()
	if err != nil {
		return err
	}
	if b != '"' {
		var data []byte // of null, or of an array of numbers
		if err := s.decode(&data); err != nil {
			return err
		}
		_, err := to.Write(data)
		return err
	}
	_, _ = s.r.ReadByte()
	t := &text{s: s}
	err = pour(to, base64.NewDecoder(base64.StdEncoding, t))
	if wrong, ok := errors.AsType[base64.CorruptInputError](err); ok || t.done && errors.Is(err, io.ErrUnexpectedEOF) {
		why := "its padding is missing"
		if ok {
			why = wrong.Error()
		}
		return fault.New(fault.Invalid, "a file's content must be base64 with padding: %s", why)
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, t)
	return err
}

// text is the inside of a string.
type text struct {
	s    *scanner
	held []byte // of a character that did not fit
	done bool
}

func (t *text) Read(p []byte) (n int, err error) {
	if len(t.held) > 0 {
		n = copy(p, t.held)
		t.held = t.held[n:]
		return n, nil
	}
	for n < len(p) && !t.done {
		b, err := t.s.r.ReadByte()
		if err != nil {
			return n, cut(err)
		}
		switch {
		case b == '"':
			t.done = true
		case b == '\\':
			if t.held, err = t.s.escape(); err != nil {
				return n, err
			}
			copied := copy(p[n:], t.held)
			t.held = t.held[copied:]
			n += copied
		case b < ' ':
			return n, fmt.Errorf("json: invalid character %q in string literal", b)
		default:
			p[n] = b
			n++
		}
	}
	if n == 0 && t.done && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// escape is what follows a backslash, decoded.
func (s *scanner) escape() ([]byte, error) {
	b, err := s.r.ReadByte()
	if err != nil {
		return nil, cut(err)
	}
	switch b {
	case '"', '\\', '/':
		return []byte{b}, nil
	case 'b':
		return []byte{'\b'}, nil
	case 'f':
		return []byte{'\f'}, nil
	case 'n':
		return []byte{'\n'}, nil
	case 'r':
		return []byte{'\r'}, nil
	case 't':
		return []byte{'\t'}, nil
	case 'u':
		r, err := s.hex()
		if err != nil {
			return nil, err
		}
		if utf16.IsSurrogate(r) { // nothing that a content may have: it need not be right, only not be taken for anything else
			r = utf8.RuneError
		}
		return utf8.AppendRune(nil, r), nil
	}
	return nil, fmt.Errorf("json: invalid character %q in string escape code", b)
}

func (s *scanner) hex() (rune, error) {
	var r rune
	for range 4 {
		b, err := s.r.ReadByte()
		if err != nil {
			return 0, cut(err)
		}
		switch {
		case '0' <= b && b <= '9':
			b -= '0'
		case 'a' <= b|0x20 && b|0x20 <= 'f':
			b = b | 0x20 - 'a' + 10
		default:
			return 0, fmt.Errorf("json: invalid character %q in \\u hexadecimal character escape", b)
		}
		r = r<<4 | rune(b)
	}
	return r, nil
}

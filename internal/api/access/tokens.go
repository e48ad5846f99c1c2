package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// Tokens are all that are accepted now. It is safe for concurrent use.
type Tokens struct {
	single  string
	file    string
	all     *Token // of everybody, where there is no token
	current atomic.Pointer[[]*Token]
}

// Load takes the configuration's own token, "" = none, and reads the file, "" = none.
func Load(single, file string) (*Tokens, error) {
	t := &Tokens{single: single, file: file, all: everyone()}
	return t, t.Reload()
}

// Open reports whether there is no token at all, so that everybody may do everything.
func (t *Tokens) Open() bool { return t.single == "" && t.file == "" }

// maxFile is how many bytes of a token file are read.
const maxFile = 4 << 20

// Reload reads the file again. After an error the tokens stay as they were.
func (t *Tokens) Reload() error {
	var list []*Token
	if t.single != "" {
		list = append(list, single(t.single))
	}
	if t.file != "" {
		fromFile, err := t.read()
		if err != nil {
			return fmt.Errorf("server.tokenfile: %s: %w", t.file, err)
		}
		list = append(list, fromFile...)
	}
	if old := t.current.Load(); old != nil {
		for _, now := range list {
			for _, was := range *old {
				if now.Name == was.Name && now.same(was) {
					now.limiter = was.limiter
				}
			}
		}
	}
	t.current.Store(&list)
	return nil
}

func (t *Tokens) read() ([]*Token, error) {
	info, err := os.Stat(t.file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	data, err := os.ReadFile(t.file)
	if err != nil {
		return nil, err
	}
	tokens, plain, err := parse(data)
	if err != nil {
		return nil, err
	}
	if plain && info.Mode().Perm()&0o077 != 0 {
		return nil, errors.New("it holds secrets as they are and others may read it: chmod 600, or give sha256 instead of token")
	}
	return tokens, nil
}

// Find is the token with a secret; nil = there is none. It takes the same time whichever it is.
func (t *Tokens) Find(secret string) *Token {
	if t.Open() {
		return t.all
	}
	sum := sha256.Sum256([]byte(secret))
	var found *Token
	for _, one := range *t.current.Load() {
		if subtle.ConstantTimeCompare(sum[:], one.sum[:]) == 1 {
			found = one
		}
	}
	return found
}

// Named is the token of a name, for what another gateway has authenticated; nil = there is none (any more).
func (t *Tokens) Named(name string) *Token {
	if t.Open() {
		if name == t.all.Name {
			return t.all
		}
		return nil
	}
	for _, one := range *t.current.Load() {
		if one.Name == name {
			return one
		}
	}
	return nil
}

// Admit takes one request off a token's rate. Otherwise it says after how long the next one is admitted.
func (t *Token) Admit(now time.Time) (wait time.Duration, ok bool) {
	if t.limiter == nil {
		return 0, true
	}
	r := t.limiter.ReserveN(now, 1)
	if d := r.DelayFrom(now); d > 0 {
		r.CancelAt(now)
		return d, false
	}
	return 0, true
}

// NameOf is the name behind an owner; "" = it is the configuration's own token, or one that is no more.
func (t *Tokens) NameOf(owner string) string {
	for _, one := range *t.current.Load() {
		if owner != "" && one.Owner == owner {
			return one.Name
		}
	}
	return ""
}

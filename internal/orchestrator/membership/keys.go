package membership

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"rockpool/internal/fault"
)

// Keys is what the servers said of the keys of gossip. Keys are base64.
type Keys struct {
	Messages    map[string]string // of servers, by their names
	Keys        map[string]int    // how many servers know each
	PrimaryKeys map[string]int    // how many servers encrypt with each
	NumNodes    int
}

// KeyChange is what can be done with a key on all servers.
type KeyChange uint8

// Changes. A key that is in use is replaced in three steps: the new one is installed, used, and the old one removed.
const (
	InstallKey KeyChange = iota // know it, to understand others
	UseKey                      // encrypt with it
	RemoveKey                   // forget it
)

// keyFile is where serf keeps the keys once they were changed: a JSON list, the one in use first.
func (m *Membership) keyFile() string {
	if m.cfg.Dir == "" || len(m.cfg.Key) == 0 {
		return ""
	}
	return filepath.Join(m.cfg.Dir, "gossip", "keys")
}

// keyring has the keys as they were last changed, or else the configured one. nil = gossip is open.
func (m *Membership) keyring() (*memberlist.Keyring, error) {
	if len(m.cfg.Key) == 0 {
		return nil, nil
	}
	keys := [][]byte{m.cfg.Key}
	if path := m.keyFile(); path != "" {
		b, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("gossip keys: %w", err)
		default:
			// Keys are base64 in a JSON list, which is how a list of byte slices is written.
			if err := json.Unmarshal(b, &keys); err != nil || len(keys) == 0 {
				return nil, fmt.Errorf("gossip keys: %s holds none: restore the file, or remove it to begin with the configured key", path)
			}
			if !slices.ContainsFunc(keys, func(k []byte) bool { return string(k) == string(m.cfg.Key) }) {
				m.cfg.Log.WithField("file", path).Warn("the configured gossip key is none of those that the servers have agreed on since; those are used")
			}
		}
	}
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	return ring, nil
}

// Keys are those that the servers know.
func (m *Membership) Keys() (Keys, error) {
	return m.askKeys("list the gossip keys", (*serf.KeyManager).ListKeys)
}

// ChangeKey changes what all servers know of a key, 16, 24 or 32 bytes in base64. A server that does not answer, or refuses, makes it an error; it can be
// tried again.
func (m *Membership) ChangeKey(c KeyChange, key string) (Keys, error) {
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil || memberlist.ValidateKey(raw) != nil {
		return Keys{}, fault.New(fault.Invalid, "the key is not base64 of 16, 24 or 32 bytes")
	}
	what, f := "install a gossip key", (*serf.KeyManager).InstallKey
	switch c {
	case UseKey:
		what, f = "use a gossip key", (*serf.KeyManager).UseKey
	case RemoveKey:
		what, f = "remove a gossip key", (*serf.KeyManager).RemoveKey
	}
	return m.askKeys(what, func(k *serf.KeyManager) (*serf.KeyResponse, error) { return f(k, key) })
}

func (m *Membership) askKeys(what string, f func(*serf.KeyManager) (*serf.KeyResponse, error)) (Keys, error) {
	s := m.running()
	switch {
	case s == nil:
		return Keys{}, fault.New(fault.Unavailable, "the membership is not running")
	case len(m.cfg.Key) == 0:
		return Keys{}, fault.New(fault.Invalid, "gossip is not encrypted: give all servers a key (server.encrypt) and restart them")
	}
	r, err := f(s.KeyManager())
	if err != nil {
		for _, name := range slices.Sorted(maps.Keys(r.Messages)) {
			err = fmt.Errorf("%w; %s: %s", err, name, r.Messages[name])
		}
		return Keys{}, fmt.Errorf("%s: %w", what, err)
	}
	return Keys{r.Messages, r.Keys, r.PrimaryKeys, r.NumNodes}, nil
}

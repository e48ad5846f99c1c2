package keyring_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"rockpool/internal/orchestrator/keyring"
)

func TestWhatIsSealedOpensInItsPlaceAlone(t *testing.T) {
	kek, err := keyring.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	wrapped := kek.NewRoot("k1")
	root, err := kek.Root("k1", wrapped)
	if err != nil {
		t.Fatal(err)
	}
	sealed := root.Seal([]byte("value"), "a")
	if bytes.Contains(sealed, []byte("value")) {
		t.Error("the value is in the ciphertext")
	}
	if bytes.Equal(sealed, root.Seal([]byte("value"), "a")) {
		t.Error("two seals are equal")
	}
	if plain, err := root.Open(sealed, "a"); err != nil || string(plain) != "value" {
		t.Errorf("%q, %v", plain, err)
	}
	for i := range sealed {
		c := bytes.Clone(sealed)
		c[i] ^= 1
		if _, err := root.Open(c, "a"); !errors.Is(err, keyring.ErrSealed) {
			t.Fatalf("byte %d was changed: %v", i, err)
		}
	}
	if _, err := root.Open(sealed, "b"); !errors.Is(err, keyring.ErrSealed) {
		t.Errorf("in another place: %v", err)
	}
	if _, err := root.Open(nil, "a"); !errors.Is(err, keyring.ErrSealed) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := kek.Root("k2", wrapped); !errors.Is(err, keyring.ErrSealed) {
		t.Errorf("as another key's: %v", err)
	}
	other, _ := keyring.Ephemeral()
	if _, err := other.Root("k1", wrapped); !errors.Is(err, keyring.ErrSealed) {
		t.Errorf("with another key: %v", err)
	}
}

func TestTheKeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keyring", "kek")
	if _, err := keyring.Load(file); err == nil {
		t.Error("a file that is not there was read")
	}
	a, err := keyring.LoadOrCreate(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := keyring.LoadOrCreate(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Root("x", a.NewRoot("x")); err != nil {
		t.Errorf("the second start has another key: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.Load(file); err == nil {
		t.Error("a file that everybody may read was taken")
	}
	if _, err := keyring.Derive([]byte("short"), "x"); err == nil {
		t.Error("a short secret was taken")
	}
}

// Package keyring seals what must be read by nobody who has only the Raft log, a snapshot or a backup of them.
//
// There are two layers. A root key seals values; it is random, there is one that is active, and it is kept in the replicated state, but only wrapped by the
// key-encryption key. That one is in none of these: each server reads it from a file. All is AES-256-GCM with random nonces, at most 2^32 seals a key (NIST
// SP 800-38D); root keys are rotated long before. Each seal is bound to what it is for, so that a ciphertext put in another place does not open.
package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Key seals and opens.
type Key struct{ aead cipher.AEAD }

const keyBytes = 32

// ErrSealed says that a key does not open a ciphertext: it is another key's, was changed, or is in another place than it was sealed for.
var ErrSealed = errors.New("it cannot be opened with the key at hand")

// Derive makes a key of a secret, for one purpose. The secret must not be guessable: at least 16 random bytes.
func Derive(secret []byte, purpose string) (*Key, error) {
	if len(secret) < 16 {
		return nil, fmt.Errorf("derive a key: the secret has %d bytes, at least 16 are needed", len(secret))
	}
	k, err := hkdf.Key(sha256.New, secret, nil, "rockpool "+purpose, keyBytes)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return newKey(k)
}

func newKey(k []byte) (*Key, error) {
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return &Key{aead}, nil
}

// Seal encrypts. place binds the ciphertext: Open needs the same.
func (k *Key) Seal(plain []byte, place string) []byte {
	return k.aead.Seal(nil, nil, plain, []byte(place))
}

// Open decrypts. An error wraps [ErrSealed].
func (k *Key) Open(sealed []byte, place string) ([]byte, error) {
	plain, err := k.aead.Open(nil, nil, sealed, []byte(place))
	if err != nil {
		return nil, ErrSealed
	}
	return plain, nil
}

// NewRoot makes a root key and wraps it.
func (k *Key) NewRoot(id string) (wrapped []byte) {
	root := make([]byte, keyBytes)
	_, _ = rand.Read(root) // it never fails
	return k.Seal(root, "root key "+id)
}

// Root unwraps a root key. An error wraps [ErrSealed].
func (k *Key) Root(id string, wrapped []byte) (*Key, error) {
	root, err := k.Open(wrapped, "root key "+id)
	if err != nil {
		return nil, err
	}
	if len(root) != keyBytes {
		return nil, ErrSealed
	}
	return newKey(root)
}

const kekPurpose = "key-encryption key of root keys"

// Ephemeral is a key-encryption key that ends with the process, for state that does too.
func Ephemeral() (*Key, error) {
	secret := make([]byte, keyBytes)
	_, _ = rand.Read(secret)
	return Derive(secret, kekPurpose)
}

// Load reads the key-encryption key that is derived from a file's contents, all of them. It must not be readable by others than its owner and group.
func Load(file string) (*Key, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("read the key file: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("read the key file: %s can be read by everybody: chmod 600 it", file)
	}
	secret, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the key file: %w", err)
	}
	return Derive(secret, kekPurpose)
}

// LoadOrCreate is Load, but makes the file where there is none, readable by its owner alone.
func LoadOrCreate(file string) (*Key, error) {
	k, err := Load(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	secret := make([]byte, keyBytes)
	_, _ = rand.Read(secret)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("make the key file: %w", err)
	}
	if err := create(file, []byte(base64.StdEncoding.EncodeToString(secret)+"\n")); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the key file: %w", err)
	}
	return Load(file)
}

// create writes a file whole or not at all: a cut one would be another key.
func create(file string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".kek-*") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Link(tmp.Name(), file)
}

// Place binds a variable's ciphertext to where it is.
func Place(namespace, path, keyID string) string {
	return "variable\x00" + namespace + "\x00" + path + "\x00" + keyID
}

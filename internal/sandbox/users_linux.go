//go:build linux && cgo

package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// identity is who a program runs as, in ids as they are inside.
type identity struct {
	uid, gid uint32
	groups   []uint32
}

type account struct {
	name     string
	uid, gid uint32
	home     string
}

const maxAccountFile = 1 << 20 // the sandbox's own file: its size is the tenant's choice

// learner is who unprivileged programs run as. Where an image has no such account, it is this one.
var learner = account{"user", 1000, 1000, "/home/user"}

// lookUp finds a user as an image's USER may name one: user, uid, user:group, uid:gid and mixtures. With a group it has that one alone.
func (s *Sandbox) lookUp(name string) (identity, error) {
	user, group, grouped := strings.Cut(name, ":")
	id, err := s.lookUpUser(user)
	if err != nil || !grouped {
		return id, err
	}
	if id.gid, err = s.lookUpGroup(group); err != nil {
		return identity{}, err
	}
	id.groups = []uint32{id.gid}
	return id, nil
}

// lookUpGroup finds a group by name in the sandbox's own /etc/group, or takes a decimal gid.
func (s *Sandbox) lookUpGroup(name string) (uint32, error) {
	text, err := s.readBelow("/etc/group")
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if f := strings.Split(lines.Text(), ":"); len(f) >= 3 && f[0] == name {
			if gid, err := strconv.ParseUint(f[2], 10, 16); err == nil {
				return uint32(gid), nil
			}
		}
	}
	if gid, convErr := strconv.ParseUint(name, 10, 16); convErr == nil {
		return uint32(gid), nil
	}
	return 0, errors.Join(fmt.Errorf("%w: group %q", ErrNoUser, name), err)
}

// lookUpUser finds a user by name in the sandbox's own /etc/passwd, or takes a decimal uid. "" and "root" need no file.
func (s *Sandbox) lookUpUser(name string) (identity, error) {
	if name == "" || name == "root" || name == "0" {
		return identity{}, nil
	}
	accounts, err := s.readAccounts("/etc/passwd")
	number, numeric := uint64(0), false
	if n, convErr := strconv.ParseUint(name, 10, 16); convErr == nil {
		number, numeric = n, true
	}
	for _, a := range accounts {
		if a.name == name || numeric && uint64(a.uid) == number {
			groups, _ := s.readBelow("/etc/group")
			return identity{a.uid, a.gid, memberships(groups, a)}, nil
		}
	}
	if name == learner.name {
		return identity{uid: learner.uid, gid: learner.gid, groups: []uint32{learner.gid}}, nil
	}
	if numeric {
		return identity{uid: uint32(number), gid: uint32(number)}, nil
	}
	if err != nil {
		return identity{}, fmt.Errorf("%w: %q: %w", ErrNoUser, name, err)
	}
	return identity{}, fmt.Errorf("%w: %q", ErrNoUser, name)
}

func (s *Sandbox) readAccounts(path string) ([]account, error) {
	text, err := s.readBelow(path)
	if err != nil {
		return nil, err
	}
	return parseAccounts(text), nil
}

func (s *Sandbox) readBelow(path string) (string, error) { return readBelow(s.root, path) }

// readBelow reads a regular file confined to a root, without waiting for what only looks like a file.
func readBelow(root *os.File, path string) (string, error) {
	f, _, err := openRegular(root, path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxAccountFile))
	return string(text), err
}

// parseAccounts reads passwd(5); ids beyond the range that a sandbox has cannot be used.
func parseAccounts(text string) []account {
	var accounts []account
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		f := strings.Split(lines.Text(), ":")
		if len(f) < 6 {
			continue
		}
		uid, uidErr := strconv.ParseUint(f[2], 10, 16)
		gid, gidErr := strconv.ParseUint(f[3], 10, 16)
		if uidErr == nil && gidErr == nil {
			accounts = append(accounts, account{f[0], uint32(uid), uint32(gid), f[5]})
		}
	}
	return accounts
}

// memberships are the supplementary groups that group(5) gives a user.
func memberships(text string, of account) []uint32 {
	groups := []uint32{of.gid}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() && len(groups) < 32 {
		f := strings.Split(lines.Text(), ":")
		if len(f) < 4 {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 16)
		if err != nil || uint32(gid) == of.gid {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if member == of.name {
				groups = append(groups, uint32(gid))
				break
			}
		}
	}
	return groups
}

// lowerUsers reads the accounts that an image brings, from the topmost layer that has them.
func lowerUsers(lower []string) []account {
	for _, dir := range lower {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		root := os.NewFile(uintptr(fd), dir)
		text, err := readBelow(root, "/etc/passwd")
		_ = root.Close()
		if err == nil {
			return parseAccounts(text)
		}
	}
	return nil
}

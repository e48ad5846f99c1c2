package sandboxed

import (
	"context"
	"io"
	"strings"
	"sync"

	"rockpool/internal/orchestrator/driver"
)

// maxPasswd bounds what is read of a file that belongs to whoever runs inside.
const maxPasswd = 256 << 10

// accounts knows the users inside a sandbox. The file is read again only for a name that was not in it.
type accounts struct {
	mu    sync.Mutex
	homes map[string][2]string // name and home, by name and by uid
}

// environment is what a login gives a user: HOME, USER and LOGNAME.
func (a *accounts) environment(ctx context.Context, files driver.Files, user string) []string {
	user, _, _ = strings.Cut(user, ":") // a group may follow
	if user == "" {
		user = "root"
	}
	name, home := a.find(ctx, files, user)
	return []string{"HOME=" + home, "USER=" + name, "LOGNAME=" + name}
}

func (a *accounts) find(ctx context.Context, files driver.Files, user string) (name, home string) {
	a.mu.Lock()
	known, ok := a.homes[user]
	a.mu.Unlock()
	if !ok {
		homes := readPasswd(ctx, files)
		if known, ok = homes[user]; !ok {
			known = [2]string{user, "/home/" + user}
			if user == "root" || user == "0" {
				known = [2]string{"root", "/root"}
			}
		}
		a.mu.Lock()
		a.homes = homes
		a.mu.Unlock()
	}
	return known[0], known[1]
}

func readPasswd(ctx context.Context, files driver.Files) map[string][2]string {
	homes := map[string][2]string{}
	if files == nil {
		return homes
	}
	f, _, err := files.Open(ctx, "/etc/passwd", "root")
	if err != nil {
		return homes
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxPasswd))
	for line := range strings.Lines(string(b)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 7 || fields[5] == "" || strings.ContainsRune(fields[5], 0) {
			continue
		}
		for _, k := range []string{fields[0], fields[2]} {
			if _, taken := homes[k]; !taken {
				homes[k] = [2]string{fields[0], fields[5]}
			}
		}
	}
	return homes
}

package inspect

import (
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"rockpool/internal/endpoint"
)

// hostData describes the machine, in Nomad's form.
type hostData struct {
	OS          string
	Network     []map[string]string
	ResolvConf  string
	Hosts       string
	Environment map[string]string
	Disk        map[string]diskUsage
}

type diskUsage struct{ DiskMB, UsedMB int64 }

// maxHostFile bounds what is told of a file, in bytes.
const maxHostFile = 16 << 10

// Host tells of the machine under this process. Values of the environment may be secrets and are not told.
func (p *Process) Host(w http.ResponseWriter, r *http.Request) error {
	d := hostData{
		OS: runtime.GOOS + "/" + runtime.GOARCH + " " + prettyName(head("/etc/os-release")), Network: []map[string]string{}, ResolvConf: head("/etc/resolv.conf"),
		Hosts: head("/etc/hosts"), Environment: map[string]string{}, Disk: map[string]diskUsage{},
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		d.Environment[name] = "<redacted>"
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, ip := range addrs {
			d.Network = append(d.Network, map[string]string{"name": i.Name, "address": ip.String()})
		}
	}
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) == nil {
		size := int64(fs.Bsize)
		d.Disk["/"] = diskUsage{int64(fs.Blocks) * size >> 20, (int64(fs.Blocks) - int64(fs.Bfree)) * size >> 20}
	}
	return endpoint.WriteJSON(w, r, "application/json", http.StatusOK, struct {
		AgentID  string
		HostData hostData
	}{p.Name, d})
}

func head(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, maxHostFile)
	n, _ := f.Read(buf) // what cannot be read is not told
	return string(buf[:n])
}

func prettyName(release string) string {
	for line := range strings.Lines(release) {
		if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return ""
}

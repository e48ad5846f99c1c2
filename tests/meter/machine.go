package meter

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Machine describes what measures and is measured.
type Machine struct {
	CPU    string
	Cores  int
	Memory int64 // bytes
	Kernel string
	Go     string
	Fsync  time.Duration // median of a write of 4 KiB and fsync in Dir
	Dir    string
}

// Describe looks at the machine, and at the disk below dir.
func Describe(dir string) (Machine, error) {
	m := Machine{CPU: "unknown processor", Cores: runtime.NumCPU(), Go: runtime.Version(), Dir: dir}
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	for l := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	if text, err = os.ReadFile("/proc/sys/kernel/osrelease"); err != nil {
		return m, err
	}
	m.Kernel = strings.TrimSpace(string(text))
	if m.Memory, err = kilobytes("/proc/meminfo", "MemTotal:"); err != nil {
		return m, err
	}
	syncs, err := Fsyncs(dir, 50)
	if err != nil {
		return m, err
	}
	m.Fsync = syncs[len(syncs)/2]
	return m, nil
}

// Pairs are the description as configuration lines of a benchmark's output.
func (m Machine) Pairs() [][2]string {
	return [][2]string{
		{"goos", runtime.GOOS}, {"goarch", runtime.GOARCH}, {"cpu", m.CPU}, {"cores", strconv.Itoa(m.Cores)}, {"memory", fmt.Sprintf("%d GB", (m.Memory+1<<29)>>30)},
		{"kernel", m.Kernel}, {"go", m.Go}, {"fsync", m.Fsync.Round(10 * time.Microsecond).String()},
	}
}

// Fsyncs writes 4 KiB and syncs n times, in a file below dir that has its size already, as a log has, and returns what each took, sorted.
func Fsyncs(dir string, n int) ([]time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4096)
	if _, err := f.Write(make([]byte, n*len(block))); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	var times []time.Duration
	for i := range n {
		start := time.Now()
		if _, err := f.WriteAt(block, int64(i)*int64(len(block))); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return times, nil
}

// Load is what a stretch of time has seen.
type Load struct {
	begin     time.Time
	busy, own time.Duration
}

// Watch begins to look at how busy the machine is.
func Watch() (*Load, error) {
	l := &Load{begin: time.Now()}
	var err error
	l.busy, l.own, err = now()
	return l, err
}

// Others is how many cores everything but this process and those below it has used since Watch, the kernel's own threads and time stolen by a hypervisor included.
func (l *Load) Others() (float64, error) {
	busy, own, err := now()
	if err != nil {
		return 0, err
	}
	return max(0, ((busy-l.busy)-(own-l.own)).Seconds()/time.Since(l.begin).Seconds()), nil
}

// now is the CPU time that the whole machine has used since it started, and that of this process and those below it.
func now() (busy, own time.Duration, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	for i, f := range strings.Fields(first)[1:] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 && i < 8 { // idle and waiting for disks; guests are in user time already
			busy += time.Duration(n) * tick
		}
	}
	own, err = Tree(os.Getpid())
	return busy, own, err
}

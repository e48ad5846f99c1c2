package raw

import (
	"os"
	"strconv"
	"strings"
	"time"

	"rockpool/internal/orchestrator/driver"
)

// ticksPerSecond is the unit of times in /proc: USER_HZ, which is 100 on every architecture that Go runs Linux on.
const ticksPerSecond = 100

// usageOf adds up what the processes of some process groups use, with the time of children that they have waited for. Memory that they share is counted for each.
func usageOf(groups map[int]bool) (u driver.Usage) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return u
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended meanwhile
		}
		group, cpu, pages, ok := parseStat(string(b))
		if !ok || !groups[group] {
			continue
		}
		u.PIDs++
		u.CPUTime += cpu
		u.MemoryBytes += pages * int64(os.Getpagesize())
	}
	return u
}

// parseStat reads the process group, the time and the resident pages from the line that proc(5) describes: fields 5, 14 to 17 and 24. The name, which stands before
// them, may hold anything.
func parseStat(line string) (group int, cpu time.Duration, pages int64, ok bool) {
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:]) // from field 3 on
	if len(fields) < 22 {
		return 0, 0, 0, false
	}
	group, err := strconv.Atoi(fields[2])
	if err != nil {
		return 0, 0, 0, false
	}
	var ticks int64
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, 0, 0, false
		}
		ticks += n
	}
	pages, err = strconv.ParseInt(fields[21], 10, 64)
	return group, time.Duration(ticks) * (time.Second / ticksPerSecond), pages, err == nil
}

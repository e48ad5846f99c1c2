package hostile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"rockpool/tests/platform"
)

// knock tries to connect to each target of the environment, all at once, and prints which answered.
const knock = `
import selectors
def knock(targets, wait=1.5):
    reached, waiting = [], {}
    s = selectors.DefaultSelector()
    for t in targets:
        host, port = t.rsplit(":", 1)
        c = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET); c.setblocking(False)
        e = c.connect_ex((host, int(port)))
        if e in (0, errno.EINPROGRESS): s.register(c, selectors.EVENT_WRITE, t)
    end = time.time() + wait
    while s.get_map() and time.time() < end:
        for k, _ in s.select(max(0, end - time.time())):
            if k.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0: reached.append(k.data)
            s.unregister(k.fileobj)
    return sorted(reached)
`

// connectedAttacks come from runners that have network access.
var connectedAttacks = []attack{
	{id: "D1", what: "with network: the public is reached, and nothing private", language: "py", network: true, program: knock + `
print(knock(["` + strings.Join(beyond, `:80", "`) + `:80"]))
`, want: "exit 0", stdout: `\['203.0.113.10:80', '203.0.113.11:80'\]` + "\n", then: func(_ context.Context, a *arena, _ string) error {
		for _, address := range beyond {
			if n := a.world.calls(address); (n > 0) != strings.HasPrefix(address, "203.0.113.") {
				return fmt.Errorf("%s was called %d times", address, n)
			}
		}
		return nil
	}},
	{id: "D2", what: "with network: metadata, by every way of writing it", language: "py", network: true, program: knock + `
print(knock(["169.254.169.254:80", "100.100.100.200:80", "::ffff:169.254.169.254:80", "fd00:ec2::254:80", "64:ff9b::a9fe:a9fe:80"]))
for name in ("metadata.google.internal", "169.254.169.254.nip.io"):
    try: print(name, socket.gethostbyname(name))
    except OSError: pass
`, want: "exit 0", stdout: `\[\]` + "\n"},
	{id: "D3", what: "with network: every port of the node, by every address of it", language: "py", network: true, program: knock + `
def gateway():
    for line in open("/proc/net/route").read().splitlines()[1:]:
        f = line.split()
        if f[1] == "00000000": return socket.inet_ntoa(bytes.fromhex(f[2])[::-1])
hosts, ports = [gateway(), "` + nodeAddress + `", "127.0.0.1", "0.0.0.0"], os.environ["PORTS"].split() + ["` + listenerPort + `", "22", "111"]
print(knock([h + ":" + p for h in hosts for p in ports]), gateway() is not None)
`, want: "exit 0", stdout: `\[\] True` + "\n"},
	{id: "D6", what: "with network: a neighbour's port, and one that poses as another", script: connectedNeighbours, network: true},
	{id: "D5", what: "with network: a scan of 6000 ports, a flood of 50 000 datagrams", language: "py", network: true, limit: 15, program: `
opened = 0
for port in range(6000):
    s = socket.socket(); s.setblocking(False)
    if s.connect_ex(("` + publicAddress + `", 80)) in (0, errno.EINPROGRESS): opened += 1
    s.close()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(50000):
    try: u.sendto(b"x" * 64, ("` + publicAddress + `", 7777))
    except OSError: pass
print("tried")
`, want: "exit 0", stdout: "tried\n", then: func(ctx context.Context, a *arena, _ string) error {
		if calls, packets := a.world.calls(publicAddress), a.world.packets.Load(); calls > 3000 || packets > 25_000 {
			return fmt.Errorf("%d connections and %d datagrams came through", calls, packets)
		}
		return a.Healthy(ctx)
	}},
	{id: "D8", what: "with network: forged frames, addresses and interfaces, as root", language: "c", network: true, root: true, program: `
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <arpa/inet.h>
int main(void) {
	ATTEMPT(socket(AF_PACKET, SOCK_RAW, 0x0300)); ATTEMPT(socket(AF_PACKET, SOCK_DGRAM, 0x0608)); ATTEMPT(socket(AF_INET, SOCK_RAW, 255)); ATTEMPT(socket(AF_INET6, SOCK_RAW, 58));
	int s = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
	struct ifreq r = {.ifr_name = "eth0"};
	((struct sockaddr_in *)&r.ifr_addr)->sin_family = AF_INET;
	((struct sockaddr_in *)&r.ifr_addr)->sin_addr.s_addr = inet_addr("172.30.64.1");
	ATTEMPT(ioctl(s, SIOCSIFADDR, &r)); ATTEMPT(ioctl(s, SIOCSIFHWADDR, &r));
	r.ifr_flags = IFF_UP | IFF_PROMISC; ATTEMPT(ioctl(s, SIOCSIFFLAGS, &r));
	struct arpreq a = {.arp_flags = ATF_PERM | ATF_COM}; ATTEMPT(ioctl(s, SIOCSARP, &a));
	ATTEMPT(setsockopt(s, SOL_IP, 19, &on, sizeof on)); /* IP_TRANSPARENT */
	struct sockaddr_in other = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = inet_addr("172.30.64.1")};
	ATTEMPT(bind(s, (void *)&other, sizeof other));
	return 0;
}`, want: "exit 0", stdout: silent},
	{id: "D9", what: "with an allow list: what is not on it", script: allowList, network: true},
}

type claimed struct {
	RunnerID    string `json:"runnerId"`
	MappedPorts []struct {
		ExposedPort int    `json:"exposedPort"`
		HostAddress string `json:"hostAddress"`
	} `json:"mappedPorts"`
}

func (a *arena) claimConnected(ctx context.Context, env int) (c claimed, err error) {
	status, body, err := a.Do(ctx, "POST", "/runners", map[string]int{"executionEnvironmentId": env, "inactivityTimeout": 60})
	if err == nil && status != 200 {
		err = fmt.Errorf("claim: status %d: %s", status, body)
	}
	if err == nil {
		err = json.Unmarshal(body, &c)
	}
	return c, err
}

const server = `exec python3 -c '
import socket, sys
s = socket.create_server(("", 8080)); print("ready", flush=True)
while True:
    c, _ = s.accept(); c.recv(1000); c.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + sys.argv[1].encode()); c.close()
' %s`

// connectedNeighbours has two runners serve under an exposed port. Each is reached under its own host port and under no other, and neither by the other.
func connectedNeighbours(ctx context.Context, a *arena, _ string) (err error) {
	var both [2]claimed
	for i := range both {
		if both[i], err = a.claimConnected(ctx, connected); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, a.Release(ctx, both[i].RunnerID)) }()
		s, err := a.Start(ctx, both[i].RunnerID, platform.Execution{Command: fmt.Sprintf(server, both[i].RunnerID)})
		if err != nil {
			return err
		}
		defer s.Abort()
		for m := (platform.Message{}); !strings.Contains(m.Text, "ready"); {
			if m, err = s.Next(ctx); err != nil {
				return err
			}
		}
	}
	for _, c := range both {
		if len(c.MappedPorts) != 1 || c.MappedPorts[0].ExposedPort != 8080 {
			return fmt.Errorf("mapped ports: %+v", c.MappedPorts)
		}
		resp, err := http.Get("http://" + c.MappedPorts[0].HostAddress)
		if err != nil {
			return fmt.Errorf("the exposed port: %w", err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(text) != c.RunnerID {
			return fmt.Errorf("%s answered %q for %s, %w", c.MappedPorts[0].HostAddress, text, c.RunnerID, err)
		}
	}
	address, err := a.sh(ctx, both[0].RunnerID, `python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("`+publicAddress+`", 9)); print(s.getsockname()[0])'`)
	if err != nil {
		return err
	}
	targets := []string{strings.TrimSpace(address) + ":8080", both[0].MappedPorts[0].HostAddress}
	for _, c := range both {
		_, port, _ := strings.Cut(c.MappedPorts[0].HostAddress, ":")
		targets = append(targets, nodeAddress+":"+port)
	}
	out, err := a.sh(ctx, both[1].RunnerID, `python3 -c '
import os, sys, time, errno, socket
`+knock+`
print(knock(["`+strings.Join(targets, `", "`)+`"]))'`)
	if err == nil && out != "[]\n" {
		err = fmt.Errorf("a neighbour reached %s", out)
	}
	return err
}

// allowList makes an environment that may reach one address and port.
func allowList(ctx context.Context, a *arena, _ string) (err error) {
	const env = 21
	status, body, err := a.Do(ctx, "PUT", "/execution-environments/21", map[string]any{"image": "host", "prewarmingPoolSize": 1, "cpuLimit": 10, "memoryLimit": 64,
		"networkAccess": true, "networkEgress": []string{publicAddress + ":80"}})
	if err != nil || status != 201 {
		return fmt.Errorf("status %d: %s, %w", status, body, err)
	}
	defer func() { err = errors.Join(err, a.DeleteEnvironment(ctx, env)) }()
	id, err := a.Claim(ctx, env, time.Minute)
	if err != nil {
		return err
	}
	out, err := a.sh(ctx, id, `python3 -c '
import os, sys, time, errno, socket
`+knock+`
print(knock(["`+publicAddress+`:80", "`+publicAddress+`:81", "203.0.113.11:80", "10.1.2.3:80"]))'`)
	if err == nil && out != "['"+publicAddress+":80']\n" {
		err = fmt.Errorf("reached: %s", out)
	}
	return err
}

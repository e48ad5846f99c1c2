package hostile

import (
	"context"
	"fmt"

	"rockpool/tests/platform"
)

var network = []attack{
	{id: "D3", what: "the ports of our own service", language: "py", program: `
for port in os.environ["PORTS"].split():
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "0.0.0.0")):
        try:
            socket.socket(family).connect((host, int(port)))
            print("reached", host, port)
        except OSError: pass
print("tried", len(os.environ["PORTS"].split()) >= 2)
`, want: "exit 0", stdout: "tried True\n"},
	{id: "D1", what: "anywhere at all: IPv4, IPv6, UDP, ICMP", language: "py", program: `
for family, kind, proto, to in ((socket.AF_INET, socket.SOCK_STREAM, 0, ("192.0.2.1", 80)), (socket.AF_INET6, socket.SOCK_STREAM, 0, ("2001:db8::1", 80)),
        (socket.AF_INET, socket.SOCK_DGRAM, 0, ("192.0.2.1", 53)), (socket.AF_INET, socket.SOCK_DGRAM, 1, ("192.0.2.1", 0)), (socket.AF_INET, socket.SOCK_DGRAM, 0, ("255.255.255.255", 9))):
    try:
        s = socket.socket(family, kind, proto); s.settimeout(1)
        if kind == socket.SOCK_STREAM: s.connect(to)
        else: s.sendto(b"x", to)
        print("reached", to)
    except OSError as e: pass
print(sorted(n for _, n in socket.if_nameindex()))
`, want: "exit 0", stdout: `\['lo'\]` + "\n"},
	{id: "D2", what: "addresses of cloud metadata", language: "py", program: `
for family, host in ((socket.AF_INET, "169.254.169.254"), (socket.AF_INET6, "fd00:ec2::254"), (socket.AF_INET, "100.100.100.200")):
    try:
        s = socket.socket(family); s.settimeout(1); s.connect((host, 80)); print("reached", host)
    except OSError as e:
        if e.errno != errno.ENETUNREACH and e.errno != errno.EADDRNOTAVAIL: print(host, e)
`, want: "exit 0", stdout: silent},
	{id: "D4", what: "a neighbour's port", script: neighboursPort},
}

// neighboursPort has one runner listen and another one knock.
func neighboursPort(ctx context.Context, a *arena, runner string) error {
	other, err := a.Claim(ctx, attackers, 0)
	if err != nil {
		return err
	}
	defer func() { _ = a.Release(ctx, other) }()
	s, err := a.Start(ctx, other, platform.Execution{Command: `exec python3 -c 'import socket, time; s = socket.create_server(("", 7777)); print("ready", flush=True); time.sleep(100)'`})
	if err != nil {
		return err
	}
	defer s.Abort()
	for m := (platform.Message{}); m.Type != "stdout"; {
		if m, err = s.Next(ctx); err != nil {
			return err
		}
	}
	out, err := a.sh(ctx, runner, `python3 -c 'import socket; print(socket.socket().connect_ex(("127.0.0.1", 7777)) != 0)'`)
	if err == nil && out != "True\n" {
		err = fmt.Errorf("it answered: %q", out)
	}
	return err
}

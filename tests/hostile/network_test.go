package hostile

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
}

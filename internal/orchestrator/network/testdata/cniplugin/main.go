// The program is a CNI plugin for tests. It writes down what it was called with, beside itself, and on ADD answers with an address.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() {
	in, _ := io.ReadAll(os.Stdin)
	var config struct {
		CNIVersion string `json:"cniVersion"`
		Fail       string `json:"fail"`
	}
	_ = json.Unmarshal(in, &config)
	command := os.Getenv("CNI_COMMAND")
	if command == "VERSION" {
		fmt.Println(`{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}`)
		return
	}
	self, _ := os.Executable()
	f, err := os.OpenFile(filepath.Join(filepath.Dir(self), "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_ = json.NewEncoder(f).Encode(map[string]any{"command": command, "id": os.Getenv("CNI_CONTAINERID"), "ns": os.Getenv("CNI_NETNS"),
			"interface": os.Getenv("CNI_IFNAME"), "config": json.RawMessage(in)})
		_ = f.Close()
	}
	if config.Fail == command {
		fmt.Println(`{"cniVersion":"1.0.0","code":100,"msg":"this network is full"}`)
		os.Exit(1)
	}
	if command == "ADD" {
		fmt.Printf(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":%q}],"ips":[{"interface":0,"address":"10.88.0.5/16"}],"dns":{"nameservers":["10.88.0.1"],"search":["lab.example"]}}`,
			os.Getenv("CNI_NETNS"))
	}
}

package contract_test

import (
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"rockpool/tests/contract"
)

func load(t *testing.T) *contract.Contract {
	t.Helper()
	read := func(name string) []byte {
		data, err := os.ReadFile("../../internal/api/openapi/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	c, err := contract.New(read("openapi.json"), read("websocket.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEverySchemaCompiles(t *testing.T) {
	if err := load(t).Compile(); err != nil {
		t.Error(err)
	}
}

// A check that finds nothing is worth nothing: here is what it has to find.
func TestWrongAnswersAreFound(t *testing.T) {
	c := load(t)
	const plain, none = "application/json", ""
	for _, k := range []struct {
		name, method, path string
		status             int
		content, body      string
		more               string // a header
		ok                 bool
	}{
		{"health", "GET", "/health", 204, none, "", "", true},
		{"an unknown status", "GET", "/health", 200, none, "", "", false},
		{"a body where there is none", "GET", "/health", 204, plain, "{}", "", false},
		{"a health text", "GET", "/health", 503, plain, `{"message":"m","errorCode":"UNKNOWN"}`, "", true},
		{"an unknown code", "GET", "/health", 503, plain, `{"message":"m","errorCode":"OTHER"}`, "", false},
		{"a missing code", "GET", "/health", 503, plain, `{"message":"m"}`, "", false},
		{"an empty message", "POST", "/runners", 400, plain, `{"message":""}`, "", false},
		{"a code in a client error", "POST", "/runners", 400, plain, `{"message":"m","errorCode":"UNKNOWN"}`, "", false},
		{"a charset", "POST", "/runners", 400, plain + "; charset=utf-8", `{"message":"m"}`, "", false},
		{"a line end", "POST", "/runners", 400, plain, `{"message":"m"}` + "\n", "", false},
		{"a space", "POST", "/runners", 400, plain, `{"message": "m"}`, "", false},
		{"two values", "POST", "/runners", 400, plain, `{"message":"m"}{}`, "", false},
		{"an unknown path", "GET", "/nothing", 404, none, "", "", true},
		{"an unknown path that answers", "GET", "/nothing", 200, none, "", "", false},
		{"an id that is none", "GET", "/execution-environments/x", 404, none, "", "", true},
		{"a wrong method", "POST", "/health", 405, none, "", "", true},
		{"a wrong method with a text", "POST", "/health", 405, "text/plain", "no", "", false},
		{"a header that is not documented", "GET", "/health", 204, none, "", "Server", false},
		{"a download", "GET", "/runners/r/files/raw", 200, "image/png", "\x00", "", false}, // without Content-Disposition
		{"an environment", "GET", "/execution-environments/1", 200, plain,
			`{"id":1,"prewarmingPoolSize":1,"cpuLimit":1,"memoryLimit":1,"image":"i","networkAccess":false,"exposedPorts":[]}`, "", true},
		{"ports that are null", "GET", "/execution-environments/1", 200, plain,
			`{"id":1,"prewarmingPoolSize":1,"cpuLimit":1,"memoryLimit":1,"image":"i","networkAccess":false,"exposedPorts":null}`, "", false},
		{"an unknown key", "GET", "/execution-environments/1", 200, plain,
			`{"id":1,"prewarmingPoolSize":1,"cpuLimit":1,"memoryLimit":1,"image":"i","networkAccess":false,"exposedPorts":[],"x":1}`, "", false},
		{"ten permissions", "GET", "/runners/r/files", 200, plain,
			`{"files":[{"name":"a","entryType":"-","size":0,"modificationTime":0,"permissions":"rwxr--r--+","owner":"o","group":"g"}]}`, "", false},
	} {
		head := http.Header{"X-Content-Type-Options": {"nosniff"}}
		if k.content != "" {
			head.Set("Content-Type", k.content)
		}
		if k.more != "" {
			head.Set(k.more, "x")
		}
		err := c.Response(k.method, &url.URL{Path: "/api/v1" + k.path}, k.status, head, []byte(k.body))
		if (err == nil) != k.ok {
			t.Errorf("%s: got %v", k.name, err)
		}
	}
}

func TestWrongMessagesAreFound(t *testing.T) {
	c := load(t)
	const usage = `{"type":"exit","data":0,"usage":{"cpuTimeMs":5,"wallTimeMs":7,"peakMemoryBytes":4096,"oomKilled":false,"outputBytes":2,"verdict":"exit"}}`
	for message, want := range map[string]string{ // p: right without the subprotocol, e: with it
		`{"type":"start"}`: "pe", `{"type":"stdout","data":"a"}`: "pe", `{"type":"stderr","data":"a"}`: "pe", `{"type":"exit","data":255}`: "pe", `{"type":"timeout"}`: "pe",
		`{"type":"error","data":"the allocation was OOM Killed"}`: "pe", `{"type":"error","data":"the output limit of 1 MB was reached"}`: "pe", usage: "e",
		`{"type":"stdout","data":""}`: "", `{"type":"exit","data":256}`: "", `{"type":"exit"}`: "", `{"type":"start","x":1}`: "", `{"type":"error","data":"other"}`: "", `{"type":"other"}`: "", `[]`: "", `{"type":"timeout","data":""}`: "",
	} {
		got := ""
		if _, err := c.Message([]byte(message), false); err == nil {
			got += "p"
		}
		if _, err := c.Message([]byte(message), true); err == nil {
			got += "e"
		}
		if got != want {
			t.Errorf("%s is right for %q, want %q", message, got, want)
		}
	}
	for message, want := range map[string]bool{
		`{"type":"resize","width":1,"height":65535}`: true, `{"type":"resize","width":-1,"height":1}`: false, `{"type":"signal","name":"INT"}`: true, `{"type":"eof"}`: true, `{"type":"x"}`: false,
	} {
		if got := c.Input([]byte(message)) == nil; got != want {
			t.Errorf("%s: got %v", strings.TrimSpace(message), got)
		}
	}
}

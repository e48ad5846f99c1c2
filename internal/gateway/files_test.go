package gateway_test

import (
	"encoding/json"
	"strings"
	"testing"

	"rockpool/internal/nomad/nomadtest"
)

func TestFilesAreDeletedThenWritten(t *testing.T) {
	h, id := with(t)
	h.want("PATCH", "/runners/"+id+"/files",
		`{"copy":[{"path":"dir/"},{"path":"dir/../a.txt","content":"aGk="},{"path":"/abs"}],"delete":["./*"],"more":[1,{"x":2}]} trailing`, 204, "")
	up := h.cluster.Uploads()[0]
	if strings.Join(up.Deletes, " ") != "./*" || up.Content["a.txt"] != "hi" || up.Content["/abs"] != "" || len(up.Headers) != 3 {
		t.Errorf("got %+v", up)
	}
	for i, want := range []struct {
		name string
		mode int64
		kind byte
	}{{"dir/", 0o1777, '5'}, {"a.txt", 0o744, '0'}, {"/abs", 0o744, '0'}} {
		g := up.Headers[i]
		if g.Name != want.name || g.Mode != want.mode || g.Typeflag != want.kind || g.Uid != 0 || g.ModTime.Unix() != 0 {
			t.Errorf("entry %d: got %q %o %c uid %d at %v", i, g.Name, g.Mode, g.Typeflag, g.Uid, g.ModTime)
		}
	}
}

func TestALargeUploadGoesByAFile(t *testing.T) {
	h, id := with(t)
	content := strings.Repeat("QUFB", 1<<20)
	h.want("PATCH", "/runners/"+id+"/files", `{"copy":[{"path":"big","content":"`+content+`"}]}`, 204, "")
	if got := h.cluster.Uploads()[0].Content["big"]; len(got) != 3<<20 || strings.Trim(got, "A") != "" {
		t.Errorf("%d bytes came", len(got))
	}
}

func TestWhatCannotBeWrittenIsNamed(t *testing.T) {
	h, id := with(t)
	h.want("PATCH", "/runners/"+id+"/files", `{"copy":[{"path":"/proc/1/environ"},{"path":"b"}]}`, 500,
		`{"message":"file copy failed: stderr output '/proc/1/environ: Cannot open: Permission denied' and stdout output ''","errorCode":"UNKNOWN"}`)
	if _, ok := h.cluster.Uploads()[0].Content["b"]; !ok {
		t.Error("the other file was not written")
	}
}

func TestListings(t *testing.T) {
	h, id := with(t)
	h.cluster.SetFiles(id, nomadtest.File{Name: "./dir", Type: "d"}, nomadtest.File{Name: "./.hidden", Type: "-"},
		nomadtest.File{Name: "./.git/config", Type: "-"}, nomadtest.File{Name: "./a\nb:", Type: "-", Content: "xyz"})
	body := h.want("GET", "/runners/"+id+"/files?recursive=yes", "", 200, `{"files":[`)
	want := `{"files":[{"name":"./dir","entryType":"d","size":0,"modificationTime":7,"permissions":"rwxr--r--","owner":"root","group":"root"},` +
		`{"name":"./a\nb:","entryType":"-","size":3,"modificationTime":7,"permissions":"rwxr--r--","owner":"root","group":"root"}]}`
	if body != want {
		t.Errorf("got %s", body)
	}
	if !json.Valid([]byte(body)) {
		t.Error("it is no JSON")
	}
	h.cluster.SetFiles(id, nomadtest.File{Name: "./a", Type: "-"}, nomadtest.File{Cut: true})
	if _, body, _ := h.do("GET", "/runners/"+id+"/files", ""); !strings.HasPrefix(body, "cut: ") {
		t.Errorf("a listing that was cut off came as %q", body)
	}
}

func TestDownloads(t *testing.T) {
	h, id := with(t)
	h.cluster.SetFiles(id, nomadtest.File{Name: "d/a\"b", Content: "bytes"}, nomadtest.File{Name: "/proc/x", Content: "unsized", Unsized: true},
		nomadtest.File{Name: "cut", Content: strings.Repeat("x", 1<<20), Cut: true})
	code, body, head := h.do("GET", "/runners/"+id+"/files/raw?path=d/a%22b", "")
	if code != 200 || body != "bytes" || head.Get("Content-Length") != "5" || head.Get("Content-Disposition") != `attachment; filename="d/a\"b"` {
		t.Errorf("got %d %q %v", code, body, head)
	}
	code, body, head = h.do("GET", "/runners/"+id+"/files/raw?path=/proc/x", "")
	if code != 200 || body != "unsized" {
		t.Errorf("got %d %q %v", code, body, head)
	}
	if _, body, _ := h.do("GET", "/runners/"+id+"/files/raw?path=cut", ""); !strings.HasPrefix(body, "cut: ") {
		t.Errorf("a download that was cut off came whole")
	}
	code, _, head = h.do("GET", "/runners/"+id+"/files/raw?path=missing", "")
	if code != 424 || head.Get("Content-Type") != "application/json" || head.Get("Content-Disposition") == "" {
		t.Errorf("got %d %v", code, head)
	}
}

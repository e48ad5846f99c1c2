package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"rockpool/tests/platform"
)

// names lists what a listing has, as type and name.
func names(list []platform.FileHeader) string {
	var all []string
	for _, f := range list {
		all = append(all, f.EntryType+" "+f.Name)
	}
	return strings.Join(all, "\n")
}

func TestFiles(t *testing.T) {
	s, ctx := start(t), bounded(t)
	provision(ctx, t, s, 10, 1, 128)
	r := claim(ctx, t, s, 10)
	files := "/runners/" + r + "/files"
	patch := func(body string, want int) string {
		t.Helper()
		status, got, err := s.Do(ctx, http.MethodPatch, files, body)
		if err != nil || status != want {
			t.Fatalf("%s: got %d %s %v, want %d", body, status, got, err, want)
		}
		return string(got)
	}
	list := func(path string, recursive bool) []platform.FileHeader {
		t.Helper()
		got, err := s.List(ctx, r, path, recursive)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}

	// Deletions come first, wherever they stand; what is copied is root's, of the epoch, and has the modes of the contract.
	if o := run(ctx, t, s, r, "touch old .kept && mkdir gone && touch gone/x"); o.Final.Code != 0 {
		t.Fatalf("%+v", o)
	}
	patch(`{"copy":[{"path":"dir/"},{"path":"dir/a.txt","content":"aGk="},{"path":"deep/er/b","content":""},{"path":"./x/../c"},{"path":"/tmp/abs","content":"YWJz"}],"delete":["./*","/nowhere"]}`, 204)
	const want = "- ./c\nd ./deep\nd ./dir\nd ./deep/er\n- ./deep/er/b\n- ./dir/a.txt"
	all := list("./", true)
	if got := names(all); got != want {
		t.Errorf("the listing is\n%s\nwant\n%s", got, want)
	}
	for _, f := range all {
		permissions := map[string]string{"./dir": "rwxrwxrwt", "./deep": "rwxr-xr-x", "./deep/er": "rwxr-xr-x"}[f.Name]
		if f.EntryType == "-" {
			permissions = "rwxr--r--"
		}
		if f.Permissions != permissions || f.Owner != "root" || f.Group != "root" || f.EntryType == "-" && f.ModificationTime != 0 {
			t.Errorf("%+v, want %s of root and of the epoch", f, permissions)
		}
	}
	if o := run(ctx, t, s, r, "ls -A | tr '\\n' ' '; stat -c '%a %Y %s' dir/a.txt dir; touch dir/mine && echo may || echo may not; touch deep/mine 2>/dev/null && echo may || echo may not"); !strings.HasPrefix(strings.ReplaceAll(o.Stdout, "\r\n", "\n"),
		".kept c deep dir 744 0 2\n1777 ") || !strings.HasSuffix(strings.ReplaceAll(o.Stdout, "\r\n", "\n"), "may\nmay not\n") {
		t.Errorf("the program sees %q", o.Stdout)
	}

	// A file is replaced, not written into: what is open, or linked, keeps its content.
	if o := run(ctx, t, s, r, "cp dir/a.txt mine 2>/dev/null; ln -f c dir/link 2>/dev/null; true"); o.Final.Code != 0 {
		t.Errorf("%+v", o)
	}
	patch(`{"copy":[{"path":"dir/a.txt","content":"bmV3"}]}`, 204)
	if data, err := s.Download(ctx, r, "dir/a.txt"); err != nil || string(data) != "new" {
		t.Errorf("got %q %v", data, err)
	}

	// What cannot be written is named, and the rest is there.
	if got := patch(`{"copy":[{"path":"/proc/1/environ","content":"eA=="},{"path":"after","content":"eA=="}]}`, 500); !strings.Contains(got, `"message":"file copy failed: stderr output '`) ||
		!strings.Contains(got, "Cannot open: ") || !strings.Contains(got, "/proc/1/environ") || !strings.HasSuffix(got, `' and stdout output ''","errorCode":"UNKNOWN"}`) {
		t.Errorf("got %s", got)
	}
	if data, err := s.Download(ctx, r, "after"); err != nil || string(data) != "x" {
		t.Errorf("got %q %v", data, err)
	}

	// Listings: one block per directory, hidden files left out, names as they are.
	patch(`{"delete":["./*","./.kept"]}`, 204)
	if got := list("./", true); len(got) != 0 {
		t.Errorf("an empty directory has %v", got)
	}
	patch(`{"copy":[{"path":"w/"}]}`, 204)
	if o := run(ctx, t, s, r, `cd w && mkdir d && touch d/z $'new\nline' 'end:' 'a -> b' .hidden && ln -s d/z link && ln -s /nowhere broken && mkdir .git && touch .git/x`); o.Final.Code != 0 {
		t.Fatalf("%+v", o)
	}
	const odd = "- a -> b\nl broken\nd d\n- end:\nl link\n- new\nline"
	if got := names(list("w", false)); got != odd {
		t.Errorf("the listing is\n%s\nwant\n%s", got, odd)
	}
	if got := names(list("w/", true)); !strings.HasPrefix(got, "- w/a -> b\nl w/broken\nd w/d\n") || !strings.HasSuffix(got, "\n- w/d/z") {
		t.Errorf("the listing is\n%s", got)
	}
	if got := names(list("w/d/z", true)); got != "- w/d/z" {
		t.Errorf("a file is listed as %q", got)
	}
	for _, f := range list("w", false) {
		if target := map[string]string{"link": "d/z", "broken": "/nowhere"}[f.Name]; f.LinkTarget != target || len(f.Permissions) != 9 {
			t.Errorf("%+v, want the target %q", f, target)
		}
	}

	// Downloads: links are followed, nothing else but files is read, and rights are those of the user who is asked for.
	run(ctx, t, s, r, "printf content > w/d/z")
	if o, err := s.Run(ctx, r, platform.Execution{Command: "echo secret > /root.txt; chmod 600 /root.txt", Privileged: true}); err != nil || o.Final.Code != 0 {
		t.Fatalf("%+v %v", o, err)
	}
	for _, c := range []struct {
		path, more string
		status     int
		body       string
	}{
		{"w/link", "", 200, "content"}, {"w/d", "", 424, ""}, {"/dev/null", "", 424, ""}, {"w/broken", "", 424, ""}, {"", "", 424, ""}, {"nothing", "", 424, ""}, {"w/a -> b", "", 200, ""}, {"w/new\nline", "", 200, ""},
		{"/root.txt", "", 424, ""}, {"/root.txt", "&privilegedExecution=false", 424, ""}, {"/root.txt", "&privilegedExecution=maybe", 424, ""}, {"/root.txt", "&privilegedExecution=true", 200, "secret\n"},
		{"/proc/1/environ", "", 424, ""},
	} {
		status, body, err := s.Do(ctx, http.MethodGet, files+"/raw?"+url.Values{"path": {c.path}}.Encode()+c.more, nil)
		if err != nil || status != c.status || c.status == 200 && string(body) != c.body {
			t.Errorf("%q%s: got %d %q %v", c.path, c.more, status, body, err)
		}
	}
	if status, body, err := s.Do(ctx, http.MethodGet, files+"/raw?path=/proc/self/status", nil); err != nil || status != 200 || !strings.Contains(string(body), "Name:") {
		t.Errorf("a file of unknown size: %d %.100q %v", status, body, err)
	}
	for _, path := range []string{"nothing", "w/d/z/x", "/no/such"} {
		if status, body, err := s.Do(ctx, http.MethodGet, files+"?path="+path, nil); err != nil || status != 424 {
			t.Errorf("listing %s: got %d %s %v", path, status, body, err)
		}
	}

	// A large file goes through whole.
	large := []byte(strings.Repeat("0123456789abcdef", 1<<18)) // 4 MiB
	if err := s.Copy(ctx, r, nil, platform.File{Path: "large", Content: large}); err != nil {
		t.Fatal(err)
	}
	if data, err := s.Download(ctx, r, "large"); err != nil || string(data) != string(large) {
		t.Errorf("%d bytes came back, %v", len(data), err)
	}
	// Many at once, and many in one request.
	var many []map[string]any
	for i := range 300 {
		many = append(many, map[string]any{"path": fmt.Sprintf("many/%03d", i), "content": []byte{byte(i)}})
	}
	body, _ := json.Marshal(map[string]any{"copy": many})
	patch(string(body), 204)
	if got := list("many", false); len(got) != 300 || got[299].Name != "299" {
		t.Errorf("%d entries came back", len(got))
	}
}

package nomad

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func TestAStreamIsLetThroughUpToItsRecord(t *testing.T) {
	const mark = "0123abcd"
	whole := "\x1e" + mark + ":"
	for _, c := range []struct {
		name, in, out, end string
		began              bool
	}{
		{"nothing", "", "", "", false},
		{"a silent command", whole + "begin;" + whole + "exit:0;", "", "exit:0", true},
		{"output", whole + "begin;a\r\nb" + whole + "exit:7;noise of a child", "a\r\nb", "exit:7", true},
		{"somebody else's complaint", "OCI runtime exec failed: bash not found", "", "", false},
		{"no record", whole + "begin;cut", "cut", "", true},
		{"half a mark at the end", whole + "begin;cut" + whole[:4], "cut" + whole[:4], "", true},
		{"marks that are none", whole + "begin;\x1e\x1e0123\x1e0123abcx" + whole + "exit:1;", "\x1e\x1e0123\x1e0123abcx", "exit:1", true},
		{"a failure", whole + "begin;" + whole + "fail:no user;", "", "fail:no user", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				var out bytes.Buffer
				p := newProof(mark, &out, true)
				for left := []byte(c.in); len(left) > 0; {
					n := rapid.IntRange(1, len(left)).Draw(t, "chunk")
					if _, err := p.Write(left[:n]); err != nil {
						t.Fatal(err)
					}
					left = left[n:]
				}
				if err := p.flush(); err != nil {
					t.Fatal(err)
				}
				end, began := p.state()
				if out.String() != c.out || end != c.end || began != c.began {
					t.Fatalf("got %q, %q, %t; want %q, %q, %t", out.String(), end, began, c.out, c.end, c.began)
				}
			})
		})
	}
}

// A program that reads its parents' command lines knows the mark, and can write any record as often as it likes. Its streams are read in goroutines whose panic would
// end the gateway.
func TestForgedRecordsEndNothingButTheirStream(t *testing.T) {
	const mark = "0123abcd"
	record := func(text string) string { return "\x1e" + mark + ":" + text + ";" }
	forged := rapid.SampledFrom([]string{record(""), record("begin"), record("exit:0"), record("exit:-1"), record("eof"), "output"})
	rapid.Check(t, func(t *rapid.T) {
		var out bytes.Buffer
		p := newProof(mark, &out, true)
		if _, err := p.Write([]byte(record("begin"))); err != nil {
			t.Fatal(err)
		}
		texts := rapid.SliceOfN(forged, 1, 8).Draw(t, "texts")
		wanted, over := "", false
		for _, text := range texts {
			if _, err := p.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			switch {
			case over, text == record("begin"):
			case text == "output":
				wanted += text
			default:
				over = true
			}
		}
		ended := false
		select {
		case <-p.over:
			ended = true
		default:
		}
		if end, _ := p.state(); ended != over || (end != "") != over || out.String() != wanted {
			t.Fatalf("after %q: over %t, record %q, output %q; want over %t, output %q", texts, ended, end, out.String(), over, wanted)
		}
	})
}

func TestListings(t *testing.T) {
	for _, c := range []struct {
		line string
		want string // type, permissions, owner, group, size, time, name, target, each in brackets
	}{
		{`-rwxr--r--  1 root root     3 1700000000 "a.txt"`, `[-][rwxr--r--][root][root][3][1700000000][a.txt][]`},
		{`drwxrwxrwt+ 2 user user  4096 0 "dir"`, `[d][rwxrwxrwt][user][user][4096][0][dir][]`},
		{`-rw-r--r--. 1 user domain users 0 -5 "a b"`, `[-][rw-r--r--][user][domain users][0][-5][a b][]`},
		{`lrwxrwxrwx 1 1000 1000 7 12 "a -> \"b\"" -> "c\nd:"`, "[l][rwxrwxrwx][1000][1000][7][12][a -> \"b\"][c\nd:]"},
		{`lrwxrwxrwx 1 root root 0 12 "cwd"`, `[l][rwxrwxrwx][root][root][0][12][cwd][]`},
		{`crw-rw-rw- 1 root root 1, 3 12 "null"`, `[c][rw-rw-rw-][root][root][0][12][null][]`},
		{`-rw-r--r-- 1 u g 0 12 "\303\274\\\a\377"`, "[-][rw-r--r--][u][g][0][12][ü\\\a\xff][]"},
		{`"./a\n\":":`, "header ./a\n\":"},
		{`total 12`, "none"}, {``, "none"}, {"-rw-r--r-- 1 \u00a0 0 12 \"owner\"", "none"}, {`-rw-r--r-- 1 u g 0 12 unquoted`, "none"}, {`?????????? ? ? ? ? ? "gone"`, "none"},
	} {
		e, header, ok := listLine(c.line)
		got := "none"
		if header {
			got = "header " + e.Name
		} else if ok {
			got = brackets(e.Type, e.Permissions, e.Owner, e.Group, e.Size, e.ModTime, e.Name, e.LinkTarget)
		}
		if got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.line, got, c.want)
		}
	}
}

func brackets(values ...any) string {
	var b bytes.Buffer
	for _, v := range values {
		fmt.Fprintf(&b, "[%v]", v)
	}
	return b.String()
}

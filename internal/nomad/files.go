package nomad

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/url"
	"strconv"

	"rockpool/internal/fault"
	"rockpool/internal/runner/execution"
	"rockpool/internal/runner/files"
)

func filesPath(at execution.Place) string {
	return "/v1/client/allocation/" + url.PathEscape(at.AllocID) + "/files"
}

// Apply deletes and unpacks. The archive is streamed.
func (c *Client) Apply(ctx context.Context, at execution.Place, deletes []string, archive io.Reader) error {
	if !c.Native() {
		return c.applyByTar(ctx, at, deletes, archive)
	}
	head, err := json.Marshal(struct{ Delete []string }{deletes})
	if err != nil {
		return err
	}
	body := io.MultiReader(bytes.NewReader(append(head, '\n')), archive)
	return c.rawJSON(ctx, "PUT", filesPath(at), task(), body, &answer{}, "write files")
}

// List streams a directory. An answer without its end line is an error.
func (c *Client) List(ctx context.Context, at execution.Place, path string, recursive, privileged bool) iter.Seq2[files.Entry, error] {
	if !c.Native() {
		return c.listByShell(ctx, at, path, recursive, privileged)
	}
	return func(yield func(files.Entry, error) bool) {
		params := task()
		params.Set("path", path)
		params.Set("recursive", strconv.FormatBool(recursive))
		params.Set("user", userOf(privileged))
		resp, err := c.raw(ctx, "GET", filesPath(at), params, nil, "list files")
		if err != nil {
			yield(files.Entry{}, err)
			return
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, maxAnswer)
		for {
			var line struct {
				End         bool   `json:"end"`
				Name        string `json:"name"`
				Type        string `json:"type"`
				LinkTarget  string `json:"link_target"`
				Size        int64  `json:"size"`
				ModTime     int64  `json:"mod_time"`
				Permissions string `json:"permissions"`
				Owner       string `json:"owner"`
				Group       string `json:"group"`
			}
			err := io.ErrUnexpectedEOF // there is a last line, which says that it is
			if lines.Scan() {
				err = json.Unmarshal(lines.Bytes(), &line)
			} else if lines.Err() != nil {
				err = lines.Err()
			}
			if err != nil {
				yield(files.Entry{}, fault.Wrap(fault.Unavailable, err, "the listing was cut off"))
				return
			}
			if line.End {
				return
			}
			if !yield(files.Entry{
				Name: line.Name, Type: line.Type, LinkTarget: line.LinkTarget, Size: line.Size, ModTime: line.ModTime,
				Permissions: line.Permissions, Owner: line.Owner, Group: line.Group,
			}, nil) {
				return
			}
		}
	}
}

// Open begins a download.
func (c *Client) Open(ctx context.Context, at execution.Place, path string, privileged bool) (io.ReadCloser, int64, error) {
	if !c.Native() {
		return c.openByShell(ctx, at, path, privileged)
	}
	params := task()
	params.Set("path", path)
	params.Set("user", userOf(privileged))
	resp, err := c.raw(ctx, "GET", filesPath(at)+"/raw", params, nil, "read a file")
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

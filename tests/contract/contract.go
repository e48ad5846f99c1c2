// Package contract checks what a gateway says against the documents that it serves: every HTTP answer against the OpenAPI document, every WebSocket
// message against the JSON Schema. Clients of the test suites carry it, so that no answer goes unchecked.
package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Paths of the documents on a gateway.
const (
	OpenAPIPath   = "/api/v1/rockpool/openapi.json"
	WebSocketPath = "/api/v1/rockpool/websocket.schema.json"
)

// Contract is both documents. It is safe for concurrent use.
type Contract struct {
	base       string // path that the document's paths begin behind
	operations []template
	compiler   *jsonschema.Compiler
	plain      messages           // without the subprotocol
	extended   messages           // and with it
	input      *jsonschema.Schema // from the client

	mu       sync.Mutex
	compiled map[string]*jsonschema.Schema
	seen     map[string]bool
}

// template is a path with its operations.
type template struct {
	path       string
	segments   []string
	parameters map[string]*jsonschema.Schema // of the path
	operations map[string]operation          // by method
}

type operation struct {
	id        string
	responses map[string]response
}

type response struct {
	pointer string // of the response in the document
	headers map[string]header
	content []string // media types; none = no body
	schema  map[string]bool
}

type header struct {
	required bool
	pointer  string // of its schema
}

const (
	openAPIURL   = "mem:///openapi.json"
	webSocketURL = "mem:///websocket.schema.json"
)

// methods are the keys of a path that are operations.
var methods = []string{"get", "put", "post", "delete", "options", "head", "patch", "trace"}

// Load reads the documents of the gateway at base, such as http://127.0.0.1:7200.
func Load(client *http.Client, base string) (*Contract, error) {
	read := func(path string) ([]byte, error) {
		resp, err := client.Get(strings.TrimSuffix(base, "/") + path)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: status %d", path, resp.StatusCode)
		}
		return data, err
	}
	openAPI, err := read(OpenAPIPath)
	if err != nil {
		return nil, err
	}
	webSocket, err := read(WebSocketPath)
	if err != nil {
		return nil, err
	}
	return New(openAPI, webSocket)
}

// New reads the documents. In the OpenAPI document every object that lists its properties is closed first: clients must take keys that they do not know, but a
// gateway must not send any that its document does not have.
func New(openAPI, webSocket []byte) (*Contract, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(openAPI))
	if err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	schemas, err := jsonschema.UnmarshalJSON(bytes.NewReader(webSocket))
	if err != nil {
		return nil, fmt.Errorf("the schema of messages: %w", err)
	}
	root, ok := doc.(map[string]any)
	if !ok || root["openapi"] != "3.1.0" {
		return nil, errors.New("this is no OpenAPI 3.1.0 document")
	}
	closeObjects(root)
	c := &Contract{compiler: jsonschema.NewCompiler(), compiled: map[string]*jsonschema.Schema{}, seen: map[string]bool{}}
	c.compiler.DefaultDraft(jsonschema.Draft2020)
	if err := errors.Join(c.compiler.AddResource(openAPIURL, doc), c.compiler.AddResource(webSocketURL, schemas)); err != nil {
		return nil, err
	}
	if c.input, err = c.compiler.Compile(webSocketURL + "#/$defs/clientMessage"); err != nil {
		return nil, err
	}
	for name, into := range map[string]*messages{"plainServerMessage": &c.plain, "serverMessage": &c.extended} {
		if *into, err = c.messages(schemas, name); err != nil {
			return nil, err
		}
	}
	return c, c.read(root)
}

// messages are the schemas of a union by the type that each message names: trying one after another is slow where there are many messages.
type messages map[string]*jsonschema.Schema

func (c *Contract) messages(schemas any, union string) (messages, error) {
	all := messages{}
	defs := object(schemas, "$defs")
	refs, _ := object(defs, union)["oneOf"].([]any)
	for _, r := range refs {
		ref, _ := r.(map[string]any)["$ref"].(string)
		schema, err := c.compiler.Compile(webSocketURL + ref)
		if err != nil {
			return nil, err
		}
		kind := object(object(object(defs, strings.TrimPrefix(ref, "#/$defs/")), "properties"), "type")
		kinds, _ := kind["enum"].([]any)
		if one, ok := kind["const"]; ok {
			kinds = append(kinds, one)
		}
		for _, k := range kinds {
			name, _ := k.(string)
			if all[name] != nil {
				return nil, fmt.Errorf("two messages of %s are of type %q", union, name)
			}
			all[name] = schema
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no messages", union)
	}
	return all, nil
}

func closeObjects(v any) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			closeObjects(x)
		}
	case map[string]any:
		_, properties := v["properties"].(map[string]any)
		_, said := v["additionalProperties"]
		if _, kind := v["type"]; properties && kind && !said {
			v["additionalProperties"] = false
		}
		for _, x := range v {
			closeObjects(x)
		}
	}
}

func object(v any, key string) map[string]any {
	m, _ := v.(map[string]any)
	o, _ := m[key].(map[string]any)
	return o
}

// resolve follows a reference within the document.
func resolve(root map[string]any, v any, pointer string) (map[string]any, string, error) {
	m, _ := v.(map[string]any)
	for {
		ref, ok := m["$ref"].(string)
		if !ok {
			if m == nil {
				return nil, pointer, fmt.Errorf("%s is no object", pointer)
			}
			return m, pointer, nil
		}
		pointer = strings.TrimPrefix(ref, "#")
		var at any = root
		for part := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
			at = object(at, strings.NewReplacer("~1", "/", "~0", "~").Replace(part))
		}
		m, _ = at.(map[string]any)
	}
}

func escape(key string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(key) }

func (c *Contract) read(root map[string]any) error {
	servers, _ := root["servers"].([]any)
	if len(servers) != 1 {
		return errors.New("the document has to have one server")
	}
	c.base, _ = servers[0].(map[string]any)["url"].(string)
	for path, v := range object(root, "paths") {
		t := template{path: path, segments: strings.Split(path, "/"), parameters: map[string]*jsonschema.Schema{}, operations: map[string]operation{}}
		at := "/paths/" + escape(path)
		parameters, _ := v.(map[string]any)["parameters"].([]any)
		for i, p := range parameters {
			p := p.(map[string]any)
			schema, err := c.schema(fmt.Sprintf("%s/parameters/%d/schema", at, i))
			if err != nil {
				return err
			}
			t.parameters[p["name"].(string)] = schema
		}
		for _, method := range methods {
			o := object(v, method)
			if o == nil {
				continue
			}
			op := operation{responses: map[string]response{}}
			op.id, _ = o["operationId"].(string)
			for status, r := range object(o, "responses") {
				r, pointer, err := resolve(root, r, at+"/"+method+"/responses/"+status)
				if err != nil {
					return err
				}
				if op.responses[status], err = readResponse(root, r, pointer); err != nil {
					return err
				}
			}
			t.operations[strings.ToUpper(method)] = op
		}
		c.operations = append(c.operations, t)
	}
	return nil
}

func readResponse(root, r map[string]any, pointer string) (response, error) {
	out := response{pointer: pointer, headers: map[string]header{}, schema: map[string]bool{}}
	for name, h := range object(r, "headers") {
		h, at, err := resolve(root, h, pointer+"/headers/"+escape(name))
		if err != nil {
			return out, err
		}
		required, _ := h["required"].(bool)
		out.headers[http.CanonicalHeaderKey(name)] = header{required, at + "/schema"}
	}
	for media, m := range object(r, "content") {
		out.content = append(out.content, media)
		out.schema[media] = object(m, "schema") != nil
	}
	return out, nil
}

// schema compiles what a pointer into the OpenAPI document leads to.
func (c *Contract) schema(pointer string) (*jsonschema.Schema, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.compiled[pointer]; s != nil {
		return s, nil
	}
	s, err := c.compiler.Compile(openAPIURL + "#" + strings.NewReplacer("{", "%7B", "}", "%7D").Replace(pointer))
	c.compiled[pointer] = s
	return s, err
}

// Compile compiles every schema of the document, used or not.
func (c *Contract) Compile() error {
	var errs []error
	for _, t := range c.operations {
		for _, op := range t.operations {
			for _, r := range op.responses {
				for media, has := range r.schema {
					if has {
						_, err := c.schema(r.pointer + "/content/" + escape(media) + "/schema")
						errs = append(errs, err)
					}
				}
				for _, h := range r.headers {
					_, err := c.schema(h.pointer)
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// match finds the path's template. One that is spelled out goes before one with a parameter.
func (c *Contract) match(path string) *template {
	rest, ok := strings.CutPrefix(path, c.base)
	if !ok {
		return nil
	}
	var found *template
	parts := strings.Split(rest, "/")
	for i, t := range c.operations {
		if len(parts) != len(t.segments) {
			continue
		}
		fits := true
		for j, segment := range t.segments {
			name, variable := strings.CutPrefix(segment, "{")
			if !variable {
				fits = fits && segment == parts[j]
				continue
			}
			value, err := url.PathUnescape(parts[j])
			schema := t.parameters[strings.TrimSuffix(name, "}")]
			fits = fits && err == nil && schema != nil && schema.Validate(value) == nil
		}
		if fits && (found == nil || strings.Count(t.path, "{") < strings.Count(found.path, "{")) {
			found = &c.operations[i]
		}
	}
	return found
}

// everywhere are headers that belong to HTTP and not to this API.
var everywhere = []string{"Date", "Connection", "Content-Type", "Content-Length", "Transfer-Encoding", "Upgrade", "Sec-Websocket-Accept"}

// Response checks one answer. A body of nil was not read: then only the rest is checked.
func (c *Contract) Response(method string, u *url.URL, status int, head http.Header, body []byte) error {
	err := c.response(method, u, status, head, body)
	if err != nil {
		return fmt.Errorf("%s %s: the answer %d %q %.300q is not what the OpenAPI document says: %w", method, u.Path, status, head.Get("Content-Type"), body, err)
	}
	return nil
}

func (c *Contract) response(method string, u *url.URL, status int, head http.Header, body []byte) error {
	t := c.match(u.EscapedPath())
	if t == nil {
		return blank(status, http.StatusNotFound, head, body)
	}
	op, ok := t.operations[method]
	if !ok {
		return blank(status, http.StatusMethodNotAllowed, head, body)
	}
	r, ok := op.responses[fmt.Sprint(status)]
	if !ok {
		return fmt.Errorf("operation %s has no answer %d", op.id, status)
	}
	c.mu.Lock()
	c.seen[fmt.Sprintf("%s %d", op.id, status)] = true
	c.mu.Unlock()
	if err := c.header(r, head); err != nil {
		return err
	}
	if status == http.StatusSwitchingProtocols || body == nil {
		return nil
	}
	if len(r.content) == 0 {
		if len(body) > 0 || head.Get("Content-Type") != "" {
			return errors.New("there should be no body")
		}
		return nil
	}
	if slices.Contains(r.content, "*/*") {
		return nil
	}
	media := head.Get("Content-Type")
	if bare, _, err := mime.ParseMediaType(media); err != nil || bare != media || !slices.Contains(r.content, media) {
		return fmt.Errorf("the content type should be one of %q", r.content)
	}
	if _, pretty := u.Query()["pretty"]; !pretty && json.Valid(body) {
		var compact bytes.Buffer
		if err := json.Compact(&compact, body); err == nil && media == "application/json" && u.Path != OpenAPIPath && compact.Len() != len(body) {
			return errors.New("the JSON is not compact")
		}
	}
	schema, err := c.schema(r.pointer + "/content/" + escape(media) + "/schema")
	if err != nil {
		return err
	}
	return validate(schema, body)
}

func (c *Contract) header(r response, head http.Header) error {
	for name, values := range head {
		h, ok := r.headers[name]
		if !ok {
			if !slices.Contains(everywhere, name) {
				return fmt.Errorf("header %s is not in the document", name)
			}
			continue
		}
		schema, err := c.schema(h.pointer)
		if err != nil {
			return err
		}
		for _, v := range values {
			if err := schema.Validate(v); err != nil {
				return fmt.Errorf("header %s: %w", name, err)
			}
		}
	}
	for name, h := range r.headers {
		if h.required && head.Get(name) == "" {
			return fmt.Errorf("header %s is missing", name)
		}
	}
	return nil
}

// blank is an answer to what is not in the document.
func blank(status, want int, head http.Header, body []byte) error {
	if status != want || len(body) > 0 || head.Get("Content-Type") != "" {
		return fmt.Errorf("there is no such operation: an empty %d is needed", want)
	}
	return nil
}

func validate(schema *jsonschema.Schema, data []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("this is not one JSON value: %w", err)
	}
	return schema.Validate(v)
}

// Message checks a text frame of the gateway and returns its type. Extended says that the subprotocol was agreed on.
func (c *Contract) Message(data []byte, extended bool) (string, error) {
	all := c.plain
	if extended {
		all = c.extended
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return "", fmt.Errorf("the message %.300q is no JSON: %w", data, err)
	}
	m, _ := v.(map[string]any)
	kind, _ := m["type"].(string)
	if all[kind] == nil {
		return "", fmt.Errorf("the message %.300q has a type that the schema does not have", data)
	}
	if err := all[kind].Validate(v); err != nil {
		return "", fmt.Errorf("the message %.300q is not what the schema says: %w", data, err)
	}
	return kind, nil
}

// Input checks a control message of the client.
func (c *Contract) Input(data []byte) error { return validate(c.input, data) }

// Seen lists "operation status" for all answers so far, sorted.
func (c *Contract) Seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for s := range c.seen {
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}

// Documented lists "operation status" for all answers of the document, sorted.
func (c *Contract) Documented() []string {
	var all []string
	for _, t := range c.operations {
		for _, op := range t.operations {
			for status := range op.responses {
				all = append(all, op.id+" "+status)
			}
		}
	}
	slices.Sort(all)
	return all
}

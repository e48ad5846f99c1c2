package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"gopkg.in/yaml.v3"

	"rockpool/internal/api/dto"
)

// Target is the gateway that commands speak to.
type Target struct {
	URL   string // with or without /api/v1
	Token string
	JSON  bool // print the gateway's answer instead of a table
}

// manageTime bounds a command. Placing an environment may take its time.
const manageTime = 2 * time.Minute

// with calls f with a client of the gateway.
func (t Target) with(ctx context.Context, f func(context.Context, *client) error) error {
	if u, err := url.Parse(t.URL); err != nil || u.Host == "" {
		return fmt.Errorf("--url: %q is no address of a gateway, which begins with http:// or https://", t.URL)
	}
	c := &client{o: Options{Token: t.Token}, base: strings.TrimSuffix(strings.TrimSuffix(t.URL, "/"), "/api/v1") + "/api/v1",
		http: &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}}
	defer c.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, manageTime)
	defer cancel()
	err := f(ctx, c)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("no gateway answers at %s: start one with gateway serve, or say with --url where it is", t.URL)
	}
	return err
}

// advice is what to do about a status, besides what the gateway says.
var advice = map[int]string{
	http.StatusUnauthorized: "the token is wrong or missing: give it with --token or ROCKPOOL_TOKEN",
	http.StatusGone:         "there is no such runner of yours: gateway runners list shows them",
}

// request sends one and returns the answer's status and body. What is not expected is an error that says what to do.
func (c *client) request(ctx context.Context, method, path string, in any, expected ...int) (int, []byte, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return 0, nil, err
		}
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Poseidon-Token", c.o.Token)
	resp, err := c.http.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: the answer was cut off: %w", method, path, err)
	}
	if slices.Contains(expected, resp.StatusCode) {
		return resp.StatusCode, data, nil
	}
	return resp.StatusCode, data, fmt.Errorf("%s %s: %s", method, path, told(resp, data))
}

// told is what an answer says of what went wrong, and what to do about it.
func told(resp *http.Response, body []byte) string {
	var e dto.ClientError
	_ = json.Unmarshal(body, &e) // some answers have no body
	return cmp.Or(e.Message, advice[resp.StatusCode], "the gateway answered "+resp.Status)
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 20

// list asks for something and prints it: as it came, or as a table.
func (t Target) list(ctx context.Context, out io.Writer, path string, table func([]byte, io.Writer) error) error {
	return t.with(ctx, func(ctx context.Context, c *client) error {
		_, data, err := c.request(ctx, "GET", path, nil, http.StatusOK)
		if err != nil {
			return err
		}
		if t.JSON {
			_, err = fmt.Fprintf(out, "%s\n", bytes.TrimSpace(data))
			return err
		}
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		if err := table(data, w); err != nil {
			return fmt.Errorf("the answer to %s: %w", path, err)
		}
		return w.Flush()
	})
}

// ListEnvironments prints all environments.
func ListEnvironments(ctx context.Context, t Target, out io.Writer) error {
	return t.list(ctx, out, "/execution-environments", func(data []byte, w io.Writer) error {
		var list dto.Environments
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		fmt.Fprintln(w, "ID\tIMAGE\tPOOL\tCPU MHZ\tMEMORY MB\tNETWORK\tPORTS\tRUNTIME\tDEVICES")
		for _, e := range list.ExecutionEnvironments {
			fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n",
				e.ID, printable(e.Image), e.PrewarmingPoolSize, e.CPULimit, e.MemoryLimit, network(e), ports(e), dash(e.Runtime), devices(e))
		}
		return nil
	})
}

func network(e dto.Environment) string {
	switch {
	case !e.NetworkAccess:
		return "off"
	case len(e.NetworkEgress) > 0:
		return printable(strings.Join(e.NetworkEgress, ","))
	}
	return "public"
}

func ports(e dto.Environment) string {
	var all []string
	for _, p := range e.ExposedPorts {
		all = append(all, strconv.Itoa(int(p)))
	}
	return dash(strings.Join(all, ","))
}

func devices(e dto.Environment) string {
	var all []string
	for _, d := range e.Devices {
		count := uint(1)
		if d.Count != nil {
			count = *d.Count
		}
		all = append(all, fmt.Sprintf("%d %s", count, d.Name))
	}
	return dash(strings.Join(all, ", "))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

// printable keeps what others have named from moving a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

// Definition is an environment as a file or flags define it: fields of the gateway's API by name. Those that are not given stay as they are, or get
// their default where the environment is new.
type Definition struct {
	ID     int
	Fields map[string]any
}

// fields are the names that the gateway knows.
var fields = func() map[string]bool {
	names := map[string]bool{}
	for f := range reflect.TypeFor[dto.EnvironmentRequest]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names[name] = true
	}
	return names
}()

// ReadDefinitions reads a file of environments, YAML or JSON: one, several documents, a list, or a list below executionEnvironments as the gateway
// itself lists them.
func ReadDefinitions(data []byte) ([]Definition, error) {
	var all []Definition
	d := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var node yaml.Node
		err := d.Decode(&node)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		content := &node
		if node.Kind == yaml.DocumentNode {
			content = node.Content[0]
		}
		if content.Kind == yaml.MappingNode && len(content.Content) == 2 && content.Content[0].Value == "executionEnvironments" {
			content = content.Content[1]
		}
		items := []*yaml.Node{content}
		if content.Kind == yaml.SequenceNode {
			items = content.Content
		}
		for _, item := range items {
			one, err := definition(item)
			if err != nil {
				return nil, err
			}
			all = append(all, one)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("there is no environment in it")
	}
	return all, nil
}

// definition decodes one, strictly: the gateway ignores a field that is misspelled.
func definition(node *yaml.Node) (d Definition, err error) {
	refuse := func(format string, args ...any) (Definition, error) {
		return Definition{}, fmt.Errorf("the environment at line %d: %w", node.Line, fmt.Errorf(format, args...))
	}
	if err := node.Decode(&d.Fields); err != nil {
		return refuse("%w", err)
	}
	id, ok := d.Fields["id"].(int)
	if !ok || id < 0 {
		return refuse("it needs an id, a whole number of 0 or more")
	}
	d.ID = id
	delete(d.Fields, "id")
	for name := range d.Fields {
		if !fields[name] {
			return refuse("there is no field %q, only %s", name, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		}
	}
	if v, ok := d.Fields["devices"]; ok {
		if d.Fields["devices"], err = readDevices(v); err != nil {
			return refuse("%w", err)
		}
	}
	return d, nil
}

// defaults of a new environment.
var defaults = map[string]any{"prewarmingPoolSize": 0, "cpuLimit": 100, "memoryLimit": 256, "networkAccess": false, "exposedPorts": []int{}}

// over is the definition laid over what there is, nil where there is nothing.
func (d Definition) over(old map[string]any) (map[string]any, error) {
	now := maps.Clone(old)
	if old == nil {
		now = maps.Clone(defaults)
		if d.Fields["image"] == nil {
			return nil, fmt.Errorf("environment %d is new and needs an image", d.ID)
		}
	}
	maps.Copy(now, d.Fields)
	return now, nil
}

// changes says what differs, a line each.
func changes(old, now map[string]any) (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(now)) {
		was, is := shown(old[name]), shown(now[name])
		switch {
		case name == "id", was == is:
		case old == nil:
			lines = append(lines, fmt.Sprintf("  + %s: %s", name, is))
		default:
			lines = append(lines, fmt.Sprintf("  ~ %s: %s -> %s", name, was, is))
		}
	}
	return lines
}

// shown is a value as JSON, in which a number looks the same wherever it came from, and nothing like an empty list.
func shown(v any) string {
	var data bytes.Buffer
	e := json.NewEncoder(&data)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	switch text := strings.TrimSuffix(data.String(), "\n"); {
	case err != nil:
		return printable(fmt.Sprint(v))
	case text == "[]", text == `""`, text == "null":
		return "none"
	default:
		return printable(text)
	}
}

// ApplyEnvironments brings environments in line with their definitions and says what changes. With dry nothing is changed.
func ApplyEnvironments(ctx context.Context, t Target, definitions []Definition, dry bool, out io.Writer) error {
	return t.with(ctx, func(ctx context.Context, c *client) error {
		var problems []error
		for _, d := range definitions {
			if err := c.apply(ctx, d, dry, out); err != nil {
				problems = append(problems, err)
			}
		}
		return errors.Join(problems...)
	})
}

func (c *client) apply(ctx context.Context, d Definition, dry bool, out io.Writer) error {
	path := "/execution-environments/" + strconv.Itoa(d.ID)
	status, data, err := c.request(ctx, "GET", path, nil, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return err
	}
	var old map[string]any
	if status == http.StatusOK {
		if err := json.Unmarshal(data, &old); err != nil {
			return fmt.Errorf("the answer to %s: %w", path, err)
		}
	}
	now, err := d.over(old)
	if err != nil {
		return err
	}
	lines := changes(old, now)
	verb := "changes"
	switch {
	case old == nil:
		verb = "is new"
	case len(lines) == 0:
		verb = "is unchanged; a tag that has moved is followed"
	}
	if _, err := fmt.Fprintf(out, "environment %d %s\n", d.ID, verb); err != nil {
		return err
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(out, l); err != nil {
			return err
		}
	}
	if dry {
		return nil
	}
	_, _, err = c.request(ctx, "PUT", path, now, http.StatusCreated, http.StatusNoContent)
	return err
}

// DeleteEnvironments deletes environments with all their runners.
func DeleteEnvironments(ctx context.Context, t Target, ids []int, out io.Writer) error {
	return t.with(ctx, func(ctx context.Context, c *client) error {
		var problems []error
		for _, id := range ids {
			status, _, err := c.request(ctx, "DELETE", "/execution-environments/"+strconv.Itoa(id), nil, http.StatusNoContent)
			switch {
			case status == http.StatusNotFound:
				problems = append(problems, fmt.Errorf("environment %d is unknown: gateway env list shows those that there are", id))
			case err != nil:
				problems = append(problems, err)
			default:
				fmt.Fprintf(out, "environment %d is deleted\n", id)
			}
		}
		return errors.Join(problems...)
	})
}

// pool is what the gateway tells of a pool. Fields that it does not tell are zero.
type pool struct {
	ID       int `json:"id"`
	Wanted   int `json:"wanted"`
	Idle     int `json:"idle"`
	Starting int `json:"starting"`
	Used     int `json:"used"`
	Failed   int `json:"failed"`
	Claims   *struct {
		HitRate float64 `json:"hitRate"`
	} `json:"claims"`
	Queue struct {
		Waiting int `json:"waiting"`
	} `json:"queue"`
	Failures struct {
		Reason string `json:"reason"`
	} `json:"failures"`
	Shortage *struct {
		Possible int    `json:"possible"`
		Reason   string `json:"reason"`
	} `json:"shortage"`
	Runners []struct {
		ID         string  `json:"id"`
		State      string  `json:"state"`
		AgeSeconds float64 `json:"ageSeconds"`
		Reason     string  `json:"reason"`
	} `json:"runners"`
}

// trouble is why there are fewer runners than are wanted; "" = nothing is known.
func (p pool) trouble() string {
	if p.Failures.Reason == "" && p.Shortage != nil {
		return fmt.Sprintf("there is room for %d: %s", p.Shortage.Possible, p.Shortage.Reason)
	}
	return p.Failures.Reason
}

// ShowPools prints all pools, or one with its runners.
func ShowPools(ctx context.Context, t Target, id *int, out io.Writer) error {
	path := "/rockpool/pools"
	if id != nil {
		path += "/" + strconv.Itoa(*id)
	}
	return t.list(ctx, out, path, func(data []byte, w io.Writer) error {
		pools, err := readPools(data)
		if err != nil {
			return err
		}
		fmt.Fprintln(w, "ENVIRONMENT\tWANTED\tIDLE\tSTARTING\tUSED\tFAILED\tWAITING\tHIT RATE\tTROUBLE")
		for _, p := range pools {
			hits := "-"
			if p.Claims != nil {
				hits = fmt.Sprintf("%.1f%%", 100*p.Claims.HitRate)
			}
			fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", p.ID, p.Wanted, p.Idle, p.Starting, p.Used, p.Failed, p.Queue.Waiting, hits, dash(p.trouble()))
		}
		if id == nil {
			return nil
		}
		fmt.Fprintln(w, "\nRUNNER\tSTATE\tAGE\tREASON")
		for _, p := range pools {
			for _, r := range p.Runners {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", printable(r.ID), printable(r.State), duration(int(r.AgeSeconds)), dash(r.Reason))
			}
		}
		return nil
	})
}

// readPools takes the list of all pools, or one.
func readPools(data []byte) ([]pool, error) {
	var told struct {
		Pools *[]pool `json:"pools"`
		pool
	}
	if err := json.Unmarshal(data, &told); err != nil {
		return nil, err
	}
	if told.Pools != nil {
		return *told.Pools, nil
	}
	return []pool{told.pool}, nil
}

func duration(seconds int) string { return (time.Duration(seconds) * time.Second).String() }

// ListRunners prints the claimed runners that the token may use.
func ListRunners(ctx context.Context, t Target, out io.Writer) error {
	return t.list(ctx, out, "/rockpool/runners", func(data []byte, w io.Writer) error {
		var list dto.ClaimedRunners
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		fmt.Fprintln(w, "RUNNER\tENVIRONMENT\tSTATE\tAGE\tEXPIRES IN\tEXECUTIONS\tOWNER")
		for _, r := range list.Runners {
			left := "never"
			if r.TimeLeft >= 0 {
				left = duration(r.TimeLeft)
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%d\t%s\n", printable(r.ID), r.Environment, printable(r.State), duration(r.Age), left, r.Executions, dash(r.Owner))
		}
		return nil
	})
}

// ClaimRunner claims a runner and prints its id alone, so that a shell can use it.
func ClaimRunner(ctx context.Context, t Target, environment, timeout int, out io.Writer) error {
	return t.with(ctx, func(ctx context.Context, c *client) error {
		in := dto.RunnerRequest{ExecutionEnvironmentID: environment, InactivityTimeout: timeout}
		_, data, err := c.request(ctx, "POST", "/runners", in, http.StatusOK)
		if err != nil {
			return err
		}
		if t.JSON {
			_, err = fmt.Fprintf(out, "%s\n", bytes.TrimSpace(data))
			return err
		}
		var r dto.Runner
		if err := json.Unmarshal(data, &r); err != nil {
			return fmt.Errorf("the answer to the claim: %w", err)
		}
		_, err = fmt.Fprintln(out, r.RunnerID)
		return err
	})
}

// ReleaseRunners gives runners back.
func ReleaseRunners(ctx context.Context, t Target, ids []string, out io.Writer) error {
	return t.with(ctx, func(ctx context.Context, c *client) error {
		var problems []error
		for _, id := range ids {
			if _, _, err := c.request(ctx, "DELETE", "/runners/"+url.PathEscape(id), nil, http.StatusNoContent); err != nil {
				problems = append(problems, err)
				continue
			}
			fmt.Fprintf(out, "%s is given back\n", printable(id))
		}
		return errors.Join(problems...)
	})
}

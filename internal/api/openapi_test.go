package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"rockpool/internal/api/dto"
	"rockpool/internal/api/openapi"
	"rockpool/internal/auth"
	"rockpool/internal/endpoint"
)

// node is a part of the OpenAPI document as far as these tests look at it.
type node struct {
	Ref        string          `json:"$ref"`
	Type       any             `json:"type"`
	Name, In   string          // of a parameter
	Required   any             `json:"required"`
	Properties map[string]node `json:"properties"`
	Enum       []any           `json:"enum"`
	Schema     *node           `json:"schema"`
	Content    map[string]node `json:"content"`
}

// operation is one verb of a path.
type operation struct {
	OperationID string          `json:"operationId"`
	Security    *[]any          `json:"security"`
	Parameters  []node          `json:"parameters"`
	RequestBody *node           `json:"requestBody"`
	Responses   map[string]node `json:"responses"`
	Extension   bool            `json:"x-rockpool-extension"`
}

// description is the whole document.
type description struct {
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Schemas map[string]node `json:"schemas"`
	} `json:"components"`
}

func published(t *testing.T) description {
	t.Helper()
	var d description
	if err := json.Unmarshal(openapi.Document, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func (n node) schemaName() string { return strings.TrimPrefix(n.Ref, "#/components/schemas/") }

// documented are the types whose fields are held to a schema. What is not in it is not documented.
var documented = map[string]reflect.Type{
	"Environment": reflect.TypeFor[dto.Environment](), "EnvironmentRequest": reflect.TypeFor[dto.EnvironmentRequest](),
	"Device": reflect.TypeFor[dto.Device](), "DeviceConstraint": reflect.TypeFor[dto.DeviceConstraint](),
	"Environments": reflect.TypeFor[dto.Environments](), "Statistics": reflect.TypeFor[dto.Statistics](),
	"RunnerRequest": reflect.TypeFor[dto.RunnerRequest](), "Runner": reflect.TypeFor[dto.Runner](), "MappedPort": reflect.TypeFor[dto.MappedPort](),
	"ExecutionRequest": reflect.TypeFor[dto.ExecutionRequest](), "Reattach": reflect.TypeFor[dto.Reattach](), "Execution": reflect.TypeFor[dto.Execution](), "FileHeader": reflect.TypeFor[dto.FileHeader](),
	"ClientError": reflect.TypeFor[dto.ClientError](), "ServerError": reflect.TypeFor[dto.ServerError](), "Queue": reflect.TypeFor[dto.Queue](),
	"Pools": reflect.TypeFor[dto.Pools](), "Pool": reflect.TypeFor[dto.Pool](), "PoolAutomatic": reflect.TypeFor[dto.PoolAutomatic](),
	"PoolFailures": reflect.TypeFor[dto.PoolFailures](), "PoolShortage": reflect.TypeFor[dto.PoolShortage](), "PoolClaims": reflect.TypeFor[dto.PoolClaims](), "PoolQueue": reflect.TypeFor[dto.PoolQueue](),
	"PoolLimits": reflect.TypeFor[dto.PoolLimits](), "PoolRunner": reflect.TypeFor[dto.PoolRunner](),
	"ClaimedRunners": reflect.TypeFor[dto.ClaimedRunners](), "ClaimedRunner": reflect.TypeFor[dto.ClaimedRunner](),
	"Timelines": reflect.TypeFor[dto.Timelines](), "Timeline": reflect.TypeFor[dto.Timeline](), "Step": reflect.TypeFor[dto.Step](),
}

// written are schemas of bodies that are streamed, or that narrow another one; the checks of all answers hold them to the code.
var written = []string{"AllStatistics", "ErrorCode", "FileCopy", "FileUpdate", "Files", "Unreadable"}

func TestTheDocumentHasTheFieldsOfTheBodies(t *testing.T) {
	schemas := published(t).Components.Schemas
	for name := range schemas {
		if _, ok := documented[name]; !ok && !slices.Contains(written, name) {
			t.Errorf("schema %s belongs to no type", name)
		}
	}
	for name, typ := range documented {
		schema, ok := schemas[name]
		if !ok {
			t.Errorf("type %s has no schema", typ)
			continue
		}
		fields := map[string]bool{}
		for f := range typ.Fields() {
			key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields[key] = true
			property, ok := schema.Properties[key]
			if !ok {
				t.Errorf("%s.%s is not in its schema", name, key)
				continue
			}
			if want := shape(f.Type); !property.allows(want) {
				t.Errorf("%s.%s is %v in its schema, and %s in the code", name, key, property.Type, want)
			}
			required, _ := schema.Required.([]any)
			if len(required) > 0 && slices.Contains(required, any(key)) == (options == "omitempty") {
				t.Errorf("%s.%s: the schema and the code differ in whether it is always there", name, key)
			}
		}
		for key := range schema.Properties {
			if !fields[key] {
				t.Errorf("%s.%s is not in the code", name, key)
			}
		}
	}
	codes := []any{string(dto.CodeUnreachable), string(dto.CodeOverload), string(dto.CodeInternal), string(dto.CodeDepleting), string(dto.CodeUnknown)}
	if got := schemas["ErrorCode"].Enum; !slices.Equal(got, codes) {
		t.Errorf("the codes are %q, in the code %q", got, codes)
	}
}

// shape is a Go type in the words of JSON Schema.
func shape(t reflect.Type) string {
	if t == reflect.TypeFor[time.Time]() {
		return "string"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return shape(t.Elem())
	case reflect.Float64:
		return "number"
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "string"
	case reflect.Slice:
		return "array"
	case reflect.Map, reflect.Struct:
		return "object"
	}
	return "integer"
}

func (n node) allows(kind string) bool {
	if n.Ref != "" {
		return (n.schemaName() == "ErrorCode") == (kind == "string")
	}
	if all, ok := n.Type.([]any); ok {
		return slices.Contains(all, any(kind))
	}
	return n.Type == kind
}

func TestTheDocumentHasTheRowsOfTheTable(t *testing.T) {
	d := published(t)
	rows := map[string]bool{}
	for _, row := range (&API{}).table() {
		path := strings.NewReplacer("{id:[0-9]+}", "{id}").Replace(strings.TrimPrefix(row.Path, prefix))
		what := row.Method + " " + path
		rows[what] = true
		raw, ok := d.Paths[path][strings.ToLower(row.Method)]
		if !ok {
			t.Errorf("%s is not in the document", what)
			continue
		}
		var op operation
		if err := json.Unmarshal(raw, &op); err != nil {
			t.Fatal(err)
		}
		var shared []node
		if err := json.Unmarshal(orEmpty(d.Paths[path]["parameters"]), &shared); err != nil {
			t.Fatal(err)
		}
		if public := op.Security != nil && len(*op.Security) == 0; public != (row.Policy.Scope == auth.Public) {
			t.Errorf("%s: the document and the table differ in whether it needs a token", what)
		}
		if _, unauthorized := op.Responses["401"]; unauthorized != (row.Policy.Scope != auth.Public) {
			t.Errorf("%s: 401 is documented: %v", what, unauthorized)
		}
		if op.OperationID == "" || op.Extension != strings.HasPrefix(row.Path, own) {
			t.Errorf("%s: %+v", what, op)
		}
		parameters, body := sources(row.Request)
		var got []string
		for _, p := range append(shared, op.Parameters...) {
			got = append(got, p.In+" "+p.Name)
		}
		slices.Sort(got)
		for _, p := range pathVariables(path) { // a row need not take in what the pipeline looks up
			if !slices.Contains(parameters, "path "+p) {
				parameters = append(parameters, "path "+p)
			}
		}
		slices.Sort(parameters)
		if !slices.Equal(got, parameters) {
			t.Errorf("%s: parameters %q, the row takes %q", what, got, parameters)
		}
		if (body != nil) != (op.RequestBody != nil) {
			t.Errorf("%s: whether there is a body differs", what)
		} else if body != nil {
			name := op.RequestBody.Content["application/json"].Schema.schemaName()
			if body.Kind() == reflect.Interface && name != "FileUpdate" || body.Kind() != reflect.Interface && documented[name] != body {
				t.Errorf("%s: the body is a %s, the row takes a %s", what, name, body)
			}
		}
		if row.Response != nil && row.Response.Kind() == reflect.Struct {
			holdAnswer(t, what, row.Response, op)
		}
	}
	for path, methods := range d.Paths {
		for method := range methods {
			if what := strings.ToUpper(method) + " " + path; method != "parameters" && !rows[what] {
				t.Errorf("%s is not in the table", what)
			}
		}
	}
}

func orEmpty(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return json.RawMessage(`[]`)
	}
	return raw
}

func pathVariables(path string) (names []string) {
	for part := range strings.SplitSeq(path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			names = append(names, strings.TrimSuffix(name, "}"))
		}
	}
	return names
}

// sources lists the parameters that a request type takes, and its body.
func sources(t reflect.Type) (parameters []string, body reflect.Type) {
	for f := range t.Fields() {
		for _, in := range []string{"path", "query", "header"} {
			if name, ok := f.Tag.Lookup(in); ok {
				parameters = append(parameters, in+" "+name)
			}
		}
		if _, ok := f.Tag.Lookup("body"); ok {
			body = f.Type
		}
	}
	return parameters, body
}

// holdAnswer holds the success of a row to the type of its answer.
func holdAnswer(t *testing.T, what string, typ reflect.Type, op operation) {
	t.Helper()
	if s, ok := reflect.Zero(typ).Interface().(endpoint.Statuser); ok {
		if _, ok := op.Responses[fmt.Sprint(s.HTTPStatus())]; !ok {
			t.Errorf("%s: the document has no %d", what, s.HTTPStatus())
		}
		return
	}
	content := op.Responses["200"].Content["application/json"].Schema
	if content == nil || documented[content.schemaName()] != typ {
		t.Errorf("%s answers a %s, which the document does not say", what, typ)
	}
}

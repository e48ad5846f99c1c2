package gateway_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"rockpool/internal/config"
	"rockpool/internal/nomad/nomadtest"
)

// matrix says where each part of the contract is proven: section, statement, tests.
var matrix = []struct{ section, statement, tests string }{
	{"1", "token on all routes but health and version, 401 empty", "gateway.TestWithoutTheTokenNothingIsSaid gateway.TestATokenIsNeededButForHealthAndVersion"},
	{"1", "unknown path 404, wrong method 405, empty, without token, no redirect", "gateway.TestPathsAndMethods"},
	{"1", "order: route match, auth, lookup, handler", "gateway.TestTheOrderOfRefusals"},
	{"1", "JSON answers: content type, compact, no bodies", "contract.TestWrongAnswersAreFound gateway.TestTheContractByteForByte"},
	{"1", "decoding of bodies", "gateway.TestOddBodies files.FuzzUpdatesAreReadAsEncodingJSONDoes"},
	{"1", "error shapes and codes", "gateway.TestTheContractByteForByte api.TestTheDocumentHasTheFieldsOfTheBodies"},
	{"1", "server timeouts", "gateway.TestSlowClientsAreLetGo api.TestASlowBodyIsRefused api.TestAClientThatStopsReadingIsLetGo"},
	{"1", "body limits, 400 after draining", "gateway.TestABodyThatIsTooLargeIsReadFirst files.TestABodyThatIsTooLargeKeepsItsReason"},
	{"1", "TLS 1.3 and curves", "gateway.TestTLSIsThatOfTheContract"},
	{"1", "410 after the whole body", "gateway.TestGoneIsSaidAfterTheWholeBody"},
	{"1", "environment ids in paths", "gateway.TestPathsAndMethods gateway.TestTheContractByteForByte"},
	{"2.1", "health", "gateway.TestHealthNamesDepletingPools gateway.TestHealthListsEnvironmentsInOrder gateway.TestRequestsWaitForRecovery"},
	{"2.1", "version", "gateway.TestTheContractByteForByte api.TestThereMayBeNoRelease"},
	{"2.1", "statistics", "gateway.TestTheContractByteForByte"},
	{"2.2", "environments: shapes, statuses, fetch", "gateway.TestTheContractByteForByte gateway.TestSpellingsOfFetch gateway.TestOddBodies e2e.TestEnvironments"},
	{"2.3", "runners: statuses", "gateway.TestEveryDocumentedStatus gateway.TestTheContractByteForByte"},
	{"2.3", "known means claimed; nothing tells a foreign id from an unknown one", "gateway.TestNothingTellsForeignIDsFromUnknownOnes"},
	{"2.3", "websocketUrl", "api.TestWebSocketURLs gateway.TestTheWebSocketURLHasTheHostOfTheRequest"},
	{"2.3", "execute only stores, is consumed once, does not reset the timer", "gateway.TestAnExecutionIsConsumedByTheFirstConnect gateway.TestExecuteDoesNotKeepARunnerAlive"},
	{"3.1", "messages, their order, Close 1000", "gateway.TestExecutionsEndWithExactlyOneMessage contract.TestWrongMessagesAreFound session.TestLastMessages"},
	{"3.3", "input", "gateway.TestInputReachesTheProgram session.TestFramesOfAnyKind e2e.TestStdinIsEchoedAndControlBytesAct"},
	{"3.4", "terminal, encoding, chunks, back-pressure", "session.TestChunksOfTextSayTheSameAsTheWhole session.TestAClientThatDoesNotReadCostsBoundedMemory gateway.TestHugeOutputReachesASlowClientWhole"},
	{"3.5", "time limit, close, deletion, inactivity, memory, shutdown", "gateway.TestTheTimeLimitIsToldAtOnceAndTheRunnerStays gateway.TestAClientThatClosesGetsItsCloseAndNothingElse " +
		"gateway.TestARunnerDeletedDuringARun gateway.TestAnEnvironmentDeletedDuringARun gateway.TestInactivityEndsARun gateway.TestOutOfMemoryAndOtherDeathsDuringARun " +
		"gateway.TestAnOrderlyStopTellsItsSessions session.TestAHalfOpenConnectionEndsTheExecution gateway.TestALyingNode"},
	{"4", "how a command runs", "e2e.TestWhatAProgramSees gateway.TestOddRequestsOfExecutions"},
	{"5.1", "PATCH files", "gateway.TestFilesAreDeletedThenWritten gateway.TestWhatCannotBeWrittenIsNamed e2e.TestFiles"},
	{"5.2", "GET files", "gateway.TestListings api.TestPermissionsHaveNineCharacters api.TestWhatIsHidden e2e.TestFiles"},
	{"5.3", "GET files/raw", "gateway.TestDownloads gateway.TestHeadersOfDownloads e2e.TestFiles"},
	{"6", "claims, ends, inactivity", "gateway.TestAClaimCostsOneWrite gateway.TestFiftyClientsClaimTenRunners gateway.TestRestartKeepsUsedAndIdleRunners gateway.TestAClusterOutOfReachIsSaidSo"},
	{"7", "PUT and DELETE", "gateway.TestPoolsFollowTheirSize gateway.TestAChangedEnvironmentReplacesIdleAndDrainsUsedRunners gateway.TestAnImageIsPinnedByDigest gateway.TestAnEnvironmentThatCannotBePlacedLeavesTheOldOne"},
	{"7", "fetch", "gateway.TestFetchReadsTheCluster"},
	{"8", "pools and health", "gateway.TestPoolsFollowTheirSize gateway.TestHealthNamesDepletingPools gateway.TestAClaimWaitsForAStartingRunner gateway.TestAPoolOfNoneIsEmpty"},
	{"9", "objects: names, groups, meta, ports; what Poseidon made is taken over and can be given back", "standin.TestAClusterOfPoseidon nomad.TestNamesOfJobs nomad.TestClaimsAreReadFromTheJob " +
		"nomad.TestAnEnvironmentSurvivesItsJob gateway.TestMappedPorts"},
	{"9", "execution in the cluster, on each release of it", "standin.TestTheGatewayOnEveryRelease standin.TestCommandsRunAsTheContractSays standin.TestAnExitCodeIsNeverInvented"},
	{"9.1", "events", "nomad.TestWhatAllocationsMeanForTheirRunner standin.TestHowRunsEndOnNomad gateway.TestADeadRunnerIsGoneAndReplaced"},
	{"9.1", "gaps, indexes that go back", "standin.TestTheEventStreamIsNotBelievedToBeWhole gateway.TestAfterABrokenStreamThePoolsAreCompared"},
	{"9.2", "recovery", "gateway.TestRestartKeepsUsedAndIdleRunners gateway.TestRequestsWaitForRecovery e2e.TestRestart"},
	{"9.2", "definitions outlive their containers", "standin.TestADefinitionOutlivesItsContainer"},
	{"10", "keys, their defaults, aliases and precedence", "config.TestTheExampleNamesEveryKeyWithItsDefault config.TestTheEnvironmentWinsOverTheFile"},
	{"10", "what is wrong ends the start", "config.TestAllProblemsAreListedTogether e2e.TestWrongConfigurationIsListedWhole"},
	{"11", "signals, readiness", "gateway.TestAnOrderlyStopTellsItsSessions gateway.TestAStopLetsExecutionsFinish gateway.TestAStopEndsWhatDoesNotFinish e2e.TestRestart"},
	{"11", "systemd: sockets, watchdog", "gateway.TestSystemdHandsSocketsOver gateway.TestNoSocketIsFatal gateway.TestTheWatchdogTrustsOurOwnAuthority"},
	{"11", "the log", "gateway.TestTheLogHoldsNeitherSecretsNorWhatProgramsRead"},
	{"12", "points: measurements, tags, fields, event types", "gateway.TestPointsAreThoseOfTheContract gateway.TestTheCensusAddsUp gateway.TestTheCountsOfEachMinuteAndHour influx.TestPointsArriveAsLines"},
	{"12", "a database in trouble", "influx.TestAnInfluxDBInTroubleCostsOnlyPoints"},
	{"14", "texts and numbers", "gateway.TestTheContractByteForByte session.TestTheSchemaHasTheFieldsOfTheMessages"},
	{"15", "departures: 3 single quotes, 12 public URL, 15 empty lists, 18 statistics during a deletion", "gateway.TestOddRequestsOfExecutions api.TestWebSocketURLs gateway.TestEveryDocumentedStatus gateway.TestStatisticsDuringADeletion"},
	{"16", "take-over: environments, claims and their timeouts, ports, ids; the same keys are written back", "standin.TestAClusterOfPoseidon nomad.TestClaimsAreReadFromTheJob gateway.TestMappedPorts"},
	{"16", "take-over: nothing is answered too early", "gateway.TestRequestsWaitForRecovery gateway.TestRestartKeepsUsedAndIdleRunners"},
}

func TestTheMatrixNamesTestsThatExist(t *testing.T) {
	found := map[string]bool{}
	for name, dir := range map[string]string{"gateway": ".", "api": "../api", "session": "../api/session", "files": "../runner/files", "contract": "../../tests/contract", "e2e": "../../tests/e2e",
		"nomad": "../nomad", "standin": "../nomad/standin", "config": "../config", "influx": "../metrics/influx"} {
		all, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range all {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
					found[name+"."+f.Name.Name] = true
				}
			}
		}
	}
	proven := map[string]bool{}
	for _, row := range matrix {
		section, _, _ := strings.Cut(row.section, ".")
		proven[section] = true
		for test := range strings.FieldsSeq(row.tests) {
			if !found[test] {
				t.Errorf("section %s, %s: there is no %s", row.section, row.statement, test)
			}
		}
	}
	const sections, cloud = 16, 13 // of another back end, which there is none of here
	for n := 1; n <= sections; n++ {
		if n != cloud && !proven[strconv.Itoa(n)] {
			t.Errorf("no row is about section %d", n)
		}
	}
}

// ask is do with headers of its own.
func (h *harness) ask(method, path, body string, head http.Header) (int, string, http.Header) {
	h.Helper()
	r, err := http.NewRequest(method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	r.Header = head
	resp, err := h.http.Do(r)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	if resp.ContentLength >= 0 && resp.ContentLength != int64(len(data)) {
		h.Errorf("%s %s: %d bytes, Content-Length %d", method, path, len(data), resp.ContentLength)
	}
	return resp.StatusCode, string(data), resp.Header
}

// routes are all rows with a token, with a runner's id in place.
func routes(id string) [][2]string {
	run := "/runners/" + id
	return [][2]string{
		{"GET", "/statistics/execution-environments"}, {"GET", "/execution-environments"}, {"GET", "/execution-environments/10"}, {"PUT", "/execution-environments/10"},
		{"DELETE", "/execution-environments/10"}, {"POST", "/runners"}, {"GET", "/rockpool/pools"}, {"GET", "/rockpool/pools/10"},
		{"DELETE", run}, {"GET", run + "/files"}, {"PATCH", run + "/files"}, {"GET", run + "/files/raw"},
		{"POST", run + "/execute"}, {"GET", run + "/websocket"}, {"GET", "/rockpool/runners"}, {"GET", "/rockpool/metrics"},
		{"GET", "/rockpool/timelines"},
	}
}

func TestWithoutTheTokenNothingIsSaid(t *testing.T) {
	h := ready(t, "1", 1)
	known := h.claim("0")
	var first http.Header
	for _, token := range []string{"", "x", "secre", "secrets", "SECRET", "secret ", strings.Repeat("secret", 1000), "secret\x80"} {
		for _, id := range []string{known, "10-x"} {
			for _, r := range routes(id) {
				head := http.Header{"Poseidon-Token": {token}}
				if token == "secret " { // HTTP drops the space; two tokens are none
					head = http.Header{"Poseidon-Token": {"x", "secret"}}
				}
				code, body, got := h.ask(r[0], r[1], `{"command":"x"}`, head)
				got.Del("Date")
				if first == nil {
					first = got
				}
				if code != 401 || body != "" || got.Get("Content-Length") != "0" || !maps.EqualFunc(got, first, slices.Equal[[]string]) {
					t.Errorf("%q: %s %s: got %d %q %v, want what every other one got: %v", token, r[0], r[1], code, body, got, first)
				}
			}
		}
	}
	h.want("GET", "/runners/"+known+"/files", "", 200, "files")
	h.want("GET", "/execution-environments/10", "", 200, "host")
}

func TestPathsAndMethods(t *testing.T) {
	h := ready(t, "0", 0)
	for path, want := range map[string]int{
		"GET /": 404, "GET /nothing": 404, "GET /health/": 404, "GET //health": 404, "GET /Health": 404, "GET /runners/x/": 404, "GET /runners/x/files/": 404, "GET /runners//files": 404,
		"GET /execution-environments/": 404, "GET /execution-environments/x": 404, "PUT /execution-environments/-1": 404, "GET /execution-environments/1x": 404, "DELETE /execution-environments/1%2f": 404,
		"GET /execution-environments/10/x": 404, "GET /rockpool": 404, "GET /../health": 404, "GET /runners/../health": 404,
		"POST /health": 405, "HEAD /health": 405, "OPTIONS /health": 405, "PUT /version": 405, "POST /execution-environments": 405, "PATCH /execution-environments/10": 405, "GET /runners": 405,
		"GET /runners/x": 405, "PUT /runners/x": 405, "POST /runners/x/files": 405, "DELETE /runners/x/files/raw": 405, "GET /runners/x/execute": 405, "POST /runners/x/websocket": 405,
		"DELETE /statistics/execution-environments": 405, "POST /rockpool/openapi.json": 405,
	} {
		method, path, _ := strings.Cut(path, " ")
		code, body, head := h.ask(method, path, "", nil) // without a token
		if code != want || body != "" || head.Get("Content-Length") != "0" || head.Get("Location") != "" {
			t.Errorf("%s %s: got %d %q %v, want an empty %d", method, path, code, body, head, want)
		}
	}
}

func TestTheOrderOfRefusals(t *testing.T) {
	h, id := with(t)
	for _, c := range []struct {
		name, method, path, token, body string
		status                          int
	}{
		{"the path before the token", "GET", "/nothing", "", "", 404},
		{"the method before the token", "PUT", "/runners", "", "", 405},
		{"the token before the runner", "PATCH", "/runners/10-x/files", "", "{", 401},
		{"the token before the id", "PUT", "/execution-environments/99999999999999999999", "", "{", 401},
		{"the token before the body", "POST", "/runners", "", "{", 401},
		{"the runner before the body", "POST", "/runners/10-x/execute", "secret", "{", 410},
		{"the runner before the parameters", "GET", "/runners/10-x/files/raw", "secret", "", 410},
		{"the runner before the handshake", "GET", "/runners/10-x/websocket", "secret", "", 410},
		{"the execution before the handshake", "GET", "/runners/" + id + "/websocket", "secret", "", 404},
		{"the id before the body", "PUT", "/execution-environments/99999999999999999999", "secret", "{", 400},
	} {
		if code, body, _ := h.ask(c.method, c.path, c.body, http.Header{"Poseidon-Token": {c.token}}); code != c.status {
			t.Errorf("%s: got %d %s, want %d", c.name, code, body, c.status)
		}
	}
}

func TestTheContractByteForByte(t *testing.T) {
	h := ready(t, "1", 1)
	id := h.claim("0")
	h.pool("10", 1, 1)
	const environment = `{"id":10,"prewarmingPoolSize":1,"cpuLimit":100,"memoryLimit":256,"image":"host","networkAccess":false,"exposedPorts":[]}`
	run := "/runners/" + id
	const unreadable = `{"message":"file not found or insufficient permissions"}`
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		content, want            string // content type and body
	}{
		{"health", "GET", "/health", "", 204, "", ""},
		{"statistics", "GET", "/statistics/execution-environments", "", 200, "application/json", `{"10":{"id":10,"prewarmingPoolSize":1,"idleRunners":1,"usedRunners":1}}`},
		{"list", "GET", "/execution-environments", "", 200, "application/json", `{"executionEnvironments":[` + environment + `]}`},
		{"get", "GET", "/execution-environments/10", "", 200, "application/json", environment},
		{"an id with zeros", "GET", "/execution-environments/0010", "", 200, "application/json", environment},
		{"get unknown", "GET", "/execution-environments/11", "", 404, "", ""},
		{"get unknown with fetch", "GET", "/execution-environments/11?fetch=true", "", 404, "", ""},
		{"an id that does not fit, to get", "GET", "/execution-environments/99999999999999999999", "", 400, "application/json", `{"message":"id in the path: \"99999999999999999999\" is not a whole number that fits"}`},
		{"an id that does not fit, to delete", "DELETE", "/execution-environments/99999999999999999999", "", 400, "application/json", `{"message":"id in the path: \"99999999999999999999\" is not a whole number that fits"}`},
		{"replace, with an id that is ignored", "PUT", "/execution-environments/10", environment[:len(environment)-1] + `,"id":77}`, 204, "", ""},
		{"create, with nothing", "PUT", "/execution-environments/5", `{}`, 201, "", ""},
		{"what nothing is", "GET", "/execution-environments/5", "", 200, "application/json",
			`{"id":5,"prewarmingPoolSize":0,"cpuLimit":0,"memoryLimit":0,"image":"","networkAccess":false,"exposedPorts":[]}`},
		{"ports that are null", "PUT", "/execution-environments/5", `{"image":"host","exposedPorts":null}`, 204, "", ""},
		{"lists are in order", "GET", "/execution-environments", "", 200, "application/json",
			`{"executionEnvironments":[{"id":5,"prewarmingPoolSize":0,"cpuLimit":0,"memoryLimit":0,"image":"host","networkAccess":false,"exposedPorts":[]},` + environment + `]}`},
		{"delete ignores fetch", "DELETE", "/execution-environments/5?fetch=maybe", "", 204, "", ""},
		{"delete unknown", "DELETE", "/execution-environments/5", "", 404, "", ""},
		{"a pool that is too large", "PUT", "/execution-environments/5", `{"prewarmingPoolSize":10001}`, 400, "application/json", `{"message":"prewarmingPoolSize must be at most 10000"}`},
		{"claim of an unknown environment", "POST", "/runners", `{"executionEnvironmentId":11}`, 404, "application/json", ""},
		{"claim of the default environment", "POST", "/runners", `{}`, 404, "application/json", ""},
		{"gone", "DELETE", "/runners/10-x", "", 410, "application/json", `{"message":"the runner 10-x is not known (any more)"}`},
		{"listing nothing", "GET", run + "/files", "", 200, "application/json", `{"files":[]}`},
		{"listing what is missing", "GET", run + "/files?path=missing", "", 424, "application/json", unreadable},
		{"reading what is missing", "GET", run + "/files/raw?path=missing", "", 424, "application/json", unreadable},
		{"reading nothing", "GET", run + "/files/raw?path=", "", 424, "application/json", unreadable},
		{"copy", "PATCH", run + "/files", `{}`, 204, "", ""},
		{"a bad name", "POST", run + "/execute", `{"environment":{"":"x"}}`, 400, "application/json", `{"message":"the name of an environment variable must match [A-Za-z_][A-Za-z0-9_]*: \"\""}`},
		{"an unknown execution", "GET", run + "/websocket?executionID=x", "", 404, "application/json", `{"message":"execution id unknown"}`},
		{"an execution without id", "GET", run + "/websocket", "", 404, "application/json", `{"message":"execution id unknown"}`},
		{"delete", "DELETE", run, "", 204, "", ""},
	} {
		code, body, head := h.ask(c.method, c.path, c.body, http.Header{"Poseidon-Token": {"secret"}})
		if code != c.status || head.Get("Content-Type") != c.content || body != c.want && (c.want != "" || c.content == "") {
			t.Errorf("%s: got %d %q %s, want %d %q %s", c.name, code, head.Get("Content-Type"), body, c.status, c.content, c.want)
		}
		if code == 201 && head.Get("Content-Length") != "0" {
			t.Errorf("%s: Content-Length %q", c.name, head.Get("Content-Length"))
		}
	}
	var version string
	if code, body, _ := h.ask("GET", "/version", "", nil); code != 200 || json.Unmarshal([]byte(body), &version) != nil || version == "" {
		t.Errorf("the version: %d %s", code, body)
	}
	for _, path := range []string{"openapi.json", "websocket.schema.json"} {
		if code, body, _ := h.ask("GET", "/rockpool/"+path, "", nil); code != 200 || !json.Valid([]byte(body)) {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code, body, _ := h.ask("GET", "/execution-environments?pretty", "", http.Header{"Poseidon-Token": {"secret"}}); code != 200 || !strings.Contains(body, "\n    ") {
		t.Errorf("pretty: %d %s", code, body)
	}
}

func TestSpellingsOfFetch(t *testing.T) {
	h := ready(t, "0", 0)
	for value, want := range map[string]int{
		"": 200, "1": 200, "t": 200, "T": 200, "TRUE": 200, "true": 200, "True": 200, "0": 200, "f": 200, "F": 200, "FALSE": 200, "false": 200, "False": 200,
		"yes": 400, "tRUE": 400, "2": 400, "null": 400, "%20true": 400, "%00": 400,
	} {
		for _, path := range []string{"/execution-environments", "/execution-environments/10"} {
			if code, body, _ := h.do("GET", path+"?fetch="+value, ""); code != want {
				t.Errorf("%s, fetch=%s: got %d %s", path, value, code, body)
			}
		}
	}
	h.want("GET", "/execution-environments?fetch", "", 200, "10")
	h.want("GET", "/execution-environments?other=x;y&%zz", "", 200, "10")
}

// What comes as a body: each row is sent to every route that takes JSON. The statuses are those of putEnvironment, provideRunner, execute and updateFiles.
func TestOddBodies(t *testing.T) {
	h, id := with(t)
	deep := strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000)
	targets := [][2]string{{"PUT", "/execution-environments/20"}, {"POST", "/runners"}, {"POST", "/runners/" + id + "/execute"}, {"PATCH", "/runners/" + id + "/files"}}
	for _, c := range []struct {
		name, body string
		want       [4]int
	}{
		{"nothing", ``, [4]int{400, 400, 400, 400}},
		{"space", " \r\n\t", [4]int{400, 400, 400, 400}},
		{"null", `null`, [4]int{201, 404, 200, 204}},
		{"an empty object", `{}`, [4]int{204, 404, 200, 204}},
		{"something after the value", `{} {`, [4]int{204, 404, 200, 204}},
		{"unknown members", `{"x":[{"y":null}],"z":1.5e300}`, [4]int{204, 404, 200, 204}},
		{"an array", `[]`, [4]int{400, 400, 400, 400}},
		{"a string", `"x"`, [4]int{400, 400, 400, 400}},
		{"a number", `3`, [4]int{400, 400, 400, 400}},
		{"a truth", `true`, [4]int{400, 400, 400, 400}},
		{"half an object", `{"x":`, [4]int{400, 400, 400, 400}},
		{"no JSON", `a=b&c=d`, [4]int{400, 400, 400, 400}},
		{"a byte order mark", "\ufeff{}", [4]int{400, 400, 400, 400}},
		{"NUL", "\x00", [4]int{400, 400, 400, 400}},
		{"single quotes", `{'x':1}`, [4]int{400, 400, 400, 400}},
		{"a comma too many", `{"x":1,}`, [4]int{400, 400, 400, 400}},
		{"nested too deep", deep, [4]int{400, 400, 400, 400}},
		{"nested too deep in a member", `{"x":` + deep + `}`, [4]int{400, 400, 400, 400}},
		{"wrong types", `{"image":1,"executionEnvironmentId":"10","command":[],"copy":"x"}`, [4]int{400, 400, 400, 400}},
		{"wrong types within", `{"exposedPorts":["80"],"inactivityTimeout":{},"environment":{"a":1},"delete":[1]}`, [4]int{400, 400, 400, 400}},
		{"numbers that are none", `{"cpuLimit":1.5,"executionEnvironmentId":1.5,"timeLimit":1.5,"copy":[1]}`, [4]int{400, 400, 400, 400}},
		{"numbers that do not fit", `{"cpuLimit":18446744073709551616,"executionEnvironmentId":9223372036854775808,"timeLimit":9223372036854775808,"copy":[{"path":1}]}`, [4]int{400, 400, 400, 400}},
		{"negative numbers", `{"prewarmingPoolSize":-1,"inactivityTimeout":-1,"width":-1,"copy":[{"content":-1}]}`, [4]int{400, 400, 400, 400}},
		{"ports", `{"exposedPorts":[65536],"executionEnvironmentId":[],"height":65536,"copy":[{"content":"a"}]}`, [4]int{400, 400, 400, 400}},
		{"nulls", `{"cpuLimit":null,"exposedPorts":null,"executionEnvironmentId":null,"command":null,"environment":null,"tty":null,"delete":null,"copy":null}`, [4]int{204, 404, 200, 204}},
		{"keys that come twice", `{"cpuLimit":1,"cpuLimit":2,"executionEnvironmentId":10,"executionEnvironmentId":11,"timeLimit":1,"timeLimit":2,"delete":["a"],"delete":["b"]}`, [4]int{204, 404, 200, 204}},
		{"keys in another case", `{"CPULIMIT":7,"EXECUTIONENVIRONMENTID":11,"Command":"true","DELETE":["c"]}`, [4]int{204, 404, 200, 204}},
	} {
		for i, target := range targets {
			for _, content := range []string{"", "text/html", "application/x-www-form-urlencoded"} {
				head := http.Header{"Poseidon-Token": {"secret"}}
				if content != "" {
					head.Set("Content-Type", content)
				}
				want := c.want[i]
				code, body, _ := h.ask(target[0], target[1], c.body, head)
				if want == 201 && content != "" {
					want = 204
				}
				if code != want {
					t.Errorf("%s, sent as %q: %s %s: got %d %.200s, want %d", c.name, content, target[0], target[1], code, body, want)
				}
			}
		}
	}
	h.want("GET", "/execution-environments/20", "", 200, `"cpuLimit":7`)
	up := h.cluster.Uploads()
	if got := fmt.Sprint(up[len(up)-4].Deletes, up[len(up)-1].Deletes); got != "[b] [c]" {
		t.Errorf("the last of two keys counts, and case does not: got %s", got)
	}
}

// raw opens a connection and sends bytes as they are.
func (h *harness) raw(text string) (net.Conn, *bufio.Reader) {
	h.Helper()
	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/api/v1"))
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		h.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

func TestGoneIsSaidAfterTheWholeBody(t *testing.T) {
	h := ready(t, "0", 0)
	for _, method := range []string{"PATCH /api/v1/runners/10-x/files", "POST /api/v1/runners/10-x/execute", "DELETE /api/v1/runners/10-x"} {
		const size = 8 << 20
		conn, r := h.raw(fmt.Sprintf("%s HTTP/1.1\r\nHost: h\r\nPoseidon-Token: secret\r\nContent-Length: %d\r\n\r\n", method, size))
		piece := strings.Repeat(" ", 1<<20)
		for sent := 0; sent < size; sent += len(piece) {
			if sent == size/2 { // an answer that came before would be there by now
				_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err := r.Peek(1); err == nil {
					t.Errorf("%s: it was answered before the whole body was sent", method)
				}
				_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
				r.Reset(conn)
			}
			if _, err := io.WriteString(conn, piece); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 410 || !strings.Contains(string(body), "10-x") || resp.Close {
			t.Errorf("%s: got %d %s, closing: %v", method, resp.StatusCode, body, resp.Close)
		}
		// The connection goes on.
		if _, err := io.WriteString(conn, "GET /api/v1/health HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 204 {
			t.Errorf("%s: afterwards: %v", method, err)
		}
	}
}

func TestABodyThatIsTooLargeIsReadFirst(t *testing.T) {
	h, id := with(t)
	for _, target := range [][2]string{{"PUT", "/execution-environments/10"}, {"POST", "/runners"}, {"POST", "/runners/" + id + "/execute"}} {
		code, body, _ := h.do(target[0], target[1], `{"x":"`+strings.Repeat("x", 8<<20)+`"}`)
		if code != 400 || body != `{"message":"the request body is larger than 1048576 bytes"}` {
			t.Errorf("%s %s: got %d %s", target[0], target[1], code, body)
		}
	}
}

func TestNothingTellsForeignIDsFromUnknownOnes(t *testing.T) {
	h, id := with(t)
	h.pool("10", 1, 1)
	idle := slices.DeleteFunc(h.cluster.Jobs("10-"), func(j string) bool { return j == id })[0]
	unknown := regexp.MustCompile(`-[0-9a-f]{8}-`).ReplaceAllString(idle, "-00000000-")
	ended := id
	h.want("DELETE", "/runners/"+ended, "", 204, "")
	ids := []string{idle, unknown, ended, "template-10", "10-" + strings.Repeat("x", 2000), "%2e%2e", "x%2Fy", "%00", "%ff", "10"}
	for _, r := range routes("ID")[8:14] { // those of a runner
		texts := map[string]bool{}
		for _, id := range ids {
			code, body, _ := h.do(r[0], strings.Replace(r[1], "ID", id, 1), `{}`)
			if code != 410 {
				t.Errorf("%s %s with %.40s: got %d %s", r[0], r[1], id, code, body)
			}
			if id == idle || id == unknown || id == ended {
				texts[strings.Replace(body, id, "ID", 1)] = true
			}
		}
		if len(texts) != 1 {
			t.Errorf("%s %s: the answers differ: %v", r[0], r[1], slices.Collect(maps.Keys(texts)))
		}
	}

	// An execution belongs to its runner.
	h.want("PUT", "/execution-environments/10", env("2"), 204, "")
	h.pool("10", 2, 0)
	mine, other := h.claim("0"), h.claim("0")
	url := h.execute(mine, `{"command":"true"}`)
	_, execution, _ := strings.Cut(url, "executionID=")
	h.want("GET", "/runners/"+other+"/websocket?executionID="+execution, "", 404, "execution id unknown")
	h.want("GET", "/runners/"+mine+"/websocket?executionID="+execution+"x", "", 404, "execution id unknown")
	h.messages(h.dial(url), begin, `{"type":"exit","data":0}`)
}

func TestTheWebSocketURLHasTheHostOfTheRequest(t *testing.T) {
	h, id := with(t)
	r, err := http.NewRequest("POST", h.url+"/runners/"+id+"/execute", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "runners.example.org:8443"
	r.Header.Set("Poseidon-Token", "secret")
	resp, err := h.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	want := `^\{"websocketUrl":"ws://runners\.example\.org:8443/api/v1/runners/` + id + `/websocket\?executionID=[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"\}$`
	if !regexp.MustCompile(want).Match(body) {
		t.Errorf("got %s", body)
	}
}

func TestOddRequestsOfExecutions(t *testing.T) {
	h, id := with(t, func(c *config.Config) { c.Server.ForbidSingleQuote = true })
	h.want("POST", "/runners/"+id+"/execute", `{"command":"echo 'a'"}`, 400, `{"message":"use of forbidden character"}`)
	for _, name := range []string{"a b", "1a", "a-b", "ä", "a=b", "a\n", ""} {
		body, _ := json.Marshal(map[string]any{"environment": map[string]string{name: "x"}})
		h.want("POST", "/runners/"+id+"/execute", string(body), 400, "environment variable")
	}
	for body, want := range map[string]string{
		`{}`:                                `{"type":"exit","data":0}`, // no command is an empty one
		`{"timeLimit":-5,"command":"wait"}`: `{"type":"timeout"}`,
		`{"timeLimit":-9223372036854775808,"command":"wait"}`:        `{"type":"timeout"}`,
		`{"timeLimit":9223372036854775807,"command":"exit 1"}`:       `{"type":"exit","data":1}`, // it must not overflow
		`{"timeLimit":10000000000,"command":"exit 2"}`:               `{"type":"exit","data":2}`,
		`{"environment":{"A_1":"x y\n$;"},"command":"exit 3"}`:       `{"type":"exit","data":3}`,
		`{"width":65535,"height":65535,"tty":true,"command":"true"}`: `{"type":"exit","data":0}`,
	} {
		h.messages(h.dial(h.execute(id, body)), begin, want)
	}
}

func TestALongInactivityTimeoutIsNotAShortOne(t *testing.T) {
	h := ready(t, "3", 3)
	for _, timeout := range []string{"9223372036854775807", "10000000000", "9223372037"} {
		id := h.claim(timeout)
		h.messages(h.dial(h.execute(id, `{"command":"true"}`)), begin, `{"type":"exit","data":0}`)
	}
}

func TestExecuteDoesNotKeepARunnerAlive(t *testing.T) {
	t.Parallel()
	h := ready(t, "1", 1)
	id := h.claim("1")
	h.eventually("the runner ends although executions are asked for", func() bool {
		code, _, _ := h.do("POST", "/runners/"+id+"/execute", `{}`)
		return code == 410
	})
}

func TestHeadersOfDownloads(t *testing.T) {
	long := strings.Repeat("unsized", 1000)
	h, id := with(t)
	h.cluster.SetFiles(id, nomadtest.File{Name: "empty"}, nomadtest.File{Name: "page.html", Content: "<html><script>"}, nomadtest.File{Name: "/proc/x", Content: long, Unsized: true})
	for _, c := range []struct {
		path, body, length, disposition string
		status                          int
	}{
		{"empty", "", "0", `attachment; filename="empty"`, 200},
		{"page.html", "<html><script>", "14", `attachment; filename="page.html"`, 200},
		{"/proc/x", long, "", `attachment; filename="/proc/x"`, 200},
		{"a/%22b%5C%22%0d%0aSet-Cookie:x%c2%85%7f", "", "", `attachment; filename="a/\"b\\\"Set-Cookie:x"`, 424},
		{"%C3%A4", "", "", `attachment; filename="ä"`, 424},
	} {
		code, body, head := h.do("GET", "/runners/"+id+"/files/raw?path="+c.path, "")
		if code != c.status || head.Get("Content-Disposition") != c.disposition || code == 200 && (body != c.body || head.Get("Content-Length") != c.length) {
			t.Errorf("%s: got %d %q %v", c.path, code, body, head)
		}
		if code == 424 && head.Get("Content-Length") != fmt.Sprint(len(body)) || head.Get("X-Content-Type-Options") != "nosniff" || head.Get("Set-Cookie") != "" {
			t.Errorf("%s: got %v for %s", c.path, head, body)
		}
	}
}

func TestFetchReadsTheCluster(t *testing.T) {
	a := ready(t, "2", 2)
	b := start(t, a.cluster)
	b.pool("10", 2, 0)
	idle := a.cluster.Jobs("10-")

	// One that another gateway made is known with fetch alone.
	b.want("PUT", "/execution-environments/11", env("0"), 201, "")
	a.want("GET", "/execution-environments/11", "", 404, "")
	a.want("GET", "/execution-environments/11?fetch=true", "", 200, `"id":11`)
	a.want("GET", "/execution-environments/11", "", 200, `"id":11`)
	b.want("PUT", "/execution-environments/12", env("0"), 201, "")
	a.want("GET", "/execution-environments?fetch=true", "", 200, `"id":12`)

	// A known one is brought up to date.
	b.want("PUT", "/execution-environments/11", strings.Replace(env("0"), "256", "300", 1), 204, "")
	a.want("GET", "/execution-environments/11", "", 200, `"memoryLimit":256`)
	a.want("GET", "/execution-environments/11?fetch=1", "", 200, `"memoryLimit":300`)
	if now := a.cluster.Jobs("10-"); !slices.Equal(now, idle) {
		t.Errorf("idle runners %v became %v", idle, now)
	}

	// One that is gone from the cluster goes, with its runners.
	used := a.claim("0")
	b.stop()
	a.cluster.Purge("template-10")
	a.want("GET", "/execution-environments/10", "", 200, "host")
	a.want("GET", "/execution-environments/10?fetch=true", "", 404, "")
	a.want("GET", "/execution-environments/10", "", 404, "")
	a.want("GET", "/runners/"+used+"/files", "", 410, "message")
	a.eventually("its runners are gone", func() bool { return len(a.cluster.Jobs("10-")) == 0 })
	a.cluster.Purge("template-12")
	if body := a.want("GET", "/execution-environments?fetch=true", "", 200, `"id":11`); strings.Contains(body, `"id":12`) {
		t.Errorf("the list still has it: %s", body)
	}
}

func TestAPoolOfNoneIsEmpty(t *testing.T) {
	h := ready(t, "0", 0, func(c *config.Config) { c.Server.Alert.PrewarmingPoolThreshold = 1 })
	code, body, _ := h.do("POST", "/runners", `{"executionEnvironmentId":10}`)
	if code != 500 || !strings.HasSuffix(body, `,"errorCode":"NOMAD_OVERLOAD"}`) {
		t.Errorf("got %d %s", code, body)
	}
	h.want("GET", "/health", "", 204, "") // a pool of none never alerts
}

func TestHealthListsEnvironmentsInOrder(t *testing.T) {
	h := start(t, nomadtest.New(t), func(c *config.Config) { c.Server.Alert.PrewarmingPoolThreshold = 0.5 })
	h.cluster.Hold(true)
	for _, id := range []string{"100", "9", "20"} {
		h.want("PUT", "/execution-environments/"+id, env("1"), 201, "")
	}
	h.want("GET", "/health", "", 503, `{"message":"the prewarming pool is depleting: environments 9, 20, 100","errorCode":"PREWARMING_POOL_DEPLETING"}`)
}

func TestStatisticsDuringADeletion(t *testing.T) {
	h := ready(t, "1", 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20 {
			h.do("DELETE", "/execution-environments/10", "")
			h.do("PUT", "/execution-environments/10", env("1"))
		}
	}()
	for {
		code, body, _ := h.do("GET", "/statistics/execution-environments", "")
		var s map[string]struct{ ID int }
		if err := json.Unmarshal([]byte(body), &s); code != 200 || err != nil || len(s) > 1 || len(s) == 1 && s["10"].ID != 10 {
			t.Errorf("got %d %s", code, body)
		}
		if code, body, _ := h.do("GET", "/health", ""); code != 204 {
			t.Errorf("health: got %d %s", code, body)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

func TestHandshakesThatAreNone(t *testing.T) {
	h, id := with(t)
	url := h.execute(id, `{"command":"true"}`)
	path := strings.TrimPrefix(url, "ws"+strings.TrimPrefix(h.url, "http"))
	for name, change := range map[string]func(http.Header){
		"no upgrade":      func(h http.Header) { h.Del("Upgrade") },
		"no connection":   func(h http.Header) { h.Del("Connection") },
		"another version": func(h http.Header) { h.Set("Sec-Websocket-Version", "12") },
		"no key":          func(h http.Header) { h.Del("Sec-Websocket-Key") },
		"a bad key":       func(h http.Header) { h.Set("Sec-Websocket-Key", "short") },
	} {
		head := http.Header{"Poseidon-Token": {"secret"}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
		change(head)
		if code, body, _ := h.ask("GET", path, "", head); code != 400 || !strings.Contains(body, "handshake") {
			t.Errorf("%s: got %d %s", name, code, body)
		}
	}
	d := websocket.Dialer{NetDialContext: h.contract.Dial(h.off)}
	for _, origin := range []string{"http://elsewhere", "null", "http://127.0.0.1:1", "http://127.0.0.1.evil", "%"} {
		if _, resp, err := d.Dial(url, http.Header{"Poseidon-Token": {"secret"}, "Origin": {origin}}); err == nil || resp == nil || resp.StatusCode != 403 {
			t.Errorf("the origin %s: got %v", origin, err)
		}
	}
	for name, head := range map[string]http.Header{"no token": {}, "a wrong token": {"Poseidon-Token": {"x"}}} {
		if _, resp, err := d.Dial(url, head); err == nil || resp == nil || resp.StatusCode != 401 {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, resp, err := d.Dial(strings.Replace(url, id, "10-x", 1), http.Header{"Poseidon-Token": {"secret"}}); err == nil || resp == nil || resp.StatusCode != 410 {
		t.Errorf("an unknown runner: got %v", err)
	}
	conn, _, err := d.Dial(url, http.Header{"Poseidon-Token": {"secret"}, "Origin": {strings.TrimSuffix(h.url, "/api/v1")}}) // our own host
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h.messages(conn, begin, `{"type":"exit","data":0}`)
}

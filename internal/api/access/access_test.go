package access_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rockpool/internal/api/access"
	"rockpool/internal/auth"
)

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func sum(secret string) string {
	s := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(s[:])
}

const secretA, secretB = "aaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbb"

func load(t *testing.T, single, text string) (*access.Tokens, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens.yaml")
	write(t, path, text, 0o600)
	tokens, err := access.Load(single, path)
	return tokens, path, err
}

func TestWhatIsNoTokenFindsNone(t *testing.T) {
	tokens, _, err := load(t, "single-secret", "tokens:\n- {name: a, sha256: "+sum(secretA)+", scopes: [run]}\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, attempt := range []string{"", "x", secretA[:23], secretA + "a", strings.ToUpper(secretA), sum(secretA), "single-secre", "single-secret\n", " single-secret", secretB} {
		if got := tokens.Find(attempt); got != nil {
			t.Errorf("%q is taken for the token %s", attempt, got.Name)
		}
	}
	if a := tokens.Find(secretA); a == nil || a.Name != "a" || a.Owner == "" || a.Owner == "a" {
		t.Errorf("the token itself: %+v", a)
	}
	if s := tokens.Find("single-secret"); s == nil || s.Owner != "" || !s.MaySomewhere(auth.GatewayOperate) {
		t.Errorf("the configuration's token: %+v", s)
	}
}

func TestATokenMayWhatItsScopesAndEnvironmentsSay(t *testing.T) {
	tokens, _, err := load(t, "", "tokens:\n- {name: a, token: "+secretA+", scopes: [run, read], environments: [10]}\n- {name: b, token: "+secretB+", scopes: [operate]}\n")
	if err != nil {
		t.Fatal(err)
	}
	a, b := tokens.Find(secretA), tokens.Find(secretB)
	for _, c := range []struct {
		got, want bool
		what      string
	}{
		{a.May(auth.GatewayRun, "10"), true, "its scope in its environment"},
		{a.May(auth.GatewayRun, "11"), false, "its scope in another environment"},
		{a.May(auth.GatewayRun, "010"), false, "another spelling of its environment"},
		{a.May(auth.GatewayRun, ""), false, "no environment"},
		{a.May(auth.GatewayEnvironments, "10"), false, "another scope"},
		{a.MaySomewhere(auth.GatewayRead), true, "its scope anywhere"},
		{a.MayEverywhere(auth.GatewayRead), false, "its scope for all environments"},
		{b.MayEverywhere(auth.GatewayOperate), true, "another's scope for all environments"},
		{a.MaySomewhere(auth.GatewayOperate), false, "another scope anywhere"},
		{a.May(auth.Management, "10"), false, "the orchestrator's rights"},
		{a.MayVariable(auth.VariablesRead, "", ""), false, "variables"},
		{a.Owns(a.Owner, "10"), true, "its own runner"},
		{a.Owns(a.Owner, "11"), false, "its own runner in an environment that was taken from it"},
		{a.Owns(b.Owner, "10"), false, "somebody else's runner"},
		{a.Owns("", "10"), false, "a runner of the configuration's token"},
		{b.Owns(a.Owner, "10"), true, "everybody's runners, for who operates"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v", c.what, c.got)
		}
	}
}

func TestFilesThatAreWrongAreRefusedWithTheReason(t *testing.T) {
	one := "tokens:\n- {name: a, sha256: " + sum(secretA) + ", scopes: [run]"
	for name, c := range map[string]struct{ text, want string }{
		"empty":            {"", "EOF"},
		"no tokens":        {"tokens: []\n", "there is no token in it"},
		"unknown key":      {one + ", scope: run}\n", "scope"},
		"unknown scope":    {strings.Replace(one, "[run]", "[root]", 1) + "}\n", `"root" is none of read, run`},
		"no scopes":        {"tokens:\n- {name: a, sha256: " + sum(secretA) + "}\n", "scopes: at least one"},
		"short secret":     {"tokens:\n- {name: a, token: short, scopes: [run]}\n", "at least 16"},
		"both":             {one + ", token: " + secretA + "}\n", "either sha256 or token"},
		"no hash":          {"tokens:\n- {name: a, sha256: beef, scopes: [run]}\n", "64 hexadecimal"},
		"same name":        {one + "}\n- {name: a, token: " + secretB + ", scopes: [run]}\n", "two with the name"},
		"same secret":      {one + "}\n- {name: b, token: " + secretA + ", scopes: [run]}\n", "the same secret"},
		"bad name":         {strings.Replace(one, "name: a", `name: "a b"`, 1) + "}\n", "name: 1 to 64"},
		"reserved name":    {strings.Replace(one, "name: a", "name: server.token", 1) + "}\n", "stands for the configuration's own"},
		"negative":         {one + ", rate: -1}\n", "negative"},
		"burst alone":      {one + ", burst: 3}\n", "needs a rate"},
		"bad environment":  {one + ", environments: [-3]}\n", "-3 is not the id"},
		"two documents":    {one + "}\n---\ntokens:\n- {name: b, token: " + secretB + ", scopes: [run]}\n", "one document"},
		"a broken end":     {one + "}\n---\n[", "yaml"},
		"not yaml":         {"tokens: [", "yaml"},
		"several problems": {"tokens:\n- {name: a}\n- {name: b}\n", "token 2"},
	} {
		if _, _, err := load(t, "", c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "tokens.yaml")
	write(t, path, "tokens:\n- {name: a, token: "+secretA+", scopes: [run]}\n", 0o644)
	if _, err := access.Load("", path); err == nil || !strings.Contains(err.Error(), "chmod 600") || strings.Contains(err.Error(), secretA) {
		t.Errorf("secrets that others may read: %v", err)
	}
	if _, err := access.Load("", path+".missing"); err == nil {
		t.Error("a file that is not there left the gateway without tokens")
	}
}

func TestAReloadReplacesTokensAndABadOneNothing(t *testing.T) {
	tokens, path, err := load(t, "", "tokens:\n- {name: a, token: "+secretA+", scopes: [run], rate: 0.001, burst: 1}\n")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	a := tokens.Find(secretA)
	if _, ok := a.Admit(now); !ok {
		t.Fatal("the first request was refused")
	}
	write(t, path, "tokens: [", 0o600)
	if tokens.Reload() == nil || tokens.Find(secretA) == nil {
		t.Error("a broken file took the tokens away")
	}
	// A new secret under the old name: the owner stays, and so does what is used up of the rate.
	write(t, path, "tokens:\n- {name: a, token: "+secretB+", scopes: [run], rate: 0.001, burst: 1}\n", 0o600)
	if err := tokens.Reload(); err != nil {
		t.Fatal(err)
	}
	if tokens.Find(secretA) != nil {
		t.Error("a secret that was taken out is still accepted")
	}
	b := tokens.Find(secretB)
	if b == nil || b.Owner != a.Owner || tokens.NameOf(b.Owner) != "a" {
		t.Fatalf("the new secret: %+v", b)
	}
	if wait, ok := b.Admit(now); ok || wait <= 0 {
		t.Error("a reload gave a new burst")
	}
}

func TestARateIsHeldAndSaysWhen(t *testing.T) {
	tokens, _, err := load(t, "", "tokens:\n- {name: a, token: "+secretA+", scopes: [run], rate: 2, burst: 3}\n")
	if err != nil {
		t.Fatal(err)
	}
	a, now := tokens.Find(secretA), time.Now()
	for range 3 {
		if _, ok := a.Admit(now); !ok {
			t.Fatal("the burst was refused")
		}
	}
	for range 100 { // what is refused uses nothing up
		if wait, ok := a.Admit(now); ok || wait > 500*time.Millisecond {
			t.Fatalf("admitted %v, wait %v", ok, wait)
		}
	}
	if _, ok := a.Admit(now.Add(500 * time.Millisecond)); !ok {
		t.Error("the next one was refused when it was due")
	}
}

func TestAGeneratedEntryIsThatOfItsSecret(t *testing.T) {
	secret, entry, err := access.Generate("new-one")
	if err != nil || len(secret) < 40 {
		t.Fatal(secret, err)
	}
	tokens, _, err := load(t, "", "tokens:\n"+entry)
	if err != nil {
		t.Fatal(err)
	}
	if got := tokens.Find(secret); got == nil || got.Name != "new-one" {
		t.Errorf("got %+v", got)
	}
	if other, _, err := access.Generate("new-one"); err != nil || other == secret {
		t.Error("two secrets are the same")
	}
	if _, _, err := access.Generate("a: b\n"); err == nil {
		t.Error("a name that would break the file is accepted")
	}
}

func TestWithoutAnyTokenEverybodyMay(t *testing.T) {
	tokens, err := access.Load("", "")
	if err != nil || !tokens.Open() || !tokens.Find("").May(auth.GatewayOperate, "1") || !tokens.Find("x").Owns("", "1") {
		t.Errorf("%v", err)
	}
}

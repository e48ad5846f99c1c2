package access

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/time/rate"
	"gopkg.in/yaml.v3"

	"rockpool/internal/auth"
)

// Scopes are all that a token of the file may have.
var Scopes = []auth.Scope{auth.GatewayRead, auth.GatewayRun, auth.GatewayEnvironments, auth.GatewayOperate}

// Token is one that is accepted. It is the caller's rights as the pipeline asks for them.
type Token struct {
	Name    string
	Owner   string // what its runners carry; "" = the configuration's own token
	Runners int    // how many it may hold at once; 0 = as many as there are

	sum     [sha256.Size]byte
	scopes  map[auth.Scope]bool
	envs    map[string]bool // nil = all
	limiter *rate.Limiter   // nil = none
}

// May reports whether the token has a scope for an environment.
func (t *Token) May(s auth.Scope, environment string) bool {
	return t.scopes[s] && (t.envs == nil || t.envs[environment])
}

// MaySomewhere reports whether the token has a scope for any environment.
func (t *Token) MaySomewhere(s auth.Scope) bool { return t.scopes[s] }

// MayEverywhere reports whether the token has a scope for all environments, also those that are still to come: for what tells of the whole gateway.
func (t *Token) MayEverywhere(s auth.Scope) bool { return t.scopes[s] && t.envs == nil }

// MayVariable is false: the gateway has no variables.
func (t *Token) MayVariable(auth.Scope, string, string) bool { return false }

// Owns reports whether a runner with this owner is the token's to use. A runner of somebody else looks as if it did not exist.
func (t *Token) Owns(owner, environment string) bool {
	return t.May(auth.GatewayOperate, environment) || t.Owner == owner && (t.envs == nil || t.envs[environment])
}

// same reports whether two readings of the file say the same of a token's rate, so that a reload gives no new burst.
func (t *Token) same(o *Token) bool {
	return o.limiter != nil && t.limiter != nil && t.limiter.Limit() == o.limiter.Limit() && t.limiter.Burst() == o.limiter.Burst()
}

// owner is what runners of a token carry. A hash, so that names of customers are not spread over the cluster.
func owner(name string) string {
	sum := sha256.Sum256([]byte("rockpool-owner/" + name))
	return hex.EncodeToString(sum[:8])
}

// entry is a token in the file.
type entry struct {
	Name         string   `yaml:"name"`
	Token        string   `yaml:"token"`
	SHA256       string   `yaml:"sha256"`
	Scopes       []string `yaml:"scopes"`
	Environments []int    `yaml:"environments"`
	Rate         float64  `yaml:"rate"`
	Burst        int      `yaml:"burst"`
	Runners      int      `yaml:"runners"`
}

// minSecret is how many characters a secret has at least.
const minSecret = 16

// Names of the configuration's own token, and of the caller where there is none.
const ownName, openName = "server.token", "everyone"

var tokenName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// parse reads the file's content. plain reports whether a secret stands in it as it is.
func parse(data []byte) (tokens []*Token, plain bool, err error) {
	var file struct {
		Tokens []entry `yaml:"tokens"`
	}
	d := yaml.NewDecoder(strings.NewReader(string(data)))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		return nil, false, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) { // what is not read must not look as if it held
		return nil, false, cmp.Or(err, errors.New("it has to be one document: what comes after a line --- would not be read"))
	}
	if len(file.Tokens) == 0 {
		return nil, false, errors.New("there is no token in it: list them below tokens, each with name, sha256 and scopes")
	}
	var problems []error
	names, sums := map[string]bool{}, map[[sha256.Size]byte]bool{}
	for i, e := range file.Tokens {
		t, err := e.token()
		switch {
		case err != nil:
			err = fmt.Errorf("token %d (%q): %w", i+1, e.Name, err)
		case names[t.Name]:
			err = fmt.Errorf("token %d: there are two with the name %q", i+1, t.Name)
		case sums[t.sum]:
			err = fmt.Errorf("token %d (%q): another one has the same secret", i+1, t.Name)
		default:
			names[t.Name], sums[t.sum] = true, true
			tokens = append(tokens, t)
		}
		problems = append(problems, err)
		plain = plain || e.Token != ""
	}
	return tokens, plain, errors.Join(problems...)
}

func (e entry) token() (*Token, error) {
	t := &Token{Name: e.Name, Owner: owner(e.Name), Runners: e.Runners, scopes: map[auth.Scope]bool{}}
	switch {
	case !tokenName.MatchString(e.Name):
		return nil, errors.New("name: 1 to 64 letters, digits, dots, hyphens and underscores are needed")
	case e.Name == ownName || e.Name == openName: // what is kept by a token's name must not be shared with these
		return nil, fmt.Errorf("name: %s stands for the configuration's own token or for none: choose another", e.Name)
	case (e.Token == "") == (e.SHA256 == ""):
		return nil, errors.New("either sha256 or token is needed: gateway token NAME makes both")
	case e.Token != "" && len(e.Token) < minSecret:
		return nil, fmt.Errorf("token: at least %d characters are needed", minSecret)
	case e.Rate < 0 || e.Burst < 0 || e.Runners < 0:
		return nil, errors.New("rate, burst and runners must not be negative")
	case e.Burst > 0 && e.Rate == 0:
		return nil, errors.New("burst: it needs a rate")
	case len(e.Scopes) == 0:
		return nil, fmt.Errorf("scopes: at least one of %s is needed", scopeNames())
	}
	if e.SHA256 != "" {
		sum, err := hex.DecodeString(e.SHA256)
		if err != nil || len(sum) != sha256.Size {
			return nil, errors.New("sha256: 64 hexadecimal digits are needed")
		}
		t.sum = [sha256.Size]byte(sum)
	} else {
		t.sum = sha256.Sum256([]byte(e.Token))
	}
	for _, s := range e.Scopes {
		if !slices.Contains(Scopes, auth.Scope(s)) {
			return nil, fmt.Errorf("scopes: %q is none of %s", s, scopeNames())
		}
		t.scopes[auth.Scope(s)] = true
	}
	if len(e.Environments) > 0 {
		t.envs = map[string]bool{}
		for _, id := range e.Environments {
			if id < 0 {
				return nil, fmt.Errorf("environments: %d is not the id of one", id)
			}
			t.envs[strconv.Itoa(id)] = true
		}
	}
	if e.Rate > 0 {
		burst := e.Burst
		if burst == 0 {
			burst = max(1, int(e.Rate)) // what a second brings
		}
		t.limiter = rate.NewLimiter(rate.Limit(e.Rate), burst)
	}
	return t, nil
}

func scopeNames() string {
	var names []string
	for _, s := range Scopes {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// single is the configuration's own token, which may do everything.
func single(secret string) *Token {
	t := &Token{Name: ownName, sum: sha256.Sum256([]byte(secret)), scopes: map[auth.Scope]bool{}}
	for _, s := range Scopes {
		t.scopes[s] = true
	}
	return t
}

// everyone is the caller where no token is configured.
func everyone() *Token {
	t := single("")
	t.Name = openName
	return t
}

// Generate makes a secret for a token, and the token's entry for the file.
func Generate(name string) (secret, text string, err error) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails, by its documentation
	secret = base64.RawURLEncoding.EncodeToString(raw)
	digest := sha256.Sum256([]byte(secret))
	e := entry{Name: name, SHA256: hex.EncodeToString(digest[:]), Scopes: []string{string(auth.GatewayRun), string(auth.GatewayRead)}}
	if _, err := e.token(); err != nil {
		return "", "", err
	}
	return secret, fmt.Sprintf("- name: %s\n  sha256: %s\n  scopes: [%s]\n", e.Name, e.SHA256, strings.Join(e.Scopes, ", ")), nil
}

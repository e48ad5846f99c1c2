// Package introduction makes and reads the tokens by which an operator introduces a node to the servers: JSON Web Tokens (RFC 7519) signed with Ed25519 (RFC 8037),
// with the claims that Nomad's have. A token serves one node, once, within its time; afterwards the node is known by an identity of its own.
package introduction

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Bounds of a token's life.
const (
	DefaultTTL = 5 * time.Minute
	MaxTTL     = 30 * time.Minute
	skew       = 30 * time.Second // that servers' clocks may differ by
)

const (
	issuer    = "rockpool"
	audience  = "rockpool.node-introduction"
	algorithm = "EdDSA"
)

// Claims are what a token says.
type Claims struct {
	ID        string `json:"jti"`
	Issuer    string `json:"iss"`
	Audience  string `json:"aud"`
	Subject   string `json:"sub"`
	IssuedAt  int64  `json:"iat"` // unix seconds, like the next two
	NotBefore int64  `json:"nbf"`
	Expires   int64  `json:"exp"`
	Region    string `json:"nomad_region"`
	NodeName  string `json:"nomad_node_name,omitempty"` // "" = any node
	NodePool  string `json:"nomad_node_pool"`
}

type header struct {
	Algorithm string `json:"alg"`
	Type      string `json:"typ"`
	KeyID     string `json:"kid"`
}

// ErrInvalid is wrapped by every error of Verify. What exactly is wrong is for the log alone.
var ErrInvalid = errors.New("the introduction token is not valid")

// Looks reports whether a token is of the form that Sign gives: three parts.
func Looks(token string) bool { return strings.Count(token, ".") == 2 }

// Sign makes a token. Times, issuer, audience and subject are filled in; ttl is cut to MaxTTL.
func Sign(keyID string, seed []byte, c Claims, now time.Time, ttl time.Duration) (string, error) {
	if len(seed) != ed25519.SeedSize {
		return "", fmt.Errorf("sign an introduction token: the key has %d bytes", len(seed))
	}
	if ttl <= 0 {
		ttl = DefaultTTL
	}
	ttl = min(ttl, MaxTTL)
	c.Issuer, c.Audience = issuer, audience
	c.Subject = "node-introduction:" + c.Region + ":" + c.NodePool + ":" + c.NodeName
	c.IssuedAt, c.NotBefore, c.Expires = now.Unix(), now.Unix(), now.Add(ttl).Unix()
	h, err := json.Marshal(header{algorithm, "JWT", keyID})
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	enc := base64.RawURLEncoding
	signed := enc.EncodeToString(h) + "." + enc.EncodeToString(b)
	return signed + "." + enc.EncodeToString(ed25519.Sign(ed25519.NewKeyFromSeed(seed), []byte(signed))), nil
}

// Verify reads a token. The signature is checked before anything that the token says is looked at, and always as Ed25519: a token does not choose its algorithm.
func Verify(keyID string, seed []byte, token, region string, now time.Time) (Claims, error) {
	refuse := func(why string) (Claims, error) { return Claims{}, fmt.Errorf("%w: %s", ErrInvalid, why) }
	if len(seed) != ed25519.SeedSize {
		return refuse("there is no key")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 || len(token) > 4096 {
		return refuse("it has not three parts")
	}
	enc := base64.RawURLEncoding.Strict()
	sig, err := enc.DecodeString(parts[2])
	if err != nil {
		return refuse("its signature is no base64")
	}
	key, _ := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	if !ed25519.Verify(key, []byte(parts[0]+"."+parts[1]), sig) {
		return refuse("its signature is wrong")
	}
	var h header
	var c Claims
	for i, into := range []any{&h, &c} {
		b, err := enc.DecodeString(parts[i])
		if err != nil {
			return refuse("it is no base64")
		}
		if err := json.Unmarshal(b, into); err != nil {
			return refuse("it is no JSON")
		}
	}
	switch {
	case h.Algorithm != algorithm || h.KeyID != keyID:
		return refuse("it was made with another key")
	case c.Issuer != issuer || c.Audience != audience:
		return refuse("it is for something else")
	case c.Region != region:
		return refuse("it is for another region")
	case c.ID == "":
		return refuse("it has no id")
	case now.Add(skew).Before(time.Unix(c.NotBefore, 0)):
		return refuse("it is not valid yet")
	case !now.Before(time.Unix(c.Expires, 0)):
		return refuse("it has expired")
	case c.Expires-c.NotBefore > int64(MaxTTL/time.Second):
		return refuse("it is valid for too long")
	}
	return c, nil
}

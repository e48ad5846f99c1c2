package peers

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// vouchTime is how old, or how far ahead, by the clock of who reads it, the word of another gateway may be. It is long enough for clocks that differ.
const vouchTime = 2 * time.Minute

// Purposes of a seal: what is sealed for one is nothing for another.
const (
	forMembership = "member"
	forWord       = "word"
)

// errNoWord says that a request does not come from a gateway that has the key.
var errNoWord = errors.New("this is for gateways of the same cluster")

// seal is what only gateways can make that have the key. The length of each part is sealed too, so that none can be moved into the next.
func (g *Group) seal(purpose string, parts ...string) string {
	mac := hmac.New(sha256.New, g.opts.Key)
	for _, part := range append([]string{"rockpool/gateways/1", purpose}, parts...) {
		_ = binary.Write(mac, binary.BigEndian, uint64(len(part))) // a hash takes everything
		_, _ = mac.Write([]byte(part))
	}
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// proof shows that a gateway which has the key wrote where it is reached.
func (g *Group) proof(id, url string) string { return g.seal(forMembership, id, url) }

// proves reports whether a proof is right.
func (g *Group) proves(id, url, proof string) bool {
	return hmac.Equal([]byte(proof), []byte(g.proof(id, url)))
}

// Vouch is this gateway's word to p, for one request: a header's value. about is what it says, such as whose request it passes on. Nobody else can use it,
// and p not for long.
func (g *Group) Vouch(p Peer, r *http.Request, about string) string {
	at := strconv.FormatInt(time.Now().Unix(), 10)
	return strings.Join([]string{at, base64.RawURLEncoding.EncodeToString([]byte(about)), g.seal(forWord, p.ID, r.Method, r.URL.RequestURI(), about, at)}, ".")
}

// Vouched is what another gateway says with a request to this one. The word comes from the header, as Vouch made it.
func (g *Group) Vouched(r *http.Request, word string) (about string, err error) {
	at, rest, _ := strings.Cut(word, ".")
	encoded, seal, _ := strings.Cut(rest, ".")
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || !hmac.Equal([]byte(seal), []byte(g.seal(forWord, g.self, r.Method, r.URL.RequestURI(), string(text), at))) {
		return "", errNoWord
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil || time.Since(time.Unix(seconds, 0)).Abs() > vouchTime {
		return "", errors.New("the word of another gateway is too old: the clocks of the gateways differ by more than " + vouchTime.String())
	}
	return string(text), nil
}

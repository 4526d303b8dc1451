// Package token reads and writes the text that lets a machine join a cluster, in K3s's form:
//
//	K10<sha256 of the cluster's CA file>::<user>:<password>   pinned: says which cluster it is for
//	K10<sha256 of the cluster's CA file>::<id>.<secret>       pinned, made by `skerryd token create`
//	<password> or <id>.<secret>                               bare: both sides prove that they know it
//
// The part in front is not secret. What follows never travels: see pkg/join.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Token is a token's text, taken apart.
type Token struct {
	Pin    string // SHA-256 of the CA file in hexadecimal; "" in a bare token
	User   string // "server" or "node"; "" in a made one. It decides nothing: the server knows what each secret is for
	Secret string // what must be known
}

const prefix = "K10"

var (
	digest = regexp.MustCompile(`^[0-9a-f]{64}$`)
	made   = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)
)

// Parse reads a token's text. Its errors never show the secret.
func Parse(text string) (Token, error) {
	rest, ok := strings.CutPrefix(text, prefix)
	pin, secret, two := strings.Cut(rest, "::")
	switch {
	case text == "":
		return Token{}, errors.New("the token is empty; use the text in server/node-token of the server's data folder, or make one with skerryd token create")
	case !ok || !two && !digest.MatchString(rest[:min(64, len(rest))]):
		return Token{Secret: text}, nil // any other text is a password
	case !two || !digest.MatchString(pin):
		return Token{}, errors.New("the token is cut or mistyped: after K10 come 64 hexadecimal digits, two colons and the secret")
	case made.MatchString(secret):
		return Token{Pin: pin, Secret: secret}, nil
	}
	user, password, ok := strings.Cut(secret, ":")
	if !ok || user == "" || password == "" {
		return Token{}, errors.New("the token is cut or mistyped: after the two colons come user:password or id.secret")
	}
	return Token{Pin: pin, User: user, Secret: password}, nil
}

// String is the text that Parse reads.
func (t Token) String() string {
	switch {
	case t.Pin == "":
		return t.Secret
	case t.User == "":
		return prefix + t.Pin + "::" + t.Secret
	}
	return prefix + t.Pin + "::" + t.User + ":" + t.Secret
}

// Pin names a CA file (PEM) by its first certificate: while a new authority takes an old one's place, both are in the file, the
// new one in front.
func Pin(ca []byte) string {
	if first, _ := pem.Decode(ca); first != nil {
		ca = pem.EncodeToMemory(&pem.Block{Type: first.Type, Bytes: first.Bytes})
	}
	sum := sha256.Sum256(ca)
	return hex.EncodeToString(sum[:])
}

// ID is the public part of a made token's secret; "" for a password.
func ID(secret string) string {
	if m := made.FindStringSubmatch(secret); m != nil {
		return m[1]
	}
	return ""
}

// New makes the secret of a token: 22 letters and digits, the last 16 secret (82 bits).
func New() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	var out []byte
	for len(out) < 22 {
		b := make([]byte, 32)
		_, _ = rand.Read(b) // never fails
		for _, c := range b {
			if c < 252 && len(out) < 22 { // 7 times 36: no letter is likelier than another
				out = append(out, letters[c%36])
			}
		}
	}
	return fmt.Sprintf("%s.%s", out[:6], out[6:])
}

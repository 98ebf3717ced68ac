package xmpptest

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"hash"
	"strings"
	"time"
)

// TLS makes the server's handshake; the error is the client's refusal.
func (c *Conn) TLS(settings *tls.Config) error {
	c.t.Helper()
	secure := tls.Server(c.Conn, settings)
	c.SetDeadline(time.Now().Add(patience))
	if err := secure.Handshake(); err != nil {
		return err
	}
	c.Conn, c.in = secure, bufio.NewReader(secure)
	return nil
}

// Authenticate plays the server's part of SCRAM (RFC 5802 section 3, RFC 7677)
// with the mechanism that the client chose, which it returns. With -PLUS the
// client is bound to this connection by tls-exporter (RFC 9266) or, before TLS
// 1.3, by tls-unique (RFC 5929 section 3). The test fails if the client does
// not know the password.
func (c *Conn) Authenticate(password string) (mechanism string) {
	c.t.Helper()
	const rounds = 4096
	auth := c.Expect("</auth>")
	mechanism = between(auth, `mechanism="`, `"`)
	newHash := sha1.New
	if strings.HasPrefix(mechanism, "SCRAM-SHA-256") {
		newHash = sha256.New
	}
	first := c.text(auth, "</auth>")
	parts := bytes.SplitN(first, []byte(","), 3)
	if len(parts) != 3 {
		c.t.Fatalf("%q is no client-first-message", first)
	}
	bare := string(parts[2])
	binding := bytes.Clone(first[:len(first)-len(bare)])
	if strings.HasSuffix(mechanism, "-PLUS") {
		binding = append(binding, c.binding()...)
	}
	_, nonce, _ := strings.Cut(bare, ",r=")
	nonce += rand.Text()
	salt := rand.Text()
	challenge := fmt.Sprintf("r=%s,s=%s,i=%d", nonce, encode([]byte(salt)), rounds)
	c.Challenge(challenge)
	final := c.text(c.Expect("</response>"), "</response>")

	salted, err := pbkdf2.Key(newHash, password, []byte(salt), rounds, newHash().Size())
	if err != nil {
		c.t.Fatal(err)
	}
	without := "c=" + encode(binding) + ",r=" + nonce
	message := bare + "," + challenge + "," + without
	clientKey := keyed(newHash, salted, "Client Key")
	stored := newHash()
	stored.Write(clientKey)
	proof := keyed(newHash, stored.Sum(nil), message)
	for i := range proof {
		proof[i] ^= clientKey[i]
	}
	if want := without + ",p=" + encode(proof); string(final) != want {
		c.t.Fatalf("the client proves %q, want %q", final, want)
	}
	signature := keyed(newHash, keyed(newHash, salted, "Server Key"), message)
	c.Send("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>" + encode([]byte("v="+encode(signature))) + "</success>")
	return mechanism
}

// Challenge sends a SASL challenge.
func (c *Conn) Challenge(text string) {
	c.t.Helper()
	c.Send("<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>" + encode([]byte(text)) + "</challenge>")
}

// Bind answers the client's request for a resource with an address, and
// returns the request.
func (c *Conn) Bind(full string) (request string) {
	c.t.Helper()
	request = c.Expect("</iq>")
	c.Send("<iq type='result' id='" + between(request, `id="`, `"`) + "'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>" + full + "</jid></bind></iq>")
	return request
}

func (c *Conn) binding() []byte {
	c.t.Helper()
	t, ok := c.Conn.(*tls.Conn)
	if !ok {
		c.t.Fatal("channel binding without TLS")
	}
	state := t.ConnectionState()
	if state.Version < tls.VersionTLS13 {
		return state.TLSUnique
	}
	data, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		c.t.Fatal(err)
	}
	return data
}

// text decodes what stands before the end tag.
func (c *Conn) text(element, end string) []byte {
	c.t.Helper()
	element = strings.TrimSuffix(element, end)
	b, err := base64.StdEncoding.DecodeString(element[strings.LastIndexByte(element, '>')+1:])
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func keyed(newHash func() hash.Hash, key []byte, message string) []byte {
	h := hmac.New(newHash, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func between(s, start, end string) string {
	_, s, _ = strings.Cut(s, start)
	s, _, _ = strings.Cut(s, end)
	return s
}

package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"
)

// TestSecretIsConcealed prints a secret in every way that programs print.
func TestSecretIsConcealed(t *testing.T) {
	const text = "hunter2"
	in := Account{JID: "a@b", Password: NewSecret(text)}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		fmt.Fprintf(&out, verb+"\n", in)
		fmt.Fprintf(&out, verb+"\n", &in)
		fmt.Fprintf(&out, verb+"\n", in.Password)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "account", in, "password", in.Password, "pointer", &in.Password)
	}
	if err := json.NewEncoder(&out).Encode(in); err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{text, fmt.Sprintf("%x", text), fmt.Sprintf("%X", text), fmt.Sprint([]byte(text))} {
		if strings.Contains(out.String(), shown) {
			t.Errorf("the secret shows in\n%s", out.String())
		}
	}
	if in.Password.Reveal() != text || in.Password.IsZero() || !(Secret{}).IsZero() {
		t.Error("the secret is lost")
	}
}

// TestTLSFiles uses a real certificate, by relative paths.
func TestTLSFiles(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "secret", "s3cret", 0o600)
	write(t, dir, "crt.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})), 0o644)
	write(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyBytes})), 0o600)
	in := strings.Replace(good, `"127.0.0.1:5347"`, `"xmpp.example.org:5347", tls: {ca_file: crt.pem, client_cert_file: crt.pem, client_key_file: key.pem}`, 1)
	c, faults := Load(write(t, dir, "c.yaml", in, 0o644), testOptions())
	if faults != nil {
		t.Fatal(faults)
	}
	cfg, err := c.XMPP.Component.TLS.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.RootCAs == nil || len(cfg.Certificates) != 1 || cfg.InsecureSkipVerify {
		t.Errorf("the settings are %+v", cfg)
	}
	if cfg, err := (TLS{}).ClientConfig(); err != nil || cfg.RootCAs != nil || cfg.Certificates != nil {
		t.Errorf("without files the settings are %+v, %v", cfg, err)
	}
}

package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// ClientConfig gives the settings of a connection: the authorities to trust and
// the certificate to show. The server's name is left to the caller, who knows
// whom it means to reach. The files are read anew at each call, so a renewed
// certificate is taken.
func (t TLS) ClientConfig() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		pool, err := readAuthorities(t.CAFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = pool
	}
	if t.ClientCertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.ClientCertFile, t.ClientKeyFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

func readAuthorities(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("cannot read the authorities: %w", errors.New(file+" holds no PEM certificate"))
	}
	return pool, nil
}

// Files gives what the certificate files hold: the gateway's certificate, and
// those who sign the devices'; nil where there are none. They are read anew at
// each call.
func (d DTLS) Files() (*tls.Certificate, *x509.CertPool, error) {
	if d.CertFile == "" {
		return nil, nil, nil
	}
	pair, err := tls.LoadX509KeyPair(d.CertFile, d.KeyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the certificate: %w", err)
	}
	pool, err := readAuthorities(d.ClientCAFile)
	if err != nil {
		return nil, nil, err
	}
	return &pair, pool, nil
}

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	osuser "os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
)

// tryFor bounds each single try.
const tryFor = 10 * time.Second

// The verdicts of a finding.
const (
	verdictGood   = "good"
	verdictLook   = "look" // the gateway can work all the same
	verdictBroken = "broken"
)

// A finding is what came of one try.
type finding struct {
	Verdict  string `json:"verdict"`
	What     string `json:"what"`           // what was tried
	Evidence string `json:"evidence"`       // what was seen
	Next     string `json:"next,omitempty"` // what to do about it, where it is not good
}

func (f finding) String() string {
	line := fmt.Sprintf("%-6s  %s: %s", f.Verdict, f.What, f.Evidence)
	if f.Next != "" {
		line += "; next: " + f.Next
	}
	return line
}

func good(what, evidence string) finding { return finding{verdictGood, what, evidence, ""} }

func look(what, evidence, next string) finding { return finding{verdictLook, what, evidence, next} }

func broken(what, evidence, next string) finding { return finding{verdictBroken, what, evidence, next} }

func (f finding) broken() bool { return f.Verdict == verdictBroken }

// checkOnline tries what the config names, one thing after the other, and
// prints a line for each. It returns errVerdict if anything is broken.
func checkOnline(ctx context.Context, c *config.Config, source clock.Source, w io.Writer) error {
	anyBroken := false
	report := func(f finding) {
		anyBroken = anyBroken || f.broken()
		fmt.Fprintln(w, f)
	}
	report(tryClock(source))
	tryConfigured(ctx, c, source, report)
	if anyBroken {
		return errVerdict
	}
	return ctx.Err()
}

// tryConfigured tries the servers, brokers and ports of a config. Certificates
// are judged as the gateway judges them, by a machine's clock.
func tryConfigured(ctx context.Context, c *config.Config, source clock.Source, report func(finding)) {
	by := func(settings tlsSettings) tlsSettings {
		if settings == nil {
			return nil
		}
		return func() (*tls.Config, error) {
			cfg, err := settings()
			if err == nil {
				cfg.Time = clock.Verifying(source)
			}
			return cfg, err
		}
	}
	reached := false
	if own := c.XMPP.Component; own != nil {
		reached = tryServer(ctx, "xmpp.component", own.Server, by(componentTLS(own)), report)
	}
	if own := c.XMPP.Account; own != nil {
		reached = tryAccount(ctx, own, by, report)
	}
	if reached {
		tryXMPP(ctx, c, source, report)
	}
	if c.MQTT != nil {
		for _, b := range c.MQTT.Brokers {
			address, settings := brokerAddress(b)
			tryServer(ctx, "broker "+b.Name, address, by(settings), report)
		}
	}
	ports := make(map[string]bool)
	for _, d := range c.Devices {
		if d.Serial != nil && !ports[d.Serial.Port] {
			ports[d.Serial.Port] = true // several may be on it
			report(trySerial(d.Serial.Port))
		}
	}
}

// tlsSettings makes the settings for a handshake; nil is none.
type tlsSettings func() (*tls.Config, error)

func componentTLS(c *config.Component) tlsSettings {
	if c.TLS == nil || c.TLS.Mode == config.Off {
		return nil
	}
	return c.TLS.ClientConfig
}

// brokerAddress gives host:port of a broker, by default the port of its scheme.
func brokerAddress(b config.Broker) (string, tlsSettings) {
	u, err := url.Parse(b.URL)
	if err != nil {
		return b.URL, nil // the config was checked
	}
	ports := map[string]string{"mqtt": "1883", "tcp": "1883", "mqtts": "8883", "ssl": "8883", "ws": "80", "wss": "443"}
	address := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), ports[u.Scheme]))
	switch u.Scheme {
	case "mqtts", "ssl", "wss":
		if b.TLS != nil {
			return address, b.TLS.ClientConfig
		}
		return address, config.TLS{}.ClientConfig
	}
	return address, nil
}

// tryAccount finds the server of an account (RFC 6120 section 3.2, XEP-0368)
// and tries it; true is that one was reached. The certificate is to name the
// account's domain, whatever the server's own name.
func tryAccount(ctx context.Context, a *config.Account, by func(tlsSettings) tlsSettings, report func(finding)) (reached bool) {
	_, domain, _ := strings.Cut(a.JID, "@")
	var settings tlsSettings
	service := "xmpp-client"
	if a.TLS.Mode == config.Direct {
		service = "xmpps-client"
		settings = by(func() (*tls.Config, error) {
			cfg, err := a.TLS.ClientConfig()
			if err == nil {
				cfg.ServerName = domain
				cfg.NextProtos = []string{"xmpp-client"}
			}
			return cfg, err
		})
	}
	if a.Server != "" {
		return tryServer(ctx, "xmpp.account", a.Server, settings, report)
	}
	what := fmt.Sprintf("SRV records _%s._tcp.%s", service, domain)
	ctxTry, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	_, records, err := net.DefaultResolver.LookupSRV(ctxTry, service, "tcp", domain)
	var notFound *net.DNSError
	switch {
	case err != nil && errors.As(err, &notFound) && notFound.IsNotFound:
		if service == "xmpps-client" {
			report(broken(what, "there are none", "write server: host:port, or tls: {mode: starttls}"))
			return false
		}
		report(good(what, "there are none, so it is "+domain+" itself"))
		return tryServer(ctx, "xmpp.account", net.JoinHostPort(domain, "5222"), nil, report)
	case err != nil:
		report(broken(what, err.Error(), "check the network and the name servers in /etc/resolv.conf, or write server: host:port"))
		return false
	case len(records) == 1 && records[0].Target == ".":
		report(broken(what, "the domain says that it has no such service", "ask the operator of "+domain+" how to connect"))
		return false
	}
	report(good(what, fmt.Sprintf("%d", len(records))))
	for _, r := range records {
		server := net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port)))
		reached = tryServer(ctx, "xmpp.account", server, settings, report) || reached
	}
	return reached
}

// tryXMPP logs in as the gateway would, STARTTLS included.
func tryXMPP(ctx context.Context, c *config.Config, source clock.Source, report func(finding)) {
	err := agent.TryXMPP(ctx, c, clock.Verifying(source), func(t bridge.Trial) {
		switch {
		case t.Err != nil && t.Harmless:
			report(look(t.Step, t.Err.Error(), t.Next))
			return
		case t.Err != nil:
			report(broken(t.Step, t.Err.Error(), t.Next))
			return
		}
		report(good(t.Step, t.Seen))
	})
	switch {
	case errors.Is(err, agent.ErrRunning):
		report(look("login", err.Error()+", and one component has one session", "read the gateway's log, or stop it and check again"))
	case err != nil:
		report(broken("login", err.Error(), "correct the config"))
	}
}

// tryServer tries to find host:port, to connect, and TLS if that is asked for.
// It stops at what is broken; true is that nothing was.
func tryServer(ctx context.Context, name, address string, settings tlsSettings, report func(finding)) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		report(broken(name, err.Error(), "write host:port"))
		return false
	}
	if _, err := netip.ParseAddr(host); err != nil {
		f := tryDNS(ctx, name, host)
		report(f)
		if f.broken() {
			return false
		}
	}
	what := fmt.Sprintf("TCP %s (%s)", address, name)
	dialer := net.Dialer{Timeout: tryFor}
	start := time.Now()
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		next := "check that the server runs and that no firewall stands between"
		if errors.Is(err, unix.ECONNREFUSED) {
			next = "start the server, or correct the port: nothing listens there"
		}
		report(broken(what, cause(err), next))
		return false
	}
	defer conn.Close()
	report(good(what, fmt.Sprintf("connected to %s in %v", conn.RemoteAddr(), time.Since(start).Round(time.Millisecond))))
	if settings == nil {
		return true
	}
	f := tryTLS(ctx, conn, host, fmt.Sprintf("TLS %s (%s)", address, name), settings)
	report(f)
	return !f.broken()
}

func tryDNS(ctx context.Context, name, host string) finding {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	what := fmt.Sprintf("DNS %s (%s)", host, name)
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return broken(what, err.Error(), "correct the name, or check the network and /etc/resolv.conf")
	}
	return good(what, strings.Join(addresses, ", "))
}

func tryTLS(ctx context.Context, conn net.Conn, host, what string, settings tlsSettings) finding {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	cfg, err := settings()
	if err != nil {
		return broken(what, err.Error(), "correct the files of tls")
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		next := "check that this port speaks TLS"
		var untrusted *tls.CertificateVerificationError
		if errors.As(err, &untrusted) {
			next = "give the server a certificate for " + cfg.ServerName + ", or name its authority in ca_file"
		}
		if bridge.Untimely(err) {
			next = "compare the clock of this machine, timedatectl; where that is right, have the server's certificate renewed"
		}
		return broken(what, err.Error(), next)
	}
	state := secured.ConnectionState()
	until := state.PeerCertificates[0].NotAfter
	return good(what, fmt.Sprintf("%s, certificate for %s until %s", tls.VersionName(state.Version), cfg.ServerName, until.Format(time.DateOnly)))
}

// trySerial looks at a port without opening it: that would pull the lines which
// reset some boards.
func trySerial(port string) finding {
	what := "serial port " + port
	info, err := os.Stat(port)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return broken(what, "is not there", "plug it in; 'ls /dev/serial/by-id' shows what is")
	case err != nil:
		return broken(what, cause(err), "correct the path")
	case info.Mode()&fs.ModeCharDevice == 0:
		return broken(what, "is not a device", "correct the path")
	}
	if err := unix.Access(port, unix.R_OK|unix.W_OK); err != nil {
		group, user := "dialout", "porchlight" // where the package is installed
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if g, err := osuser.LookupGroupId(strconv.Itoa(int(st.Gid))); err == nil && g.Name != "root" {
				group = g.Name
			}
		}
		if u, err := osuser.Current(); err == nil {
			user = u.Username
		}
		return broken(what, fmt.Sprintf("%v for the user %s who runs this", err, user), fmt.Sprintf("sudo usermod -aG %s %s, then log in anew, or start the gateway anew", group, user))
	}
	return good(what, "is there and may be used")
}

// tryClock asks whether the clock is disciplined. The gateway can also take the
// time from the XMPP server, so it is never broken.
func tryClock(source clock.Source) finding {
	now := source.Sample()
	shows := "shows " + now.Wall.UTC().Format(time.DateTime) + " UTC"
	switch {
	case !now.Synced && clock.VerifyTime(source).Sub(now.Wall) > time.Hour:
		return look("clock", shows+", which is long past, and is synchronised with nothing", "timedatectl set-ntp true; and check the network, from which this machine learns the time")
	case !now.Synced:
		return look("clock", shows+", synchronised with nothing", "switch a time service on, for example: timedatectl set-ntp true")
	}
	return good("clock", fmt.Sprintf("%s, wrong by at most %v", shows, now.MaxError.Round(time.Millisecond)))
}

// cause leaves away what a line about an address says already.
func cause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}

package xmppserver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"mellium.im/xmpp/stanza"
)

// asGiven lets the server run with another config than its own.
type asGiven struct {
	kindOf
	config, text string
}

func (g asGiven) prepare(s *Server) (*exec.Cmd, error) {
	cmd, err := g.kindOf.prepare(s)
	if err != nil {
		return nil, err
	}
	return cmd, os.WriteFile(s.path(g.config), []byte(g.text), 0o600)
}

// TestConfigsForPeople runs the servers with what we tell people to add to
// their config, and lets the component create a node.
func TestConfigsForPeople(t *testing.T) {
	for _, c := range []struct {
		kind Kind
		impl kindOf
		file string // the config's name in the server's directory, and in ours
		text func(s *Server, snippet string) string
	}{
		{Prosody, prosody{}, "prosody.cfg.lua", func(s *Server, snippet string) string {
			return fmt.Sprintf("run_as_root = true\ndata_path = %s\ninterfaces = { \"127.0.0.1\" }\n"+
				"c2s_ports = { %d }\ncomponent_ports = { %d }\nmodules_enabled = { \"saslauth\", \"tls\", \"disco\", \"posix\" }\n"+
				"modules_disabled = { \"s2s\" }\nVirtualHost \"localhost\"\n%s",
				luaString(s.path("data")), s.held.c2s, s.held.component, snippet)
		}},
		{Ejabberd, ejabberd{}, "ejabberd.yml", func(s *Server, snippet string) string {
			return strings.NewReplacer(
				"\nlisten:\n", fmt.Sprintf("\nhosts: [localhost]\nlisten:\n  - {port: %d, ip: 127.0.0.1, module: ejabberd_c2s}\n", s.held.c2s),
				"port: 5347", "port: "+strconv.Itoa(s.held.component),
				"\nacl:\n", "\nacl:\n  local: {user_regexp: \"\"}\n  admin: {user: nobody@localhost}\n",
				"\nshaper:\n", "\nshaper:\n  normal: {rate: 3000, burst_size: 20000}\n",
				"\nmodules:\n", "\nmodules:\n  mod_disco: {}\n  mod_caps: {}\n",
			).Replace(snippet)
		}},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			t.Parallel()
			snippet, err := os.ReadFile(filepath.Join("..", "..", "configs", c.file))
			if err != nil {
				t.Fatal(err)
			}
			text := strings.NewReplacer("porch.example.org", domain, "example.org", "localhost").Replace(string(snippet))
			held, err := reserve()
			if err != nil {
				t.Fatal(err)
			}
			defer held.release()
			s := &Server{kind: c.kind, opts: Options{Dir: t.TempDir(), Component: domain}, held: held}
			if err := s.startAs(t.Context(), asGiven{c.impl, c.file, c.text(s, text)}); err != nil {
				t.Fatal(err)
			}
			defer s.Stop()
			session, err := attach(t, s, "a long random text")
			if err != nil {
				t.Fatal(err)
			}
			if err := ask(t, s, session, "gateway@"+domain, stanza.SetIQ, createNode); err != nil {
				t.Errorf("the gateway may not create a node: %v", err)
			}
		})
	}
}

package xmppserver

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"hash"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
)

type prosody struct{}

func (prosody) find(o Options) error {
	if _, err := program("prosody"); err != nil {
		return missing("Prosody", "prosody")
	}
	if o.Storage != "sql" {
		return nil
	}
	for _, dir := range []string{"/usr/lib/*/lua/5.*", "/usr/lib/lua/5.*", "/usr/local/lib/lua/5.*"} {
		if found, err := filepath.Glob(dir + "/dbd/sqlite3.so"); err == nil && len(found) > 0 {
			return nil
		}
	}
	return missing("Prosody with SQL storage", "prosody", "lua-dbi-sqlite3")
}

// The modules are those of Debian's own config which bear on a gateway or its
// operators. storage_archive_item_limit is a limit of the in-memory and file
// storages; below max_items, publishing would fail instead of dropping the
// oldest item.
var prosodyConfig = template.Must(template.New("prosody.cfg.lua").Funcs(template.FuncMap{"lua": luaString}).Parse(`
run_as_root = true
data_path = {{lua .Data}}
{{- if .MaxPayload}}
plugin_paths = { {{lua .Modules}} }
{{- end}}
log = { { levels = { min = "info" }, to = "file", filename = "/dev/stdout" } }

interfaces = { "127.0.0.1" }
local_interfaces = { "127.0.0.1" }
c2s_ports = { {{.C2S}} }
c2s_direct_tls_ports = { {{.TLS}} }
component_ports = { {{.ComponentPort}} }

modules_enabled = {
	"roster", "saslauth", "tls", "disco", "blocklist", "bookmarks", "carbons",
	"pep", "private", "smacks", "vcard4", "vcard_legacy", "csi_simple",
	"ping", "time", "uptime", "version", "posix",{{if .Shaper}} "limits",{{end}}{{if .Invites}} "invites", "invites_register", "invites_adhoc", "adhoc",{{end}}{{if .WebSocket}} "websocket",{{end}}
}
modules_disabled = { "s2s", "s2s_auth_certs" }
{{- if .NoNagle}}
network_settings = { nagle = false }
{{- end}}
{{- if .Shaper}}
limits = { c2s = { rate = "10kb/s" } }
{{- end}}

{{- if .WebSocket}}
http_ports = { {{.HTTP}} }
http_interfaces = { "127.0.0.1" }
https_ports = { }
consider_websocket_secure = true
{{- end}}

{{- if .Invites}}
allow_registration = true
registration_invite_only = true
allow_user_invites = true
{{- end}}

authentication = "internal_hashed"
password_hash = "{{if .SCRAM256}}SHA-256{{else}}SHA-1{{end}}"
disable_sasl_mechanisms = { {{if not .Plain}}"PLAIN", {{end}}"DIGEST-MD5" }
c2s_require_encryption = {{not .AllowPlaintext}}
ssl = { certificate = {{lua .Cert}}, key = {{lua .Key}} }

storage = {
	accounts = "internal",
	{{- if .Storage}}
	pubsub_nodes = {{lua .Storage}}, pubsub_data = {{lua .Storage}},
	pep = {{lua .Storage}}, pep_data = {{lua .Storage}},
	{{- end}}
}
sql = { driver = "SQLite3", database = "prosody.sqlite" }
{{- if .MaxItems}}
pubsub_max_items = {{.MaxItems}}
pep_max_items = {{.MaxItems}}
storage_archive_item_limit = {{.ItemLimit}}
{{- end}}

VirtualHost "localhost"
{{- if .Component}}

Component {{lua .Component}}
	component_secret = {{lua .Secret}}
	component_conflict_resolve = "kick_old"
{{- end}}

Component "rooms.localhost" "muc"

Component "pubsub.localhost" "pubsub"
	admins = { {{range .NodeCreators}}{{lua .}}, {{end}}}
{{- if .MaxPayload}}
	modules_enabled = { "payload_limit" }
	payload_limit = {{.MaxPayload}}
{{- end}}
`))

// payloadLimit is a module of Prosody, which has no such limit of its own.
const payloadLimit = `
local st = require "util.stanza";
local limit = module:get_option_number("payload_limit");
module:hook("iq/host/http://jabber.org/protocol/pubsub:pubsub", function (event)
	local publish = event.stanza.tags[1]:get_child("publish");
	local item = publish and publish:get_child("item");
	if item and #tostring(item) > limit then
		local reply = st.error_reply(event.stanza, "modify", "not-acceptable");
		event.origin.send(reply:tag("payload-too-big", { xmlns = "http://jabber.org/protocol/pubsub#errors" }));
		return true;
	end
end, 10);
`

func (prosody) prepare(s *Server) (*exec.Cmd, error) {
	path, err := program("prosody")
	if err != nil {
		return nil, err
	}
	data := s.path("data")
	accounts := filepath.Join(data, "localhost", "accounts")
	if err := os.MkdirAll(accounts, 0o700); err != nil {
		return nil, err
	}
	for user, password := range s.opts.Users {
		account, err := prosodyAccount(password, hashOf(s.opts))
		if err != nil {
			return nil, fmt.Errorf("account %s: %w", user, err)
		}
		if err := os.WriteFile(filepath.Join(accounts, prosodyFileName(user)+".dat"), account, 0o600); err != nil {
			return nil, err
		}
	}
	if s.opts.MaxPayload > 0 {
		if err := os.MkdirAll(s.path("modules"), 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(s.path("modules"), "mod_payload_limit.lua"), []byte(payloadLimit), 0o600); err != nil {
			return nil, err
		}
	}
	var config bytes.Buffer
	err = prosodyConfig.Execute(&config, struct {
		Options
		Data, Cert, Key, Modules      string
		C2S, TLS, ComponentPort, HTTP int
		ItemLimit                     int
	}{s.opts, data, s.path(certFile), s.path(keyFile), s.path("modules"),
		s.held.c2s, s.held.tls, s.held.component, s.held.http,
		max(10000, s.opts.MaxItems+100)})
	if err != nil {
		return nil, err
	}
	file := s.path("prosody.cfg.lua")
	if err := os.WriteFile(file, config.Bytes(), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "-F", "--config", file)
	cmd.Env = s.environment()
	return cmd, nil
}

// settled: Prosody loads everything before it answers anybody.
func (prosody) settled(*Server) bool { return true }

// prosodyAccount is an account as mod_auth_internal_hashed keeps it: the keys
// of RFC 5802 section 3, in hexadecimal.
func prosodyAccount(password string, newHash func() hash.Hash) ([]byte, error) {
	const iterations = 10000 // Prosody's default
	salt := rand.Text()
	salted, err := pbkdf2.Key(newHash, password, []byte(salt), iterations, newHash().Size())
	if err != nil {
		return nil, err
	}
	keyed := func(what string) []byte {
		h := hmac.New(newHash, salted)
		h.Write([]byte(what))
		return h.Sum(nil)
	}
	storedKey := newHash()
	storedKey.Write(keyed("Client Key"))
	return fmt.Appendf(nil, "return { salt = %s, iteration_count = %d, stored_key = \"%x\", server_key = \"%x\" };\n",
		luaString(salt), iterations, storedKey.Sum(nil), keyed("Server Key")), nil
}

func hashOf(o Options) func() hash.Hash {
	if o.SCRAM256 {
		return sha256.New
	}
	return sha1.New
}

// prosodyFileName encodes a local part as util/datamanager.lua does.
func prosodyFileName(user string) string {
	var b strings.Builder
	for _, c := range []byte(user) {
		if c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}

// luaString writes s as a string of Lua, in which every byte can be given in
// decimal.
func luaString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(s) {
		if c < ' ' || c == '"' || c == '\\' || c > '~' {
			fmt.Fprintf(&b, `\%03d`, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Invite makes an invitation to an account (XEP-0401), as the operator of a
// Prosody with [Options.Invites] does on its command line.
func (s *Server) Invite(ctx context.Context) (uri string, err error) {
	ctl, err := program("prosodyctl")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, ctl, "--config", s.path("prosody.cfg.lua"), "mod_invites", "generate", "localhost")
	cmd.Env = s.environment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("cannot make an invitation: %w\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "xmpp:") {
			return strings.TrimSpace(line), nil
		}
	}
	return "", fmt.Errorf("cannot make an invitation: prosodyctl says %s", out)
}

package xmppserver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

type ejabberd struct{}

func (ejabberd) find(Options) error {
	_, erl := program("erl")
	_, libs := ejabberdLibs()
	if erl != nil || libs != nil {
		return missing("ejabberd", "ejabberd")
	}
	return nil
}

// ejabberdLibs is the directory in which Debian keeps the program and the
// Erlang libraries it needs. Its /usr/sbin/ejabberdctl knows it too, but that
// insists on a user of its own and starts epmd, a daemon which stays behind.
func ejabberdLibs() (string, error) {
	for _, dir := range []string{"/usr/lib/*", "/usr/lib", "/usr/local/lib"} {
		found, err := filepath.Glob(dir + "/ejabberd-*/ebin/ejabberd.app")
		if err == nil && len(found) > 0 {
			return filepath.Dir(filepath.Dir(filepath.Dir(found[0]))), nil
		}
	}
	return "", errors.New("ejabberd's libraries are not there")
}

// The modules are those of Debian's own config which bear on a gateway or its
// operators, and mod_time (XEP-0202), which that lacks. mod_fail2ban is left
// out: it would shut out 127.0.0.1, and so everybody, after a wrong password.
var ejabberdConfig = template.Must(template.New("ejabberd.yml").Funcs(template.FuncMap{"q": strconv.Quote}).Parse(`
loglevel: info
log_rotate_count: 0
hosts: [localhost]
certfiles: [{{q .PEM}}]

listen:
  - port: {{.C2S}}
    ip: 127.0.0.1
    module: ejabberd_c2s
    max_stanza_size: 262144
    starttls: true
    starttls_required: {{not .AllowPlaintext}}
    {{- if .Shaper}}
    shaper: c2s_shaper
    {{- end}}
  - port: {{.TLS}}
    ip: 127.0.0.1
    module: ejabberd_c2s
    max_stanza_size: 262144
    tls: true
    {{- if .Shaper}}
    shaper: c2s_shaper
    {{- end}}
{{- if .Component}}
  - port: {{.ComponentPort}}
    ip: 127.0.0.1
    module: ejabberd_service
    hosts:
      {{q .Component}}: {password: {{q .Secret}}}
{{- end}}

s2s_access: none
auth_password_format: scram
auth_scram_hash: {{if .SCRAM256}}sha256{{else}}sha{{end}}
disable_sasl_mechanisms: [PLAIN, DIGEST-MD5, X-OAUTH2]

acl:
  node_creators:
    user: [{{range .NodeCreators}}{{q .}}, {{end}}]
    {{- if .Component}}
    server: [{{q .Component}}]
    {{- end}}
access_rules:
  create_nodes: {allow: node_creators}
{{- if .Shaper}}
shaper:
  normal: {rate: 3000, burst_size: 20000}
shaper_rules:
  c2s_shaper: normal
{{- end}}

modules:
  mod_adhoc: {}
  mod_blocking: {}
  mod_caps: {}
  mod_carboncopy: {}
  mod_client_state: {}
  mod_disco: {}
  mod_last: {}
  mod_muc: {host: rooms.localhost}
  mod_offline: {}
  mod_ping: {}
  mod_privacy: {}
  mod_private: {}
  mod_pubsub:
    access_createnode: create_nodes
    plugins: [flat, pep]
    {{- if .MaxItems}}
    max_items_node: {{.MaxItems}}
    {{- end}}
  mod_roster: {versioning: true}
  mod_stream_mgmt: {resend_on_timeout: if_offline}
  mod_time: {}
  mod_vcard: {search: false}
  mod_version: {}
`))

// Evaluated after ejabberd has started, so that who has another password now
// may have come in with the one before. The passwords come from a file
// because everybody can read a command line.
const ejabberdRegister = `{ok, Users} = file:consult("users.terms"),
	[case ejabberd_auth:try_register(User, <<"localhost">>, Password) of
		ok -> ok;
		{error, exists} ->
			case ejabberd_auth:check_password(User, <<>>, <<"localhost">>, Password) of
				true -> ok;
				false ->
					ok = ejabberd_auth:set_password(User, <<"localhost">>, Password),
					ejabberd_sm:kick_user(User, <<"localhost">>)
			end
	end || {User, Password} <- Users],
	ok = file:write_file("users.done", <<>>).`

func (ejabberd) prepare(s *Server) (*exec.Cmd, error) {
	erl, err := program("erl")
	if err != nil {
		return nil, err
	}
	libs, err := ejabberdLibs()
	if err != nil {
		return nil, err
	}
	var config bytes.Buffer
	err = ejabberdConfig.Execute(&config, struct {
		Options
		PEM                     string
		C2S, TLS, ComponentPort int
	}{s.opts, s.path(bothFile), s.held.c2s, s.held.tls, s.held.component})
	if err != nil {
		return nil, err
	}
	var users bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(s.opts.Users)) {
		fmt.Fprintf(&users, "{%s, %s}.\n", erlangBinary(name), erlangBinary(s.opts.Users[name]))
	}
	if err := os.Remove(s.path("users.done")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	err = writeFiles(s.opts.Dir, map[string][]byte{
		"ejabberd.yml": config.Bytes(),
		"users.terms":  users.Bytes(),
		// Without this Erlang starts a helper program for each name it looks up.
		"inetrc": []byte("{lookup, [file]}.\n{host, {127,0,0,1}, [\"localhost\"]}.\n"),
	})
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(erl,
		// No -sname: a node without a name needs no epmd, and any number of
		// them run side by side.
		"-noinput",
		"+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none", // do not burn the processor while idle
		"-mnesia", "dir", `"mnesia"`,
		"-s", "ejabberd",
		"-eval", ejabberdRegister)
	cmd.Env = s.environment(
		"ERL_LIBS="+libs,
		"ERL_INETRC="+s.path("inetrc"),
		"ERL_CRASH_DUMP_BYTES=0",
		"EJABBERD_CONFIG_PATH="+s.path("ejabberd.yml"),
		"EJABBERD_LOG_PATH="+s.path("ejabberd.log"))
	return cmd, nil
}

// settled: ejabberd answers before the accounts are there.
func (ejabberd) settled(s *Server) bool {
	_, err := os.Stat(s.path("users.done"))
	return err == nil
}

// erlangBinary writes s as a binary of Erlang, byte by byte, which spares
// every question of quoting.
func erlangBinary(s string) string {
	digits := make([]string, len(s))
	for i := range len(s) {
		digits[i] = strconv.Itoa(int(s[i]))
	}
	return "<<" + strings.Join(digits, ",") + ">>"
}

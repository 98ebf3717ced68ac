package config

import (
	"maps"
	"strings"
	"testing"
)

func TestTakeSecrets(t *testing.T) {
	for name, c := range map[string]struct {
		in, out string
		secrets map[string]string
		fault   string
	}{
		"each place": {
			"xmpp:\n  account: {jid: pi@example.org, password: 'it''s \"so\"', server: x} # mine\n" +
				"mqtt:\n  users:\n    - {name: Küche, password: grün ist}\n    - name: hall\n      password: \"a\\u0062\\\"c\" # the hall's\n" +
				"coap: {dtls: {psk: k1}}\n",
			"xmpp:\n  account: {jid: pi@example.org, password_file: xmpp-account-password, server: x} # mine\n" +
				"mqtt:\n  users:\n    - {name: Küche, password_file: mqtt-users-k-che-password}\n    - name: hall\n      password_file: mqtt-users-hall-password # the hall's\n" +
				"coap: {dtls: {psk_file: coap-dtls-psk}}\n",
			map[string]string{
				"xmpp-account-password": `it's "so"`, "mqtt-users-k-che-password": "grün ist",
				"mqtt-users-hall-password": `ab"c`, "coap-dtls-psk": "k1",
			}, "",
		},
		"another system's editor": {
			"\xef\xbb\xbfxmpp:\r\n  component:\r\n    secret: two words \r\n    domain: porch.example.org\r\n",
			"xmpp:\n  component:\n    secret_file: xmpp-component-secret \n    domain: porch.example.org\n",
			map[string]string{"xmpp-component-secret": "two words"}, "",
		},
		"two of a line after umlauts": {
			"mqtt: {users: [{name: ä, password: ü1}, {name: ä, password: ü2}]}\n",
			"mqtt: {users: [{name: ä, password_file: mqtt-users-password}, {name: ä, password_file: mqtt-users-password-2}]}\n",
			map[string]string{"mqtt-users-password": "ü1", "mqtt-users-password-2": "ü2"}, "",
		},
		"a WiFi": {
			"xmpp: {}\n# mine\nwifi:\n  name: home\n  password: |-\n    12345678\n# xmpp's\n\nmqtt: {users: [{name: a, password: b}]}\n",
			"xmpp: {}\n# mine\n\n\n\n\n# xmpp's\n\nmqtt: {users: [{name: a, password_file: mqtt-users-a-password}]}\n",
			map[string]string{"mqtt-users-a-password": "b"}, "",
		},
		"a WiFi whose end is none": {"wifi:\n  name: home\n  password: \"12345678\n#9\"\nxmpp: {}\n", "", nil, "c.yaml:"},
		"none":                     {"xmpp: {account: {password_file: x}}\n", "xmpp: {account: {password_file: x}}\n", map[string]string{}, ""},
		"no YAML":                  {"xmpp: [", "xmpp: [", map[string]string{}, ""},
		"nothing":                  {"", "", map[string]string{}, ""},
		"empty":                    {"xmpp: {account: {password: }}\n", "", nil, "c.yaml:1:28: xmpp.account.password: is empty; allowed: a text in one line; write the secret"},
		"in blocks":                {"xmpp:\n  account:\n    password: |\n      a\n      b\n", "", nil, "c.yaml:3:15: xmpp.account.password: cannot be taken over as it is written"},
	} {
		t.Run(name, func(t *testing.T) {
			got, faults := TakeSecrets("c.yaml", []byte(c.in))
			if c.fault != "" {
				if len(faults) != 1 || !strings.HasPrefix(faults[0].String(), c.fault) {
					t.Fatalf("faults %v", faults)
				}
				return
			}
			if len(faults) > 0 || string(got.Text) != c.out || !maps.Equal(got.Secrets, c.secrets) {
				t.Errorf("got\n%s%q %v\nwant\n%s%q", got.Text, got.Secrets, faults, c.out, c.secrets)
			}
		})
	}
}

func FuzzTakeSecrets(f *testing.F) {
	f.Add([]byte("xmpp: {account: {password: 'a''b', x: \"\\\"\"}}\n"))
	f.Add([]byte("xmpp: {}\nwifi: {name: a, password: \"12345678\"}\nmqtt: {psk: a}\n"))
	f.Add([]byte("? [password]\n: {psk: &a b}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, faults := TakeSecrets("c.yaml", text)
		if len(faults) > 0 {
			return
		}
		// What was taken over has nothing more to take.
		again, _ := TakeSecrets("c.yaml", got.Text)
		if len(again.Secrets) > 0 {
			t.Errorf("%q became %q, which still has %q", text, got.Text, again.Secrets)
		}
	})
}

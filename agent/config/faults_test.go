package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestFaults holds the words that people read. Each case changes the good file
// and gives all faults of the outcome.
func TestFaults(t *testing.T) {
	const component = `component: {domain: gw.example.org, server: "127.0.0.1:5347", secret_file: secret}`
	const account = `account: {jid: gw@example.org, password_file: secret}`
	const kitchen = `{id: kitchen, profile: tasmota, mqtt: {topic: kitchen}}`
	const house = `{name: house, url: "mqtt://127.0.0.1:1883"}`
	const anna = `{jid: anna@example.org, role: owner}`
	tests := map[string]struct{ old, new, want string }{
		"unknown keys everywhere": {"pubsub:", "pubsubb:", "" +
			"c.yaml:2:1: xmpp.pubsub: is missing; allowed: the address of a publish-subscribe service; add it, for example pubsub.example.org\n" +
			"c.yaml:4:3: xmpp.pubsubb: is not a known key; allowed: keys component, account, pubsub, log_payload, rooms; did you mean \"pubsub\"?"},
		"nothing": {good, "", "c.yaml:1:1: xmpp: is missing; allowed: a mapping with the keys component, account, pubsub, log_payload, rooms; add it"},
		"syntax":  {"gateway: {", "gateway: {{", "c.yaml:2:1: (document): cannot be read as YAML: did not find expected ',' or '}'; allowed: YAML; check indentation, quotes and brackets at this line and the one above"},
		"gateway id": {"id: gw", "id: My Gateway",
			`c.yaml:1:15: gateway.id: "My Gateway" is not an id; allowed: 1 to 40 of a-z, 0-9 and '-'; write for example my-gateway`},
		"empty gateway id": {"id: gw", `id: ""`,
			`c.yaml:1:15: gateway.id: "" is not an id; allowed: 1 to 40 of a-z, 0-9 and '-'; choose another`},

		"neither": {component, "log_payload: senml",
			`c.yaml:2:1: xmpp: has neither component nor account; allowed: exactly one of component, account; add component, or account if the gateway has an account on a server`},
		"both": {component, component + "\n  " + account,
			`c.yaml:4:3: xmpp.account: stands beside component; allowed: exactly one of component, account; remove one of the two`},
		"payload": {"pubsub: pubsub.example.org", "pubsub: pubsub.example.org\n  log_payload: xml",
			`c.yaml:5:16: xmpp.log_payload: "xml" is not one of the allowed values; allowed: senml, fields; choose one of them`},
		"pep of a component": {"pubsub: pubsub.example.org", "pubsub: pep",
			`c.yaml:4:11: xmpp.pubsub: a component has no nodes of its own; allowed: the address of a publish-subscribe service; write its address, for example pubsub.example.org`},
		"pubsub with a node": {"pubsub: pubsub.example.org", "pubsub: pubsub.example.org/x",
			`c.yaml:4:11: xmpp.pubsub: "pubsub.example.org/x" has a resource, which follows the /; allowed: the address of a service; write pubsub.example.org`},
		"domain is an address": {"domain: gw.example.org", "domain: gw@example.org",
			`c.yaml:3:23: xmpp.component.domain: "gw@example.org" is not such an address; allowed: a domain; write for example pi.iot.example.org`},
		"domain refused": {"domain: gw.example.org", "domain: gw♥example.org",
			`c.yaml:3:23: xmpp.component.domain: "gw♥example.org" is not such an address: has a heart; allowed: a domain; write for example pi.iot.example.org`},
		"server without port": {`"127.0.0.1:5347"`, `"::1"`,
			`c.yaml:3:47: xmpp.component.server: "::1" is not a server and port; allowed: host:port, with a number from 1 to 65535 as port; an IPv6 address in brackets; write for example 127.0.0.1:5347`},
		"server elsewhere": {`"127.0.0.1:5347"`, `"xmpp.example.org:5347"`,
			`c.yaml:3:47: xmpp.component.server: is on another machine, and a component's protocol (XEP-0114) is plain text; allowed: a server on this machine, or tls, or insecure: true; add tls: {mode: direct} if the server offers it, or insecure: true inside a VPN`},
		"server elsewhere, insecure": {`"127.0.0.1:5347"`, `"xmpp.example.org:5347", insecure: true`, ``},
		"server elsewhere, tls":      {`"127.0.0.1:5347"`, `"xmpp.example.org:5347", tls: {}`, ``},
		"server elsewhere, tls off": {`"127.0.0.1:5347"`, `"xmpp.example.org:5347", tls: {mode: off}`,
			`c.yaml:3:47: xmpp.component.server: is on another machine, and a component's protocol (XEP-0114) is plain text; allowed: a server on this machine, or tls, or insecure: true; add tls: {mode: direct} if the server offers it, or insecure: true inside a VPN`},
		"component with starttls": {`"127.0.0.1:5347"`, `"[::1]:5347", tls: {mode: starttls}`,
			`c.yaml:3:73: xmpp.component.tls.mode: a component's protocol (XEP-0114) has no STARTTLS; allowed: direct, off; write direct`},
		"no secret": {", secret_file: secret", "",
			`c.yaml:3:3: xmpp.component.secret_file: is missing; allowed: one of secret_file, secret_env; add it; the file needs mode 0600`},
		"two secrets": {"secret_file: secret", "secret_file: secret, secret_env: X",
			`c.yaml:3:98: xmpp.component.secret_env: stands beside secret_file; allowed: one of secret_file, secret_env; remove one of the two`},
		"secret for all": {"secret_file: secret", "secret_file: open",
			`c.yaml:3:78: xmpp.component.secret_file: DIR/open can be read by others (mode 0640); allowed: mode 0600; run chmod 600 DIR/open`},
		"empty secret": {"secret_file: secret", "secret_file: empty",
			`c.yaml:3:78: xmpp.component.secret_file: DIR/empty is empty; allowed: a file that holds the secret; write the secret into it`},
		"no secret there": {"secret_file: secret", "secret_file: none",
			`c.yaml:3:78: xmpp.component.secret_file: cannot read DIR/none: no such file or directory; allowed: a file that can be read; make it, or correct the path`},
		"secret is a directory": {"secret_file: secret", "secret_file: .",
			`c.yaml:3:78: xmpp.component.secret_file: DIR is not a file; allowed: a file that holds the secret; name the file`},
		"secret of lines": {"secret_file: secret", "secret_file: lines",
			`c.yaml:3:78: xmpp.component.secret_file: DIR/lines has more than one line, or control characters; allowed: one line; leave only the secret in it`},
		"secret without end": {"secret_file: secret", "secret_file: long",
			`c.yaml:3:78: xmpp.component.secret_file: DIR/long is too long for a secret; allowed: at most 64KiB; name another file`},
		"variable not set": {"secret_file: secret", "secret_env: PORCHLIGHT_TEST_NONE",
			`c.yaml:3:77: xmpp.component.secret_env: the environment variable "PORCHLIGHT_TEST_NONE" is not set; allowed: the name of a variable that holds the secret; set it for the service, or use secret_file`},
		"empty secret path": {"secret_file: secret", `secret_file: ""`,
			`c.yaml:3:78: xmpp.component.secret_file: names no file; allowed: the path of a file; write the path`},
		"secret key unreadable": {"secret_file: secret", `secret_file: [x]`,
			`c.yaml:3:65: xmpp.component.secret_file: is a list; allowed: a text; write one value`},

		"account":                  {component, account, ``},
		"account of its own nodes": {component + "\n  pubsub: pubsub.example.org", account + "\n  pubsub: pep", ``},
		"account asks":             {component + "\n  pubsub: pubsub.example.org", account, ``},
		"account with resource": {component, `account: {jid: gw@example.org/x, password_file: secret, server: "example.org:0"}`, "" +
			`c.yaml:3:18: xmpp.account.jid: "gw@example.org/x" has a resource, which follows the /; allowed: an address without a resource; write gw@example.org` + "\n" +
			`c.yaml:3:67: xmpp.account.server: "example.org:0" is not a server and port; allowed: host:port, with a number from 1 to 65535 as port; an IPv6 address in brackets; write for example 127.0.0.1:5347`},
		"account in the clear": {component, `account: {jid: gw@example.org, password_file: secret, tls: {mode: off}}`,
			`c.yaml:3:69: xmpp.account.tls.mode: off would send everything in the clear to another machine; allowed: starttls, direct; off only with a server on this machine; write starttls`},
		"account in the clear, here": {component, `account: {jid: gw@localhost, password_file: secret, server: "localhost:5222", tls: {mode: off}}`, ``},
		"authorities": {component, `account: {jid: gw@example.org, password_file: secret, tls: {ca_file: secret}}`,
			`c.yaml:3:72: xmpp.account.tls.ca_file: cannot read the authorities: DIR/secret holds no PEM certificate; allowed: a PEM file of certificates; name a file that holds the certificate of the authority`},
		"certificate without key": {component, `account: {jid: gw@example.org, password_file: secret, tls: {client_cert_file: x}}`,
			`c.yaml:3:81: xmpp.account.tls.client_cert_file: has no key; allowed: client_cert_file and client_key_file together; add client_key_file`},
		"key without certificate": {component, `account: {jid: gw@example.org, password_file: secret, tls: {client_key_file: secret}}`,
			`c.yaml:3:80: xmpp.account.tls.client_key_file: has no certificate; allowed: client_cert_file and client_key_file together; add client_cert_file`},
		"key for all": {component, `account: {jid: gw@example.org, password_file: secret, tls: {client_key_file: open, client_cert_file: open}}`,
			`c.yaml:3:80: xmpp.account.tls.client_key_file: DIR/open can be read by others (mode 0640); allowed: mode 0600; run chmod 600 DIR/open`},
		"no certificate": {component, `account: {jid: gw@example.org, password_file: secret, tls: {client_key_file: secret, client_cert_file: secret}}`,
			`c.yaml:3:106: xmpp.account.tls.client_cert_file: cannot read the client certificate: tls: failed to find any PEM data in certificate input; allowed: PEM files of a certificate and its key; name two files that belong together`},
		"rooms": {"pubsub: pubsub.example.org", "pubsub: pubsub.example.org\n  rooms: [{jid: conference.example.org, send: [readings]}]", "" +
			`c.yaml:5:17: xmpp.rooms[0].jid: "conference.example.org" is not such an address; allowed: an address without a resource; write for example anna@example.org` + "\n" +
			`c.yaml:5:48: xmpp.rooms[0].send[0]: "readings" is not one of the allowed values; allowed: alarms; choose one of them`},

		"role": {"role: owner", "role: ownr", `c.yaml:6:35: operators[0].role: "ownr" is not one of the allowed values; allowed: viewer, operator, installer, owner; did you mean "owner"?`},
		"everybody of a domain": {"jid: anna@example.org", "jid: example.org",
			`c.yaml:6:11: operators[0].jid: "example.org" is not such an address; allowed: an address without a resource; write for example anna@example.org`},
		"patterns": {anna, `{jid: anna@example.org, role: owner, devices: [Kitchen, "[a", "kitchen-*", ""]}`, "" +
			`c.yaml:6:52: operators[0].devices[0]: "Kitchen" cannot match a device's id; allowed: ids, with * ? and [a-z] as in file names; write for example kitchen-*` + "\n" +
			`c.yaml:6:61: operators[0].devices[1]: "[a" cannot match a device's id; allowed: ids, with * ? and [a-z] as in file names; write for example kitchen-*` + "\n" +
			`c.yaml:6:80: operators[0].devices[3]: "" cannot match a device's id; allowed: ids, with * ? and [a-z] as in file names; write for example kitchen-*`},
		"hours": {anna, `{jid: anna@example.org, role: owner, hours: "Mon-Fry 8-18"}`,
			`c.yaml:6:49: operators[0].hours: "Fry" is not a day (Mon, Tue, Wed, Thu, Fri, Sat, Sun); allowed: days, times, and a time zone if not the system's; write for example Mon-Fri 08:00-18:00 Europe/Berlin`},
		"until": {anna, `{jid: anna@example.org, role: owner, until: 2027-02-30}`,
			`c.yaml:6:49: operators[0].until: "2027-02-30" is not a date; allowed: year-month-day; write for example 2027-01-01`},

		"open broker": {"  brokers:", "  listen: :1883\n  brokers:",
			`c.yaml:8:11: mqtt.listen: is open to other machines, and there are no users; allowed: an address of this machine, or users; add users, or write 127.0.0.1 before the port`},
		"listen": {"  brokers:", "  listen: house:1883\n  brokers:",
			`c.yaml:8:11: mqtt.listen: "house" is not an address of this machine; allowed: an IP address, localhost, or nothing for all addresses; write for example 127.0.0.1:1883, or :1883 for all addresses`},
		"listen on a number": {"  brokers:", "  listen: 1883\n  brokers:",
			`c.yaml:8:11: mqtt.listen: "1883" is not an address to listen on; allowed: address:port, with a number from 0 to 65535 as port; write for example 127.0.0.1:1883, or :1883 for all addresses`},
		"users for nothing": {"  brokers:", "  users: [{name: a, password_file: secret}]\n  brokers:",
			`c.yaml:8:3: mqtt.users: belong to the gateway's own broker, and there is none; allowed: users together with listen; add listen, or remove users`},
		"users": {"  brokers:", "  listen: 127.0.0.1:1883\n  users: [{name: a, password_file: secret}, {name: a}]\n  brokers:", "" +
			`c.yaml:9:45: mqtt.users[1].password_file: is missing; allowed: one of password_file, password_env; add it; the file needs mode 0600` + "\n" +
			`c.yaml:9:52: mqtt.users[1].name: "a" stands there twice; allowed: each name once; choose another, or remove one of the two`},
		"scheme":      {"mqtt://127.0.0.1:1883", "mqttt://127.0.0.1:1883", `c.yaml:9:26: mqtt.brokers[0].url: does not begin with one of the schemes; allowed: urls of mqtt, mqtts, tcp, ssl, ws, wss; did you mean "mqtt"?`},
		"no url":      {"mqtt://127.0.0.1:1883", "127.0.0.1:1883", `c.yaml:9:26: mqtt.brokers[0].url: is not a url; allowed: urls of mqtt, mqtts, tcp, ssl, ws, wss; write for example mqtt://127.0.0.1`},
		"no host":     {"mqtt://127.0.0.1:1883", "mqtt://:1883", `c.yaml:9:26: mqtt.brokers[0].url: has no host; allowed: urls of mqtt, mqtts, tcp, ssl, ws, wss; write for example mqtt://127.0.0.1`},
		"bad port":    {"mqtt://127.0.0.1:1883", "mqtt://127.0.0.1:0", `c.yaml:9:26: mqtt.brokers[0].url: has a port that is not a number from 1 to 65535; allowed: urls of mqtt, mqtts, tcp, ssl, ws, wss; write for example mqtt://127.0.0.1`},
		"path":        {"mqtt://127.0.0.1:1883", "mqtt://127.0.0.1/kitchen", `c.yaml:9:26: mqtt.brokers[0].url: has a path, which only ws and wss have; allowed: mqtt://host:port; remove what follows the port; topics belong to devices`},
		"user in url": {"mqtt://127.0.0.1:1883", "mqtt://u:hunter2@127.0.0.1", `c.yaml:9:26: mqtt.brokers[0].url: has a user name in it; allowed: urls of mqtt, mqtts, tcp, ssl, ws, wss; remove it; a broker has the keys username and password_file`},
		"broker": {house, `{name: house, url: "mqtt://127.0.0.1:1883", password_file: secret, share: a/b, client_id: "x\ty", tls: {mode: starttls}}`, "" +
			`c.yaml:9:7: mqtt.brokers[0].username: is missing beside the password; allowed: username and password together; add username` + "\n" +
			`c.yaml:9:81: mqtt.brokers[0].share: "a/b" is not a name of a shared subscription; allowed: a name without / + #; write for example porchlight` + "\n" +
			`c.yaml:9:97: mqtt.brokers[0].client_id: is too long or has control characters; allowed: at most 256 bytes in one line; shorten it` + "\n" +
			`c.yaml:9:105: mqtt.brokers[0].tls: is given, but the url is plain mqtt; allowed: tls with an mqtts or wss url; write mqtts or wss in the url, or remove tls` + "\n" +
			`c.yaml:9:117: mqtt.brokers[0].tls.mode: the url says whether a broker is reached by TLS; allowed: direct; write direct`},
		"broker twice": {house, house + "\n    - " + house, "" +
			`c.yaml:10:14: mqtt.brokers[1].name: "house" stands there twice; allowed: each name once; choose another, or remove one of the two` + "\n" +
			`c.yaml:10:26: mqtt.brokers[1].url: the broker house has the same url and client_id, so the two would push each other out; allowed: one entry a broker, or different client_ids; remove one of the two`},
		"ports": {`coap: {listen: "127.0.0.1:5683"}`, `coap: {listen: "127.0.0.1:5683", dtls: {listen: ":5683", psk_file: keys}}` + "\nmetrics: {listen: \"127.0.0.1:5683\"}",
			`c.yaml:10:49: coap.dtls.listen: ":5683" is taken by coap.listen; allowed: each port once; choose another port`},
		"dtls": {`coap: {`, `coap: {dtls: {listen: "5684"}, `, "" +
			`c.yaml:10:8: coap.dtls.psk_file: is missing; allowed: one of psk_file, psk_env; add it; the file needs mode 0600` + "\n" +
			`c.yaml:10:23: coap.dtls.listen: "5684" is not an address to listen on; allowed: address:port, with a number from 0 to 65535 as port; write for example 127.0.0.1:1883, or :1883 for all addresses`},
		"metrics":       {"devices:", "metrics: {}\ndevices:", `c.yaml:11:1: metrics.listen: is missing; allowed: a text; add it`},
		"discovery":     {"devices:", "discovery: {accept: yes}\ndevices:", `c.yaml:11:21: discovery.accept: "yes" is not one of the allowed values; allowed: ask, auto, off; choose one of them`},
		"off is a text": {"devices:", "discovery: {accept: off}\ndevices:", ``},
		"outbox": {"devices:", "outbox: {max_bytes: 1kB, commit_after: 1, ack: both}\ndevices:", "" +
			`c.yaml:11:21: outbox.max_bytes: 1kB is out of bounds; allowed: a number of bytes, alone or with kB, MB, GB, KiB, MiB or GiB, at least 1MiB; choose one within` + "\n" +
			`c.yaml:11:40: outbox.commit_after: "1" is not a duration; allowed: a duration from 0s to 1m; write a number with its unit, as 5s or 1m30s` + "\n" +
			`c.yaml:11:48: outbox.ack: "both" is not one of the allowed values; allowed: auto, server, disk; choose one of them`},
		"rules": {"devices:", "rules: [{when: x}]\ndevices:", `c.yaml:11:10: rules[0].when: is not a known key; allowed: no key at all; remove it, or put # before the line`},

		"device id":             {"id: kitchen", "id: Küche", `c.yaml:12:10: devices[0].id: "Küche" is not a name of a device; allowed: 1 to 40 of a-z, 0-9 and '-', neither first nor last '-'; write for example k-che`},
		"reserved":              {"id: kitchen", "id: status", `c.yaml:12:10: devices[0].id: "status" is a word of the gateway's own; allowed: names that are no command or address of the gateway; write for example status-1`},
		"device twice":          {kitchen, kitchen + "\n  - {id: kitchen, profile: lines, serial: {port: /dev/ttyUSB0}}", `c.yaml:13:10: devices[1].id: "kitchen" is already the id of the device in DIR/c.yaml, line 12; allowed: each id once; choose another`},
		"topic twice":           {kitchen, kitchen + "\n  - {id: cellar, profile: tasmota, mqtt: {topic: kitchen}}", `c.yaml:13:50: devices[1].mqtt.topic: is already taken by the device in DIR/c.yaml, line 12; allowed: one device a place; correct one of the two, or remove it`},
		"topic of two profiles": {kitchen, kitchen + "\n  - {id: cellar, profile: senml, mqtt: {topic: kitchen}}", ``},
		"port twice": {kitchen, "{id: a, profile: lines, serial: {port: /dev/ttyUSB0}}\n  - {id: b, profile: lines, serial: {port: /dev//ttyUSB0}}",
			`c.yaml:13:44: devices[1].serial.port: is already taken by the device in DIR/c.yaml, line 12; allowed: one device a place; correct one of the two, or remove it`},
		"unit twice": {kitchen, "{id: a, profile: lines, serial: {port: /dev/ttyUSB0, unit: 2}}\n  - {id: b, profile: lines, serial: {port: /dev/ttyUSB0, unit: 2}}",
			`c.yaml:13:44: devices[1].serial.port: is already taken by the device in DIR/c.yaml, line 12; allowed: one device a place; correct one of the two, or remove it`},
		"two lines": {kitchen, "{id: a, profile: lines, serial: {port: /dev/ttyUSB0, baud: 9600, parity: even, dtr: false}}\n  - {id: b, profile: lines, serial: {port: /dev/ttyUSB0, unit: 2, baud: 2400, parity: even, dtr: true}}", "" +
			`c.yaml:13:73: devices[1].serial.baud: is 9600 for the device in DIR/c.yaml, line 12, on the same port; allowed: one line a port; correct one of the two, or leave it out here` + "\n" +
			`c.yaml:13:98: devices[1].serial.dtr: is false for the device in DIR/c.yaml, line 12, on the same port; allowed: one line a port; correct one of the two, or leave it out here`},
		"no adapter": {kitchen, "{id: a, profile: lines, serial: {port: /dev/ttyUSB0, usb: FTDI}}",
			`c.yaml:12:63: devices[0].serial.usb: "FTDI" is no USB device; allowed: VENDOR:PRODUCT or VENDOR:PRODUCT:SERIAL, the first two of 4 hex digits; 'porchlight serial list' shows it`},
		"no place":     {", mqtt: {topic: kitchen}", "", `c.yaml:12:5: devices[0]: has none of mqtt, serial and coap; allowed: exactly one of mqtt, serial, coap; say where the device is found, for example mqtt: {topic: kitchen}`},
		"two places":   {", mqtt: {", ", coap: {}, mqtt: {", `c.yaml:12:5: devices[0]: has mqtt and coap; allowed: exactly one of mqtt, serial, coap; say where the device is found, for example mqtt: {topic: kitchen}`},
		"wildcard":     {"topic: kitchen", "topic: tele/+", `c.yaml:12:51: devices[0].mqtt.topic: "tele/+" has a wildcard; allowed: a topic without + and #; write the topic of this one device`},
		"no topic":     {"topic: kitchen", `topic: ""`, `c.yaml:12:51: devices[0].mqtt.topic: "" is not a topic; allowed: 1 to 1024 bytes without control characters; write the device's topic, for example kitchen`},
		"no broker":    {"mqtt:\n  brokers:\n    - " + house + "\n", "", `c.yaml:9:37: devices[0].mqtt: there is no broker to find the device on; allowed: mqtt together with the section mqtt of the gateway; add the section mqtt with listen or brokers`},
		"other broker": {"topic: kitchen", `topic: kitchen, broker: hause`, `c.yaml:12:68: devices[0].mqtt.broker: "hause" is not one of the brokers; allowed: house; did you mean "house"?`},
		"serial": {"mqtt: {topic: kitchen}", "serial: {port: ttyUSB0, baud: 9k6}", "" +
			`c.yaml:12:28: devices[0].profile: the profile tasmota does not fit serial; allowed: a profile for serial, or mqtt instead of serial; correct one of the two` + "\n" +
			`c.yaml:12:52: devices[0].serial.port: "ttyUSB0" is not a full path; allowed: a path that begins with /; write for example /dev/ttyUSB0; 'porchlight serial list' shows the ports` + "\n" +
			`c.yaml:12:67: devices[0].serial.baud: "9k6" is not a whole number; allowed: a whole number from 50 to 4000000; write a whole number, as 10`},
		"profile":                      {"profile: tasmota", "profile: tasmoto", `c.yaml:12:28: devices[0].profile: "tasmoto" is not a known profile; allowed: dsmr-p1, lines, senml, tasmota; did you mean "tasmota"?`},
		"profile of another transport": {"profile: tasmota", "profile: dsmr-p1", `c.yaml:12:28: devices[0].profile: the profile dsmr-p1 does not fit mqtt; allowed: a profile for mqtt, or serial instead of mqtt; correct one of the two`},
		"groups": {"id: kitchen,", "id: kitchen, groups: [all, kitchen, lights, lights, A B],", "" +
			`c.yaml:12:28: devices[0].groups[0]: "all" is a word of the gateway's own; allowed: names that are no command or address of the gateway; write for example all-1` + "\n" +
			`c.yaml:12:33: devices[0].groups[1]: "kitchen" is the id of a device, so a command could mean either; allowed: names that no device has; choose another name` + "\n" +
			`c.yaml:12:50: devices[0].groups[3]: "lights" stands there twice; allowed: each group once; remove one of the two` + "\n" +
			`c.yaml:12:58: devices[0].groups[4]: "A B" is not a name of a group; allowed: 1 to 40 of a-z, 0-9 and '-', neither first nor last '-'; write for example a-b`},
		"zone": {"id: kitchen,", "id: kitchen, timezone: CEST,", `c.yaml:12:29: devices[0].timezone: "CEST" is not a known time zone; allowed: a name of the IANA time zone database, or UTC; write for example Europe/Berlin`},
		"name": {"id: kitchen,", `id: kitchen, name: "a\nb",`, `c.yaml:12:25: devices[0].name: is too long or has characters that cannot be shown; allowed: at most 200 bytes in one line; shorten it`},
		"coap without listener": {"coap: {listen: \"127.0.0.1:5683\"}\ndevices:\n  - " + kitchen, "devices: [{id: soil, profile: senml, coap: {}}]",
			`c.yaml:10:38: devices[0].coap: the device posts to the gateway, and nothing listens; allowed: coap with a url, or together with the section coap of the gateway; add the section coap with listen`},
		"coap": {kitchen, "{id: a, profile: senml, coap: {observe: true}}\n  - {id: b, profile: senml, coap: {url: \"http://x\"}}", "" +
			`c.yaml:12:45: devices[0].coap.observe: needs a url; allowed: observe together with url; add url, or remove observe if the device posts by itself` + "\n" +
			`c.yaml:13:41: devices[1].coap.url: does not begin with one of the schemes; allowed: urls of coap, coaps; write for example coap://127.0.0.1`},
		"keys": {`coap: {`, `coap: {dtls: {listen: ":5684", psk_file: lines}, `,
			`c.yaml:10:42: coap.dtls.psk_file: line 1 is no name, colon and key; allowed: lines of a device's id, a colon, and its key in hexadecimal; write for example kitchen:0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f`},
		"keys for all": {`coap: {`, `coap: {dtls: {listen: ":5684", psk_file: open}, `,
			`c.yaml:10:42: coap.dtls.psk_file: DIR/open can be read by others (mode 0640); allowed: mode 0600; run chmod 600 DIR/open`},
		"half a certificate": {`coap: {`, `coap: {dtls: {listen: ":5684", cert_file: secret, key_file: secret}, `,
			`c.yaml:10:8: coap.dtls: does not say all that certificates need; allowed: cert_file, key_file and client_ca_file together; add what is missing: without client_ca_file anybody could be any device`},
		"a key and no coaps": {kitchen, `{id: soil, profile: senml, coap: {url: "coap://[::1]", psk_file: key}}`, "" +
			`c.yaml:12:32: devices[0].coap: has a key, and no coaps url; allowed: psk_identity and psk_file, or security_code_file, together with a url that begins with coaps:; correct the url; the key of a device that posts is in coap.dtls.psk_file of the gateway`},
		"a key and a code": {kitchen, `{id: soil, profile: senml, coap: {url: "coaps://[::1]/15001/65537", psk_file: key, security_code_file: secret}}`,
			`c.yaml:12:32: devices[0].coap: has a key and a security code; allowed: one of psk_file, security_code_file; remove one of the two; the key is given for the code`},
		"a code alone": {kitchen, `{id: soil, profile: senml, coap: {url: "coaps://[::1]/15001/65537", security_code_file: secret}}`, ``},
		"a code that is not there": {kitchen, `{id: soil, profile: senml, coap: {url: "coaps://[::1]/15001/65537", security_code_file: none}}`,
			`c.yaml:12:93: devices[0].coap.security_code_file: cannot read DIR/none: no such file or directory; allowed: a file that can be read; make it, or correct the path`},
		"no value": {"coap: {listen: \"127.0.0.1:5683\"}", "coap:\n#  listen: x", `c.yaml:10:6: coap: has no value; allowed: a mapping with the keys listen, dtls, discover, coiot; give it one, or put # before the line`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "secret", "hunter2", 0o600)
			write(t, dir, "open", "hunter2", 0o640)
			write(t, dir, "empty", " \n", 0o600)
			write(t, dir, "key", "0F1e\n", 0o600)
			write(t, dir, "keys", "# of the house\nkitchen:0F1e\n\nurn:dev:1:00\n", 0o600)
			write(t, dir, "lines", "hunter2\nhunter2\n", 0o600)
			write(t, dir, "long", strings.Repeat("x", maxSecretBytes+1), 0o600)
			if !strings.Contains(good, tt.old) {
				t.Fatalf("the good file has no %q", tt.old)
			}
			path := write(t, dir, "c.yaml", strings.Replace(good, tt.old, tt.new, 1), 0o644)
			c, faults := Load(path, testOptions())
			got := strings.ReplaceAll(faults.Error(), dir+"/c.yaml:", "c.yaml:")
			got = strings.ReplaceAll(got, dir, "DIR")
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			if (c == nil) != (tt.want != "") {
				t.Errorf("the config is %v", c)
			}
			if strings.Contains(got, "hunter2") || strings.Contains(fmt.Sprintf("%+v %#v", c, c), "hunter2") {
				t.Error("a secret shows")
			}
		})
	}
}

// TestFaultsOfDevices asserts that faults in the files of devices are told
// together with those of the main file.
func TestFaultsOfDevices(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "secret", "s3cret", 0o600)
	write(t, dir, "data/devices.d/a.yaml", "id: kitchen\nprofile: senml\ncoap: {}\n", 0o644)
	write(t, dir, "data/devices.d/b.yaml", "id: b\n\tprofile: senml\n", 0o644)
	write(t, dir, "data/devices.d/c.yaml", "- id: c\n", 0o644)
	if err := os.Mkdir(dir+"/data/devices.d/d.yaml", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "data/devices.d/e.yaml", "id: e\nprofle: lines\nmqtt: {topic: kitchen}\n", 0o644)
	path := write(t, dir, "c.yaml", strings.Replace(good, "role: owner", "role: none", 1), 0o644)
	_, faults := Load(path, testOptions())
	const want = `c.yaml:6:35: operators[0].role: "none" is not one of the allowed values; allowed: viewer, operator, installer, owner; choose one of them
data/devices.d/a.yaml:1:5: id: "kitchen" is already the id of the device in c.yaml, line 12; allowed: each id once; choose another
data/devices.d/b.yaml:2:1: (document): a tab indents this line; allowed: spaces; replace each tab by spaces
data/devices.d/c.yaml:1:1: (document): is a list; allowed: a mapping with the keys id, name, profile, mqtt, serial, coap, identity, parent, groups, timezone; write its keys below it, indented, or as {key: value}
data/devices.d/d.yaml:1:1: (document): data/devices.d/d.yaml is not a file; allowed: a YAML file; name the file
data/devices.d/e.yaml:1:1: profile: is missing; allowed: a text; add it
data/devices.d/e.yaml:2:1: profle: is not a known key; allowed: keys id, name, profile, mqtt, serial, coap, identity, parent, groups, timezone; did you mean "profile"?`
	if got := strings.ReplaceAll(faults.Error(), dir+"/", ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestBrokenDeviceHarmsItself has good and broken files of devices beside a
// good main file.
func TestBrokenDeviceHarmsItself(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "secret", "s3cret", 0o600)
	write(t, dir, "data/devices.d/a.yaml", "id: a\nprofile: senml\n  coap: {}\n", 0o644)
	write(t, dir, "data/devices.d/lights.yaml", "id: lights\nprofile: senml\ncoap: {}\n", 0o644)
	write(t, dir, "data/devices.d/soil.yaml", "id: soil\nprofile: senml\ncoap: {}\nparent: soil\n", 0o644)
	write(t, dir, "data/devices.d/well.yaml", "id: well\nprofile: senml\ncoap: {}\n", 0o644)
	path := write(t, dir, "c.yaml", strings.Replace(good, "mqtt: {topic: kitchen}", "mqtt: {topic: kitchen}, groups: [lights]", 1), 0o644)
	c, faults := Load(path, testOptions())
	const want = `data/devices.d/a.yaml:3:1: (document): cannot be read as YAML: a colon stands where no key can be; allowed: YAML; indent keys of one level alike, with a space after each colon, here and in the line above; a text with a colon in it needs quotes
data/devices.d/lights.yaml:1:5: id: "lights" is a group in c.yaml, line 12, so a command could mean either; allowed: ids that no group has; choose another
data/devices.d/soil.yaml:4:9: parent: is the device itself; allowed: the id of another device; remove it`
	if got := strings.ReplaceAll(faults.Error(), dir+"/", ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if c == nil || len(c.Devices) != 2 || c.Devices[0].ID != "kitchen" || c.Devices[1].ID != "well" {
		t.Fatalf("the config is %+v", c)
	}

	// The files change, and the main one is not looked at.
	write(t, dir, "data/devices.d/a.yaml", "id: a\nname: A\nprofile: senml\ncoap: {}\n", 0o644)
	write(t, dir, "c.yaml", "broken", 0o644)
	for _, name := range []string{"lights", "soil", "well"} {
		if err := os.Remove(dir + "/data/devices.d/" + name + ".yaml"); err != nil {
			t.Fatal(err)
		}
	}
	next, faults := c.Refresh(testOptions())
	if len(faults) > 0 || len(next.Devices) != 2 || next.Devices[1].Name != "A" || c.Devices[1].ID != "well" {
		t.Errorf("got %v, %+v; before it was %+v", faults, next, c)
	}

	// One whose file is broken while it is at work goes on as it was.
	write(t, dir, "data/devices.d/a.yaml", "id: a\nname: A2\n", 0o644)
	write(t, dir, "data/devices.d/b.yaml", "id: b\n", 0o644)
	broken, faults := next.Refresh(testOptions())
	if len(faults) == 0 || len(broken.Devices) != 1 {
		t.Errorf("got %v, %+v", faults, broken.Devices)
	}
	if after := broken.After(next); len(after.Devices) != 2 || after.Devices[1].Name != "A" || len(broken.Devices) != 1 {
		t.Errorf("got %+v", after.Devices)
	}
	if file, line, own := next.Written("a"); file != dir+"/data/devices.d/a.yaml" || line != 1 || !own {
		t.Errorf("a is written at %s:%d, %v", file, line, own)
	}
	if file, line, own := next.Written("kitchen"); file != path || line != 12 || own {
		t.Errorf("kitchen is written at %s:%d, %v", file, line, own)
	}
}

package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// trouble is a fault whose place is not yet known.
type trouble struct{ problem, allowed, mend string }

// A source is a part of a file.
type source struct {
	doc    *strictyaml.Document
	prefix string // path of the part; "" for the whole file
}

// key gives the path in the file of a key of this part; "" is the part itself.
func (s source) key(key string) string {
	if s.prefix != "" && key != "" {
		return s.prefix + "." + key
	}
	return s.prefix + key
}

func (s source) in(key string) source { return source{s.doc, s.key(key)} }

func (s source) has(key string) bool { return s.doc.Has(s.key(key)) }

func (s source) fault(key string, t trouble) strictyaml.Fault {
	return s.doc.Fault(s.key(key), t.problem, t.allowed, t.mend)
}

// A checker finds what is wrong with a config as a whole.
type checker struct {
	c           *Config
	o           LoadOptions
	dir         string // of the main file
	credentials string // where the service manager put secrets, or ""
	faults      strictyaml.Faults
	decoded     map[place]bool // values that could not be read
	profiles    map[string]string
}

// A place is a key of a file.
type place struct{ file, key string }

// add notes a fault, unless the value or what it is in could not be read, which
// was said.
func (k *checker) add(at source, key string, t trouble) {
	f := at.fault(key, t)
	if !k.unread(f.File, f.Key) {
		k.faults = append(k.faults, f)
	}
}

func (k *checker) unread(file, key string) bool {
	for key != "" {
		if k.decoded[place{file, key}] {
			return true
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
	return k.decoded[place{file, ""}]
}

// test notes t if there is any trouble.
func (k *checker) test(at source, key string, t *trouble) {
	if t != nil {
		k.add(at, key, *t)
	}
}

func (k *checker) check() {
	main := source{k.c.doc, ""}
	k.gateway(main.in("gateway"))
	k.xmpp(main.in("xmpp"))
	for i, o := range k.c.Operators {
		k.operator(main.in(fmt.Sprintf("operators[%d]", i)), o)
	}
	k.mqtt(main.in("mqtt"))
	k.coap(main.in("coap"))
	if k.c.Metrics != nil {
		k.test(main, "metrics.listen", checkListen(k.c.Metrics.Listen))
	}
	k.listeners(main)
	k.devices()
}

func (k *checker) gateway(at source) {
	id := k.c.Gateway.ID
	if strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || id == "" || len(id) > 40 {
		mend := "choose another"
		if slug := devices.Slug(id); slug != "" {
			mend = "write for example " + string(slug)
		}
		k.add(at, "id", trouble{quoted(id) + " is not an id", "1 to 40 of a-z, 0-9 and '-'", mend})
	}
}

func (k *checker) xmpp(at source) {
	x := &k.c.XMPP
	switch {
	case x.Component == nil && x.Account == nil:
		k.add(at, "", trouble{"has neither component nor account", "exactly one of component, account", "add component, or account if the gateway has an account on a server"})
	case x.Component != nil && x.Account != nil:
		k.add(at, "account", trouble{"stands beside component", "exactly one of component, account", "remove one of the two"})
	}
	if x.Component != nil {
		k.component(at.in("component"), x.Component)
	}
	if x.Account != nil {
		k.account(at.in("account"), x.Account)
	}
	switch {
	case x.PubSub == "" && x.Component != nil:
		k.add(at, "pubsub", trouble{"is missing", "the address of a publish-subscribe service", "add it, for example pubsub.example.org"})
	case x.PubSub == PEP && x.Component != nil:
		k.add(at, "pubsub", trouble{"a component has no nodes of its own", "the address of a publish-subscribe service", "write its address, for example pubsub.example.org"})
	case x.PubSub != "" && x.PubSub != PEP:
		k.test(at, "pubsub", k.checkJID(x.PubSub, anyBare))
	}
	for i, r := range x.Rooms {
		k.test(at, fmt.Sprintf("rooms[%d].jid", i), k.checkJID(r.JID, person))
	}
}

func (k *checker) component(at source, c *Component) {
	k.test(at, "domain", k.checkJID(c.Domain, domain))
	k.test(at, "server", checkServer(c.Server))
	c.Secret = k.secret(at, "secret", c.SecretFile, c.SecretEnv, true)
	if c.TLS != nil {
		k.tls(at.in("tls"), c.TLS, []string{Direct, Off}, "a component's protocol (XEP-0114) has no STARTTLS")
	}
	if !loopback(c.Server) && !c.Insecure && (c.TLS == nil || c.TLS.Mode == Off) && checkServer(c.Server) == nil {
		k.add(at, "server", trouble{"is on another machine, and a component's protocol (XEP-0114) is plain text",
			"a server on this machine, or tls, or insecure: true", "add tls: {mode: direct} if the server offers it, or insecure: true inside a VPN"})
	}
}

func (k *checker) account(at source, a *Account) {
	k.test(at, "jid", k.checkJID(a.JID, person))
	if a.Server != "" {
		k.test(at, "server", checkServer(a.Server))
	}
	a.Password = k.secret(at, "password", a.PasswordFile, a.PasswordEnv, true)
	k.tls(at.in("tls"), &a.TLS, []string{StartTLS, Direct, Off}, "")
	if a.TLS.Mode == Off && !loopback(a.Server) {
		k.add(at, "tls.mode", trouble{"off would send everything in the clear to another machine", "starttls, direct; off only with a server on this machine", "write starttls"})
	}
}

// tls checks the settings of a connection, and makes its paths absolute.
func (k *checker) tls(at source, t *TLS, modes []string, why string) {
	if t.Mode != "" && !slices.Contains(modes, t.Mode) {
		k.add(at, "mode", trouble{why, strings.Join(modes, ", "), "write " + modes[0]})
	}
	k.file(at, "ca_file", &t.CAFile)
	k.file(at, "client_cert_file", &t.ClientCertFile)
	k.file(at, "client_key_file", &t.ClientKeyFile)
	if t.CAFile != "" {
		if _, err := readAuthorities(t.CAFile); err != nil {
			k.add(at, "ca_file", trouble{err.Error(), "a PEM file of certificates", "name a file that holds the certificate of the authority"})
		}
	}
	if t.ClientKeyFile != "" {
		if f, t := openSecret(t.ClientKeyFile, k.credentials); t != nil {
			k.add(at, "client_key_file", *t)
			return
		} else {
			f.Close()
		}
	}
	switch {
	case t.ClientCertFile == "" && t.ClientKeyFile == "":
	case t.ClientKeyFile == "":
		k.add(at, "client_cert_file", trouble{"has no key", "client_cert_file and client_key_file together", "add client_key_file"})
	case t.ClientCertFile == "":
		k.add(at, "client_key_file", trouble{"has no certificate", "client_cert_file and client_key_file together", "add client_cert_file"})
	default:
		if _, err := (TLS{ClientCertFile: t.ClientCertFile, ClientKeyFile: t.ClientKeyFile}).ClientConfig(); err != nil {
			k.add(at, "client_cert_file", trouble{err.Error(), "PEM files of a certificate and its key", "name two files that belong together"})
		}
	}
}

func (k *checker) operator(at source, o Operator) {
	k.test(at, "jid", k.checkJID(o.JID, person))
	for i, pattern := range o.Devices {
		if err := access.CheckPattern(pattern); err != nil {
			k.add(at, fmt.Sprintf("devices[%d]", i), trouble{err.Error(), "ids, with * ? and [a-z] as in file names", "write for example kitchen-*"})
		}
	}
}

func (k *checker) mqtt(at source) {
	m := k.c.MQTT
	if m == nil {
		return
	}
	if m.Listen != "" {
		if t := checkListen(m.Listen); t != nil {
			k.add(at, "listen", *t)
		} else if !loopback(m.Listen) && len(m.Users) == 0 {
			k.add(at, "listen", trouble{"is open to other machines, and there are no users", "an address of this machine, or users",
				"add users, or write 127.0.0.1 before the port"})
		}
	} else if len(m.Users) > 0 {
		k.add(at, "users", trouble{"belong to the gateway's own broker, and there is none", "users together with listen", "add listen, or remove users"})
	}
	names := map[string]bool{}
	for i := range m.Users {
		u, in := &m.Users[i], at.in(fmt.Sprintf("users[%d]", i))
		k.test(in, "name", checkName(u.Name, names))
		u.Password = k.secret(in, "password", u.PasswordFile, u.PasswordEnv, true)
	}
	names = map[string]bool{}
	sessions := map[[2]string]string{}
	for i := range m.Brokers {
		b, in := &m.Brokers[i], at.in(fmt.Sprintf("brokers[%d]", i))
		k.test(in, "name", checkName(b.Name, names))
		k.broker(in, b)
		session := [2]string{b.URL, b.ClientID}
		if other, ok := sessions[session]; ok && b.URL != "" {
			k.add(in, "url", trouble{fmt.Sprintf("the broker %s has the same url and client_id, so the two would push each other out", other), "one entry a broker, or different client_ids", "remove one of the two"})
		}
		sessions[session] = b.Name
	}
}

func (k *checker) broker(at source, b *Broker) {
	u, t := parseURL(b.URL, "mqtt", "mqtts", "tcp", "ssl", "ws", "wss")
	k.test(at, "url", t)
	if t == nil {
		web := u.Scheme == "ws" || u.Scheme == "wss"
		if !web && u.Path != "" && u.Path != "/" {
			k.add(at, "url", trouble{"has a path, which only ws and wss have", "mqtt://host:port", "remove what follows the port; topics belong to devices"})
		}
		if b.TLS != nil && !slices.Contains([]string{"mqtts", "ssl", "wss"}, u.Scheme) {
			k.add(at, "tls", trouble{"is given, but the url is plain " + u.Scheme, "tls with an mqtts or wss url", "write mqtts or wss in the url, or remove tls"})
		}
	}
	if b.TLS != nil {
		k.tls(at.in("tls"), b.TLS, []string{Direct}, "the url says whether a broker is reached by TLS")
	}
	b.Password = k.secret(at, "password", b.PasswordFile, b.PasswordEnv, false)
	if b.Username == "" && (b.PasswordFile != "" || b.PasswordEnv != "") {
		k.add(at, "username", trouble{"is missing beside the password", "username and password together", "add username"})
	}
	if t := printable(b.Username, 256); t != nil {
		k.add(at, "username", *t)
	}
	if t := printable(b.ClientID, 256); t != nil {
		k.add(at, "client_id", *t)
	}
	if strings.ContainsAny(b.Share, "/+#") || printable(b.Share, 256) != nil {
		k.add(at, "share", trouble{quoted(b.Share) + " is not a name of a shared subscription", "a name without / + #", "write for example porchlight"})
	}
}

func (k *checker) coap(at source) {
	c := k.c.CoAP
	if c == nil {
		return
	}
	if c.Listen != "" {
		k.test(at, "listen", checkListen(c.Listen))
	}
	for i, name := range c.Discover {
		if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ :") {
			k.add(at, fmt.Sprintf("discover[%d]", i), trouble{quoted(name) + " is not the name of a network interface", "names of network interfaces", "'ip link' shows them; write for example eth0"})
		}
	}
	if d := c.DTLS; d != nil {
		k.test(at, "dtls.listen", checkListen(d.Listen))
		k.dtls(at.in("dtls"), d)
	}
}

func (k *checker) dtls(at source, d *DTLS) {
	d.PSK = k.secret(at, "psk", d.PSKFile, d.PSKEnv, d.CertFile == "")
	if !d.PSK.IsZero() {
		if _, err := d.Keys(); err != nil {
			key := "psk_file"
			if d.PSKFile == "" {
				key = "psk_env"
			}
			k.add(at, key, trouble{err.Error(), "lines of a device's id, a colon, and its key in hexadecimal", "write for example kitchen:" + strings.Repeat("0f", 16)})
		}
	}
	k.file(at, "cert_file", &d.CertFile)
	k.file(at, "key_file", &d.KeyFile)
	k.file(at, "client_ca_file", &d.ClientCAFile)
	if d.CertFile == "" && d.KeyFile == "" && d.ClientCAFile == "" {
		return
	}
	if d.CertFile == "" || d.KeyFile == "" || d.ClientCAFile == "" {
		k.add(at, "", trouble{"does not say all that certificates need", "cert_file, key_file and client_ca_file together", "add what is missing: without client_ca_file anybody could be any device"})
		return
	}
	f, t := openSecret(d.KeyFile, k.credentials)
	if t != nil {
		k.add(at, "key_file", *t)
		return
	}
	f.Close()
	if _, err := readAuthorities(d.ClientCAFile); err != nil {
		k.add(at, "client_ca_file", trouble{err.Error(), "a PEM file of certificates", "name a file that holds the certificate of the authority"})
	} else if _, _, err := d.Files(); err != nil {
		k.add(at, "cert_file", trouble{err.Error(), "a certificate and its key, as PEM", "name files that belong together"})
	}
}

// listeners finds two that want the same port.
func (k *checker) listeners(main source) {
	type listener struct{ key, network, address string }
	var all []listener
	if m := k.c.MQTT; m != nil && m.Listen != "" {
		all = append(all, listener{"mqtt.listen", "tcp", m.Listen})
	}
	if c := k.c.CoAP; c != nil && c.Listen != "" {
		all = append(all, listener{"coap.listen", "udp", c.Listen})
	}
	if c := k.c.CoAP; c != nil && c.DTLS != nil {
		all = append(all, listener{"coap.dtls.listen", "udp", c.DTLS.Listen})
	}
	if m := k.c.Metrics; m != nil {
		all = append(all, listener{"metrics.listen", "tcp", m.Listen})
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if a.network == b.network && overlap(a.address, b.address) {
				k.add(main, a.key, trouble{quoted(a.address) + " is taken by " + b.key, "each port once", "choose another port"})
				break
			}
		}
	}
}

// overlap reports whether one socket keeps the other from listening.
func overlap(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	any := func(host string) bool { return host == "" || host == "0.0.0.0" || host == "::" }
	return any(hostA) || any(hostB) || hostA == hostB
}

// devices checks each by itself and all together.
func (k *checker) devices() {
	ids := map[devices.ID]source{}
	for i, d := range k.c.Devices {
		at := k.c.sources[i]
		k.deviceID(at, d.ID, ids)
	}
	for i, d := range k.c.Devices[:k.c.own] {
		for j, g := range d.Groups {
			// A file of its own must not break the main one, so the fault is there.
			if id := devices.ID(g); ids[id].doc != nil && ids[id].doc != k.c.doc {
				f := k.c.sources[i].fault(fmt.Sprintf("groups[%d]", j), trouble{})
				k.add(ids[id], "id", trouble{fmt.Sprintf("%q is a group in %s, line %d, so a command could mean either", g, f.File, f.Line), "ids that no group has", "choose another"})
				delete(ids, id)
			}
		}
	}
	places := map[string]source{}
	for i, d := range k.c.Devices {
		at := k.c.sources[i]
		if t := printable(d.Identity, 200); t != nil {
			k.add(at, "identity", *t)
		}
		if d.Parent != "" && d.Parent == d.ID {
			k.add(at, "parent", trouble{"is the device itself", "the id of another device", "remove it"})
		}
		for j, g := range d.Groups {
			key := fmt.Sprintf("groups[%d]", j)
			_, isDevice := ids[devices.ID(g)]
			switch t := checkSlug(g, "group"); {
			case t != nil:
				k.add(at, key, *t)
			case isDevice:
				k.add(at, key, trouble{quoted(g) + " is the id of a device, so a command could mean either", "names that no device has", "choose another name"})
			case slices.Contains(d.Groups[:j], g):
				k.add(at, key, trouble{quoted(g) + " stands there twice", "each group once", "remove one of the two"})
			}
		}
		if strings.ContainsFunc(d.Name, unicode.IsControl) || len(d.Name) > 200 {
			k.add(at, "name", trouble{"is too long or has characters that cannot be shown", "at most 200 bytes in one line", "shorten it"})
		}
		transport := k.place(at, d, places)
		k.profile(at, d.Profile, transport)
		k.sharedPort(i)
	}
}

// sharedPort checks that a device says the same of its port as those before it.
func (k *checker) sharedPort(i int) {
	d := k.c.Devices[i].Serial
	if d == nil {
		return
	}
	for j, other := range k.c.Devices[:i] {
		o := other.Serial
		if o == nil || filepath.Clean(o.Port) != filepath.Clean(d.Port) {
			continue
		}
		f := k.c.sources[j].fault("serial.port", trouble{})
		differ := func(key, a, b string) {
			if a != b && k.c.sources[i].has("serial."+key) && k.c.sources[j].has("serial."+key) {
				k.add(k.c.sources[i], "serial."+key, trouble{fmt.Sprintf("is %s for the device in %s, line %d, on the same port", b, f.File, f.Line), "one line a port", "correct one of the two, or leave it out here"})
			}
		}
		differ("usb", d.USB, o.USB)
		differ("baud", strconv.Itoa(d.Baud), strconv.Itoa(o.Baud))
		differ("data_bits", strconv.Itoa(d.DataBits), strconv.Itoa(o.DataBits))
		differ("parity", d.Parity, o.Parity)
		differ("stop_bits", strconv.Itoa(d.StopBits), strconv.Itoa(o.StopBits))
		differ("dtr", upOrDown(d.DTR), upOrDown(o.DTR))
		differ("rts", upOrDown(d.RTS), upOrDown(o.RTS))
		differ("echo", strconv.FormatBool(d.Echo), strconv.FormatBool(o.Echo))
		return // that one was compared with those before it
	}
}

// usbNames are those of USB devices.
var usbNames = regexp.MustCompile(`^[0-9a-fA-F]{4}:[0-9a-fA-F]{4}(:.+)?$`)

func upOrDown(b *bool) string { return strconv.FormatBool(b != nil && *b) }

func (k *checker) deviceID(at source, id devices.ID, ids map[devices.ID]source) {
	if t := checkSlug(string(id), "device"); t != nil {
		k.add(at, "id", *t)
		return
	}
	if first, ok := ids[id]; ok {
		f := first.fault("id", trouble{})
		k.add(at, "id", trouble{fmt.Sprintf("%q is already the id of the device in %s, line %d", id, f.File, f.Line), "each id once", "choose another"})
		return
	}
	ids[id] = at
}

// place checks where a device is found, and gives its transport.
func (k *checker) place(at source, d Device, places map[string]source) string {
	var given []string
	if d.MQTT != nil {
		given = append(given, "mqtt")
		k.mqttPlace(at, d, places)
	}
	if d.Serial != nil {
		given = append(given, "serial")
		if usb := d.Serial.USB; usb != "" && !usbNames.MatchString(usb) {
			k.add(at, "serial.usb", trouble{quoted(usb) + " is no USB device", "VENDOR:PRODUCT or VENDOR:PRODUCT:SERIAL, the first two of 4 hex digits", "'porchlight serial list' shows it"})
		}
		port := filepath.Clean(d.Serial.Port)
		if !filepath.IsAbs(d.Serial.Port) {
			k.add(at, "serial.port", trouble{quoted(d.Serial.Port) + " is not a full path", "a path that begins with /", "write for example /dev/ttyUSB0; 'porchlight serial list' shows the ports"})
		} else {
			// Of several devices on a port, something tells which of them speaks.
			k.once(at, "serial.port", fmt.Sprintf("serial %s %d %s", port, max(d.Serial.Unit, 1), d.Identity), places)
		}
	}
	if d.CoAP != nil {
		given = append(given, "coap")
		k.coapPlace(at, d.CoAP, places)
	}
	if len(given) == 1 {
		return given[0]
	}
	problem := "has none of mqtt, serial and coap"
	if len(given) > 1 {
		problem = "has " + strings.Join(given, " and ")
	}
	k.add(at, "", trouble{problem, "exactly one of mqtt, serial, coap", "say where the device is found, for example mqtt: {topic: kitchen}"})
	return ""
}

// once notes a fault if two devices are found in the same place.
func (k *checker) once(at source, key, place string, places map[string]source) {
	if first, ok := places[place]; ok {
		f := first.fault(key, trouble{})
		k.add(at, key, trouble{fmt.Sprintf("is already taken by the device in %s, line %d", f.File, f.Line), "one device a place", "correct one of the two, or remove it"})
		return
	}
	places[place] = at
}

func (k *checker) mqttPlace(at source, d Device, places map[string]source) {
	topic := d.MQTT.Topic
	switch {
	case strings.ContainsAny(topic, "+#"):
		k.add(at, "mqtt.topic", trouble{quoted(topic) + " has a wildcard", "a topic without + and #", "write the topic of this one device"})
	case topic == "" || printable(topic, 1024) != nil:
		k.add(at, "mqtt.topic", trouble{quoted(topic) + " is not a topic", "1 to 1024 bytes without control characters", "write the device's topic, for example kitchen"})
	default:
		// Profiles make different topics of the same name.
		k.once(at, "mqtt.topic", "mqtt "+d.Profile+" "+d.MQTT.Broker+" "+topic, places)
	}
	m := k.c.MQTT
	if m == nil || m.Listen == "" && len(m.Brokers) == 0 {
		k.add(at, "mqtt", trouble{"there is no broker to find the device on", "mqtt together with the section mqtt of the gateway", "add the section mqtt with listen or brokers"})
		return
	}
	var names []string
	for _, b := range m.Brokers {
		names = append(names, b.Name)
	}
	if b := d.MQTT.Broker; b != "" && !slices.Contains(names, b) {
		k.add(at, "mqtt.broker", trouble{quoted(b) + " is not one of the brokers", strings.Join(names, ", "), orNearest(b, names, "add it to mqtt.brokers, or correct the name")})
	}
}

func (k *checker) coapPlace(device source, d *DeviceCoAP, places map[string]source) {
	at := device.in("coap")
	secure := strings.HasPrefix(d.URL, "coaps:")
	hasCode := at.has("security_code_file") || at.has("security_code_env")
	d.PSK = k.secret(at, "psk", d.PSKFile, d.PSKEnv, secure && !hasCode)
	d.SecurityCode = k.secret(at, "security_code", d.SecurityCodeFile, d.SecurityCodeEnv, false)
	if hasCode && d.PSKFile+d.PSKEnv != "" {
		k.add(at, "", trouble{"has a key and a security code", "one of psk_file, security_code_file", "remove one of the two; the key is given for the code"})
	}
	if _, err := d.Key(); err != nil {
		k.add(at, "psk_file", trouble{err.Error(), "a key in hexadecimal", "write for example " + strings.Repeat("0f", 16)})
	}
	if !secure && (hasCode || d.PSKIdentity+d.PSKFile+d.PSKEnv != "") {
		k.add(at, "", trouble{"has a key, and no coaps url", "psk_identity and psk_file, or security_code_file, together with a url that begins with coaps:", "correct the url; the key of a device that posts is in coap.dtls.psk_file of the gateway"})
	}
	if d.URL == "" {
		if d.Observe {
			k.add(at, "observe", trouble{"needs a url", "observe together with url", "add url, or remove observe if the device posts by itself"})
		}
		if d.Every != 0 {
			k.add(at, "every", trouble{"needs a url", "every together with url", "add url, or remove every if the device posts by itself"})
		}
		if c := k.c.CoAP; c == nil || c.Listen == "" && c.DTLS == nil && c.CoIoT == nil {
			k.add(at, "", trouble{"the device posts to the gateway, and nothing listens", "coap with a url, or together with the section coap of the gateway", "add the section coap with listen"})
		}
		return
	}
	_, t := parseURL(d.URL, "coap", "coaps")
	k.test(at, "url", t)
	if t == nil {
		k.once(device, "coap.url", "coap "+d.URL, places)
	}
}

func (k *checker) profile(at source, id, transport string) {
	if k.o.Profiles == nil {
		return
	}
	speaks, ok := k.profiles[id]
	if !ok {
		names := slices.Sorted(maps.Keys(k.profiles))
		k.add(at, "profile", trouble{quoted(id) + " is not a known profile", strings.Join(names, ", "), orNearest(id, names, "'porchlight profile list' shows what they are for")})
		return
	}
	if transport != "" && speaks != "" && !slices.Contains(strings.Split(speaks, ","), transport) {
		k.add(at, "profile", trouble{fmt.Sprintf("the profile %s does not fit %s", id, transport), "a profile for " + transport + ", or " + speaks + " instead of " + transport, "correct one of the two"})
	}
}

// secret reads a secret from the file or the variable that is given.
func (k *checker) secret(at source, name, file, env string, required bool) Secret {
	both := name + "_file, " + name + "_env"
	switch {
	case file != "" && env != "":
		k.add(at, name+"_env", trouble{"stands beside " + name + "_file", "one of " + both, "remove one of the two"})
	case file != "":
		k.file(at, name+"_file", &file)
		s, t := readSecret(file, k.credentials)
		if t == nil && name != "psk" && strings.ContainsFunc(s.text, unicode.IsControl) {
			t = &trouble{file + " has more than one line, or control characters", "one line", "leave only the " + name + " in it"}
		}
		k.test(at, name+"_file", t)
		return s
	case env != "":
		if text := os.Getenv(env); text != "" {
			return Secret{text}
		}
		k.add(at, name+"_env", trouble{"the environment variable " + quoted(env) + " is not set", "the name of a variable that holds the " + name, "set it for the service, or use " + name + "_file"})
	case at.has(name + "_file"):
		k.add(at, name+"_file", trouble{"names no file", "the path of a file", "write the path"})
	case required:
		// If one was given and unreadable, that was said.
		if !k.unread(at.doc.File(), at.key(name+"_env")) {
			k.add(at, name+"_file", trouble{"is missing", "one of " + both, "add it; the file needs mode 0600"})
		}
	}
	return Secret{}
}

// file makes a path absolute.
func (k *checker) file(at source, key string, file *string) {
	if *file == "" || filepath.IsAbs(*file) {
		return
	}
	if k.credentials != "" {
		path := filepath.Join(k.credentials, *file)
		if _, err := os.Stat(path); err == nil && within(path, k.credentials) {
			*file = path
			return
		}
	}
	path, err := filepath.Abs(filepath.Join(k.dir, *file))
	if err != nil {
		k.add(at, key, *unreadable(*file, err))
		return
	}
	*file = path
}

// The kinds of addresses.
type jidKind int

const (
	domain  jidKind = iota // example.org
	person                 // anna@example.org
	anyBare                // either
)

func (k *checker) checkJID(s string, kind jidKind) *trouble {
	var t trouble
	switch kind {
	case domain:
		t = trouble{"", "a domain", "write for example pi.iot.example.org"}
	case person:
		t = trouble{"", "an address without a resource", "write for example anna@example.org"}
	case anyBare:
		t = trouble{"", "the address of a service", "write for example pubsub.example.org"}
	}
	t.problem = quoted(s) + " is not such an address"
	bare, _, hasResource := strings.Cut(s, "/")
	local, host, hasLocal := strings.Cut(bare, "@")
	if !hasLocal {
		local, host = "", local
	}
	switch {
	case hasResource:
		t.problem = quoted(s) + " has a resource, which follows the /"
		t.mend = "write " + bare
	case host == "" || hasLocal && local == "" || strings.ContainsFunc(s, unicode.IsSpace) || printable(s, 2047) != nil:
	case kind == person && !hasLocal, kind == domain && hasLocal:
	case k.o.CheckJID != nil:
		err := k.o.CheckJID(s)
		if err == nil {
			return nil
		}
		t.problem += ": " + strings.ReplaceAll(err.Error(), "\n", " ")
	default:
		return nil
	}
	return &t
}

// checkSlug checks an id that people choose.
func checkSlug(s, what string) *trouble {
	if devices.Reserved(s) {
		return &trouble{quoted(s) + " is a word of the gateway's own", "names that are no command or address of the gateway", "write for example " + s + "-1"}
	}
	if _, err := devices.ParseID(s); err != nil {
		mend := "choose another"
		if slug := devices.Slug(s); slug != "" && !devices.Reserved(string(slug)) {
			mend = "write for example " + string(slug)
		}
		return &trouble{quoted(s) + " is not a name of a " + what, "1 to 40 of a-z, 0-9 and '-', neither first nor last '-'", mend}
	}
	return nil
}

// checkName checks a name that is to be used once.
func checkName(s string, used map[string]bool) *trouble {
	if s == "" || printable(s, 64) != nil {
		return &trouble{quoted(s) + " is not a name", "1 to 64 bytes without control characters", "choose another"}
	}
	if used[s] {
		return &trouble{quoted(s) + " stands there twice", "each name once", "choose another, or remove one of the two"}
	}
	used[s] = true
	return nil
}

func checkListen(s string) *trouble {
	t := &trouble{quoted(s) + " is not an address to listen on", "address:port, with a number from 0 to 65535 as port", "write for example 127.0.0.1:1883, or :1883 for all addresses"}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return t
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return t
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		t.problem = quoted(host) + " is not an address of this machine"
		t.allowed = "an IP address, localhost, or nothing for all addresses"
		return t
	}
	return nil
}

func checkServer(s string) *trouble {
	host, port, err := net.SplitHostPort(s)
	if n, numberErr := strconv.ParseUint(port, 10, 16); err != nil || numberErr != nil || n == 0 || !hostname(host) {
		return &trouble{quoted(s) + " is not a server and port", "host:port, with a number from 1 to 65535 as port; an IPv6 address in brackets", "write for example 127.0.0.1:5347"}
	}
	return nil
}

func hostname(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return s != "" && len(s) <= 253 && !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '.' && r != '-' && r != '_'
	})
}

// loopback reports whether host:port stays on this machine (RFC 6761 section
// 6.3 for the names).
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// parseURL takes URLs of a host and, at most, a path. No trouble shows the URL
// itself: it may hold a password where none belongs.
func parseURL(s string, schemes ...string) (*url.URL, *trouble) {
	t := &trouble{"is not a url", "urls of " + strings.Join(schemes, ", "), "write for example " + schemes[0] + "://127.0.0.1"}
	u, err := url.Parse(s)
	if err != nil {
		return nil, t
	}
	port, portErr := strconv.ParseUint(u.Port(), 10, 16)
	switch {
	case u.User != nil:
		t.problem, t.mend = "has a user name in it", "remove it; a broker has the keys username and password_file"
	case !slices.Contains(schemes, u.Scheme):
		t.problem = "does not begin with one of the schemes"
		t.mend = orNearest(u.Scheme, schemes, t.mend)
	case !hostname(u.Hostname()):
		t.problem = "has no host"
	case u.RawQuery != "" && schemes[0] != "coap" || u.Fragment != "":
		t.problem, t.mend = "has a ? or a #", "remove what follows it"
	case u.Port() != "" && (portErr != nil || port == 0):
		t.problem = "has a port that is not a number from 1 to 65535"
	default:
		return u, nil
	}
	return nil, t
}

func printable(s string, most int) *trouble {
	if len(s) <= most && !strings.ContainsFunc(s, unicode.IsControl) {
		return nil
	}
	return &trouble{"is too long or has control characters", fmt.Sprintf("at most %d bytes in one line", most), "shorten it"}
}

func quoted(s string) string { return fmt.Sprintf("%.60q", s) }

func orNearest(s string, known []string, otherwise string) string {
	if near := strictyaml.Nearest(s, known); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return otherwise
}

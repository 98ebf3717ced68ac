// Package config reads the gateway's configuration: one YAML file, and one
// file for each device that was admitted while the gateway ran. It tells
// everything that is wrong at once, before anything is started.
package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent/calendar"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// A Config is what the files say, with every default filled in, checked, and
// the secrets read. It is not changed after Load returned it.
type Config struct {
	Gateway   Gateway    `yaml:"gateway" doc:"The gateway itself."`
	XMPP      XMPP       `yaml:"xmpp,required" doc:"How the gateway reaches XMPP."`
	Operators []Operator `yaml:"operators" doc:"Who may see and command devices. More can be granted in chat."`
	MQTT      *MQTT      `yaml:"mqtt" doc:"Devices that speak MQTT. Absent: none."`
	CoAP      *CoAP      `yaml:"coap" doc:"Devices that speak CoAP. Absent: none."`
	Discovery Discovery  `yaml:"discovery" doc:"What to do with devices that are not configured."`
	Devices   []Device   `yaml:"devices" doc:"The devices. More are in files of one device each in devices.d in the data directory."`
	Outbox    Outbox     `yaml:"outbox" doc:"The store for readings that are not yet accepted."`
	Backup    *Backup    `yaml:"backup" doc:"Backups that the gateway makes by itself. Absent: none; porchlight backup and the timer porchlight-backup make some all the same."`
	Metrics   *Metrics   `yaml:"metrics" doc:"Counters for Prometheus at /metrics, and a health check at /healthz. A change counts from the next start. Absent: none."`
	Rules     []struct{} `yaml:"rules" doc:"Reserved for a later version."`
	Web       *struct{}  `yaml:"web" doc:"Reserved for a later version."`

	doc     *strictyaml.Document
	sources []source // where each of Devices stands
	own     int      // how many of Devices, the first, stand in the main file
	broken  []string // files of devices that have faults
}

// Gateway is the gateway itself.
type Gateway struct {
	ID      string `yaml:"id" doc:"First part of the node names; 1 to 40 of a-z, 0-9 and '-'. Default: the host name and 4 digits of the machine id."`
	DataDir string `yaml:"data_dir" doc:"Directory for what the gateway keeps."`
}

// XMPP has exactly one of Component and Account.
type XMPP struct {
	Component  *Component `yaml:"component" doc:"Connect as a component of the server (XEP-0114): each device is a contact of its own."`
	Account    *Account   `yaml:"account" doc:"Connect with an account on any server: the gateway is one contact."`
	PubSub     string     `yaml:"pubsub" doc:"Address of the publish-subscribe service. Required with component; with account the server is asked if it is absent, and 'pep' means the account's own nodes."`
	LogPayload string     `yaml:"log_payload" enum:"senml,fields" doc:"Form of the readings in the log nodes: senml is small, fields is readable XML."`
	Rooms      []Room     `yaml:"rooms" doc:"Group chats to join."`
}

// PEP as [XMPP.PubSub] means the account's own nodes (XEP-0163).
const PEP = "pep"

// Component is a connection by XEP-0114.
type Component struct {
	Domain     string `yaml:"domain,required" doc:"Domain of the component, as the server knows it."`
	Server     string `yaml:"server,required" doc:"host:port of the server's component listener."`
	SecretFile string `yaml:"secret_file" doc:"File that holds the secret shared with the server; mode 0600."`
	SecretEnv  string `yaml:"secret_env" doc:"Environment variable that holds the secret, instead of secret_file."`
	TLS        *TLS   `yaml:"tls" doc:"TLS around the connection. Without it a server that is not on this machine needs insecure: true."`
	Insecure   bool   `yaml:"insecure" doc:"Allow plain text to a server on another machine, for example inside a VPN."`

	Secret Secret // from one of the two
}

// Account is a connection as a client (RFC 6120).
type Account struct {
	JID          string `yaml:"jid,required" doc:"Address of the account."`
	PasswordFile string `yaml:"password_file" doc:"File that holds the password; mode 0600."`
	PasswordEnv  string `yaml:"password_env" doc:"Environment variable that holds the password, instead of password_file."`
	Server       string `yaml:"server" doc:"host:port of the server. Default: found by SRV records of the address."`
	TLS          TLS    `yaml:"tls" doc:"How the connection is encrypted."`

	Password Secret // from one of the two
}

// SetDefaults says that an account is encrypted by STARTTLS.
func (a *Account) SetDefaults() { a.TLS.Mode = StartTLS }

// The values of [TLS.Mode].
const (
	StartTLS = "starttls"
	Direct   = "direct"
	Off      = "off"
)

// TLS says how a connection that the gateway makes is encrypted.
type TLS struct {
	Mode           string `yaml:"mode" enum:"starttls,direct,off" doc:"starttls (accounts only, where it is the default), direct, or off (only to this machine)."`
	CAFile         string `yaml:"ca_file" doc:"PEM file of the authorities to trust. Default: those of the system."`
	ClientCertFile string `yaml:"client_cert_file" doc:"PEM file of the certificate to show to the server."`
	ClientKeyFile  string `yaml:"client_key_file" doc:"PEM file of its key; mode 0600."`
}

// A Room is a group chat (XEP-0045) that the gateway joins.
type Room struct {
	JID  string   `yaml:"jid,required" doc:"Address of the room."`
	Nick string   `yaml:"nick" doc:"Name in the room. Default: the gateway's id."`
	Send []string `yaml:"send" enum:"alarms" doc:"What to say in the room."`
}

// An Operator is a person, and what that person may do.
type Operator struct {
	JID     string         `yaml:"jid,required" doc:"Address, without a resource."`
	Role    string         `yaml:"role,required" enum:"viewer,operator,installer,owner" doc:"viewer sees; operator also commands; installer also sets up; owner also grants."`
	Devices []string       `yaml:"devices" doc:"Ids of the devices, with * ? and [a-z] as in file names. Default: all."`
	Hours   calendar.Hours `yaml:"hours" doc:"When, as Mon-Fri 08:00-18:00 Europe/Berlin. Default: always."`
	Until   calendar.Date  `yaml:"until" doc:"First day on which it is over, as 2027-01-01. Default: never."`
}

// MQTT is a broker inside the gateway, and brokers elsewhere.
type MQTT struct {
	Listen  string     `yaml:"listen" doc:"address:port of the gateway's own broker. Absent: none."`
	Users   []MQTTUser `yaml:"users" doc:"Who may log in to the gateway's own broker. Required if it listens beyond this machine."`
	Brokers []Broker   `yaml:"brokers" doc:"Other brokers to connect to."`
}

// An MQTTUser may log in to the gateway's own broker.
type MQTTUser struct {
	Name         string `yaml:"name,required" doc:"User name that the device sends."`
	PasswordFile string `yaml:"password_file" doc:"File that holds the password; mode 0600."`
	PasswordEnv  string `yaml:"password_env" doc:"Environment variable that holds the password, instead of password_file."`

	Password Secret // from one of the two
}

// A Broker is one that the gateway connects to.
type Broker struct {
	Name         string `yaml:"name,required" doc:"Name of the broker here, in logs and in devices."`
	URL          string `yaml:"url,required" doc:"mqtt://host:port, mqtts://host:port, ws://host/path or wss://host/path."`
	ClientID     string `yaml:"client_id" doc:"Client id, which the broker remembers. Default: porchlight- and the gateway's id."`
	Username     string `yaml:"username" doc:"User name. Default: none."`
	PasswordFile string `yaml:"password_file" doc:"File that holds the password; mode 0600."`
	PasswordEnv  string `yaml:"password_env" doc:"Environment variable that holds the password, instead of password_file."`
	TLS          *TLS   `yaml:"tls" doc:"TLS of an mqtts or wss url."`
	Share        string `yaml:"share" doc:"Name of a shared subscription, if several gateways share the work. Default: none."`

	Password Secret // from one of the two; empty if there is none
}

// CoAP is where devices post to.
type CoAP struct {
	Listen   string   `yaml:"listen" doc:"address:port on which devices post readings, or register. Absent: none."`
	DTLS     *DTLS    `yaml:"dtls" doc:"The same, encrypted with keys that devices know."`
	Discover []string `yaml:"discover" doc:"Names of network interfaces, as eth0, on which CoAP servers are looked for by multicast. Default: none."`
	CoIoT    *CoIoT   `yaml:"coiot" doc:"Devices that tell the group of all CoAP nodes, 224.0.1.187, how they are. Absent: nobody listens to them."`
}

// CoIoT is what some devices made of CoAP: they tell a group, and nobody answers.
type CoIoT struct {
	Interfaces []string `yaml:"interfaces" doc:"Names of the network interfaces on which they are, as eth0. Default: all."`
}

// DTLS is CoAP over DTLS, with keys that are shared, or with certificates (RFC
// 7252 section 9.1.3).
type DTLS struct {
	Listen       string `yaml:"listen,required" doc:"address:port."`
	PSKFile      string `yaml:"psk_file" doc:"File that holds the keys, one a line: the device's id, a colon, the key in hexadecimal; mode 0600. A device that has one posts in no other way, and as nobody else."`
	PSKEnv       string `yaml:"psk_env" doc:"Environment variable that holds the keys, instead of psk_file."`
	CertFile     string `yaml:"cert_file" doc:"PEM file of the gateway's certificate, for devices that have certificates instead of keys."`
	KeyFile      string `yaml:"key_file" doc:"PEM file of its key; mode 0600."`
	ClientCAFile string `yaml:"client_ca_file" doc:"PEM file of the authorities that sign the devices' certificates. The common name in one is the device's id."`

	PSK Secret // from one of the two
}

// Keys gives those in PSK by the devices they are of. The error names the line.
func (d DTLS) Keys() (map[string][]byte, error) {
	keys := make(map[string][]byte)
	for i, line := range strings.Split(d.PSK.Reveal(), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ':') // a name may have one
		if at <= 0 {
			return nil, fmt.Errorf("line %d is no name, colon and key", i+1)
		}
		key, err := hex.DecodeString(line[at+1:])
		switch name := line[:at]; {
		case err != nil || len(key) == 0:
			return nil, fmt.Errorf("line %d has no key in hexadecimal, two digits a byte", i+1)
		case len(key) > maxKey:
			return nil, fmt.Errorf("line %d has a key of more than %d bytes", i+1, maxKey)
		case keys[name] != nil:
			return nil, fmt.Errorf("line %d is the second for %q", i+1, name)
		default:
			keys[name] = key
		}
	}
	if len(keys) == 0 && d.CertFile == "" {
		return nil, errors.New("it has no key")
	}
	return keys, nil
}

// maxKey is the most that all must take (RFC 4279 section 5.3).
const maxKey = 64

// Discovery says what happens to devices that are heard but not configured.
type Discovery struct {
	Accept string `yaml:"accept" enum:"ask,auto,off" doc:"ask: they wait until somebody admits them; auto: they are taken; off: they are ignored."`
}

// A Device has exactly one of MQTT, Serial and CoAP.
type Device struct {
	ID       devices.ID    `yaml:"id,required" doc:"Name for good: 1 to 40 of a-z, 0-9 and '-'. It is part of the device's address."`
	Name     string        `yaml:"name" doc:"What people call it. Default: the id."`
	Profile  string        `yaml:"profile,required" doc:"Firmware profile that understands it; 'porchlight profile list' shows them."`
	MQTT     *DeviceMQTT   `yaml:"mqtt" doc:"It is found by MQTT."`
	Serial   *DeviceSerial `yaml:"serial" doc:"It is on a serial port."`
	CoAP     *DeviceCoAP   `yaml:"coap" doc:"It is found by CoAP; {} if it posts to the gateway."`
	Identity string        `yaml:"identity" doc:"The firmware's own name of it, as an address or a serial number: so it is known where it is heard in another place. Default: none."`
	Parent   devices.ID    `yaml:"parent" doc:"Id of the device that it is reached through, as a Zigbee bridge: it is lost while that is. Default: none."`
	Groups   []string      `yaml:"groups" doc:"Groups for commands to several devices."`
	Timezone calendar.Zone `yaml:"timezone" doc:"Zone of its times that come without one. Default: the system's."`
}

// Device gives the device as the rest of the gateway knows it.
func (d Device) Device() devices.Device {
	return devices.Device{ID: d.ID, Name: d.Name, Profile: d.Profile, Groups: d.Groups, Parent: d.Parent, Location: d.Timezone.Location()}
}

// DeviceMQTT is a device's place on a broker.
type DeviceMQTT struct {
	Topic  string `yaml:"topic,required" doc:"The device's name or base topic, as its profile understands it."`
	Broker string `yaml:"broker" doc:"Name of the broker it is on. Default: any."`
}

// DeviceSerial is a device's port. Several devices may share one, as on a bus;
// what one of them says of the line holds for all.
type DeviceSerial struct {
	Port     string `yaml:"port,required" doc:"Path of the port; best one below /dev/serial/by-id, which stays the same; below /dev/serial/by-path where two share a name there. 'porchlight serial list' shows them."`
	USB      string `yaml:"usb" doc:"The USB adapter that it must be, as 0403:6001 or 0403:6001:A50285BI; another that takes its name is not used. Default: the one that is there first."`
	Baud     int    `yaml:"baud" min:"50" max:"4000000" doc:"Bits a second. Default: as the profile says, else 115200."`
	DataBits int    `yaml:"data_bits" min:"5" max:"8" doc:"Bits of a character. Default: as the profile says, else 8."`
	Parity   string `yaml:"parity" enum:"none,even,odd,mark,space" doc:"Default: as the profile says, else none."`
	StopBits int    `yaml:"stop_bits" min:"1" max:"2" doc:"Default: as the profile says, else 1."`
	DTR      *bool  `yaml:"dtr" doc:"Raise the line DTR when the port is opened, which starts many boards anew. Default: as the system does, which raises it."`
	RTS      *bool  `yaml:"rts" doc:"The same of the line RTS."`
	Echo     bool   `yaml:"echo" doc:"What is sent comes back, as on some adapters with two wires and some optical heads."`
	Unit     int    `yaml:"unit" min:"1" max:"248" doc:"Address of the device on a Modbus, 1 to 247; 248 asks the only PZEM-004T on a line, whatever its address. Default: 1."`
}

// DeviceCoAP is a device's place on CoAP.
type DeviceCoAP struct {
	URL     string        `yaml:"url" doc:"coap://host:port/path or coaps://host:port/path to read from; without a path, the device is asked what it has. Absent: the device posts to the gateway, or registers there."`
	Observe bool          `yaml:"observe" doc:"Let the device report by itself (RFC 7641) instead of asking it, where it can."`
	Every   time.Duration `yaml:"every" min:"1s" max:"24h" doc:"How often it is asked, or asked to go on reporting. Default: each minute; with observe, when its last report is no longer fresh."`

	PSKIdentity string `yaml:"psk_identity" doc:"What the gateway calls itself towards the device, with a coaps url. Default: the gateway's id."`
	PSKFile     string `yaml:"psk_file" doc:"File that holds the key for a coaps url, in hexadecimal; mode 0600."`
	PSKEnv      string `yaml:"psk_env" doc:"Environment variable that holds the key, instead of psk_file."`

	SecurityCodeFile string `yaml:"security_code_file" doc:"File that holds the code on the label of an IKEA TRÅDFRI gateway, in place of psk_file; mode 0600. The gateway gives a key for it, once, which is kept in the data directory; psk_identity is then what its name begins with."`
	SecurityCodeEnv  string `yaml:"security_code_env" doc:"Environment variable that holds the code, instead of security_code_file."`

	PSK, SecurityCode Secret // each from one of its two
}

// Key gives the one in PSK; nil where there is none.
func (d DeviceCoAP) Key() ([]byte, error) {
	key, err := hex.DecodeString(strings.TrimSpace(d.PSK.Reveal()))
	if err != nil || len(key) > maxKey {
		return nil, errors.New("it is no key in hexadecimal, two digits a byte, of at most 64 bytes")
	}
	return key, nil
}

// Outbox is the store for readings.
type Outbox struct {
	MaxBytes    strictyaml.Size `yaml:"max_bytes" min:"1MiB" doc:"Most space it may take; beyond that the oldest telemetry is dropped."`
	CommitAfter time.Duration   `yaml:"commit_after" min:"0s" max:"1m" doc:"Longest time that a reading which the server has not accepted stays unwritten."`
	Ack         string          `yaml:"ack" enum:"auto,server,disk" doc:"When a device is told that its reading is safe: server: accepted by the XMPP server or written here; disk: written here; auto: disk if the server is on this machine, else server."`
}

// Backup says where the gateway keeps backups of itself. Each is encrypted by the
// recovery phrase.
type Backup struct {
	To    string        `yaml:"to,required" enum:"pubsub" doc:"pubsub: the node 'backup' of this gateway on the publish-subscribe service, or of its account, where that has the nodes; only the gateway and its owners may read it. There must be a recovery phrase: 'porchlight backup --show-phrase' makes and shows it; it is all that protects them."`
	Every time.Duration `yaml:"every" min:"1h" max:"720h" doc:"How often one is made."`
	Keep  int           `yaml:"keep" min:"1" max:"20" doc:"How many are left there."`
}

// SetDefaults says that a backup is made each day, and that a few are kept.
func (b *Backup) SetDefaults() { b.Every, b.Keep = 24*time.Hour, KeptBackups }

// KeptBackups is how many backups are left on a node by default.
const KeptBackups = 3

// Metrics is where counters can be fetched.
type Metrics struct {
	Listen string `yaml:"listen,required" doc:"address:port."`
}

// Default gives the configuration of an empty file. The gateway's id, which
// comes from the machine, is empty.
func Default() *Config {
	return &Config{
		Gateway:   Gateway{DataDir: "/var/lib/porchlight"},
		XMPP:      XMPP{LogPayload: "senml"},
		Discovery: Discovery{Accept: "ask"},
		Outbox:    Outbox{MaxBytes: 256 << 20, CommitAfter: time.Second, Ack: "auto"},
	}
}

// Schema gives the JSON Schema of the file, for editors.
func Schema() ([]byte, error) { return strictyaml.Schema("Porchlight", Default()) }

// Page gives docs/config.md, which lists every key.
func Page() []byte {
	head := `# Every key of the config

This page is made of the program (` + "`go test ./agent/config -update`" + `). [configs/porchlight.yaml](../configs/porchlight.yaml) has the same as a file to copy from, and [configs/porchlight.schema.json](../configs/porchlight.schema.json) teaches it to an editor.
A relative path is that of a file beside the config, or of one among systemd's credentials (` + "`LoadCredential=`" + `). A secret stands in a file of mode 0600 (` + "`…_file`" + `) or in an environment variable (` + "`…_env`" + `), never in the config.
A section whose default is empty is absent: what it is about is then switched off.

`
	return append([]byte(head), strictyaml.Page(Default())...)
}

// Path gives the file to read: the one named on the command line, else that in
// PORCHLIGHT_CONFIG, else the usual one.
func Path(flag string) string {
	if flag != "" {
		return flag
	}
	if path := os.Getenv("PORCHLIGHT_CONFIG"); path != "" {
		return path
	}
	return "/etc/porchlight/porchlight.yaml"
}

// NotYet lists what the files ask for and this version does not do. It is
// accepted, because the same file will work in a later version, but nobody
// should believe that it has an effect.
func (c *Config) NotYet() []strictyaml.Fault {
	var not []strictyaml.Fault
	add := func(at source, key, mend string) {
		not = append(not, at.fault(key, trouble{"has no effect in this version", "", mend}))
	}
	main := source{c.doc, ""}
	ids := make(map[devices.ID]bool, len(c.Devices))
	for _, d := range c.Devices {
		ids[d.ID] = true
	}
	for i, d := range c.Devices {
		if d.Parent != "" && !ids[d.Parent] {
			// No fault: to remove a bridge must not harm what was behind it.
			not = append(not, c.sources[i].fault("parent", trouble{"has no effect: there is no such device", "", "correct it, or remove it"}))
		}
	}
	if c.Rules != nil {
		add(main, "rules", "no rule is followed")
	}
	if c.Web != nil {
		add(main, "web", "nothing listens there")
	}
	return not
}

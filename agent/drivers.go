package agent

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/coap"
	"github.com/porchlight-iot/porchlight/devices/mqtt"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/serial"
)

// drivers is the one list of all drivers that a config asks for. The error
// tells of those that cannot be made; the others are there all the same. With
// resumed, devices may repeat what they said before.
func drivers(c *config.Config, profiles *profile.Library, resumed bool, settings *tlsSettings, log *slog.Logger) (list []devices.Driver, err error) {
	var onMQTT []mqtt.Device
	var onCoAP []coap.Device
	var ports []serial.Config
	asksCoAP := false
	for _, d := range c.Devices {
		device, p := d.Device(), profiles.Get(d.Profile)
		place := profile.Place{Device: d.ID, Location: device.Location}
		switch {
		case p == nil:
			err = errors.Join(err, fmt.Errorf("%s is not heard: its profile %s is broken", d.ID, d.Profile))
		case d.MQTT != nil:
			place.Topic = d.MQTT.Topic
			onMQTT = append(onMQTT, mqtt.Device{Device: device, Profile: p, Place: place, Broker: d.MQTT.Broker, Identity: d.Identity})
		case d.CoAP != nil:
			device.Profile = p.ID()
			one := coap.Device{Device: device, Profile: p, Place: place, Identity: d.Identity, URL: d.CoAP.URL, Observe: d.CoAP.Observe, Every: d.CoAP.Every}
			one.Key, _ = d.CoAP.Key() // the config was checked
			one.Code = []byte(strings.TrimSpace(d.CoAP.SecurityCode.Reveal()))
			one.KeyName = cmp.Or(d.CoAP.PSKIdentity, c.Gateway.ID)
			asksCoAP = asksCoAP || one.URL != ""
			onCoAP = append(onCoAP, one)
		case d.Serial != nil:
			var fault error
			ports, fault = onPort(ports, *d.Serial, serial.Device{Device: device, Profile: p, Place: place, Identity: d.Identity, Unit: byte(d.Serial.Unit)})
			err = errors.Join(err, fault)
		}
	}
	for _, port := range ports {
		port.Folder = c.Gateway.DataDir
		list = append(list, serial.New(port, log))
	}
	if c.MQTT != nil {
		if c.MQTT.Listen != "" {
			own := mqtt.BrokerConfig{Listen: c.MQTT.Listen, Profiles: profiles}
			for _, u := range c.MQTT.Users {
				own.Users = append(own.Users, mqtt.User{Name: u.Name, Password: u.Password.Reveal()})
			}
			list = append(list, mqtt.NewBroker(own, onMQTT, log))
		}
		for _, b := range c.MQTT.Brokers {
			client := mqtt.ClientConfig{
				Name: b.Name, URL: b.URL, ClientID: b.ClientID,
				Username: b.Username, Password: b.Password.Reveal(), Share: b.Share, Profiles: profiles,
			}
			if b.TLS != nil {
				var fault error
				if client.TLS, fault = settings.of(b.TLS); fault != nil {
					err = errors.Join(err, fmt.Errorf("cannot use the broker %s: %w", b.Name, fault))
					continue
				}
			}
			list = append(list, mqtt.NewClient(client, onMQTT, log))
			if c.Discovery.Accept != "off" {
				list = append(list, mqtt.NewScout(client, onMQTT, log))
			}
		}
	}
	if c.CoAP != nil && (c.CoAP.Listen != "" || c.CoAP.DTLS != nil || c.CoAP.CoIoT != nil) {
		server := coap.Config{Listen: c.CoAP.Listen, Resumed: resumed, Profiles: profiles}
		var fault error
		if server.Secure, fault = secure(c.CoAP.DTLS, settings.verify); fault != nil {
			err = errors.Join(err, fmt.Errorf("cannot use DTLS: %w", fault))
		}
		if c.CoAP.CoIoT != nil {
			server.Group = &coap.Group{Interfaces: c.CoAP.CoIoT.Interfaces}
		}
		if server.Listen != "" || server.Secure != nil || server.Group != nil {
			list = append(list, coap.New(server, onCoAP, log))
		}
	}
	if c.CoAP != nil && len(c.CoAP.Discover) > 0 && c.Discovery.Accept != "off" {
		list = append(list, coap.NewScout(c.CoAP.Discover, profiles, onCoAP, log))
	}
	if asksCoAP {
		list = append(list, coap.NewClient(coap.ClientConfig{Profiles: profiles, Folder: c.Gateway.DataDir, Replace: durable.Replace}, onCoAP, log))
	}
	return list, err
}

// onPort adds a device to its port. What one of several says of the port holds
// for all. They speak one language: their firmware is the same, or all wait until
// they are asked by Modbus.
func onPort(ports []serial.Config, s config.DeviceSerial, d serial.Device) ([]serial.Config, error) {
	path := filepath.Clean(s.Port)
	i := slices.IndexFunc(ports, func(p serial.Config) bool { return p.Port == path })
	if i < 0 {
		i = len(ports)
		ports = append(ports, serial.Config{Port: path})
	}
	p := &ports[i]
	if len(p.Devices) > 0 {
		first := p.Devices[0]
		modbus := func(d serial.Device) bool { return d.Profile.Framing().Modbus != nil }
		if first.Profile != d.Profile && !(modbus(first) && modbus(d)) {
			return ports, fmt.Errorf("%s is not heard: its profile %s, and %s of %s, cannot be told apart on the port %s", d.Device.ID, d.Profile.ID(), first.Profile.ID(), first.Device.ID, path)
		}
	}
	p.USB = cmp.Or(p.USB, s.USB)
	p.Line.Baud = cmp.Or(p.Line.Baud, s.Baud)
	p.Line.DataBits = cmp.Or(p.Line.DataBits, s.DataBits)
	p.Line.Parity = cmp.Or(p.Line.Parity, s.Parity)
	p.Line.StopBits = cmp.Or(p.Line.StopBits, s.StopBits)
	p.Signals.DTR = cmp.Or(p.Signals.DTR, s.DTR)
	p.Signals.RTS = cmp.Or(p.Signals.RTS, s.RTS)
	p.Echo = p.Echo || s.Echo
	p.Devices = append(p.Devices, d)
	return ports, nil
}

// secure reads what DTLS needs; nil where it is not wanted.
func secure(d *config.DTLS, verify func() time.Time) (*coap.Secure, error) {
	if d == nil {
		return nil, nil
	}
	s := &coap.Secure{Listen: d.Listen, Now: verify}
	var err error
	if s.Keys, err = d.Keys(); err != nil {
		return nil, err
	}
	if s.Certificate, s.Authorities, err = d.Files(); err != nil {
		return nil, err
	}
	return s, nil
}

// tlsSettings keeps what was made of the TLS settings in the config, so that
// drivers whose part of it did not change are seen to be the same.
type tlsSettings struct {
	verify func() time.Time // the time by which certificates are judged
	made   map[*config.TLS]*tls.Config
}

func (s *tlsSettings) of(t *config.TLS) (*tls.Config, error) {
	if made := s.made[t]; made != nil {
		return made, nil
	}
	made, err := t.ClientConfig()
	if err != nil {
		return nil, err
	}
	made.Time = s.verify
	if s.made == nil {
		s.made = make(map[*config.TLS]*tls.Config)
	}
	s.made[t] = made
	return made, nil
}

// bridgeConfig translates the XMPP part of the config.
func bridgeConfig(c *config.Config, verify func() time.Time) (bridge.Config, error) {
	b := bridge.Config{PubSub: c.XMPP.PubSub, Gateway: c.Gateway.ID, Payload: c.XMPP.LogPayload}
	for _, r := range c.XMPP.Rooms {
		if j, err := bridge.ParseJID(r.JID); err == nil { // the config was checked
			b.Rooms = append(b.Rooms, bridge.Room{JID: j, Nick: r.Nick, Alarms: slices.Contains(r.Send, "alarms")})
		}
	}
	switch {
	case c.XMPP.Component != nil:
		own := c.XMPP.Component
		b.Stream.Component = &stream.Component{Domain: own.Domain, Server: own.Server, Secret: own.Secret.Reveal()}
		if own.TLS != nil && own.TLS.Mode != config.Off {
			settings, err := own.TLS.ClientConfig()
			if err != nil {
				return b, err
			}
			settings.Time = verify
			b.Stream.Component.TLS = settings
		}
	case c.XMPP.Account != nil:
		own := c.XMPP.Account
		j, err := bridge.ParseJID(own.JID)
		if err != nil {
			return b, fmt.Errorf("cannot use the account %s: %w", own.JID, err)
		}
		settings, err := own.TLS.ClientConfig()
		if err != nil {
			return b, err
		}
		settings.Time = verify
		mode := map[string]stream.TLSMode{config.StartTLS: stream.StartTLS, config.Direct: stream.Direct, config.Off: stream.Off}[own.TLS.Mode]
		b.Stream.Account = &stream.Account{JID: j, Password: own.Password.Reveal(), Server: own.Server, Mode: mode, TLS: settings}
	default:
		return b, errNoServer
	}
	return b, nil
}

// ack resolves `auto`: a server on this machine loses in a power cut what it
// accepted a moment before, so there the disk decides.
func ack(c *config.Config) outbox.Ack {
	if c.Outbox.Ack != "auto" {
		return outbox.Ack(c.Outbox.Ack)
	}
	server := ""
	if c.XMPP.Component != nil {
		server = c.XMPP.Component.Server
	} else if server = c.XMPP.Account.Server; server == "" {
		_, server, _ = strings.Cut(c.XMPP.Account.JID, "@")
	}
	if onThisMachine(server) {
		return outbox.AckDisk
	}
	return outbox.AckServer
}

// onThisMachine reports whether host:port, or host, is an address of this
// machine. A name that cannot be resolved now is not.
func onThisMachine(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	name, _ := os.Hostname()
	if host == name {
		return true
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return false
	}
	if ip.IsLoopback() {
		return true
	}
	own, _ := net.InterfaceAddrs()
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
			return true
		}
	}
	return false
}

// machine names this machine without giving its id away (machine-id(5)).
func machine() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(append([]byte("porchlight "), id...))
	return hex.EncodeToString(sum[:8])
}

// holder tells this gateway from others with its identity: two on one machine
// cannot have one data directory, and a store that begins anew stays in it.
func holder(dataDir string) string {
	if abs, err := filepath.Abs(dataDir); err == nil {
		dataDir = abs
	}
	sum := sha256.Sum256([]byte("porchlight holder " + machine() + " " + dataDir))
	return hex.EncodeToString(sum[:8])
}

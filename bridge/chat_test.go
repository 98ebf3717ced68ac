package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
	"github.com/porchlight-iot/porchlight/devices"
)

// A desk is an Office and an Executor that notes what it was asked for. What
// the gateway's own do is tested with the gateway.
type desk struct {
	mu     sync.Mutex
	did    []string
	silent bool // no device's turn comes
	vague  bool // devices do not say that they have done it
	open   []chan Outcome
}

func (d *desk) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.did = append(d.did, fmt.Sprintf(format, args...))
}

func (d *desk) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.did)
}

func (d *desk) Controls(id devices.ID) []devices.Control {
	zero, hundred := 0.0, 100.0
	power := devices.Control{Name: "power", Argument: devices.Argument{Type: devices.SwitchArgument, Words: []string{"off", "on", "toggle"}}}
	switch id {
	case "kitchen":
		return []devices.Control{power, {Name: "level", Argument: devices.Argument{Type: devices.IntegerArgument, Min: &zero, Max: &hundred, Unit: "%"}}}
	case "hall":
		return []devices.Control{power}
	case "gate":
		return []devices.Control{{Name: "open", Risk: devices.Hazardous}}
	}
	return nil
}

func (d *desk) Execute(ctx context.Context, author string, c devices.Command) <-chan Outcome {
	out := make(chan Outcome, 2)
	if age := time.Since(c.Given); !c.Given.IsZero() && age.Abs() > time.Minute {
		out <- Outcome{Kind: Refused, Err: errors.New("it is old")}
		close(out)
		return out
	}
	d.note("%s: %s %s %s", author, c.Device, c.Name, c.Argument)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.silent:
		context.AfterFunc(ctx, func() {
			out <- Outcome{Kind: Refused, Err: errors.New("it is too late for it")}
			close(out)
		})
		return out
	case d.vague:
		out <- Outcome{Kind: Sent}
		d.open = append(d.open, out)
		return out
	case c.Device == "hall":
		out <- Outcome{Kind: Refused, Err: errors.New("the device is lost")}
	default:
		out <- Outcome{Kind: Sent}
		out <- Outcome{Kind: Confirmed, After: 84 * time.Millisecond}
	}
	close(out)
	return out
}

func (d *desk) Groups(JID) map[string][]devices.ID {
	return map[string][]devices.ID{"lights": {"kitchen", "hall"}}
}

func (d *desk) Latest(id devices.ID) []LatestField {
	if id != "kitchen" {
		return nil
	}
	at := time.Now().Add(-150 * time.Second)
	return []LatestField{
		{devices.Field{Name: "temperature", Value: devices.Number(21.5), Unit: "°C"}, at},
		{devices.Field{Name: "rssi", Value: devices.Number(-60), Unit: "dBm", Kind: devices.Diagnostic}, at},
	}
}

func (d *desk) Alarms(JID) []Alarm {
	return []Alarm{{Device: "kitchen", Text: "lost", Since: time.Now().Add(-90*time.Minute - 30*time.Second)}}
}

func (d *desk) Acknowledge(who JID, id devices.ID) (int, error) {
	d.note("%s: ack %s", who.Bare(), id)
	return 1, nil
}

func (d *desk) Mute(who JID, id devices.ID, t time.Duration) error {
	d.note("%s: mute %s %s", who.Bare(), id, t)
	return nil
}

func (d *desk) Proof(_ JID, id devices.ID, period string) (string, error) {
	return fmt.Sprintf("%s %s: all is there", id, period), nil
}

func (d *desk) Applicants(JID) ([]Applicant, error) {
	return []Applicant{{Number: 1, Device: "plug (S20)", Detail: "tasmota; power 3 W"}, {Number: 7, Person: jid.MustParse("bob@example.net"), Detail: "wants to see kitchen"}}, nil
}

func (d *desk) Approve(who JID, n int, t Terms) (string, error) {
	d.note("%s: approve %d %+v", who.Bare(), n, t)
	return "done", nil
}
func (d *desk) Deny(JID, int) (string, error) { return "denied", nil }
func (d *desk) Grant(who, to JID, t Terms) error {
	d.note("%s: grant %s %+v", who.Bare(), to, t)
	if who.Bare().String() != "anna@example.org" {
		return fmt.Errorf("secret detail: %w", ErrNotAllowed)
	}
	return nil
}
func (d *desk) Revoke(who, from JID) error {
	d.note("%s: revoke %s", who.Bare(), from)
	return nil
}
func (d *desk) Grants(JID) ([]GrantLine, error) {
	return []GrantLine{{JID: jid.MustParse("anna@example.org"), Terms: Terms{Role: "owner"}, Config: true}, {JID: jid.MustParse("bob@example.net"), Terms: Terms{Role: "operator", Devices: []string{"kitchen"}, Hours: "Mon-Fri 08:00-18:00", Until: "2027-01-01"}}}, nil
}
func (d *desk) Claim(who JID, code string) error {
	d.note("%s: claim %s", who.Bare(), code)
	if code != "right" {
		return ErrNotAllowed
	}
	return nil
}
func (d *desk) Knock(who JID, id devices.ID) { d.note("%s: knocks at %s", who.Bare(), id) }
func (d *desk) Store(JID) (string, error)    { return "nothing waits", nil }
func (d *desk) Doctor(JID) (string, error)   { return "all is well", nil }
func (d *desk) Backup(who JID) (string, error) {
	return "", fmt.Errorf("cannot write the copy: %w", errors.New("disk full"))
}

// A parlour is a bridge at a server in memory, where people talk to it.
type parlour struct {
	*running
	*desk
	peer *xmpptest.Peer
	auth *changing

	mu   sync.Mutex
	said []xmpptest.Asked // messages and presences of the gateway
	more chan struct{}
}

func startParlour(t *testing.T, rooms ...Room) *parlour {
	t.Helper()
	p := &parlour{desk: &desk{}, more: make(chan struct{})}
	peers := make(chan *xmpptest.Peer, 1)
	server := xmpptest.Serve(t, func(peer *xmpptest.Peer, name string, s xmpptest.Asked) {
		select {
		case peers <- peer:
		default:
		}
		if name == "message" || name == "presence" || s.Type == "result" || s.Type == "error" {
			p.mu.Lock()
			p.said = append(p.said, s)
			close(p.more)
			p.more = make(chan struct{})
			p.mu.Unlock()
			return
		}
		obliging(peer, name, s)
	})
	p.running = runScripted(t, server, func(b *Bridge) {
		p.auth = &changing{r: rights{"anna@example.org": {"*"}, "bob@example.net": {"kitchen"}}}
		b.auth = p.auth
		b.executor, b.office = p.desk, p.desk // and not the one that runs with it
		for _, r := range rooms {
			b.rooms = append(b.rooms, newRoom(r))
		}
		b.SetDevices([]Device{{ID: devices.Gateway, Name: "Gateway"}, {ID: "kitchen", Name: "Kitchen"}, {ID: "hall", Name: "Hall lamp"}, {ID: "gate"}, {ID: "meter"}})
		b.SetPresence("kitchen", Presence{State: devices.StateFresh, Since: time.Now().Add(-150 * time.Second), Fields: []devices.Field{{Name: "temperature", Value: devices.Number(21.5), Unit: "°C"}}})
	})
	p.waitSession(true)
	p.peer = <-peers
	return p
}

// heard gives all that was said so far that is right.
func (p *parlour) heard(right func(xmpptest.Asked) bool) (all []xmpptest.Asked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.said {
		if right(s) {
			all = append(all, s)
		}
	}
	return all
}

func body(s xmpptest.Asked) string {
	_, rest, _ := strings.Cut(s.Inner, "<body>")
	text, _, _ := strings.Cut(rest, "</body>")
	return strings.NewReplacer("&#34;", `"`, "&#39;", "'", "&lt;", "<", "&gt;", ">", "&amp;", "&", "&#xA;", "\n").Replace(text)
}

// bodies waits until so many messages with a body were sent to somebody.
func (p *parlour) bodies(to string, n int) []string {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		more := p.more
		p.mu.Unlock()
		var all []string
		for _, s := range p.heard(func(s xmpptest.Asked) bool { return strings.HasPrefix(s.To, to) && strings.Contains(s.Inner, "<body>") }) {
			all = append(all, body(s))
		}
		if len(all) >= n {
			return all
		}
		select {
		case <-more:
		case <-deadline:
			p.t.Fatalf("%s got %q", to, all)
		}
	}
}

func (p *parlour) writes(from, to, text string, more ...string) {
	p.peer.Write("<message from='%s' to='%s' type='chat' id='%s'><body>%s</body>%s</message>", from, to+"@pi.example.org", fmt.Sprint(time.Now().UnixNano()), text, strings.Join(more, ""))
}

const annasPhone, bobsPhone = "anna@example.org/phone", "bob@example.net/phone"

func TestChat(t *testing.T) {
	p := startParlour(t)
	n := 0
	for _, c := range []struct {
		to, says string
		want     []string // the messages that answer
	}{
		{"kitchen", "on", []string{"sent", "confirmed after 84 ms"}},
		{"kitchen", "Set level 40 %", []string{"sent", "confirmed after 84 ms"}},
		{"kitchen", "level 140", []string{"refused: level: 140 is not within 0 to 100 %"}},
		{"kitchen", "volume 3", []string{"refused: it has no “volume”; it has: power, level"}},
		{"hall", "toggle", []string{"refused: the device is lost"}},
		{"meter", "on", []string{"refused: " + words.NoControls}},
		{"kitchen", "status", []string{"Kitchen is fresh, heard 2 min ago\nalarm: lost, for 1 h 30 min\ntemperature 21.5 °C"}},
		{"kitchen", "read", []string{"Kitchen is fresh, heard 2 min ago\nalarm: lost, for 1 h 30 min\ntemperature 21.5 °C, 2 min ago\nrssi -60 dBm, 2 min ago"}},
		{"kitchen", "read Temperature", []string{"temperature 21.5 °C, 2 min ago"}},
		{"kitchen", "read humidity", []string{"it has no “humidity”; it has: temperature, rssi"}},
		{"kitchen", "ack", []string{"acknowledged: Kitchen"}},
		{"kitchen", "mute 2h", []string{"no alarms of Kitchen for 2 h; write unmute to end that"}},
		{"kitchen", "unmute", []string{"alarms of Kitchen are on"}},
		{"kitchen", "proof yesterday", []string{"kitchen yesterday: all is there"}},
		{"gateway", "kitchen off", []string{"sent", "confirmed after 84 ms"}},
		{"gateway", "all lights off", []string{"sent: Kitchen\nrefused: Hall lamp: the device is lost", "confirmed after 84 ms: Kitchen"}},
		{"gateway", "kitchen, meter off", []string{"sent: Kitchen", "confirmed after 84 ms: Kitchen"}},
		{"gateway", "gate and meter off", []string{"refused: gate: it has no “off”; it has: open\nrefused: meter: " + words.NoControls}},
		{"gateway", "on", []string{"refused: which device? Write its name first, as in gate on"}},
		{"gateway", "kichen on", []string{"I do not know “kichen”; did you mean kitchen?"}},
		{"gateway", "devices", []string{"gate: unknown\nhall (Hall lamp): unknown\nkitchen (Kitchen): fresh, 21.5 °C\nmeter: unknown\nlights: kitchen, hall"}},
		{"gateway", "pending", []string{"1  device plug (S20): tasmota; power 3 W\n7  bob@example.net: wants to see kitchen\n" + words.PendHow}},
		{"gateway", "approve 1 as Hall plug", []string{"done"}},
		{"gateway", "approve 7 operator kitchen until 2027-01-01", []string{"done"}},
		{"gateway", "deny 7", []string{"denied"}},
		{"gateway", "grant bob@example.net operator kitchen, hall", []string{"bob@example.net is now operator for kitchen, hall"}},
		{"gateway", "grant", []string{"anna@example.org: owner (in the config)\nbob@example.net: operator for kitchen, Mon-Fri 08:00-18:00, until 2027-01-01"}},
		{"gateway", "grant bob@example.net", []string{"refused: " + words.WhoAndWhat}},
		{"gateway", "revoke xmpp:bob@example.net", []string{"bob@example.net may no longer see or do anything"}},
		{"gateway", "revoke bob", []string{"refused: “bob” is not an address"}},
		{"gateway", "outbox", []string{"nothing waits"}},
		{"gateway", "doctor", []string{"all is well"}},
		{"gateway", "backup", []string{"refused: cannot write the copy: disk full"}},
		{"gateway", "rooms", []string{words.NoRooms}},
		{"gateway", "nonsense here", []string{"I do not know “nonsense”; write help"}},
		{"gateway", "one\ntwo", []string{words.ManyLines}},
		{"gateway", "&gt; what I said\n\nkitchen on", []string{"sent", "confirmed after 84 ms"}},
		{"gate", "7", []string{words.NoMenu}},
		{"gate", "menu", []string{"Choose by number:\n1  how it is\n2  open\n3  ack\n4  mute 1 h"}},
		{"gate", "9", []string{"the menu has the numbers 1 to 4"}},
		{"gate", "3", []string{"acknowledged: gate"}},
	} {
		p.writes(annasPhone, c.to, c.says)
		got := p.bodies("anna", n+len(c.want))[n:]
		if n += len(c.want); !slices.Equal(got, c.want) {
			t.Errorf("%s: %s: answered\n%q, want\n%q", c.to, c.says, got, c.want)
		}
	}
	want := []string{
		annasPhone + ": kitchen power on", annasPhone + ": kitchen level 40", annasPhone + ": hall power toggle", "anna@example.org: ack kitchen",
		"anna@example.org: mute kitchen 2h0m0s", "anna@example.org: mute kitchen 0s", annasPhone + ": kitchen power off", annasPhone + ": kitchen power off", annasPhone + ": hall power off", annasPhone + ": kitchen power off",
		"anna@example.org: approve 1 {Name:Hall plug Role: Devices:[] Hours: Until:}", "anna@example.org: approve 7 {Name: Role:operator Devices:[kitchen] Hours: Until:2027-01-01}",
		"anna@example.org: grant bob@example.net {Name: Role:operator Devices:[kitchen hall] Hours: Until:}", "anna@example.org: revoke bob@example.net",
		annasPhone + ": kitchen power on", "anna@example.org: ack gate",
	}
	if got := p.all(); !slices.Equal(got, want) {
		t.Errorf("it was done\n%q, want\n%q", got, want)
	}
	// A client that can is offered the contacts.
	offers := p.heard(func(s xmpptest.Asked) bool { return strings.Contains(s.Inner, "rosterx") })
	if len(offers) != 1 || strings.Count(offers[0].Inner, "<item ") != 4 || !strings.Contains(offers[0].Inner, `jid="hall@pi.example.org" name="Hall lamp"`) {
		t.Errorf("offered: %+v", offers)
	}
}

// TestHazard has a command that cannot be taken back asked for twice.
func TestHazard(t *testing.T) {
	p := startParlour(t)
	p.writes(annasPhone, "gate", "open")
	asked := p.bodies("anna", 1)[0]
	_, rest, found := strings.Cut(asked, "Write ")
	word, _, _ := strings.Cut(rest, " ")
	if !found || len(p.all()) != 0 || !strings.HasPrefix(asked, "“gate: open” cannot be taken back.") {
		t.Fatalf("asked %q, did %q", asked, p.all())
	}
	p.writes(bobsPhone, "kitchen", word)
	p.bodies("bob", 1)
	p.writes(annasPhone, "kitchen", word) // which is another
	p.bodies("anna", 2)
	if did := p.all(); len(did) != 0 {
		t.Fatalf("did %q", did)
	}
	p.writes(annasPhone, "gate", strings.ToUpper(word))
	if got := p.bodies("anna", 4)[2:]; got[0] != "sent" {
		t.Errorf("answered %q", got)
	}
	p.writes(annasPhone, "gate", word)
	p.bodies("anna", 5)
	if did := p.all(); len(did) != 1 {
		t.Errorf("did %q", did)
	}
}

// TestChatByRights has two people see what they may do.
func TestChatByRights(t *testing.T) {
	p := startParlour(t)
	p.writes(annasPhone, "gateway", "help")
	p.writes(bobsPhone, "gateway", "help")
	p.writes(bobsPhone, "gateway", "hall on")
	p.writes(bobsPhone, "gateway", "grant eve@example.org owner")
	p.writes(bobsPhone, "gateway", "rooms")
	p.writes(bobsPhone, "gateway", "status")
	p.writes(bobsPhone, "gateway", "devices")
	all, some := p.bodies("anna", 1)[0], p.bodies("bob", 6)
	if want := []string{
		some[0], "I do not know “hall”; write help", "refused: you may not do that", "refused: you may not do that", "refused: you may not do that",
		"kitchen (Kitchen): fresh, 21.5 °C\nlights: kitchen, hall", // of whom, the office says
	}; !slices.Equal(some, want) || strings.Contains(some[0], "grant") || !strings.Contains(some[0], "kitchen on") {
		t.Errorf("bob is told %q", some)
	}
	for _, word := range []string{"grant", "revoke", "pending", "backup"} {
		if !strings.Contains(all, word) {
			t.Errorf("anna is not told of %s: %s", word, all)
		}
	}
}

// TestUnheard has people and strangers write what is not obeyed, and mostly not
// answered either.
func TestUnheard(t *testing.T) {
	p := startParlour(t)
	at := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	long := strings.Repeat("on ", 1<<19)
	for _, c := range []struct{ from, to, attr, inner, want string }{
		{annasPhone, "kitchen", "type='error'", "<body>on</body>", ""},
		{annasPhone, "kitchen", "type='headline'", "<body>on</body>", ""},
		{annasPhone, "kitchen", "type='groupchat'", "<body>on</body>", ""},
		{annasPhone, "kitchen", "", "<forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client'><body>on</body></message></forwarded><body>on</body>", ""},
		{annasPhone, "kitchen", "", "<received xmlns='urn:xmpp:carbons:2'><forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client'><body>on</body></message></forwarded></received>", ""},
		{annasPhone, "kitchen", "", "<sent xmlns='urn:xmpp:carbons:2'/><body>on</body>", ""},
		{annasPhone, "kitchen", "", "<result xmlns='urn:xmpp:mam:2'/><body>on</body>", ""},
		{annasPhone, "kitchen", "", "<answer xmlns='" + nsAnswer + "'/><body>on</body>", ""},
		{annasPhone, "kitchen", "", "<composing xmlns='http://jabber.org/protocol/chatstates'/>", ""},
		{annasPhone, "kitchen", "", "<set xmlns='urn:xmpp:iot:control'><boolean name='power' value='true'/></set>", ""},
		{annasPhone, "kitchen", "", "<body>" + long + "</body>", ""},
		{annasPhone, "kitchen", "", "<body>" + long[:5000] + "</body>", "that is more than 1000 bytes; write one short line"},
		{annasPhone, "kitchen", "", "<body>on</body><delay xmlns='urn:xmpp:delay' stamp='" + at(-2*time.Hour) + "'/>", "refused: it is old"},
		{annasPhone, "kitchen", "", "<body>on</body><x xmlns='jabber:x:delay' stamp='" + time.Now().Add(-2*time.Hour).UTC().Format("20060102T15:04:05") + "'/>", "refused: it is old"},
		{annasPhone, "kitchen", "", "<body>on</body><delay xmlns='urn:xmpp:delay' stamp='" + at(time.Hour) + "'/>", "refused: it is old"},
		{annasPhone, "kitchen", "", "<body>on</body><delay xmlns='urn:xmpp:delay' stamp='never'/>", "refused: it is old"},
		{annasPhone, "kitchen", "", "<body>ack</body><delay xmlns='urn:xmpp:delay' stamp='" + at(-2*time.Hour) + "'/>", "refused: it was written 2 h ago, and is not done any more"},
		{annasPhone, "kitchen", "", "<body>ack</body><delay xmlns='urn:xmpp:delay' stamp='" + at(2*time.Hour) + "'/>", "refused: " + words.NoClock},
		{annasPhone, "kitchen", "", "<body>text</body><encrypted xmlns='eu.siacs.conversations.axolotl'/>", words.Encrypted},
		{annasPhone, "nothing", "", "<body>on</body>", ""},
		{bobsPhone, "hall", "", "<body>on</body>", ""},
		{bobsPhone, "nothing", "", "<body>on</body>", ""},
		{"eve@example.org/x", "kitchen", "", "<body>on</body>", ""},
		{"eve@example.org/x", "gateway", "", "<body>help</body>", ""},
		{"eve@example.org/x", "gateway", "", "<body>claim wrong</body>", ""},
		{"eve@example.org/anna@example.org", "kitchen", "", "<body>on</body>", ""},
		{"example.org", "kitchen", "", "<body>on</body>", ""},
		{"kitchen@pi.example.org/gw", "hall", "", "<body>on</body>", ""},
		{"pi.example.org", "hall", "", "<body>on</body>", ""},
	} {
		before := len(p.heard(func(s xmpptest.Asked) bool { return strings.Contains(s.Inner, "<body>") }))
		p.peer.Write("<message from='%s' to='%s@pi.example.org' id='%d' %s>%s</message>", c.from, c.to, time.Now().UnixNano(), c.attr, c.inner)
		// What is answered after it shows that it was dealt with.
		p.writes(annasPhone, "hall", "status")
		p.writes("eve@example.org/x", "gateway", "claim marker")
		after := 1
		if c.want != "" {
			after++
		}
		var got []string
		eventually(t, "the next is answered", func() error {
			got = nil
			for _, s := range p.heard(func(s xmpptest.Asked) bool { return strings.Contains(s.Inner, "<body>") })[before:] {
				got = append(got, s.To+" "+body(s))
			}
			if len(got) < after {
				return fmt.Errorf("after %.200s: %q", c.inner, got)
			}
			return nil
		})
		if len(got) != after || c.want != "" && !slices.Contains(got, c.from+" "+c.want) {
			t.Errorf("%s to %s: %.200s: answered %.500q, want %q", c.from, c.to, c.inner, got, c.want)
		}
		p.running.Bridge.limits.mu.Lock()
		clear(p.running.Bridge.limits.buckets)
		p.running.Bridge.limits.mu.Unlock()
	}
	for _, did := range p.all() {
		if !strings.Contains(did, ": claim ") {
			t.Errorf("it was done: %s", did)
		}
	}
}

// TestStrangersKnock has strangers want to subscribe, and ask how devices are.
func TestStrangersKnock(t *testing.T) {
	p := startParlour(t)
	subscribe := func(who, to, kind string) {
		p.peer.Write("<presence from='%s' to='%s@pi.example.org' type='%s'/>", who, to, kind)
	}
	for _, who := range []string{"eve@example.org", "bob@example.net"} {
		for _, to := range []string{"meter", "nothing"} {
			subscribe(who, to, "subscribe")
			subscribe(who, to, "unsubscribe")
			subscribe(who, to, "unavailable")
			subscribe(who, to, "")
		}
	}
	for _, to := range []string{"meter", "nothing"} {
		subscribe("eve@example.org", to, "probe")
	}
	eventually(t, "the probes are answered", func() error {
		got := p.heard(func(s xmpptest.Asked) bool { return s.To == "eve@example.org" })
		if len(got) < 2 {
			return fmt.Errorf("%+v", got)
		}
		if len(got) != 2 || got[0].From != "meter@pi.example.org" || got[1].From != "nothing@pi.example.org" || got[0].Type != "unsubscribed" || got[1].Type != "unsubscribed" || got[0].Inner != got[1].Inner {
			t.Errorf("answered %+v", got)
		}
		return nil
	})
	if got, want := p.all(), []string{"eve@example.org: knocks at meter", "bob@example.net: knocks at meter"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	subscribe("bob@example.net", "kitchen", "subscribe")
	eventually(t, "bob is let in", func() error {
		var got []string
		for _, s := range p.heard(func(s xmpptest.Asked) bool { return s.To == "bob@example.net" && s.From == "kitchen@pi.example.org" }) {
			got = append(got, s.Type)
		}
		if !slices.Equal(got, []string{"subscribed", "subscribe"}) {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

// TestOtherTimes has somebody write whose hours are over.
func TestOtherTimes(t *testing.T) {
	p := startParlour(t)
	p.auth.set(rights{"anna@example.org": {"*"}, "later bob@example.net": {"*"}})
	p.writes(bobsPhone, "kitchen", "on")
	p.writes(bobsPhone, "gateway", "devices")
	p.writes(bobsPhone, "nothing", "on")
	p.writes("eve@example.org/x", "kitchen", "on")
	if got, want := p.bodies("bob", 2), "refused: "+words.NotNow; got[0] != want || got[1] != want {
		t.Errorf("he is told %q", got)
	}
	p.writes(annasPhone, "kitchen", "status")
	p.bodies("anna", 1)
	if got, want := p.all(), []string{bobsPhone + ": kitchen on "}; !slices.Equal(got, want) {
		t.Errorf("the executor, which refuses, got %q", got)
	}
	if n := len(p.bodies("bob", 2)); n != 2 {
		t.Errorf("he got %d answers", n)
	}
}

// TestOnce has a message come twice, and be corrected.
func TestOnce(t *testing.T) {
	p := startParlour(t)
	write := func(id, text, more string) {
		p.peer.Write("<message from='%s' to='kitchen@pi.example.org' type='chat' id='%s'><body>%s</body><request xmlns='urn:xmpp:receipts'/>%s</message>", annasPhone, id, text, more)
	}
	correct := "<replace xmlns='urn:xmpp:message-correct:0' id='%s'/>"
	write("a", "toggle", "")
	write("a", "toggle", "")
	write("b", "toggle", fmt.Sprintf(correct, "a"))
	write("c", "ofn", "")
	write("d", "off", fmt.Sprintf(correct, "c"))
	eventually(t, "all is answered", func() error {
		var rest []string
		for _, s := range p.bodies("anna", 1) {
			if s != "sent" && !strings.HasPrefix(s, "confirmed") {
				rest = append(rest, s)
			}
		}
		if n := len(p.all()); n < 2 || len(rest) < 2 {
			return fmt.Errorf("%d were done, and it said %q", n, rest)
		}
		if want := []string{"refused: " + words.Again, "refused: it has no “ofn”; it has: power, level"}; !slices.Equal(rest, want) {
			t.Errorf("it said %q, want %q", rest, want)
		}
		return nil
	})
	if got, want := p.all(), []string{annasPhone + ": kitchen power toggle", annasPhone + ": kitchen power off"}; !slices.Equal(got, want) {
		t.Errorf("did %q, want %q", got, want)
	}
	if receipts := p.heard(func(s xmpptest.Asked) bool { return strings.Contains(s.Inner, "received") }); len(receipts) != 5 || receipts[0].From != "kitchen@pi.example.org/gw" || receipts[0].To != annasPhone {
		t.Errorf("receipts: %+v", receipts)
	}
}

// TestShutOutMeanwhile has the right of somebody taken while a device is at what
// he wanted.
func TestShutOutMeanwhile(t *testing.T) {
	p := startParlour(t)
	p.desk.mu.Lock()
	p.desk.vague = true
	p.desk.mu.Unlock()
	p.writes(bobsPhone, "kitchen", "on")
	p.writes(annasPhone, "kitchen", "on")
	p.bodies("bob", 1)
	p.bodies("anna", 1)
	p.auth.set(rights{"anna@example.org": {"*"}})
	p.Regrant()
	p.desk.mu.Lock()
	for _, out := range p.desk.open {
		out <- Outcome{Kind: Confirmed, After: time.Second}
		close(out)
	}
	p.desk.mu.Unlock()
	p.bodies("anna", 2)
	p.stop() // after which all is said
	if got := p.bodies("bob", 1); len(got) != 1 {
		t.Errorf("he is told %q", got)
	}
}

// TestPanic has something go wrong in what one person wants.
func TestPanic(t *testing.T) {
	p := startParlour(t)
	p.running.Bridge.people.next("bob@example.net", func(context.Context, *talk) { panic("a fault of ours") })
	p.running.Bridge.people.beside("bob@example.net", func(context.Context) { panic("another") })
	p.writes(bobsPhone, "kitchen", "status")
	p.bodies("bob", 1)
	p.writes(annasPhone, "kitchen", "status")
	p.bodies("anna", 1)
}

// TestOthersWait has one person give commands that take for ever: another is
// answered, and what the first one writes is bounded.
func TestOthersWait(t *testing.T) {
	p := startParlour(t)
	p.desk.mu.Lock()
	p.desk.silent = true
	p.desk.mu.Unlock()
	for range 10 * maxUnderway {
		p.writes(bobsPhone, "kitchen", "on")
	}
	p.writes(annasPhone, "kitchen", "status")
	p.bodies("anna", 1)
	if n := len(p.all()); n > maxWaiting+maxUnderway+requestBurst {
		t.Errorf("%d commands were given", n)
	}
}

func TestAlarms(t *testing.T) {
	p := startParlour(t)
	if err := p.Alert(context30(t), []JID{jid.MustParse("anna@example.org")}, "kitchen", "lost since\n10:15", "e1"); err != nil {
		t.Fatal(err)
	}
	if got, want := p.bodies("anna", 1)[0], "Alarm: Kitchen: lost since 10:15\n"+words.AlarmTail; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	told := p.heard(func(s xmpptest.Asked) bool { return s.ID == "alarm-kitchen.e1" })
	if len(told) != 1 || told[0].From != "kitchen@pi.example.org/gw" || told[0].To != "anna@example.org" {
		t.Fatalf("told %+v", told)
	}
	for _, part := range []string{`<request xmlns="urn:xmpp:receipts">`, `<store xmlns="urn:xmpp:hints">`, `<origin-id xmlns="urn:xmpp:sid:0" id="alarm-kitchen.e1">`} {
		if !strings.Contains(told[0].Inner, part) {
			t.Errorf("%s lacks %s", told[0].Inner, part)
		}
	}
	n := 1
	say := func(inner string) {
		t.Helper()
		p.peer.Write("<message from='%s' to='kitchen@pi.example.org' type='chat' id='%d'>%s</message>", annasPhone, n, inner)
	}
	answered := func(want string) {
		t.Helper()
		n++
		if got := p.bodies("anna", n)[n-1]; got != want {
			t.Errorf("answered %q, want %q", got, want)
		}
	}
	say("<reactions xmlns='urn:xmpp:reactions:0' id='another'><reaction>👍</reaction></reactions>")
	say("<reactions xmlns='urn:xmpp:reactions:0' id='alarm-kitchen.e1'/>")
	say("<reactions xmlns='urn:xmpp:reactions:0' id='alarm-kitchen.e1'><reaction>👍</reaction></reactions>")
	answered("acknowledged: Kitchen")
	say("<reply xmlns='urn:xmpp:reply:0' id='alarm-kitchen.e1'/><body>I am coming</body>")
	answered("acknowledged: Kitchen")
	say("<reply xmlns='urn:xmpp:reply:0' id='alarm-kitchen.e1'/><body>&gt; Alarm: Kitchen: lost\nmute 1h</body>")
	answered("no alarms of Kitchen for 1 h; write unmute to end that")
	say("<body>👍</body>")
	answered("acknowledged: Kitchen")
	if got := len(p.all()); got != 4 {
		t.Errorf("did %q", p.all())
	}
	p.stop()
	if err := p.Alert(context30(t), []JID{jid.MustParse("anna@example.org")}, "kitchen", "lost", "e2"); !errors.Is(err, ErrOffline) {
		t.Errorf("without a session: %v", err)
	}
}

// TestRooms has the gateway join a room, and be spoken to by those whom it
// knows, those whom it does not, and impostors.
func TestRooms(t *testing.T) {
	p := startParlour(t, Room{JID: jid.MustParse("house@rooms.example.org"), Nick: "porch", Alarms: true})
	const house = "house@rooms.example.org"
	eventually(t, "it enters", func() error {
		if len(p.heard(func(s xmpptest.Asked) bool {
			return s.To == house+"/porch" && strings.Contains(s.Inner, "protocol/muc")
		})) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	enters := func(nick, item, status string) {
		p.peer.Write("<presence from='%s/%s' to='gateway@pi.example.org/gw'><x xmlns='http://jabber.org/protocol/muc#user'><item affiliation='member' role='participant' %s/>%s</x></presence>", house, nick, item, status)
	}
	enters("ann", "jid='anna@example.org/phone'", "")
	enters("anon", "", "")
	enters("anna@example.org", "jid='eve@example.org/x'", "")
	enters("porch", "jid='gateway@pi.example.org/gw'", "<status code='110'/>")
	eventually(t, "it is in", func() error {
		if joined, _, why := p.rooms[0].state(); !joined {
			return errors.New(why)
		}
		return nil
	})
	says := func(nick, text, more string) {
		p.peer.Write("<message from='%s/%s' to='gateway@pi.example.org/gw' type='groupchat' id='%d'><body>%s</body>%s</message>", house, nick, time.Now().UnixNano(), text, more)
	}
	says("anon", "porch: kitchen on", "")
	says("anna@example.org", "porch: kitchen on", "")
	says("ann", "kitchen on", "")
	says("ann", "porchlight kitchen on", "")
	says("ann", "porch: kitchen on", "<delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/>")
	says("porch", "porch: kitchen on", "")
	p.peer.Write("<message from='house@rooms.example.org/ann' to='gateway@pi.example.org/gw' type='chat' id='private'><body>kitchen on</body></message>")
	p.peer.Write("<message from='other@rooms.example.org/ann' to='gateway@pi.example.org/gw' type='groupchat' id='other'><body>porch: kitchen on</body></message>")
	says("ann", "porch: grant eve@example.org owner", "")
	if got, want := p.bodies(house, 1)[0], "ann: "+words.NotInRooms; got != want {
		t.Errorf("answered %q, want %q", got, want)
	}
	says("ann", "Porch, kitchen on", "")
	if got, want := p.bodies(house, 3)[1:], []string{"ann: sent", "ann: confirmed after 84 ms"}; !slices.Equal(got, want) {
		t.Errorf("answered %q, want %q", got, want)
	}
	if got, want := p.all(), []string{annasPhone + ": kitchen power on"}; !slices.Equal(got, want) {
		t.Errorf("did %q, want %q", got, want)
	}
	if err := p.Alert(context30(t), nil, "kitchen", "lost", "e1"); err != nil {
		t.Fatal(err)
	}
	if got := p.bodies(house, 4)[3]; got != "Alarm: Kitchen: lost" {
		t.Errorf("told %q", got)
	}
	p.peer.Write("<presence type='unavailable' from='%s/porch' to='gateway@pi.example.org/gw'><x xmlns='http://jabber.org/protocol/muc#user'><item affiliation='none' role='none'/><status code='307'/><status code='110'/></x></presence>", house)
	eventually(t, "it is told why it is out", func() error {
		if got := p.roomList(); got != house+": not joined: "+words.Kicked {
			return errors.New(got)
		}
		return nil
	})
}

// FuzzMessage has whatever a message may hold read, and judged for its age.
func FuzzMessage(f *testing.F) {
	for _, inner := range []string{
		"<body>on</body>", "<body>&gt; a\nb</body><delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/>", "<body/><body>x</body>",
		"<reactions xmlns='urn:xmpp:reactions:0' id='alarm-kitchen.1'><reaction>x</reaction></reactions>", "<reply xmlns='urn:xmpp:reply:0' id='alarm-.'/><body>ack</body>",
		"<x xmlns='jabber:x:delay' stamp='20260101T00:00:00'/><x xmlns='jabber:x:encrypted'/>", "<sent xmlns='urn:xmpp:carbons:2'>", "<a><b><c>",
	} {
		f.Add(inner)
	}
	b := testBridge(f, PayloadSenML)
	f.Fuzz(func(t *testing.T, inner string) {
		var m messageElement
		if (stream.Stanza{Name: "message", Inner: []byte(inner)}).Unmarshal(&m) != nil {
			return
		}
		if line, err := m.line(); err == nil && strings.ContainsFunc(line, func(r rune) bool { return r < ' ' }) {
			t.Errorf("a line is %q", line)
		}
		if given, why := b.late(m); why == "" && !given.IsZero() && time.Since(given).Abs() > lateAfter+time.Minute {
			t.Errorf("of %v, it is not late", given)
		}
		if m.Reply != nil {
			if r, ok := answersAlarm(m.Reply.ID, words.Request{}, errors.New("not understood")); ok && r.Verb != words.Ack {
				t.Errorf("%+v", r)
			}
		}
	})
}

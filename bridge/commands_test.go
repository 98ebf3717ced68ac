package bridge

import (
	"bytes"
	"fmt"
	"image/png"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
	"github.com/porchlight-iot/porchlight/devices"
)

// ask sends a request, and gives the answer's type and inside.
func (p *parlour) ask(from, to, kind, payload string) (string, string) {
	p.t.Helper()
	id := fmt.Sprint("q", time.Now().UnixNano())
	p.peer.Write("<iq from='%s' to='%s' type='%s' id='%s'>%s</iq>", from, to, kind, id, payload)
	var got xmpptest.Asked
	eventually(p.t, payload+" is answered", func() error {
		all := p.heard(func(s xmpptest.Asked) bool { return s.ID == id })
		if len(all) == 0 {
			return fmt.Errorf("not yet")
		}
		got = all[0]
		return nil
	})
	if got.To != from || got.From != to {
		p.t.Errorf("%s to %s was answered by %s to %s", from, to, got.From, got.To)
	}
	return got.Type, got.Inner
}

const (
	kitchenBare = "kitchen@pi.example.org"
	kitchenFull = "kitchen@pi.example.org/gw"
	gatewayBare = "gateway@pi.example.org"
)

func commandText(attrs, inner string) string {
	return "<command xmlns='http://jabber.org/protocol/commands' " + attrs + ">" + inner + "</command>"
}

func submitText(fields ...string) string {
	s := "<x xmlns='jabber:x:data' type='submit'>"
	for i := 0; i < len(fields); i += 2 {
		s += "<field var='" + fields[i] + "'><value>" + fields[i+1] + "</value></field>"
	}
	return s + "</x>"
}

var (
	sessionPattern = regexp.MustCompile(`sessionid="([^"]*)"`)
	notePattern    = regexp.MustCompile(`<note (?:xmlns="[^"]*" )?type="([a-z]*)">([^<]*)</note>`)
	nodePattern    = regexp.MustCompile(` node="([^"]*)"`)
)

func sessionOf(inner string) string {
	if m := sessionPattern.FindStringSubmatch(inner); m != nil {
		return m[1]
	}
	return ""
}

func noteOf(inner string) string {
	if m := notePattern.FindStringSubmatch(inner); m != nil {
		return m[1] + " " + strings.ReplaceAll(m[2], "&#xA;", "\n")
	}
	return inner
}

func TestCommandLists(t *testing.T) {
	p := startParlour(t)
	const list = "<query xmlns='http://jabber.org/protocol/disco#items' node='http://jabber.org/protocol/commands'/>"
	for _, c := range []struct{ who, to, want string }{
		{annasPhone, kitchenBare, "status read on off toggle set ack mute proof subscribe"},
		{annasPhone, kitchenFull, "status read on off toggle set ack mute proof subscribe"},
		{bobsPhone, kitchenBare, "status read on off toggle set ack mute proof subscribe"},
		{annasPhone, "gate@pi.example.org", "status read do-open ack mute proof subscribe"},
		{annasPhone, gatewayBare, "status read ack mute proof subscribe devices tell pending approve deny grants grant revoke rooms outbox doctor backup"},
		{bobsPhone, gatewayBare, "devices tell"},
	} {
		kind, inner := p.ask(c.who, c.to, "get", list)
		var got []string
		for _, m := range nodePattern.FindAllStringSubmatch(inner, -1)[min(1, len(inner)):] {
			got = append(got, m[1])
		}
		if kind != "result" || strings.Join(got, " ") != c.want {
			t.Errorf("%s at %s: %s %q, want %q", c.who, c.to, kind, got, c.want)
		}
	}
	info := "<query xmlns='http://jabber.org/protocol/disco#info' node='on'/>"
	if kind, inner := p.ask(bobsPhone, kitchenBare, "get", info); kind != "result" || !strings.Contains(inner, "command-node") {
		t.Errorf("%s %s", kind, inner)
	}
	// What is not his is as what is not, to a stranger and to one who knows us.
	same := make(map[string]bool)
	for _, q := range []struct{ who, to, payload string }{
		{"eve@example.org/x", kitchenBare, list}, {"eve@example.org/x", "nothing@pi.example.org", list}, {"eve@example.org/x", gatewayBare, list},
		{bobsPhone, "gate@pi.example.org", list}, {bobsPhone, "nothing@pi.example.org", list},
	} {
		_, inner := p.ask(q.who, q.to, "get", q.payload)
		same[inner] = true
	}
	for _, to := range []string{kitchenBare, "nothing@pi.example.org", gatewayBare} {
		for _, payload := range []string{commandText("node='on'", ""), "<set xmlns='urn:xmpp:iot:control'><boolean name='power' value='true'/></set>"} {
			_, inner := p.ask("eve@example.org/x", to, "set", payload)
			same[inner] = true
		}
	}
	if len(same) != 1 {
		t.Errorf("refusals differ: %v", same)
	}
	_, one := p.ask(bobsPhone, gatewayBare, "set", commandText("node='grant'", ""))
	_, two := p.ask(bobsPhone, gatewayBare, "set", commandText("node='nonsense'", ""))
	if one != two {
		t.Errorf("%s and %s", one, two)
	}
	if len(p.all()) != 0 {
		t.Errorf("did %q", p.all())
	}
}

func TestCommandForms(t *testing.T) {
	p := startParlour(t)
	run := func(who, to, attrs, inner string) string {
		t.Helper()
		_, answer := p.ask(who, to, "set", commandText(attrs, inner))
		return answer
	}
	if got := noteOf(run(annasPhone, kitchenBare, "node='on'", "")); got != "info confirmed after 84 ms" {
		t.Error(got)
	}
	if got := noteOf(run(annasPhone, kitchenFull, "node='status' action='execute'", "")); !strings.HasPrefix(got, "info Kitchen is fresh") {
		t.Error(got)
	}

	shown := run(annasPhone, kitchenBare, "node='set' action='execute'", "")
	for _, part := range []string{`status="executing"`, `<actions execute="complete"><complete>`, `type="form"`, `label="level (0 to 100 %)"`, `datatype="xs:integer"`, `<range xmlns="http://jabber.org/protocol/xdata-validate" min="0" max="100">`, `var="power" type="list-single"`} {
		if !strings.Contains(shown, part) {
			t.Errorf("%s lacks %s", shown, part)
		}
	}
	id := sessionOf(shown)
	with := func(action string) string { return fmt.Sprintf("node='set' sessionid='%s' action='%s'", id, action) }
	// Of another client, another contact, another command, and unknown ones.
	for _, c := range []struct{ who, to, attrs string }{
		{"anna@example.org/desk", kitchenBare, with("complete")}, {bobsPhone, kitchenBare, with("complete")},
		{annasPhone, "hall@pi.example.org", with("complete")}, {annasPhone, kitchenBare, fmt.Sprintf("node='mute' sessionid='%s'", id)},
		{annasPhone, kitchenBare, "node='set' sessionid='made-up' action='complete'"},
	} {
		if got := run(c.who, c.to, c.attrs, submitText("level", "40")); !strings.Contains(got, "bad-sessionid") {
			t.Errorf("%s at %s %s: %s", c.who, c.to, c.attrs, got)
		}
	}
	if got := noteOf(run(annasPhone, kitchenBare, with("complete"), submitText("level", "40", "power", ""))); got != "info confirmed after 84 ms" {
		t.Error(got)
	}
	if got := run(annasPhone, kitchenBare, with("complete"), submitText("level", "50")); !strings.Contains(got, "bad-sessionid") {
		t.Errorf("twice: %s", got)
	}
	id = sessionOf(run(annasPhone, kitchenBare, "node='set'", ""))
	if got := noteOf(run(annasPhone, kitchenBare, with("next"), submitText("level", "140"))); got != "error refused: level: 140 is not within 0 to 100 %" {
		t.Error(got)
	}
	id = sessionOf(run(annasPhone, kitchenBare, "node='set'", ""))
	if got := run(annasPhone, kitchenBare, with("cancel"), ""); !strings.Contains(got, `status="canceled"`) {
		t.Error(got)
	}
	id = sessionOf(run(annasPhone, kitchenBare, "node='set'", ""))
	if got := run(annasPhone, kitchenBare, with("complete"), ""); !strings.Contains(got, "bad-payload") {
		t.Errorf("half a form: %s", got)
	}
	id = sessionOf(run(annasPhone, kitchenBare, "node='set'", ""))
	p.sessions.mu.Lock()
	for id, s := range p.sessions.open {
		s.until = time.Now().Add(-time.Minute)
		p.sessions.open[id] = s
	}
	p.sessions.mu.Unlock()
	if got := run(annasPhone, kitchenBare, with("complete"), submitText("level", "60")); !strings.Contains(got, "session-expired") {
		t.Error(got)
	}
	for action, want := range map[string]string{"prev": "bad-action", "explode": "malformed-action"} {
		if got := run(annasPhone, kitchenBare, "node='set' action='"+action+"'", ""); !strings.Contains(got, want) {
			t.Errorf("%s: %s", action, got)
		}
	}
	// A program that knows the form need not ask for it.
	if got := noteOf(run(annasPhone, kitchenBare, "node='set'", submitText("level", "70", "power", "off"))); got != "info confirmed after 84 ms: power off\nconfirmed after 84 ms: level 70" {
		t.Error(got)
	}
	// What cannot be taken back is meant.
	gate := "gate@pi.example.org"
	if got := noteOf(run(annasPhone, gate, "node='do-open'", submitText("sure", "0"))); got != "error refused: a person has to confirm that" {
		t.Error(got)
	}
	if got := noteOf(run(annasPhone, gate, "node='do-open'", submitText("sure", "true"))); got != "info confirmed after 84 ms" {
		t.Error(got)
	}
	if got := noteOf(run(annasPhone, gatewayBare, "node='tell'", submitText("device", "hall", "words", "turn on"))); got != "error refused: the device is lost" {
		t.Error(got)
	}
	if got := noteOf(run(annasPhone, gatewayBare, "node='grant'", submitText("jid", "bob@example.net", "role", "operator", "devices", "kitchen, hall-*", "hours", "Mon-Fri 08:00-18:00 Europe/Berlin", "until", "2027-01-01"))); got != "info bob@example.net is now operator for kitchen, hall-*, Mon-Fri 08:00-18:00 Europe/Berlin, until 2027-01-01" {
		t.Error(got)
	}
	if got := noteOf(run(annasPhone, gatewayBare, "node='approve'", submitText("number", "1", "name", "Hall plug", "role", "owner"))); got != "info done" {
		t.Error(got)
	}
	want := []string{
		annasPhone + ": kitchen power on", annasPhone + ": kitchen level 40", annasPhone + ": kitchen power off", annasPhone + ": kitchen level 70", annasPhone + ": gate open ", annasPhone + ": hall power on",
		"anna@example.org: grant bob@example.net {Name: Role:operator Devices:[kitchen hall-*] Hours:Mon-Fri 08:00-18:00 Europe/Berlin Until:2027-01-01}",
		"anna@example.org: approve 1 {Name:Hall plug Role: Devices:[] Hours: Until:}",
	}
	if got := p.all(); !slices.Equal(got, want) {
		t.Errorf("did\n%q, want\n%q", got, want)
	}
	// Who is granted nothing any more has no form open.
	id = sessionOf(run(bobsPhone, kitchenBare, "node='set'", ""))
	p.auth.set(rights{"anna@example.org": {"*"}})
	p.Regrant()
	p.auth.set(rights{"anna@example.org": {"*"}, "bob@example.net": {"kitchen"}})
	if got := run(bobsPhone, kitchenBare, with("complete"), submitText("level", "40")); !strings.Contains(got, "bad-sessionid") {
		t.Errorf("after he was shut out: %s", got)
	}
}

// TestSessionsAreBounded opens forms without end.
func TestSessionsAreBounded(t *testing.T) {
	s := sessions{open: make(map[string]session)}
	kept := s.begin(session{owner: "bob", node: "set"}, noon)
	for i := range 3 * maxSessionsEach {
		s.begin(session{owner: "anna", node: "set"}, noon.Add(time.Duration(i)*time.Second))
	}
	if len(s.open) != maxSessionsEach+1 {
		t.Errorf("%d are open", len(s.open))
	}
	if _, err := s.end(kept, "bob", "", "set", noon); err != nil {
		t.Error(err)
	}
	for i := range 2 * maxSessions {
		s.begin(session{owner: fmt.Sprint(i), node: "set"}, noon.Add(time.Duration(i)*time.Microsecond))
	}
	if len(s.open) > maxSessions {
		t.Errorf("%d are open", len(s.open))
	}
	s.begin(session{owner: "anna"}, noon.Add(time.Hour))
	if len(s.open) != 1 {
		t.Errorf("%d are open after an hour", len(s.open))
	}
}

func TestControl(t *testing.T) {
	p := startParlour(t)
	set := func(who, to, inner string) string {
		t.Helper()
		kind, answer := p.ask(who, to, "set", "<set xmlns='urn:xmpp:iot:control'>"+inner+"</set>")
		return kind + " " + answer
	}
	for _, c := range []struct{ who, to, inner, want string }{
		{annasPhone, kitchenBare, "<boolean name='power' value='true'/><int name='level' value='40'/>", `result <setResponse xmlns="urn:xmpp:iot:control">`},
		{annasPhone, kitchenFull, submitText("level", "50"), `result <setResponse`},
		{annasPhone, gatewayBare, "<node nodeId='kitchen'/><boolean name='power' value='0'/>", `result <setResponse`},
		{annasPhone, kitchenBare, "<boolean name='power' value='true'/><int name='level' value='140'/>", `<paramError xmlns="urn:xmpp:iot:control" var="level">level: 140 is not within 0 to 100 %`},
		{annasPhone, kitchenBare, "<int name='volume' value='1'/>", `type="modify"><bad-request`},
		{annasPhone, kitchenBare, "<boolean name='level' value='true'/>", `var="level"`},
		{annasPhone, kitchenBare, "<node nodeId='hall'/><boolean name='power' value='true'/>", "item-not-found"},
		{annasPhone, gatewayBare, "<node nodeId='kitchen'/><node nodeId='nothing'/><boolean name='power' value='true'/>", "item-not-found"},
		{bobsPhone, gatewayBare, "<node nodeId='hall'/><boolean name='power' value='true'/>", "item-not-found"},
		{annasPhone, "gate@pi.example.org", "<boolean name='open' value='true'/>", "refused: a person has to confirm that"},
		{annasPhone, "hall@pi.example.org", "<boolean name='power' value='true'/>", "refused: the device is lost"},
		{annasPhone, kitchenBare, "", "bad-request"},
		{annasPhone, kitchenBare, strings.Repeat("<boolean name='power' value='true'/>", maxParams+1), "bad-request"},
	} {
		if got := set(c.who, c.to, c.inner); !strings.Contains(got, c.want) {
			t.Errorf("%s at %s %s: %s, want %s", c.who, c.to, c.inner, got, c.want)
		}
	}
	want := []string{annasPhone + ": kitchen power on", annasPhone + ": kitchen level 40", annasPhone + ": kitchen level 50", annasPhone + ": kitchen power off", annasPhone + ": hall power on"}
	if got := p.all(); !slices.Equal(got, want) {
		t.Errorf("did %q, want %q", got, want)
	}
	_, got := p.ask(annasPhone, kitchenBare, "get", "<getForm xmlns='urn:xmpp:iot:control'/>")
	if !strings.HasPrefix(got, `<x xmlns="jabber:x:data" type="form">`) || !strings.Contains(got, `var="level"`) {
		t.Error(got)
	}
	_, got = p.ask(annasPhone, "gate@pi.example.org", "get", "<getForm xmlns='urn:xmpp:iot:control'/>")
	if strings.Contains(got, "open") {
		t.Errorf("a program is offered what a person has to confirm: %s", got)
	}
	// A device that never says that it has done it.
	p.desk.mu.Lock()
	p.desk.vague = true
	p.desk.mu.Unlock()
	if got := set(annasPhone, kitchenBare, "<boolean name='power' value='true'/>"); !strings.Contains(got, `type="wait"><remote-server-timeout`) {
		t.Error(got)
	}
}

func TestReadout(t *testing.T) {
	p := startParlour(t)
	req := func(who, to, attrs, inner string) string {
		t.Helper()
		kind, answer := p.ask(who, to, "get", "<req xmlns='urn:xmpp:iot:sensordata' "+attrs+">"+inner+"</req>")
		return kind + " " + answer
	}
	if got := req(bobsPhone, kitchenFull, "seqnr='5' momentary='true'", "<field name='temperature'/>"); !strings.Contains(got, `result <accepted xmlns="urn:xmpp:iot:sensordata" seqnr="5">`) {
		t.Error(got)
	}
	var fields []xmpptest.Asked
	eventually(t, "the values come", func() error {
		fields = p.heard(func(s xmpptest.Asked) bool { return strings.Contains(s.Inner, "<fields ") })
		if len(fields) == 0 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	got := fields[0]
	for _, part := range []string{`seqnr="5" done="true"`, `<node nodeId="kitchen"><timestamp value="`, `name="temperature"`, `value="21.5" unit="°C"/>`} {
		if !strings.Contains(got.Inner, part) {
			t.Errorf("%s lacks %s", got.Inner, part)
		}
	}
	if len(fields) != 1 || got.From != kitchenFull || got.To != bobsPhone || strings.Contains(got.Inner, "rssi") {
		t.Errorf("%+v", fields)
	}
	for _, c := range []struct{ who, to, attrs, inner, want string }{
		{bobsPhone, kitchenBare, "", "", "bad-request"},
		{bobsPhone, kitchenBare, "seqnr='1' from='yesterday'", "", "bad-request"},
		{bobsPhone, kitchenBare, "seqnr='1' when='2030-01-01T00:00:00Z'", "", "feature-not-implemented"},
		{bobsPhone, kitchenBare, "seqnr='1'", "<node nodeId='hall'/>", "item-not-found"},
		{bobsPhone, gatewayBare, "seqnr='1'", "<node nodeId='hall'/>", "item-not-found"},
		{bobsPhone, gatewayBare, "seqnr='1'", "", "forbidden"},
	} {
		if got := req(c.who, c.to, c.attrs, c.inner); !strings.Contains(got, c.want) {
			t.Errorf("%s at %s %s: %s, want %s", c.who, c.to, c.attrs, got, c.want)
		}
	}
}

// TestVCards has a name and a picture of each kind of device, which a presence
// names as well.
func TestVCards(t *testing.T) {
	p := startParlour(t)
	_, got := p.ask(bobsPhone, kitchenBare, "get", "<vCard xmlns='vcard-temp'/>")
	if !strings.Contains(got, "<FN>Kitchen</FN>") || !strings.Contains(got, "<TYPE>image/png</TYPE>") {
		t.Error(got)
	}
	hash := p.pictures[aThermometer].hash
	eventually(t, "the presence names the picture", func() error {
		if len(p.heard(func(s xmpptest.Asked) bool { return s.To == "bob@example.net" && strings.Contains(s.Inner, hash) })) == 0 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	hashes := make(map[string]bool)
	for kind, pic := range p.pictures {
		if m, err := png.Decode(bytes.NewReader(pic.png)); err != nil || m.Bounds().Dx() != 64 || m.Bounds().Dy() != 64 || len(pic.png) > 1000 {
			t.Errorf("picture %d: %d bytes, %v", kind, len(pic.png), err)
		}
		if lines := strings.Fields(drawings[kind]); len(lines) != 16 || slices.ContainsFunc(lines, func(l string) bool { return len(l) != 16 || strings.Trim(l, "bwgyru.") != "" }) {
			t.Errorf("drawing %d is not 16 by 16", kind)
		}
		hashes[pic.hash] = true
	}
	if len(hashes) != int(aDoor)+1 {
		t.Errorf("%d pictures", len(hashes))
	}
	state := devices.Field{Name: "power", Kind: devices.Status, Value: devices.Bool(true)}
	for want, fields := range map[pictured][]devices.Field{
		aThing: nil, aThermometer: {{Name: "ds18b20_temperature", Unit: "°C"}, {Name: "voltage", Unit: "V"}}, aSwitch: {{Name: "power_load", Unit: "W"}, state},
		aMeter: {{Name: "total", Unit: "kWh"}, {Name: "power", Unit: "W", Value: devices.Number(3)}}, aDoor: {{Name: "contact", Value: devices.Bool(true)}, {Name: "temperature", Unit: "°C"}}, aDrop: {{Name: "water_leak"}},
	} {
		if got := kindOf("x", fields); got != want {
			t.Errorf("%v: %d, want %d", fields, got, want)
		}
	}
}

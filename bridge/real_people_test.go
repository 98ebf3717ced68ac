package bridge

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
)

// testPeople has people talk to the gateway through a real server: by chat, by
// forms, by control and readout, and in a room.
func testPeople(t *testing.T, s *site, m mode) {
	cfg := s.config(m, "peo-"+string(m))
	house := jid.MustParse("house-" + string(m) + "@rooms.localhost")
	cfg.Rooms = []Room{{JID: house, Nick: "porch", Alarms: true}}
	anna, eve := s.login(t, "anna"), s.login(t, "eve")
	anna.send(`<presence to='` + house.String() + `/ann'><x xmlns='http://jabber.org/protocol/muc'/></presence>`)
	anna.wait("room", func(st stream.Stanza) bool { return st.Name == "presence" && st.From.Bare().Equal(house) })
	if _, err := anna.ask(stanza.SetIQ, house, `<query xmlns='http://jabber.org/protocol/muc#owner'><x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>http://jabber.org/protocol/muc#roomconfig</value></field><field var='muc#roomconfig_whois'><value>anyone</value></field></x></query>`); err != nil {
		t.Fatal(err)
	}
	r := runBridge(t, cfg)
	r.waitSession(true)
	full := jid.MustParse(componentDomain)
	talkTo, kitchen := "gateway@"+componentDomain, jid.MustParse("kitchen@"+componentDomain)
	if m != asComponent {
		full = r.link.Load().session.Addr()
		talkTo, kitchen = full.Bare().String(), full
	}
	anna.send(`<presence to='` + talkTo + `' type='subscribe'/>`)
	anna.wait("the contact", func(st stream.Stanza) bool { // a server may know the subscription already
		return st.Name == "presence" && st.From.Bare().String() == talkTo && (st.Type == "subscribed" || st.Type == "")
	})
	from := func(part string, bodies ...string) func(stream.Stanza) bool {
		return func(st stream.Stanza) bool {
			return st.Name == "message" && strings.HasPrefix(st.From.String(), part) && slices.ContainsFunc(bodies, func(b string) bool { return strings.Contains(string(st.Inner), ">"+b) })
		}
	}
	say := func(p *person, to, text string) {
		p.send(fmt.Sprintf(`<message to='%s' type='chat' id='%d'><body>%s</body></message>`, to, time.Now().UnixNano(), text))
	}

	eve.send(`<presence to='` + talkTo + `' type='subscribe'/>`)
	say(eve, talkTo, "kitchen on")
	say(eve, talkTo, "help")
	say(anna, talkTo, "kitchen on")
	anna.wait("sent", from(talkTo, "sent<"))
	anna.wait("confirmed", from(talkTo, "confirmed after 84 ms<"))
	say(anna, talkTo, "kitchen status")
	anna.wait("status", from(talkTo, "Kitchen is "))
	eventually(t, "eve's wish waits", func() error {
		if want := "eve@localhost: knocks at gateway"; !slices.Contains(r.desk.all(), want) {
			return fmt.Errorf("%q", r.desk.all())
		}
		return nil
	})

	// Forms, of the device, or, of an account, of the one contact.
	node, fields, done := "set", []string{"level", "40"}, ": kitchen level 40"
	if m != asComponent {
		node, fields = "tell", []string{"device", "kitchen", "words", "level 40"}
	}
	st, err := anna.ask(stanza.GetIQ, kitchen, `<query xmlns='http://jabber.org/protocol/disco#items' node='http://jabber.org/protocol/commands'/>`)
	if err != nil || !strings.Contains(string(st.Inner), `node="`+node+`"`) {
		t.Fatalf("%s, %v", st.Inner, err)
	}
	st, err = anna.ask(stanza.SetIQ, kitchen, commandText("node='"+node+"' action='execute'", ""))
	if err != nil {
		t.Fatal(err)
	}
	st, err = anna.ask(stanza.SetIQ, kitchen, commandText(fmt.Sprintf("node='%s' sessionid='%s' action='complete'", node, sessionOf(string(st.Inner))), submitText(fields...)))
	if err != nil || noteOf(string(st.Inner)) != "info confirmed after 84 ms" {
		t.Errorf("%s, %v", st.Inner, err)
	}
	// Programs.
	st, err = anna.ask(stanza.SetIQ, kitchen, `<set xmlns='urn:xmpp:iot:control'><node nodeId='kitchen'/><boolean name='power' value='false'/></set>`)
	if err != nil || st.Child.Local != "setResponse" {
		t.Errorf("%s, %v", st.Inner, err)
	}
	r.publishLog("kitchen", 1)
	rs := someRecords()
	st, err = anna.ask(stanza.GetIQ, kitchen, fmt.Sprintf(`<req xmlns='urn:xmpp:iot:sensordata' seqnr='7' from='%s' historical='true'><node nodeId='kitchen'/></req>`, timestamp(rs[1].Time)))
	if err != nil || st.Child.Local != "accepted" {
		t.Errorf("%s, %v", st.Inner, err)
	}
	readout := anna.wait("readout", func(st stream.Stanza) bool { return st.Name == "message" && st.Child.Local == "fields" })
	if n := strings.Count(string(readout.Inner), "<timestamp "); n != len(rs)-1 || !strings.Contains(string(readout.Inner), `done="true"`) {
		t.Errorf("%d readings: %s", n, readout.Inner)
	}
	// A stranger is told of each what he is told of nobody.
	strange := kitchen
	var refusals []string
	for _, payload := range []string{commandText("node='on'", ""), `<set xmlns='urn:xmpp:iot:control'><boolean name='power' value='true'/></set>`} {
		for _, to := range []jid.JID{strange, jid.MustParse("nothing@" + strange.Domainpart())} {
			if m != asComponent && !to.Equal(strange) {
				continue // whom a server has is the server's to say
			}
			st, err := eve.ask(stanza.SetIQ, to, payload)
			if err == nil {
				t.Errorf("eve is served: %s", st.Inner)
			}
			refusals = append(refusals, string(st.Inner))
		}
	}
	if len(slices.Compact(refusals)) != 1 {
		t.Errorf("refusals differ: %q", refusals)
	}

	// The nodes, as far as the service lets their owner subscribe somebody.
	r.settle(r.deviceNode("kitchen", laneLog))
	say(anna, talkTo, map[bool]string{true: "subscribe kitchen log", false: "kitchen subscribe log"}[m == asAccount])
	anna.wait("subscription", from(talkTo, "you get what is published at ", "refused: the service does not let me"))
	if !anna.heardAnything(from(talkTo, "refused: the service does not let me")) {
		id := r.publishLog("kitchen", 4)
		anna.wait("reading", func(st stream.Stanza) bool { return st.Type == "headline" && strings.Contains(string(st.Inner), id) })
		say(anna, talkTo, "kitchen unsubscribe log")
		anna.wait("end of it", from(talkTo, "you get no more of "))
	} else {
		t.Log("the service lets nobody be subscribed")
	}

	// An alarm, seen by a reaction; and the room.
	eventually(t, "the room is joined", func() error {
		if joined, _, why := r.rooms[0].state(); !joined {
			return errors.New(why)
		}
		return nil
	})
	if err := r.Alert(context30(t), []JID{jid.MustParse("anna@localhost")}, "kitchen", "lost", "e1"); err != nil {
		t.Fatal(err)
	}
	alarm := anna.wait("alarm", func(st stream.Stanza) bool { return st.ID == "alarm-kitchen.e1" })
	anna.wait("alarm in the room", from(house.String(), "Alarm: Kitchen: lost<"))
	anna.send(fmt.Sprintf(`<message to='%s' type='chat' id='r'><reactions xmlns='urn:xmpp:reactions:0' id='%s'><reaction>👍</reaction></reactions></message>`, alarm.From, alarm.ID))
	anna.wait("that it is seen", from(alarm.From.Bare().String(), "acknowledged: Kitchen<"))
	eve.send(`<presence to='` + house.String() + `/anna'><x xmlns='http://jabber.org/protocol/muc'/></presence>`)
	eve.wait("room", func(st stream.Stanza) bool {
		return st.Name == "presence" && st.From.String() == house.String()+"/anna"
	})
	for _, p := range []*person{eve, anna} {
		p.send(fmt.Sprintf(`<message to='%s' type='groupchat' id='%d'><body>porch: kitchen toggle</body></message>`, house, time.Now().UnixNano()))
	}
	anna.wait("answer in the room", from(house.String(), "ann: confirmed after 84 ms<"))

	var executed []string
	for _, did := range r.desk.all() {
		if strings.Contains(did, ": kitchen ") {
			executed = append(executed, did)
		}
	}
	me := anna.session.Addr().String()
	if want := []string{me + ": kitchen power on", me + done, me + ": kitchen power off", me + ": kitchen power toggle"}; !slices.Equal(executed, want) {
		t.Errorf("executed %q, want %q", executed, want)
	}
	if eve.heardAnything(func(st stream.Stanza) bool {
		return st.Name == "message" && st.Type != "error" && (st.From.Domainpart() == componentDomain || st.From.Bare().Equal(full.Bare()))
	}) {
		t.Error("eve is answered")
	}
	r.stop()
	anna.wait("farewell in the room", func(st stream.Stanza) bool {
		return st.Name == "presence" && st.Type == "unavailable" && st.From.String() == house.String()+"/porch"
	})
}

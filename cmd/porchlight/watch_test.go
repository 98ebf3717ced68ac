package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/watch"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
)

func watchNumber(t *testing.T, literal string) devices.Value {
	t.Helper()
	v, err := devices.ParseNumber(literal)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func watchReading(t *testing.T, at time.Time) watch.Reading {
	return watch.Reading{
		Node: "gw/kitchen/log", Item: "a.1-7-7", Device: "kitchen", Store: "a.1", Seq: 7, Time: at, Late: true,
		Fields: []devices.Field{
			{Name: "ds18b20_temperature", Value: watchNumber(t, "20.60"), Unit: "°C"},
			{Name: "on", Value: devices.Bool(true)},
			{Name: "mode", Value: devices.Text("a\x1b[31m\n<b>")},
		},
	}
}

func TestWatchJSON(t *testing.T) {
	var out bytes.Buffer
	p := &jsonPrinter{out: json.NewEncoder(&out)}
	p.Reading(watchReading(t, time.Date(2026, 9, 1, 10, 15, 0, 250e6, time.UTC)))
	want := `{"node":"gw/kitchen/log","item":"a.1-7-7","device":"kitchen","store":"a.1","seq":7,"time":"2026-09-01T10:15:00.25Z","late":true,` +
		`"fields":[{"name":"ds18b20_temperature","value":20.60,"unit":"°C"},{"name":"on","value":true,"unit":""},{"name":"mode","value":"a\u001b[31m\n\u003cb\u003e","unit":""}]}` + "\n"
	if out.String() != want {
		t.Errorf("got  %swant %s", &out, want)
	}
}

func TestWatchPrints(t *testing.T) {
	var out bytes.Buffer
	p := newPrinter(&out, slog.New(slog.DiscardHandler), func(err error) { t.Error(err) })
	noon := time.Date(2026, 9, 1, 12, 0, 0, 0, time.Local)
	p.today = func() time.Time { return noon }
	p.Reading(watchReading(t, noon.Add(time.Second)))
	p.Event(watch.Event{Time: noon.Add(2 * time.Second), Category: "alarm", Device: "cellar-freezer", Title: "too warm", Summary: "-3.0 °C\u202e"})
	p.Event(watch.Event{Time: noon.AddDate(0, 0, -1), Category: "command", Author: "anna@localhost/phone", Title: "on", Summary: "confirmed"})
	p.Reading(watchReading(t, noon.Add(3*time.Second)))
	want := "12:00:01 kitchen   ds18b20_temperature 20.60 °C · on on · mode a [31m <b>\n" +
		"12:00:02 cellar-freezer  ALARM too warm: -3.0 °C \n" +
		"2026-08-31 12:00:00 anna@localhost/phone  command on: confirmed\n" +
		"12:00:03 kitchen               ds18b20_temperature 20.60 °C · on on · mode a [31m <b>\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
	out.Reset()
	p.colour = true
	p.Event(watch.Event{Time: noon, Category: "alarm", Device: "k", Title: "t"})
	if got := out.String(); !strings.Contains(got, "\x1b[1;31mALARM t\x1b[0m") {
		t.Errorf("an alarm has no colour: %q", got)
	}
}

func TestWatchUsage(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		status int
		says   string
	}{
		{"", exitUsage, "--jid"},
		{"--jid anna@localhost", exitUsage, "--password-file"},
		{"--jid", exitUsage, "needs an argument"},
		{"gw/kitchen/log --nonsense", exitUsage, "nonsense"},
		{"--help", exitDone, "NODE"},
		{"--jid a@b --password-file /nowhere/at/all", exitFailed, "cannot read the password"},
		{"--jid a@b --password-file " + password, exitFailed, "is empty"},
		{"--jid a@b --password-file " + password, exitFailed, "chmod 600"},
	} {
		var out, errs bytes.Buffer
		status := execute(t.Context(), append([]string{"watch"}, strings.Fields(c.args)...), &out, &errs)
		if status != c.status || !strings.Contains(errs.String(), c.says) {
			t.Errorf("watch %s: status %d, want %d; says %s", c.args, status, c.status, &errs)
		}
	}
	if err := os.WriteFile(password, []byte("pw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, says := range map[string]string{
		"--ca-file " + password:       "no PEM certificate",
		"kitchen":                     "cannot watch node",
		"--pubsub @":                  "PubSub",
		"--server 127.0.0.1:1 -- --x": "cannot watch node",
	} {
		var out, errs bytes.Buffer
		status := execute(t.Context(), append(strings.Fields("watch --jid a@b --password-file "+password), strings.Fields(args)...), &out, &errs)
		if status != exitFailed || !strings.Contains(errs.String(), says) {
			t.Errorf("watch %s: status %d; says %s", args, status, &errs)
		}
	}
}

// TestWatchVerifiesNothing has no server: that is not the same as no fault.
func TestWatchVerifiesNothing(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("pw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	errs := &lines{more: make(chan struct{}, 1)}
	ended := make(chan int, 1)
	go func() {
		ended <- execute(ctx, []string{"watch", "--jid", "a@localhost", "--password-file", password, "--server", "127.0.0.1:1", "--verify"}, &out, errs)
	}()
	errs.wait(t, 1) // that there is no session
	cancel()
	if got := <-ended; got != exitFailed || !strings.Contains(errs.String(), "nothing was verified") {
		t.Errorf("status %d; it says %s", got, errs)
	}
}

// everybody is a bridge.Authorizer with one operator, who may see all.
type everybody struct{ jid.JID }

func (e everybody) Operators() []jid.JID                     { return []jid.JID{e.JID} }
func (everybody) MaySee(jid.JID, devices.ID) bool            { return true }
func (everybody) MaySeeEvents(jid.JID) bool                  { return true }
func (everybody) May(jid.JID, bridge.Right, devices.ID) bool { return true }
func (everybody) AtOtherTimes(jid.JID, devices.ID) bool      { return false }

// lines counts what is written, line by line.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) wait(t *testing.T, n int) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for strings.Count(l.String(), "\n") < n {
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("waited in vain for %d lines, have\n%s", n, l)
		}
	}
}

// TestWatchVerify has a gateway publish all, and then with a gap.
func TestWatchVerify(t *testing.T) {
	dir := t.TempDir()
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: dir, Component: "pi.localhost", Secret: "s", Users: map[string]string{"anna": "pw"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("pw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	online := make(chan struct{}, 1)
	gateway, err := bridge.New(bridge.Config{
		Stream:  stream.Config{Component: &stream.Component{Domain: "pi.localhost", Server: server.ComponentAddr(), Secret: "s"}},
		PubSub:  server.PubSub(),
		Gateway: "gw",
	}, bridge.Options{
		Auth: everybody{jid.MustParse("anna@localhost")},
		Log:  slog.New(slog.DiscardHandler),
		OnSession: func(up bool) {
			if up {
				online <- struct{}{}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	gateway.SetDevices([]bridge.Device{{ID: "kitchen", Name: "Kitchen"}})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { gateway.Run(ctx) })
	defer running.Wait()
	defer cancel()
	select {
	case <-online:
	case <-time.After(30 * time.Second):
		t.Fatal("the gateway does not get online")
	}
	publish := func(first, last uint64) {
		t.Helper()
		var records []devices.Record
		now := time.Now().Truncate(time.Microsecond)
		for seq := first; seq <= last; seq++ {
			records = append(records, devices.Record{Seq: seq, Reading: devices.Reading{
				Device: "kitchen", Time: now.Add(time.Duration(seq) * time.Microsecond), // no two are of one time
				Fields: []devices.Field{{Name: "temperature", Value: watchNumber(t, "20.5"), Unit: "°C"}},
			}})
		}
		payload, n := gateway.EncodeLog("kitchen", time.Now(), records, 0)
		if n != len(records) {
			t.Fatalf("%d of %d readings fit", n, len(records))
		}
		if err := gateway.PublishLog(ctx, "kitchen", bridge.ItemID("a.1", first, last), payload); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(published func(), readings, status int, verdict string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		out, errs := &lines{more: make(chan struct{}, 1)}, &lines{more: make(chan struct{}, 1)}
		ended := make(chan int, 1)
		go func() {
			ended <- execute(ctx, []string{"watch", "--jid", "anna@localhost", "--password-file", password, "--server", server.C2S(),
				"--ca-file", server.CAFile(), "gw/kitchen/log", "--json", "--verify"}, out, errs)
		}()
		errs.wait(t, 1) // "watching"
		published()
		out.wait(t, readings)
		cancel()
		if got := <-ended; got != status {
			t.Errorf("status %d, want %d; it says %s", got, status, errs)
		}
		printed := strings.Split(strings.TrimSpace(out.String()), "\n")
		if got := printed[len(printed)-1]; got != verdict || len(printed) != readings+1 {
			t.Errorf("%d lines, verdict %s, want %s", len(printed), got, verdict)
		}
		for _, line := range printed[:readings] {
			var r struct{ Device, Store string }
			if err := json.Unmarshal([]byte(line), &r); err != nil || r.Device != "kitchen" || r.Store != "a.1" {
				t.Errorf("line %s: %v", line, err)
			}
		}
	}
	publish(1, 3)
	verify(func() { publish(4, 4) }, 4, exitDone, `{"missing":0,"doubled":0,"disordered":0,"evicted":0}`)
	verify(func() { publish(7, 7); publish(6, 7) }, 7, exitFailed, `{"missing":1,"doubled":1,"disordered":1,"evicted":0}`)
}

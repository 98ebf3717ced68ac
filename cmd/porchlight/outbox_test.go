package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/agent/proof"
	"github.com/porchlight-iot/porchlight/devices"
)

// TestOutbox looks into a store with nobody at work on it, then while a gateway
// is, then into one that is damaged.
func TestOutbox(t *testing.T) {
	dir, err := os.MkdirTemp("", "porchlight") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for name, text := range map[string]string{
		"secret": "s",
		"p.yaml": "gateway: {id: gw, data_dir: data}\nxmpp:\n  component: {domain: gw.localhost, server: \"127.0.0.1:1\", secret_file: secret}\n  pubsub: pubsub.localhost\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "data", "outbox.db")
	o, err := outbox.Open(store, outbox.Options{Encode: func(devices.ID, time.Time, []devices.Record, int) ([]byte, int) { return nil, 1 }})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	value, err := devices.ParseNumber("21.40")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 250 { // more than are read at once
		m := devices.Message{Readings: []devices.Reading{{Device: "kitchen", Time: at.Add(time.Duration(i) * time.Second), Fields: []devices.Field{
			{Name: "temperature", Value: value, Unit: "°C"}, {Name: "on", Value: devices.Bool(true)}, {Name: "mode", Value: devices.Text("a, \"b\"")},
		}}}}
		if _, _, err := o.Append(m); err != nil {
			t.Fatal(err)
		}
	}
	name := o.Store()
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	look := func(args ...string) (int, string) {
		var stdout, stderr bytes.Buffer
		status := execute(t.Context(), append([]string{"outbox"}, append(args, "-c", filepath.Join(dir, "p.yaml"))...), &stdout, &stderr)
		return status, stdout.String() + stderr.String()
	}
	if status, got := look("status"); status != exitDone || !strings.Contains(got, "kitchen  0       0    250  0          ") || !strings.Contains(got, "no gateway is at work on it") {
		t.Errorf("status %d:\n%s", status, got)
	}
	status, got := look("export")
	lines := strings.Split(strings.TrimSpace(got), "\n")
	want := fmt.Sprintf(`{"device":"kitchen","store":%q,"seq":1,"time":"2026-11-23T08:00:00Z","fields":[{"name":"temperature","value":21.40,"unit":"°C"},{"name":"on","value":true,"unit":""},{"name":"mode","value":"a, \"b\"","unit":""}]}`, name)
	if status != exitDone || len(lines) != 250 || lines[0] != want {
		t.Errorf("status %d, %d lines, the first\n%s\nwant\n%s", status, len(lines), lines[0], want)
	}
	status, got = look("export", "--csv")
	if lines = strings.Split(strings.TrimSpace(got), "\n"); status != exitDone || len(lines) != 751 || lines[0] != "device,store,seq,time,name,value,unit" ||
		lines[1] != "kitchen,"+name+",1,2026-11-23T08:00:00Z,temperature,21.40,°C" || lines[3] != "kitchen,"+name+`,1,2026-11-23T08:00:00Z,mode,"a, ""b""",` {
		t.Errorf("status %d, %d lines:\n%s", status, len(lines), strings.Join(lines[:4], "\n"))
	}
	if status, got := look("verify"); status != exitDone || got != "250 readings are well, 0 faults\n" {
		t.Errorf("status %d: %s", status, got)
	}
	if status, got := look("proof", "--last", "1h", "kitchen"); status != exitDone || !strings.Contains(got, ": 250 measured, 0 accepted, 250 waiting, 0 missing; ") ||
		!strings.Contains(got, "unknown: nothing was counted; ") || !strings.Contains(got, ": the gateway was stopped\n") {
		t.Errorf("status %d: %s", status, got)
	}
	if status, got := look("proof", "--since", "2026-11-23 08:00", "--until", "2026-11-23T09:00:00Z", "--json"); status != exitDone || !strings.Contains(got, `"why":"nothing was counted"`) {
		t.Errorf("status %d: %s", status, got)
	}
	for _, args := range [][]string{nil, {"vacuum"}, {"proof", "a", "b"}, {"proof", "--last", "1y"}, {"proof", "--last", "1h", "--since", "2026-01-01"}, {"proof", "--since", "tomorrow"},
		{"proof", "--since", "2026-01-02", "--until", "2026-01-01"}, {"proof", "A B"}, {"status", "--csv"}, {"export", "--csv", "--json"}} {
		var stdout, stderr bytes.Buffer
		if status := execute(t.Context(), append([]string{"outbox"}, args...), &stdout, &stderr); status != exitUsage {
			t.Errorf("%v: status %d", args, status)
		}
	}

	options, err := agent.LoadOptions()
	if err != nil {
		t.Fatal(err)
	}
	c, faults := config.Load(filepath.Join(dir, "p.yaml"), options)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	gateway, err := agent.New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- gateway.Run(ctx) }()
	deadline := time.Now().Add(30 * time.Second)
	var s agent.StoreStatus
	for !s.Running { // it listens soon
		status, got = look("status", "--json")
		if time.Now().After(deadline) {
			t.Fatalf("status %d: %s", status, got)
		}
		if status == exitDone {
			if err := json.Unmarshal([]byte(got), &s); err != nil {
				t.Fatal(err)
			}
		}
	}
	var a proof.Answer
	if status, got := look("proof", "kitchen", "--json"); status != exitDone || json.Unmarshal([]byte(got), &a) != nil || len(a.Devices) != 1 ||
		a.Total.Given != 250 || a.Total.Waiting != 250 || a.Devices[0].Given != 250 {
		t.Errorf("of a gateway at work: status %d: %s", status, got)
	}
	if l := s.Lanes["kitchen"]; l.Log != 250 || s.Lanes["gateway"].Log == 0 {
		t.Errorf("of a gateway at work: %+v", s.Lanes)
	}
	if s.Online || s.Stats == nil || s.Stats.Store == name || len(s.Devices) == 0 || s.FileBytes == 0 {
		t.Errorf("of a gateway at work: %+v", s)
	}
	if status, got := look("export"); status != exitDone || strings.Count(got, `"kitchen"`) != 250 {
		t.Errorf("export from a gateway at work: status %d, %d lines", status, strings.Count(got, "\n"))
	}
	if status, got := look("verify"); status != exitDone {
		t.Errorf("verify: status %d: %s", status, got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	// One row is damaged: it holds the text of a field.
	file, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(store, bytes.ReplaceAll(file, []byte(`a, "b"`), []byte(`a, "c"`)), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, got := look("verify"); status != exitFailed || !strings.Contains(got, "broken  log ") || !strings.Contains(got, "the row is damaged") {
		t.Errorf("of a damaged store: status %d: %s", status, got)
	}
	if status, got := look("export", "--csv"); status != exitFailed || !strings.Contains(got, "not all could be read") {
		t.Errorf("of a damaged store: status %d: %.300s", status, got)
	}
}

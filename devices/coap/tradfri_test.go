package coap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

const label = "aB3dE6gH9jK2mN5p"

// An ikea does what an IKEA TRÅDFRI gateway is said to do in pytradfri and the
// reports there, on pion/dtls and go-coap; no gateway could be had. It gives each
// name one key, and has two lamps.
type ikea struct {
	t    testing.TB
	addr string

	mu      sync.Mutex
	keys    map[string]string // by name
	asked   []string          // names that a key was asked for
	busy    string            // a name that is refused once
	dimmed  map[string]int
	watched map[string][]func(body string)
}

func newIKEA(t testing.TB) *ikea {
	t.Helper()
	g := &ikea{t: t, keys: map[string]string{}, dimmed: map[string]int{"65537": 254, "65538": 10}, watched: map[string][]func(string){}}
	router := mux.NewRouter()
	for path, serve := range map[string]mux.HandlerFunc{"/15011/9063": g.grant, "/15001/65537": g.lamp, "/15001/65538": g.lamp} {
		if err := router.Handle(path, serve); err != nil {
			t.Fatal(err)
		}
	}
	l, err := coapnet.NewDTLSListener("udp4", "127.0.0.1:0", coapnet.NewDTLSServerOptions(
		piondtls.WithPSK(g.key), piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
	))
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	server := dtls.NewServer(options.WithMux(router), options.WithErrors(func(error) {}))
	over := make(chan error, 1)
	go func() { over <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := errors.Join(<-over, l.Close()); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *ikea) key(name []byte) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if string(name) == labelName {
		return []byte(label), nil
	}
	key, ok := g.keys[string(name)]
	if !ok || g.busy == string(name) {
		g.busy = ""
		return nil, errors.New("unknown")
	}
	return []byte(key), nil
}

func (g *ikea) respond(w mux.ResponseWriter, code codes.Code, body string, o ...message.Option) {
	if err := w.SetResponse(code, message.AppJSON, strings.NewReader(body), o...); err != nil {
		g.t.Error(err)
	}
}

func (g *ikea) grant(w mux.ResponseWriter, r *mux.Message) {
	b, _ := io.ReadAll(r.Body())
	var want map[string]string
	err := json.Unmarshal(b, &want)
	name := want["9090"]
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked = append(g.asked, name); r.Code() != codes.POST || err != nil || name == "" || g.keys[name] != "" {
		g.respond(w, codes.BadRequest, "")
		return
	}
	g.keys[name] = fmt.Sprintf("key%013d", len(g.asked))
	g.respond(w, codes.Created, fmt.Sprintf(`{"9091":%q,"9029":"1.3.0014"}`, g.keys[name]))
}

func (g *ikea) lamp(w mux.ResponseWriter, r *mux.Message) {
	path, _ := r.Path()
	id := path[strings.LastIndex(path, "/")+1:]
	g.mu.Lock()
	defer g.mu.Unlock()
	body := func() string {
		return fmt.Sprintf(`{"3":{"0":"IKEA of Sweden","1":"TRADFRI bulb E27 W opal 1000lm"},"3311":[{"5850":1,"5851":%d,"9003":0}],"5750":2,"9001":"Hall","9003":%s,"9019":1}`, g.dimmed[id], id)
	}
	if r.Code() == codes.PUT {
		var want struct {
			Lights []map[string]int `json:"3311"`
		}
		b, _ := io.ReadAll(r.Body())
		if err := json.Unmarshal(b, &want); err != nil || len(want.Lights) != 1 {
			g.respond(w, codes.BadRequest, "")
			return
		}
		g.dimmed[id] = want.Lights[0]["5851"]
		g.respond(w, codes.Changed, "")
		for _, tell := range g.watched[id] {
			tell(body())
		}
		return
	}
	if seq, err := r.Observe(); err != nil || seq != 0 {
		g.respond(w, codes.Content, body())
		return
	}
	g.respond(w, codes.Content, body(), message.Option{ID: message.Observe, Value: []byte{1}})
	conn, token, seq := w.Conn(), r.Token(), uint32(1)
	g.watched[id] = append(g.watched[id], func(body string) {
		m := conn.AcquireMessage(conn.Context())
		defer conn.ReleaseMessage(m)
		seq++
		m.SetCode(codes.Content)
		m.SetToken(token)
		m.SetObserve(seq)
		m.SetContentFormat(message.AppJSON)
		m.SetBody(bytes.NewReader([]byte(body)))
		_ = conn.WriteMessage(m) // one that is gone hears nothing
	})
}

func (g *ikea) names() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.asked...)
}

// With the code of the gateway's label its lamps are heard and told, over a key
// that it gave once, and that is kept; until the gateway knows it no longer.
func TestTradfri(t *testing.T) {
	g := newIKEA(t)
	folder := t.TempDir()
	replace := func(path string, data []byte) error { return os.WriteFile(path, data, 0o600) }
	// run asks both lamps, has do be done, and ends.
	run := func(code string, do func(c *Client, sink *devicetest.Sink)) {
		t.Helper()
		var lamps []Device
		for _, id := range []string{"65537", "65538"} {
			d := askedDevice(devices.ID("lamp-"+id), "tradfri", fmt.Sprintf("coaps://%s/15001/%s", g.addr, id))
			d.Observe, d.KeyName, d.Code = true, "porch", []byte(code)
			lamps = append(lamps, d)
		}
		config := ClientConfig{Profiles: library(t), Folder: folder, Replace: replace}
		c := NewClient(config, lamps, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		sink := &devicetest.Sink{Auto: true}
		go func() { over <- c.Run(ctx, sink) }()
		defer func() {
			cancel()
			if err := <-over; err != nil {
				t.Error(err)
			}
		}()
		do(c, sink)
	}
	both := func(_ *Client, sink *devicetest.Sink) {
		t.Helper()
		await(t, sink, "dimmer", "10")
		for n := 1; ; n++ {
			if all := sink.WaitMessages(t, n); all[n-1].Readings[0].Device == "lamp-65537" {
				break
			}
		}
	}

	run(label, func(c *Client, sink *devicetest.Sink) {
		both(c, sink)
		cmd := devices.Command{Device: "lamp-65537", Name: "dimmer", Argument: "77"}
		waitFor(t, func() bool { return len(c.Controls("lamp-65537")) > 0 })
		if err := c.Execute(t.Context(), cmd, func(devices.Confirmation) {}); err != nil {
			t.Error(err)
		}
		await(t, sink, "dimmer", "77") // as the gateway reports by itself
	})
	if names := g.names(); len(names) != 1 || !strings.HasPrefix(names[0], "porch-") {
		t.Fatalf("asked for keys for %q", names)
	}
	kept, _ := filepath.Glob(filepath.Join(folder, "granted-*.json"))
	if len(kept) != 1 {
		t.Fatalf("kept are %q", kept)
	}
	if b, err := os.ReadFile(kept[0]); err != nil || !strings.Contains(string(b), "key0000000000001") || strings.Contains(string(b), label) {
		t.Errorf("kept is %s, %v", b, err)
	}

	run("of no use any more", both) // the kept key is enough
	g.mu.Lock()
	g.busy = g.asked[0]
	g.mu.Unlock()
	run(label, both) // it is taken when it is shown again
	if names := g.names(); len(names) != 1 {
		t.Fatalf("asked for keys for %q", names)
	}

	g.mu.Lock()
	g.keys = map[string]string{} // somebody has pressed its reset button
	g.mu.Unlock()
	run(label, both)
	if names := g.names(); len(names) != 2 || names[0] == names[1] {
		t.Fatalf("asked for keys for %q", names)
	}
}

// What is wrong with the code, the answer or what is kept is said, and nothing is
// taken for a key.
func TestTradfriFaults(t *testing.T) {
	g := newIKEA(t)
	s := asking(t, &devicetest.Sink{})
	to := netip.MustParseAddrPort(g.addr)
	soon, cancel := context.WithTimeout(t.Context(), 2*time.Second) // the gateway says nothing
	defer cancel()
	if _, err := s.askGrant(soon, to, "porch", []byte("another code"), nil); err == nil {
		t.Error("a wrong code is taken")
	}
	if n := len(g.names()); n != 0 {
		t.Errorf("%d keys were asked for", n)
	}
	folder := t.TempDir()
	full := errors.New("the disk is full")
	k := &grants{folder: folder, replace: func(string, []byte) error { return full }}
	if _, _, err := k.reach(t.Context(), s, g.addr, to, "porch", []byte(label)); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	_, release, err := k.reach(t.Context(), s, g.addr, to, "porch", []byte(label)) // what could not be kept is used
	if err != nil {
		t.Fatal(err)
	}
	release()
	if n := len(g.names()); n != 1 {
		t.Errorf("%d keys were asked for", n)
	}
	k = &grants{folder: folder}
	if err := os.WriteFile(k.file("x:1"), []byte("null"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.reach(t.Context(), s, "x:1", to, "porch", []byte(label)); err == nil || !strings.Contains(err.Error(), "granted-x-1.json") {
		t.Errorf("%v", err)
	}
}

package bridge

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
	"github.com/porchlight-iot/porchlight/devices"
	wire "github.com/porchlight-iot/porchlight/torture/link"
)

// A knife is a proxy that cuts its next connection, with a reset, after so
// many bytes of one direction have passed since it was armed.
type knife struct {
	mu   sync.Mutex
	up   bool // the direction towards the server
	left int  // bytes that may still pass; -1 is no limit
}

func (k *knife) arm(up bool, after int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.up, k.left = up, after
}

// take gives how many of n bytes may pass, and whether that was all.
func (k *knife) take(up bool, n int) (pass int, cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left < 0 || k.up != up {
		return n, false
	}
	pass = min(n, k.left)
	if k.left -= pass; k.left == 0 {
		k.left = -1
		return pass, true
	}
	return pass, false
}

func (k *knife) carry(up bool, to, from net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		pass, cut := k.take(up, n)
		if _, failed := to.Write(buf[:pass]); cut || err != nil || failed != nil {
			for _, c := range []net.Conn{to, from} {
				if cut && up == (c == from) {
					c.(*net.TCPConn).SetLinger(0)
				}
				c.Close()
			}
			return
		}
	}
}

// before puts the knife before a server.
func (k *knife) before(t *testing.T, server string) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			conn, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			all.Go(func() { k.carry(true, conn, client) })
			all.Go(func() { k.carry(false, client, conn) })
		}
	})
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// TestCutAtEachByte has the connection cut after each byte of a publication,
// and of its answer. Nothing of the cut session gets into the next, and sent
// again the item is there once, with the same bytes.
func TestCutAtEachByte(t *testing.T) {
	service := &xmpptest.PubSub{}
	k := &knife{left: -1}
	var mu sync.Mutex
	var up, down int // bytes of the last publication and its answer
	server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
		if s.Request(name) && isPublish(s) {
			mu.Lock()
			up, down = len(s.Inner)+200, 200 // with their heads
			mu.Unlock()
		}
		service.Answer(p, name, s)
	})
	// Presences and the sharing of nodes are not to be cut in its stead.
	r := runScripted(t, k.before(t, server), func(b *Bridge) { b.auth = &changing{r: rights{}} })
	r.waitSession(true)
	seq := uint64(1)
	publish := func() error {
		return r.PublishLog(context30(t), "kitchen", ItemID("s", seq, seq), fmt.Appendf(nil, "\x81\xa1\x00\x61%c", 'a'+byte(seq%26)))
	}
	for ; seq <= 3; seq++ { // makes the node
		if err := publish(); err != nil {
			t.Fatal(err)
		}
	}
	cuts := 0
	for _, upwards := range []bool{true, false} {
		mu.Lock()
		length := down
		if upwards {
			length = up
		}
		mu.Unlock()
		for after := 1; after <= length; after++ {
			k.arm(upwards, after)
			err := publish()
			if err != nil && Judge(err) != Keep {
				t.Fatalf("cut after %d bytes (upwards %v): %v, %v", after, upwards, Judge(err), err)
			}
			for tries := 0; err != nil; tries++ {
				if tries == 0 {
					cuts++
				} else if tries > 50 {
					t.Fatalf("cut after %d bytes (upwards %v): %v", after, upwards, err)
				}
				r.waitSession(true)
				err = publish()
			}
			seq++
		}
		k.arm(true, -1)
	}
	items := service.Items("pi/kitchen/log")
	if len(items) != int(seq)-1 || cuts < 500 {
		t.Errorf("%d items after %d publications and %d cuts", len(items), seq-1, cuts)
	}
	for i, item := range items {
		if item.ID != ItemID("s", uint64(i+1), uint64(i+1)) || item.Changed {
			t.Fatalf("item %d is %+v", i+1, item)
		}
	}
	t.Logf("%d cuts", cuts)
}

// TestHalfOpen has the connection to a real server go dead without a word: a
// ping finds it, and the next session brings what was under way.
func TestHalfOpen(t *testing.T) {
	s := startSite(t, xmppserver.Prosody)
	l, err := wire.New(s.ComponentAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	cfg := s.config(asComponent, "half")
	cfg.Stream.Component.Server = l.Addr()
	cfg.Stream.PingEvery, cfg.Stream.PingTimeout = 200*time.Millisecond, time.Second
	r := runBridge(t, cfg)
	r.waitSession(true)
	r.publishLog("kitchen", 1)
	l.Forget()
	if id, err := r.tryLog("kitchen", 4); err == nil || Judge(err) != Keep {
		t.Errorf("%s: %v", id, err)
	}
	r.waitSession(false)
	r.waitSession(true)
	r.publishLog("kitchen", 4)
	items, err := r.ReadLog(context30(t), "kitchen", 0)
	if err != nil || len(items) != 2 {
		t.Errorf("%d items, %v", len(items), err)
	}
}

// TestPasswordRevoked has an account's password changed while it is logged in.
// The gateway then waits as long as one must who is refused, and comes back
// when the password is right again.
func TestPasswordRevoked(t *testing.T) {
	for _, kind := range []xmppserver.Kind{xmppserver.Prosody, xmppserver.Ejabberd} {
		t.Run(string(kind), func(t *testing.T) {
			s := startSite(t, kind)
			r := newRunning(t, s.config(asAccount, "revoked"))
			refused, again := make(chan struct{}), make(chan struct{})
			var once sync.Once
			r.wait = func(c stream.Class, _ time.Duration) time.Duration {
				if c == stream.Refused {
					once.Do(func() { close(refused) })
					<-again
				}
				return 100 * time.Millisecond
			}
			r.start()
			r.waitSession(true)
			r.publishLog("kitchen", 1)
			restart := func(password string) {
				s.users["gateway"] = password
				if err := s.Restart(context30(t)); err != nil {
					t.Fatal(err)
				}
			}
			right := s.users["gateway"]
			restart("another")
			select {
			case <-refused:
			case <-time.After(patience):
				t.Fatal("a wrong password is taken")
			}
			if _, err := r.tryLog("kitchen", 4); Judge(err) != Keep {
				t.Errorf("%v", err)
			}
			restart(right)
			close(again)
			r.waitSession(false)
			r.waitSession(true)
			r.publishLog("kitchen", 4)
		})
	}
}

// TestTwoGateways has two with one identity on one server, and no lease. Each puts
// the other out and then leaves it alone for a minute or more, and both bring what they
// have.
func TestTwoGateways(t *testing.T) {
	s := startSite(t, xmppserver.Prosody)
	var all []*running
	var mu sync.Mutex
	classes := map[stream.Class]int{}
	for range 2 {
		r := newRunning(t, s.config(asComponent, "twins"))
		r.wait = func(c stream.Class, _ time.Duration) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			classes[c]++
			return time.Second // as a minute
		}
		r.start()
		r.waitSession(true)
		all = append(all, r)
	}
	for n := range 3 {
		for i, r := range all {
			rs := someRecords()
			payload, count := r.EncodeLog("kitchen", noon, rs, 0)
			id := ItemID(fmt.Sprintf("twin%d.%d", i, n), 1, uint64(count))
			eventually(t, "the item of one arrives", func() error { return r.PublishLog(context30(t), "kitchen", id, payload) })
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if classes[stream.Conflict] < 2 || classes[stream.Refused] > 0 {
		t.Errorf("they were put out %v", classes)
	}
}

// TestFlood has a stranger, and an operator whose client has gone wild, send
// requests and presences without end. Both are refused what is too much, and
// all that another operator asks is answered.
func TestFlood(t *testing.T) {
	var mu sync.Mutex
	var peer *xmpptest.Peer
	results, errs := map[string]bool{}, 0
	server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
		mu.Lock()
		defer mu.Unlock()
		peer = p
		switch {
		case name == "iq" && s.Type == "result":
			results[s.ID] = true
		case name == "iq" && s.Type == "error":
			errs++
		default:
			obliging(p, name, s)
		}
	})
	r := runScripted(t, server, func(b *Bridge) {
		b.SetDevices([]Device{{ID: devices.Gateway}, {ID: "kitchen"}})
		b.auth = &changing{r: rights{"anna@example.org": {"*"}, "bob@example.org": {"*"}}}
	})
	r.waitSession(true)
	mu.Lock()
	p := peer
	mu.Unlock()
	const flood, asked = 20_000, 50
	var b strings.Builder
	ping := func(id, from string) {
		fmt.Fprintf(&b, "<iq id='%s' from='%s@example.org/x' to='kitchen@pi.example.org' type='get'><ping xmlns='urn:xmpp:ping'/></iq>", id, from)
	}
	for i := range flood {
		for _, who := range []string{"eve", "bob"} {
			ping(fmt.Sprint(who, i), who)
			fmt.Fprintf(&b, "<presence from='%s@example.org/%d' to='kitchen@pi.example.org' type='probe'/>", who, i)
		}
		if i%(flood/asked) == 0 {
			ping(fmt.Sprint("anna", i), "anna")
		}
		if b.Len() > 1<<16 {
			p.Write("%s", b.String())
			b.Reset()
		}
	}
	p.Write("%s", b.String())
	eventually(t, "all that anna asked is answered", func() error {
		mu.Lock()
		defer mu.Unlock()
		for i := 0; i < flood; i += flood / asked {
			if id := fmt.Sprint("anna", i); !results[id] {
				return fmt.Errorf("%s is not", id)
			}
		}
		return nil
	})
	if err := r.PublishLog(context30(t), "kitchen", "s-1-1", []byte{0x80}); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if n := len(results) - asked; n > flood/2 || errs == 0 {
		t.Errorf("%d requests of the flood were served, %d refused", n, errs)
	}
}

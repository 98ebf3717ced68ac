package agent_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
)

var (
	crashHits = flag.Int("crash.hits", 20, "how often to die in each crash point")
	crashSeed = flag.Uint64("crash.seed", 0, "what to choose by; 0 is another each time")
)

// TestCrashPoints kills the gateway in each place that the package crashpoint
// names, again and again, while devices report on all transports and a
// PubSub service answers well, late, or not. The ledgers of what was
// acknowledged and of what arrived are here, outside; at the end all that was
// acknowledged must be in the service, in one item, in order, and no item may
// have changed its bytes.
func TestCrashPoints(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("to see the same again: go test ./agent -run TestCrashPoints -crash.seed %d", seed)
	points := readPoints(t)
	program := filepath.Join(t.TempDir(), "porchlight")
	if out, err := exec.Command("go", "build", "-tags", "crashpoint", "-o", program, "../cmd/porchlight").CombinedOutput(); err != nil {
		t.Fatalf("cannot build: %v\n%s", err, out)
	}
	todo := make(map[string]int) // how often to die where
	for _, p := range points {
		todo[p] = *crashHits
	}
	var mu sync.Mutex
	died, missed := make(map[string]int), make(map[string]int)
	chains := max(8, *crashHits*4) // four points are passed when a store is made only
	var all sync.WaitGroup
	next := 0
	for range 3 {
		all.Go(func() {
			for {
				mu.Lock()
				n := next
				next++
				mu.Unlock()
				if n >= chains || t.Failed() {
					return
				}
				// The last one goes on until nothing is left to choose.
				ack, lives := []string{"server", "disk"}[n%2], 14
				if n == chains-1 {
					ack, lives = "server", 100_000
				}
				c := newChain(t, program, seed+uint64(n), ack)
				c.run(lives, func(first bool) string {
					mu.Lock()
					defer mu.Unlock()
					return choose(c.random, todo, first, ack)
				}, func(point string, reached bool) {
					mu.Lock()
					defer mu.Unlock()
					if reached {
						died[point]++
					} else if missed[point]++; missed[point] < 3+*crashHits {
						todo[point]++
					}
				})
			}
		})
	}
	all.Wait()
	for _, p := range points {
		if died[p] < *crashHits && !t.Failed() {
			t.Errorf("died only %d times in %q, want %d", died[p], p, *crashHits)
		}
	}
	t.Logf("%d deaths in %d places, %d places not reached in time", sum(died), len(died), sum(missed))
}

func sum(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// once are the points that are passed only when the store is made.
var once = []string{"store missing", "store made", "store renamed", "store created"}

// choose takes a point off the list, "" where none fits.
func choose(random *rand.Rand, todo map[string]int, first bool, ack string) string {
	var fit []string
	for _, p := range slices.Sorted(maps.Keys(todo)) {
		if p == "settled forgotten" && ack == "disk" {
			continue // what was settled is kept for a minute then
		}
		if slices.Contains(once, p) == first && todo[p] > 0 {
			fit = append(fit, p)
		}
	}
	if len(fit) == 0 {
		return ""
	}
	p := fit[random.IntN(len(fit))]
	todo[p]--
	return p
}

// readPoints gives the names in the source of the package crashpoint.
func readPoints(t *testing.T) []string {
	source, err := os.ReadFile(filepath.Join("..", "crashpoint", "points.go"))
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ +Point = "([^"]+)"`).FindAllSubmatch(source, -1) {
		points = append(points, string(m[1]))
	}
	if len(points) < 40 {
		t.Fatalf("%d crash points", len(points))
	}
	return points
}

// A chain is the lives of one gateway, with one store.
type chain struct {
	t       *testing.T
	random  *rand.Rand
	seed    uint64
	program string
	dir     string
	service *xmpptest.PubSub
	broker  string
	devices []*reporter

	mu   sync.Mutex
	logs bytes.Buffer
}

func newChain(t *testing.T, program string, seed uint64, ack string) *chain {
	c := &chain{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 0)), program: program, dir: t.TempDir()}
	faults := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	c.service = &xmpptest.PubSub{}
	c.service.Before = func(p *xmpptest.Peer, s xmpptest.Asked) bool {
		if !strings.Contains(s.Inner, "<publish ") || !strings.Contains(s.Inner, "/log") {
			return false
		}
		mu.Lock()
		fault := faults.IntN(40)
		mu.Unlock()
		const ns = " xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>"
		switch {
		case poisoned(s.Inner):
			p.Refuse(s, "modify", "<bad-request"+ns)
		case fault == 0:
			p.Refuse(s, "wait", "<resource-constraint"+ns)
		case tooBig(s.Inner):
			p.Refuse(s, "modify", "<not-acceptable"+ns+"<payload-too-big xmlns='http://jabber.org/protocol/pubsub#errors'/>")
		case fault < 8: // the disk is to be faster
			go func() {
				select {
				case <-p.Gone: // and the request with it
				case <-time.After(150 * time.Millisecond):
					c.service.Accept(p, s)
				}
			}()
		case fault < 12: // only the answer comes late, or never
			c.service.Accept(&xmpptest.Peer{Conn: late{p.Conn}}, s)
		default:
			return false
		}
		return true
	}
	xmpp := xmpptest.Serve(t, c.service.Answer)
	c.broker = freeTCP(t)
	coap := freeUDP(t)
	write(t, filepath.Join(c.dir, "secret"), "s")
	write(t, filepath.Join(c.dir, "porchlight.yaml"), fmt.Sprintf(`
gateway: {id: pi, data_dir: %s}
xmpp:
  component: {domain: pi.example.org, server: %q, secret_file: secret}
  pubsub: pubsub.example.org
operators: [{jid: anna@example.org, role: owner}]
mqtt: {listen: %q}
coap: {listen: %q}
outbox: {ack: %s, commit_after: 30ms, max_bytes: 16MiB}
devices:
  - {id: a, profile: json, mqtt: {topic: a}}
  - {id: b, profile: json, mqtt: {topic: b}}
  - {id: c, profile: json, coap: {}}
  - {id: poison, profile: json, coap: {}}
`, filepath.Join(c.dir, "data"), xmpp, c.broker, coap, ack))
	for _, id := range []string{"a", "b"} {
		c.devices = append(c.devices, &reporter{id: id, send: mqttSender(c.broker, id)})
	}
	for _, id := range []string{"c", "poison"} {
		c.devices = append(c.devices, &reporter{id: id, send: coapSender(coap, id)})
	}
	return c
}

// poisoned reports whether a pack has the value that the service will not
// take. The text is base64 of CBOR, so the pack is decoded.
func poisoned(inner string) bool {
	if !strings.Contains(inner, "pi/poison/log") {
		return false
	}
	_, rest, _ := strings.Cut(inner, "<item")
	_, payload, _ := strings.Cut(rest, ">")
	payload, _, _ = strings.Cut(payload, "</item>")
	_, _, rs, err := bridge.DecodeLog([]byte(payload))
	if err != nil {
		return false
	}
	for _, r := range rs {
		if n, ok := r.Fields[0].Value.Int(); ok && n%7 == 0 {
			return true
		}
	}
	return false
}

// late is a connection on which things take a while.
type late struct{ net.Conn }

func (l late) Write(b []byte) (int, error) {
	b = bytes.Clone(b)
	time.AfterFunc(100*time.Millisecond, func() { l.Conn.Write(b) })
	return len(b), nil
}

// tooBig reports whether an item is one of those that the service finds too
// big: always the same ones, of more than one reading.
func tooBig(inner string) bool {
	_, id, _ := strings.Cut(inner, "<item id=\"")
	id, _, _ = strings.Cut(id, "\"")
	_, first, last, err := bridge.ParseItem(id)
	return err == nil && first != last && crc32.ChecksumIEEE([]byte(id))%8 == 0
}

// run has the gateway live and die, so often.
func (c *chain) run(lives int, choose func(first bool) string, died func(point string, reached bool)) {
	ctx, stop := context.WithCancel(context.Background())
	var reporting sync.WaitGroup
	defer reporting.Wait()
	defer stop()
	for _, d := range c.devices {
		reporting.Go(func() { d.run(ctx) })
	}
	for i := 0; i < lives && !c.t.Failed(); i++ {
		point := ""
		if i == 0 {
			point = choose(true)
		}
		if point == "" {
			point = choose(false)
		}
		if point == "" {
			break
		}
		died(point, c.live(point))
	}
	for _, d := range c.devices {
		d.pause()
	}
	c.verify()
}

// Points that are passed once in a life, at its beginning or at its end, or
// perhaps not often.
var (
	rare      = []string{"held put", "read back", "pack frozen", "pack split"}
	beginning = append([]string{"store opened", "journal replayed", "run raised", "store loaded", "session up"}, once...)
	end       = []string{"session down", "store closing", "store committed", "store closed", "states put"}
)

// live is one life, up to a point, and reports whether it was reached.
func (c *chain) live(point string) bool {
	n := 1 + c.random.IntN(3)
	if slices.Contains(beginning, point) || slices.Contains(end, point) || slices.Contains(rare, point) {
		n = 1
	}
	cmd := exec.Command(c.program, "run", "-c", filepath.Join(c.dir, "porchlight.yaml"))
	cmd.Env = append(os.Environ(), fmt.Sprintf("PORCHLIGHT_CRASH=%s:%d", point, n))
	progress := c.progress()
	out, exited := c.start(cmd)
	if slices.Contains(end, point) {
		c.waitProgress(exited, progress+8)
		cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case <-exited:
	case <-time.After(5 * time.Second):
		cmd.Process.Kill()
		<-exited
	}
	return strings.Contains(out.String(), "killed: "+point)
}

func (c *chain) start(cmd *exec.Cmd) (out *lockedBuffer, exited chan struct{}) {
	out, exited = &lockedBuffer{}, make(chan struct{})
	cmd.Stderr = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Error(err)
		close(exited)
		return out, exited
	}
	go func() {
		cmd.Wait()
		c.log("%s\n%s", cmd.Env[len(cmd.Env)-1], out.String())
		close(exited)
	}()
	return out, exited
}

func (c *chain) log(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(&c.logs, format+"\n", args...)
}

func (c *chain) progress() (n int) {
	for _, d := range c.devices {
		n += d.acknowledged()
	}
	return n
}

func (c *chain) waitProgress(exited <-chan struct{}, n int) {
	for tick := time.Tick(5 * time.Millisecond); c.progress() < n; {
		select {
		case <-exited:
			return
		case <-tick:
		}
	}
}

// verify lets the gateway live until all is delivered, and compares.
func (c *chain) verify() {
	cmd := exec.Command(c.program, "run", "-c", filepath.Join(c.dir, "porchlight.yaml"))
	cmd.Env = append(os.Environ(), "PORCHLIGHT_CRASH=")
	_, exited := c.start(cmd)
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-exited
	}()
	deadline := time.After(patience)
	for {
		more := c.service.More()
		faults, waiting := c.compare()
		if len(faults) > 0 || len(waiting) == 0 {
			c.report(faults)
			return
		}
		select {
		case <-more:
		case <-time.After(time.Second):
		case <-deadline:
			c.report([]string{"lost: " + strings.Join(waiting, ", ")})
			return
		}
	}
}

func (c *chain) report(faults []string) {
	if len(faults) == 0 {
		return
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("porchlight-crash-%d.log", c.seed))
	os.WriteFile(path, c.logs.Bytes(), 0o600)
	c.t.Errorf("chain of seed %d (its log is in %s):\n%s", c.seed, path, strings.Join(faults, "\n"))
}

// compare gives what is wrong, and what has not arrived.
func (c *chain) compare() (faults, waiting []string) {
	for _, d := range c.devices {
		in := make(map[int]string)
		newest := 0
		for _, item := range c.service.Items("pi/" + d.id + "/log") {
			if item.Changed {
				faults = append(faults, fmt.Sprintf("%s: item %s was sent with other bytes", d.id, item.ID))
			}
			_, _, rs, err := bridge.DecodeItem(item.ID, []byte(item.Payload))
			if err != nil {
				faults = append(faults, fmt.Sprintf("%s: %v", d.id, err))
				continue
			}
			for _, r := range rs {
				v, _ := r.Fields[0].Value.Int()
				n := int(v)
				if before, there := in[n]; there {
					faults = append(faults, fmt.Sprintf("%s: reading %d is in %s and in %s", d.id, n, before, item.ID))
				} else if n < newest {
					faults = append(faults, fmt.Sprintf("%s: reading %d in %s came after %d", d.id, n, item.ID, newest))
				}
				in[n] = item.ID
				newest = max(newest, n)
			}
		}
		for n := 1; n <= d.acknowledged(); n++ {
			if _, there := in[n]; !there && !(d.id == "poison" && n%7 == 0) {
				waiting = append(waiting, fmt.Sprintf("%s %d", d.id, n))
			}
		}
	}
	return faults, waiting
}

// A reporter is a device that numbers its readings, and sends each until it is
// acknowledged.
type reporter struct {
	id   string
	send func(ctx context.Context, n int) (last int, err error) // from n on, until all are acknowledged

	mu     sync.Mutex
	acked  int
	paused bool
}

func (r *reporter) run(ctx context.Context) {
	for n := 0; ; {
		var err error
		if n, err = r.send(ctx, n+1); err != nil {
			return
		}
		r.mu.Lock()
		r.acked = n
		paused := r.paused
		r.mu.Unlock()
		if paused {
			return
		}
	}
}

func (r *reporter) acknowledged() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acked
}

// pause has the device send no more than what it has begun.
func (r *reporter) pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = true
}

// between are the pauses of a device's tries.
const between = 20 * time.Millisecond

// mqttSender sends several messages at QoS 1, in a session that the broker may
// forget: what was not acknowledged is sent again as the same message, marked
// DUP (MQTT 3.1.1 section 4.4).
func mqttSender(broker, id string) func(context.Context, int) (int, error) {
	const window = 5
	var conn net.Conn
	connect := func(ctx context.Context) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", broker)
		if err != nil {
			return err
		}
		p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
		p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.Keepalive = "MQTT", 4, id, 60
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if err := p.Write(c); err == nil {
			if _, err = packets.ReadPacket(c); err == nil {
				conn = c
				return nil
			}
		}
		c.Close()
		return errors.New("not connected")
	}
	exchange := func(from, last int, sent *int) (acked int, err error) {
		acked = from - 1
		for n := from; n <= last; n++ {
			p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
			p.MessageID, p.Qos, p.Dup, p.TopicName = uint16(n%65535+1), 1, n <= *sent, id
			p.Payload = fmt.Appendf(nil, `{"n":%d}`, n)
			*sent = max(*sent, n) // of what fails nobody knows whether it arrived
			if err := p.Write(conn); err != nil {
				return acked, err
			}
		}
		for acked < last {
			got, err := packets.ReadPacket(conn)
			if err != nil {
				return acked, err
			}
			if ack, ok := got.(*packets.PubackPacket); ok && int(ack.MessageID) == (acked+1)%65535+1 {
				acked++
			}
		}
		return acked, nil
	}
	return func(ctx context.Context, n int) (int, error) {
		last, sent := n+window-1, 0
		for {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			if conn == nil && connect(ctx) != nil {
				time.Sleep(between)
				continue
			}
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			acked, err := exchange(n, last, &sent)
			stop()
			if n = acked + 1; err == nil {
				return last, nil
			}
			conn.Close()
			conn = nil
		}
	}
}

// coapSender sends confirmable requests, each again with the same message id
// until it is answered (RFC 7252 section 4.2), only sooner.
func coapSender(server, id string) func(context.Context, int) (int, error) {
	conn, err := net.Dial("udp", server)
	if err != nil {
		panic(err)
	}
	answer := make([]byte, 2048)
	return func(ctx context.Context, n int) (int, error) {
		token := binary.BigEndian.AppendUint32(nil, uint32(n))
		m := message.Message{
			Type: message.Confirmable, Code: codes.POST, MessageID: int32(n % 65536), Token: token,
			Payload: fmt.Appendf(nil, `{"n":%d}`, n),
			Options: message.Options{{ID: message.URIPath, Value: []byte("d")}, {ID: message.URIPath, Value: []byte(id)}, {ID: message.ContentFormat, Value: []byte{50}}},
		}
		request := make([]byte, 2048)
		size, err := coder.DefaultCoder.Encode(m, request)
		if err != nil {
			panic(err)
		}
		for {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			conn.Write(request[:size])
			conn.SetReadDeadline(time.Now().Add(10 * between))
			for {
				k, err := conn.Read(answer)
				if errors.Is(err, syscall.ECONNREFUSED) {
					time.Sleep(between)
				}
				if err != nil {
					break
				}
				a := message.Message{Options: make(message.Options, 0, 16)}
				if _, err := coder.DefaultCoder.Decode(answer[:k], &a); err != nil || !bytes.Equal(a.Token, token) {
					continue
				}
				if a.Type == message.Confirmable {
					ack, _ := coder.DefaultCoder.Encode(message.Message{Type: message.Acknowledgement, MessageID: a.MessageID}, request[size:])
					conn.Write(request[size : size+ack])
				}
				if a.Code == codes.Changed {
					return n, nil
				}
			}
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func freeTCP(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// A robot is an actuator that does what it is told at once, and reports it;
// but what is called wait when it is let go.
type robot struct {
	report func(devices.Reading)
	begun  chan string
	let    chan struct{}

	mu   sync.Mutex
	done []string
}

func (*robot) Name() string                            { return "robot" }
func (*robot) Run(context.Context, devices.Sink) error { return nil }
func (m *robot) Controls(devices.ID) []devices.Control {
	return []devices.Control{
		{Name: "power", Argument: devices.Argument{Type: devices.SwitchArgument, Words: []string{"off", "on"}}},
		{Name: "ask", Risk: devices.ReadOnly},
		{Name: "door", Risk: devices.Hazardous},
		{Name: "wait"},
		{Name: "fail"},
	}
}

func (m *robot) Execute(ctx context.Context, c devices.Command, expect func(devices.Confirmation)) error {
	if c.Name == "wait" {
		m.begun <- c.Name
		<-m.let
	}
	if c.Name == "fail" {
		return errors.New("it cannot")
	}
	expect(devices.Confirmation{Field: c.Name, Within: time.Minute})
	m.mu.Lock()
	m.done = append(m.done, commandText(c))
	m.mu.Unlock()
	m.report(devices.Reading{Device: c.Device, Fields: []devices.Field{{Name: c.Name, Value: devices.Bool(true)}}})
	return nil
}

// A shop is orders with a robot.
type shop struct {
	*orders
	*robot
	t      *testing.T
	dir    string
	cancel context.CancelFunc

	mu     sync.Mutex
	time   access.Moment
	rights map[string]bridge.Right // by bare JID
	taken  error                   // why another gateway may carry out commands
	events []string
}

func newShop(t *testing.T) *shop {
	s := &shop{
		t: t, dir: t.TempDir(), time: access.Moment{Time: time.Now(), Known: true},
		rights: map[string]bridge.Right{"anna@h": bridge.MayGrant, "bob@h": bridge.MayCommand, "carl@h": bridge.MayRead},
	}
	h := newHouse(func(devices.ID) {})
	h.furnish([]devices.Device{{ID: "lamp"}}, func(devices.ID) []byte { return nil })
	s.robot = &robot{begun: make(chan string, 10), let: make(chan struct{})}
	s.open(h)
	t.Cleanup(func() { s.close() })
	return s
}

// open begins, with what the ledger remembers.
func (s *shop) open(h *house) {
	s.t.Helper()
	s.orders = &orders{
		house: h, actuators: func() []devices.Actuator { return []devices.Actuator{s.robot} },
		may: func(author string, right bridge.Right, _ devices.ID) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			bare, _, _ := strings.Cut(author, "/")
			has, some := s.rights[bare]
			return some && has >= right
		},
		holds: func(context.Context) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.taken
		},
		now: func() access.Moment {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.time
		},
		tell: func(e bridge.Event) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, e.Author+" "+e.Title+" "+e.Summary)
		},
		log: slog.New(slog.DiscardHandler), desks: make(map[devices.ID]*desk),
	}
	var err error
	if s.ledger, err = openLedger(s.dir, s.unknown); err != nil {
		s.t.Fatal(err)
	}
	s.robot.report = func(r devices.Reading) { s.heard([]devices.Reading{r}, time.Now()) }
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.start(ctx)
}

func (s *shop) close() {
	s.cancel()
	s.stop()
	if err := s.ledger.close(); err != nil {
		s.t.Error(err)
	}
}

func (s *shop) gives(author string, c devices.Command) <-chan bridge.Outcome {
	c.Device = "lamp"
	return s.give(s.t.Context(), author, c)
}

// wants compares all outcomes of a command with words, each with a part of why.
func (s *shop) wants(author string, c devices.Command, want ...string) {
	s.t.Helper()
	s.comes(s.gives(author, c), want...)
}

func (s *shop) comes(outcomes <-chan bridge.Outcome, want ...string) {
	s.t.Helper()
	var got []string
	for deadline := time.After(90 * time.Second); ; {
		select {
		case o, more := <-outcomes:
			if more {
				got = append(got, strings.TrimSuffix(fmt.Sprintf("%s: %v", o.Kind, o.Err), ": <nil>"))
				continue
			}
		case <-deadline:
			s.t.Fatal("a command has no end")
		}
		break
	}
	ok := len(got) == len(want)
	for i := range got {
		ok = ok && strings.HasPrefix(got[i], want[i])
	}
	if !ok {
		s.t.Errorf("got %q, want %q", got, want)
	}
}

// audit gives all events, also of what ended a moment ago.
func (s *shop) audit() []string {
	s.orders.mu.Lock()
	defer s.orders.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

func (s *shop) did(want string) {
	s.t.Helper()
	s.robot.mu.Lock()
	defer s.robot.mu.Unlock()
	if got := strings.Join(s.done, ", "); got != want {
		s.t.Errorf("it did %s, want %s", got, want)
	}
	s.done = nil
}

func TestLateCommands(t *testing.T) {
	s := newShop(t)
	on := devices.Command{Name: "on"}
	given := func(ago time.Duration) devices.Command {
		c := on
		c.Given = s.time.Time.Add(-ago)
		return c
	}
	until := func(left time.Duration) devices.Command {
		c := on
		c.Until = s.time.Time.Add(left)
		return c
	}
	s.wants("bob@h/x", given(50*time.Second), "sent", "confirmed")
	s.wants("bob@h/x", given(61*time.Second), "refused: it was given more than 60 seconds ago")
	s.wants("bob@h/x", given(-50*time.Second), "sent", "confirmed")
	s.wants("bob@h/x", given(-61*time.Second), "refused: it was given more than 60 seconds ago")
	s.wants("bob@h/x", until(50*time.Second), "sent", "confirmed")
	s.wants("bob@h/x", until(0), "refused: it is too late")
	s.mu.Lock()
	s.time.Known = false
	s.mu.Unlock()
	s.wants("bob@h/x", given(0), "refused: it was kept on its way")
	s.wants("bob@h/x", until(time.Hour), "refused: it was kept on its way")
	s.wants("bob@h/x", on, "sent", "confirmed")
	s.mu.Lock()
	s.time.Known = true
	s.mu.Unlock()
	s.did("power on, power on, power on, power on")

	// What is in time when it is given can be late when its turn comes.
	first := s.gives("bob@h/x", devices.Command{Name: "wait"})
	<-s.begun
	second := s.gives("bob@h/x", until(50*time.Millisecond))
	time.Sleep(60 * time.Millisecond)
	close(s.let)
	s.comes(first, "sent", "confirmed")
	s.comes(second, "refused: it is too late")
	s.did("wait")
}

// TestCommandsOfAnother has another gateway with the same identity: who writes to
// both is served by that one, and who is at this machine by this one.
func TestCommandsOfAnother(t *testing.T) {
	s := newShop(t)
	s.rights[""] = bridge.MayCommand
	s.taken = bridge.ErrPassive
	s.wants("bob@h/x", devices.Command{Name: "on"}, "refused: another gateway is at work")
	s.wants("", devices.Command{Name: "off"}, "sent", "confirmed")
	s.did("power off")
}

func TestRightsOfCommands(t *testing.T) {
	s := newShop(t)
	s.wants("eve@h/x", devices.Command{Name: "on"}, "refused: "+bridge.ErrNotAllowed.Error())
	s.wants("carl@h/x", devices.Command{Name: "on"}, "refused: "+bridge.ErrNotAllowed.Error())
	s.wants("carl@h/x", devices.Command{Name: "ask"}, "sent", "confirmed")
	s.wants("bob@h/x", devices.Command{Name: "door"}, "refused: it is hazardous")
	s.wants("bob@h/x", devices.Command{Name: "door", Sure: true}, "sent", "confirmed")
	s.did("ask, door")

	// Who is revoked while his commands wait gets none of them done, at once.
	first := s.gives("anna@h/x", devices.Command{Name: "wait"})
	<-s.begun
	second, third := s.gives("bob@h/x", devices.Command{Name: "on"}), s.gives("anna@h/x", devices.Command{Name: "off"})
	s.mu.Lock()
	delete(s.rights, "bob@h")
	s.rights["anna@h"] = bridge.MayRead
	s.mu.Unlock()
	s.review()
	s.comes(second, "refused: "+bridge.ErrNotAllowed.Error())
	close(s.let)
	s.comes(first, "sent", "confirmed")
	s.comes(third, "refused: "+bridge.ErrNotAllowed.Error())
	s.did("wait")
	if want, all := "bob@h/x lamp: on refused: "+bridge.ErrNotAllowed.Error(), s.audit(); len(all) != 8 || all[5] != want {
		t.Errorf("the audit is %q", all)
	}
}

func TestCommandsOnce(t *testing.T) {
	s := newShop(t)
	const long = "c6e64e62-21d1-4e5f-9c0b-5a0fd1ed3e4e"
	on := func(token string) devices.Command {
		return devices.Command{Name: "power", Argument: "on", Token: token}
	}
	again := "sent: it was given before"
	s.wants("bob@h/x", on(""), "sent", "confirmed")
	s.wants("bob@h/x", on(""), "sent", "confirmed")
	s.wants("bob@h/x", on("1"), "sent", "confirmed")
	s.wants("bob@h/x", on("1"), again, "confirmed")
	s.wants("bob@h/y", on("1"), "sent", "confirmed") // a counter of another session
	s.wants("bob@h/x", devices.Command{Name: "power", Argument: "off", Token: "1"}, "sent", "confirmed")
	s.wants("bob@h/x", on(long), "sent", "confirmed")
	s.wants("bob@h/y", on(long), again, "confirmed")
	s.wants("anna@h/y", on(long), "sent", "confirmed")
	s.wants("bob@h/x", devices.Command{Name: "fail", Token: long}, "refused: it cannot")
	s.wants("bob@h/x", devices.Command{Name: "fail", Token: long}, "refused: it cannot")
	s.did("power on, power on, power on, power on, power off, power on, power on")
	events := len(s.audit())

	// While it is under way, and over a restart.
	first := s.gives("bob@h/x", devices.Command{Name: "wait", Token: long})
	<-s.begun
	second := s.gives("bob@h/x", devices.Command{Name: "wait", Token: long})
	close(s.let)
	s.comes(first, "sent", "confirmed")
	s.comes(second, again, "confirmed")
	s.close()
	s.open(s.house)
	s.wants("bob@h/x", on(long), again, "confirmed")
	if all := s.audit(); len(all) != events+1 {
		t.Errorf("the audit is %q", all[events:])
	}
	s.did("wait")

	// A crash: the command was begun, and no more is known.
	if _, begun, err := s.ledger.begin("bob@h/x", devices.Command{Device: "lamp", Name: "door", Token: long}, true); begun == nil || err != nil {
		t.Fatal(begun, err)
	}
	s.close()
	f, err := os.OpenFile(filepath.Join(s.dir, ledgerFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "\x00\x00\n{\"key\":\"torn")
	f.Close()
	s.open(s.house)
	all := s.audit()
	if last := all[len(all)-1]; last != "bob@h/x lamp: door unknown: the gateway ended before it was known what came of it" {
		t.Errorf("the audit has %s", last)
	}
	s.wants("bob@h/x", devices.Command{Name: "door", Token: long, Sure: true}, "refused: it was given before, and is not done again; nobody knows")
	s.wants("bob@h/x", on(long), again, "confirmed")
	s.close()
	s.open(s.house)
	if all := s.audit(); len(all) != events+2 {
		t.Errorf("the audit is %q", all[events:])
	}
	s.did("")

	// What cannot be remembered is done, if it is not hazardous.
	s.ledger.mu.Lock()
	s.ledger.file.Close()
	s.ledger.file, s.ledger.path = nil, filepath.Join(s.dir, "gone", "x")
	s.ledger.mu.Unlock()
	s.wants("bob@h/x", devices.Command{Name: "door", Sure: true}, "refused: it is hazardous, and cannot be remembered")
	s.wants("bob@h/x", on(""), "sent", "confirmed")
	s.did("power on")
}

// TestLedger has commands begin and end and the power fail, at random. None
// with the same token is begun twice, but where the first was not sent.
func TestLedger(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		open := func() *ledger {
			l, err := openLedger(dir, func(entry) {})
			if err != nil {
				rt.Fatal(err)
			}
			return l
		}
		size := func() int64 {
			info, err := os.Stat(filepath.Join(dir, ledgerFile))
			if err != nil {
				rt.Fatal(err)
			}
			return info.Size()
		}
		l, safe := open(), size()
		sent := make(map[string]bool)
		var under []*entry
		tokens := make(map[*entry]string)
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"begin", "begin", "end", "undo", "crash"}).Draw(rt, "step") {
			case "begin":
				token := fmt.Sprintf("a token that is long enough %d", rapid.IntRange(0, 5).Draw(rt, "token"))
				_, begun, err := l.begin("bob@h/x", devices.Command{Device: "lamp", Name: "on", Token: token}, false)
				if begun == nil {
					if !sent[token] {
						rt.Fatalf("%s was not sent, and is refused: %v", token, err)
					}
					continue
				}
				if sent[token] {
					rt.Fatalf("%s is sent twice", token)
				}
				sent[token], tokens[begun], safe = true, token, size()
				under = append(under, begun)
			case "end", "undo":
				if len(under) == 0 {
					continue
				}
				e := under[0]
				under = under[1:]
				if rapid.Bool().Draw(rt, "sent") {
					err = l.end(e, bridge.Outcome{Kind: bridge.Sent})
				} else {
					l.undo(e)
					sent[tokens[e]] = false
				}
			case "crash":
				l.close()
				left := rapid.Int64Range(safe, size()).Draw(rt, "left")
				if err := os.Truncate(filepath.Join(dir, ledgerFile), left); err != nil {
					rt.Fatal(err)
				}
				l, under = open(), nil
				safe = size()
				for token := range sent {
					if !sent[token] {
						delete(sent, token)
					}
				}
				// What was not sent may be called unknown now.
				for _, e := range l.entries {
					for _, token := range tokens {
						if e.Outcome != "" && e.Key == (&entry{Author: "bob@h/x", long: true}).key(devices.Command{Device: "lamp", Name: "on", Token: token}, 0) {
							sent[token] = true
						}
					}
				}
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		l.close()
	})
}

package agent

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/aboard"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/agent/proof"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// controlFile is a socket in the data directory, by which other commands look
// into a gateway at work.
const controlFile = "control.sock"

// A StoreStatus is what `outbox status` tells.
type StoreStatus struct {
	Running bool `json:"running"`
	outbox.Contents
	Lanes map[devices.ID]Lanes `json:"lanes"`
	// What gateways wrote, to any disk, since midnight, and in a year at the
	// pace of the last 24 hours; 0 before an hour is over, because the store is
	// made at the first start, all of it, which is no pace.
	WrittenToday   int64 `json:"writtenTodayBytes"`
	WrittenPerYear int64 `json:"writtenPerYearBytes"`
	// Of a gateway at work, since its start:
	Stats        *outbox.Stats `json:"stats,omitempty"`
	Online       bool          `json:"online"`
	Passive      bool          `json:"passive,omitempty"`
	Seconds      float64       `json:"seconds,omitempty"`
	WrittenBytes int64         `json:"writtenBytes,omitempty"`
}

// Lanes is what waits of a device, lane by lane, and how much comes.
type Lanes struct {
	Alarms      int     `json:"alarms"`      // events
	Now         int     `json:"now"`         // 1 where the newest values wait, as far as a gateway is at work
	Log         int     `json:"log"`         // readings
	RatePerHour float64 `json:"ratePerHour"` // readings that came, over the last hour or two; 0 too within a minute of a start
}

// A StoreLine is a line of `outbox export`.
type StoreLine struct {
	Device devices.ID   `json:"device"`
	Store  string       `json:"store"` // "" with number 0: it may be at the server already
	Seq    uint64       `json:"seq"`
	Time   time.Time    `json:"time"`
	Fields []StoreField `json:"fields"`
	Fault  string       `json:"fault,omitempty"` // then it is no reading, but where none can be read
}

// A StoreField is a value of a [StoreLine].
type StoreField struct {
	Name  string `json:"name"`
	Value any    `json:"value"`
	Unit  string `json:"unit"`
}

// A StoreVerdict is what `outbox verify` tells.
type StoreVerdict struct {
	Readings int            `json:"readings"`
	Faults   []outbox.Fault `json:"faults"`
}

// AskProof is the question of a proof, for Look.
func AskProof(q proof.Question) string {
	b, err := json.Marshal(q)
	if err != nil {
		panic(err) // the type has nothing that cannot be marshalled
	}
	return "proof " + string(b)
}

// Look has one of status, export and verify, or what AskProof gives, asked of
// the store of a config, and writes the answer, JSON a line each, to w: by the
// gateway, if one is at work on it, else from the file.
func Look(c *config.Config, what string, w io.Writer) error {
	if err := ask(c, question{What: what}, w); !errors.Is(err, errNotRunning) {
		return err
	}
	r, err := outbox.OpenReader(filepath.Join(c.Gateway.DataDir, outboxFile))
	if err != nil {
		return err
	}
	defer r.Close()
	return look(r, nil, what, w)
}

// AskDevices has one of devices, pending, admit, refuse, rename, remove and
// command done with the devices of a config, and writes the answer, JSON a line each, to w:
// by the gateway that is at work on it. Where none is, the lists are told from
// the files, and all else is an error.
func AskDevices(c *config.Config, what string, args DeviceArgs, w io.Writer) error {
	err := ask(c, question{what, args}, w)
	if !errors.Is(err, errNotRunning) {
		return err
	}
	out := json.NewEncoder(w)
	switch what {
	case "devices":
		return encodeAll(out, deviceLines(c, nil))
	case "pending":
		r, err := aboard.Open(c.Gateway.DataDir)
		if err != nil {
			return err
		}
		return encodeAll(out, refusedLines(r))
	}
	return fmt.Errorf("cannot %s a device: %w", what, err)
}

func encodeAll[T any](out *json.Encoder, lines []T) error {
	for _, l := range lines {
		if err := out.Encode(l); err != nil {
			return err
		}
	}
	return nil
}

var errNotRunning = errors.New("no gateway is at work on this data directory")

// A question is what another command asks of a gateway, JSON in one line.
type question struct {
	What string     `json:"what"`
	Args DeviceArgs `json:"args"`
}

// DeviceArgs say which device is meant, and what is to become of it.
type DeviceArgs struct {
	Which string     `json:"which,omitempty"` // an id, or the number of one that is pending
	As    devices.ID `json:"as,omitempty"`    // admit: the id that it gets
	Name  string     `json:"name,omitempty"`  // admit, rename: what people call it; command: the command's name
	Value string     `json:"value,omitempty"` // command: its argument
	Sure  bool       `json:"sure,omitempty"`  // command: even what is hazardous
}

// ask asks the gateway that is at work on a config.
func ask(c *config.Config, q question, w io.Writer) error {
	conn, err := net.Dial("unix", filepath.Join(c.Gateway.DataDir, controlFile))
	if err != nil {
		return errNotRunning
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(q); err != nil {
		return fmt.Errorf("cannot ask the gateway: %w", err)
	}
	// The last line is empty where all went well.
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		switch {
		case line == "\n":
			return nil
		case strings.HasPrefix(line, "error: "):
			return errors.New(strings.TrimSpace(strings.TrimPrefix(line, "error: ")))
		case err != nil:
			return fmt.Errorf("cannot ask the gateway: %w", err)
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
}

// look answers one question.
func look(r *outbox.Reader, a *Agent, what string, w io.Writer) error {
	out := json.NewEncoder(w)
	ask := r.Proof
	if a != nil {
		ask = a.outbox.Proof
	}
	if text, ok := strings.CutPrefix(what, "proof "); ok {
		var q proof.Question
		if err := json.Unmarshal([]byte(text), &q); err != nil {
			return fmt.Errorf("cannot read the question: %w", err)
		}
		answer, err := ask(q)
		if err != nil {
			return err
		}
		return out.Encode(answer)
	}
	switch what {
	case "status":
		s := StoreStatus{Running: a != nil}
		var err error
		if s.Contents, err = r.Contents(); err != nil {
			return err
		}
		if a != nil {
			a.addStatus(&s)
		}
		if err := s.addLanes(r, ask); err != nil {
			return err
		}
		if a != nil {
			a.forward.waitingNow(s.Lanes)
		}
		return out.Encode(s)
	case "export":
		return r.Each(func(s outbox.Stored) error {
			return out.Encode(storeLine(s))
		}, func(f outbox.Fault) {
			_ = out.Encode(StoreLine{Fault: f.Where + ": " + f.What}) // the next write tells
		})
	case "verify":
		n, faults, err := r.Verify()
		if err != nil {
			return err
		}
		return out.Encode(StoreVerdict{Readings: n, Faults: faults})
	}
	return fmt.Errorf("there is no question %q", what)
}

func (a *Agent) addStatus(s *StoreStatus) {
	stats := a.Stats()
	s.Stats, s.Online, s.Passive = &stats.Outbox, stats.Online, stats.Passive
	s.Seconds = time.Since(a.started).Seconds()
	s.WrittenBytes = writtenBytes()
	memory := a.outbox.Waiting()
	for i := range s.Devices {
		s.Devices[i].Memory = memory[s.Devices[i].Device]
		delete(memory, s.Devices[i].Device)
	}
	for id, n := range memory {
		s.Devices = append(s.Devices, outbox.DeviceContents{Device: id, Memory: n})
	}
}

// addLanes tells what waits in each lane, and the rates.
func (s *StoreStatus) addLanes(r *outbox.Reader, ask func(proof.Question) (proof.Answer, error)) error {
	s.Lanes = make(map[devices.ID]Lanes)
	for _, d := range s.Devices {
		l := s.Lanes[d.Device]
		l.Log = d.Disk + d.Memory
		s.Lanes[d.Device] = l
	}
	notes, err := r.Notes()
	if err != nil {
		return err
	}
	for _, note := range notes {
		var e bridge.Event
		if json.Unmarshal(note.Body, &e) != nil {
			continue // the forwarder tells
		}
		id := cmp.Or(e.Device, devices.Gateway)
		l := s.Lanes[id]
		l.Alarms++
		s.Lanes[id] = l
	}
	now := time.Now()
	hour, err := ask(proof.Question{Since: now.Add(-time.Hour), Until: now, Guess: true})
	if err != nil {
		return err
	}
	for _, d := range hour.Devices {
		l := s.Lanes[d.Device]
		if covered := hour.Covered().Hours(); covered > time.Minute.Hours() {
			l.RatePerHour = math.Round(10*float64(d.Given)/covered) / 10
		}
		s.Lanes[d.Device] = l
	}
	midnight, _, err := proof.ParsePeriod("today", now)
	if err != nil {
		return err
	}
	today, err := ask(proof.Question{Since: midnight, Until: now, Guess: true})
	if err != nil {
		return err
	}
	lately, err := ask(proof.Question{Since: now.Add(-24 * time.Hour), Until: now, Guess: true})
	if err != nil {
		return err
	}
	s.WrittenToday = today.Written
	if covered := lately.Covered(); covered >= time.Hour {
		s.WrittenPerYear = int64(float64(lately.Written) / covered.Hours() * 24 * 365)
	}
	return nil
}

// writtenBytes is what this process had written to disks (proc_pid_io(5)); 0
// where the kernel does not count it.
func writtenBytes() int64 {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			v, _ := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
			return v
		}
	}
	return 0
}

func storeLine(s outbox.Stored) StoreLine {
	l := StoreLine{Device: s.Device, Store: s.Store, Seq: s.Seq, Time: s.Time, Fields: []StoreField{}}
	for _, f := range s.Fields {
		l.Fields = append(l.Fields, storeField(f))
	}
	return l
}

func storeField(f devices.Field) StoreField {
	v := StoreField{Name: f.Name, Unit: string(f.Unit)}
	switch f.Value.Kind() {
	case devices.NumberValue:
		v.Value = json.Number(f.Value.String())
	case devices.BoolValue:
		v.Value = f.Value.Bool()
	default:
		v.Value = f.Value.String()
	}
	return v
}

// do does what another command asks for.
func (a *Agent) do(ctx context.Context, q question, w *bufio.Writer) error {
	out := json.NewEncoder(w)
	done := func(id devices.ID, err error) error {
		if err != nil {
			return err
		}
		return out.Encode(map[string]devices.ID{"id": id})
	}
	id := devices.ID(q.Args.Which)
	switch q.What {
	case "devices":
		a.mu.Lock()
		c := a.config
		a.mu.Unlock()
		return encodeAll(out, deviceLines(c, a))
	case "pending":
		return encodeAll(out, a.pendingLines())
	case "command":
		return a.tryCommand(devices.Command{Device: id, Name: q.Args.Name, Argument: q.Args.Value, Sure: q.Args.Sure}, w)
	case "admit":
		return done(a.Admit(q.Args.Which, aboard.Terms{As: q.Args.As, Name: q.Args.Name}))
	case "refuse":
		return done(a.Refuse(q.Args.Which))
	case "rename":
		return done(id, a.Rename(id, q.Args.Name))
	case "remove":
		return done(id, a.Remove(id))
	}
	if what, ok := strings.CutPrefix(q.What, backupWord); ok {
		return a.doBackup(ctx, what, w)
	}
	return look(a.outbox.Reader(), a, q.What, w)
}

// control answers other commands until ctx ends.
func (a *Agent) control(ctx context.Context) {
	path := filepath.Join(a.config.Gateway.DataDir, controlFile)
	// The store's lock is ours, so what is there is left from one who died.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("other commands cannot look into this gateway", "error", err)
		return
	}
	l, err := net.Listen("unix", path) // in a directory that is its user's alone
	if err != nil {
		a.log.Warn("other commands cannot look into this gateway", "error", err)
		return
	}
	var asking sync.WaitGroup
	defer asking.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		asking.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			a.answer(ctx, conn)
		})
	}
}

// lookTime is how long one who looks may take to ask, and to read the answer.
const lookTime = 5 * time.Minute

// maxQuestion bounds a question.
const maxQuestion = 4096

func (a *Agent) answer(ctx context.Context, conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(lookTime))
	var q question
	if err := json.NewDecoder(io.LimitReader(conn, maxQuestion)).Decode(&q); err != nil {
		return
	}
	w := bufio.NewWriter(conn)
	if err := a.do(ctx, q, w); err != nil {
		fmt.Fprintf(w, "error: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	} else {
		fmt.Fprintln(w)
	}
	_ = w.Flush() // who asks sees that the end is missing
}

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
	// pace of the last 24 hours.
	WrittenToday   int64 `json:"writtenTodayBytes"`
	WrittenPerYear int64 `json:"writtenPerYearBytes"`
	// Of a gateway at work, since its start:
	Stats        *outbox.Stats `json:"stats,omitempty"`
	Online       bool          `json:"online"`
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
	dir := c.Gateway.DataDir
	conn, err := net.Dial("unix", filepath.Join(dir, controlFile))
	if err != nil {
		r, err := outbox.OpenReader(filepath.Join(dir, outboxFile))
		if err != nil {
			return err
		}
		defer r.Close()
		return look(r, nil, what, w)
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, what); err != nil {
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
	s.Stats, s.Online = &stats.Outbox, stats.Online
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
	if covered := lately.Covered(); covered > 0 {
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
		v := StoreField{Name: f.Name, Unit: string(f.Unit)}
		switch f.Value.Kind() {
		case devices.NumberValue:
			v.Value = json.Number(f.Value.String())
		case devices.BoolValue:
			v.Value = f.Value.Bool()
		default:
			v.Value = f.Value.String()
		}
		l.Fields = append(l.Fields, v)
	}
	return l
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
			a.answer(conn)
		})
	}
}

// lookTime is how long one who looks may take to ask, and to read the answer.
const lookTime = 5 * time.Minute

func (a *Agent) answer(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(lookTime))
	what, err := bufio.NewReader(io.LimitReader(conn, 1024)).ReadString('\n')
	if err != nil {
		return
	}
	w := bufio.NewWriter(conn)
	if err := look(a.outbox.Reader(), a, strings.TrimSpace(what), w); err != nil {
		fmt.Fprintf(w, "error: %v\n", err)
	} else {
		fmt.Fprintln(w)
	}
	_ = w.Flush() // who asks sees that the end is missing
}

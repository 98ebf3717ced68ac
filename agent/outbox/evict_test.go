package outbox

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A sensor is a device with two numbers that wander, and a switch.
type sensor struct {
	device devices.ID
	rand   *rand.Rand
	values [][3]int // of each reading, from number 1 on
}

func (s *sensor) read() devices.Message {
	v := [3]int{2000, 500, 0}
	if n := len(s.values); n > 0 {
		v = s.values[n-1]
	}
	v[0] += s.rand.IntN(11) - 5
	v[1] += s.rand.IntN(101) - 50
	if s.rand.IntN(2000) == 0 {
		v[2] = 1 - v[2]
	}
	s.values = append(s.values, v)
	return devices.Message{Readings: []devices.Reading{{Device: s.device, Time: time.Now(), Fields: []devices.Field{
		{Name: "temperature", Unit: "°C", Value: number(fmt.Sprintf("%d.%02d", v[0]/100, v[0]%100))},
		{Name: "power", Unit: "W", Value: number(strconv.Itoa(v[1]))},
		{Name: "on", Value: devices.Bool(v[2] == 1), Kind: devices.Status},
	}}}}
}

// encodeJSON makes packs of a hundred readings.
func encodeJSON(_ devices.ID, _ time.Time, rs []devices.Record, _ int) ([]byte, int) {
	rs = rs[:min(len(rs), 100)]
	var out [][5]int64
	for _, r := range rs {
		v := [5]int64{int64(r.Seq), r.Time.UnixMicro()}
		temperature, power := r.Fields[0].Value.Float(), r.Fields[1].Value.Float()
		v[2], v[3] = int64(temperature*100+0.5), int64(power)
		if r.Fields[2].Value.Bool() {
			v[4] = 1
		}
		out = append(out, v)
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic(err)
	}
	return b, len(rs)
}

// TestWeekAway has the server be away for a week, in which ten times as much
// comes as there is room for, and then takes all out: of each time the lowest and
// the highest are there, each change of the switch, and the newest in full. All
// comes in order, under its own numbers, and each number that does not is told.
func TestWeekAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every, week = 2 * time.Second, 7 * 24 * time.Hour
		options := testOptions()
		options.Encode, options.CommitAfter, options.MaxBytes = encodeJSON, time.Minute, 1<<20
		options.LossNote = func(l Loss) []byte {
			b, _ := json.Marshal(l)
			return b
		}
		path := filepath.Join(t.TempDir(), "o.db")
		o := open(t, path, options)
		o.AddNote([]byte(`{"Reason":"alarm"}`))
		sensors := []*sensor{{device: "kitchen"}, {device: "meter"}}
		start := time.Now()
		for i, s := range sensors {
			s.rand = rand.New(rand.NewPCG(1, uint64(i)))
		}
		for i := 0; time.Since(start) < week; i++ {
			take(t, o, sensors[0].read())
			if i%5 == 0 {
				take(t, o, sensors[1].read())
			}
			time.Sleep(every)
		}
		time.Sleep(2 * options.CommitAfter)
		s := o.Stats()
		if s.Thinned == 0 || s.Lost != 0 || s.Taken != uint64(s.Memory+s.Disk)+s.Thinned {
			t.Fatalf("the store was not full, or thinning was not enough: %+v", s)
		}

		got := map[devices.ID][][5]int64{}
		gone := map[devices.ID]map[int64]bool{"kitchen": {}, "meter": {}}
		events, alarms := 0, 0
		readNotes := func() {
			for note := o.NextNote(); note != nil; note = o.NextNote() {
				var l Loss
				if err := json.Unmarshal(note.Body, &l); err != nil {
					t.Fatal(err)
				}
				o.SettleNote()
				if l.Reason == "alarm" {
					alarms++
					continue
				}
				events++
				told := l.numbers()
				if len(told) != int(l.Count) {
					t.Errorf("a loss of %d tells %d numbers", l.Count, len(told))
				}
				for _, n := range told {
					gone[l.Device][int64(n)] = true
				}
			}
		}
		store := o.Store()
		var again *Pack
		for idle, packs := 0, 0; idle < 3; {
			p := o.Next()
			if p == nil {
				idle++
				time.Sleep(time.Second)
				continue
			}
			idle = 0
			readNotes() // what is missing is told before what is there is sent
			if again != nil && again.Device == p.Device {
				if again.Item() != p.Item() || !reflect.DeepEqual(again.Payload, p.Payload) {
					t.Errorf("%s was sent before the restart, %s after it", again.Item(), p.Item())
				}
				again = nil
			}
			if packs++; packs == 70 { // no answer comes, and the gateway starts anew
				again = p
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
				o = open(t, path, options)
				continue
			}
			var rs [][5]int64
			if err := json.Unmarshal(p.Payload, &rs); err != nil {
				t.Fatal(err)
			}
			if p.Store != store || len(rs) != p.Count() || rs[0][0] != int64(p.First) || rs[len(rs)-1][0] != int64(p.Last) {
				t.Fatalf("%s of %d readings holds %d, %d to %d", p.Item(), p.Count(), len(rs), rs[0][0], rs[len(rs)-1][0])
			}
			got[p.Device] = append(got[p.Device], rs...)
			o.Settle(p)
		}
		for _, s := range sensors {
			s.check(t, start, got[s.device], gone[s.device])
		}
		if s := o.Stats(); s.Memory+s.Disk != 0 {
			t.Errorf("not all went out: %+v", s)
		}
		if kept := len(got["kitchen"]) + len(got["meter"]); events == 0 || events > kept/100 || alarms != 1 {
			t.Errorf("%d events of what was thinned out around %d readings, %d alarms", events, kept, alarms)
		}
	})
}

func (s *sensor) check(t *testing.T, start time.Time, got [][5]int64, gone map[int64]bool) {
	n := int64(len(s.values))
	t.Logf("%s: of %d readings %d came", s.device, n, len(got))
	value := func(seq int64) [3]int { return s.values[seq-1] }
	came := make([]bool, n+2)
	last, widest := int64(0), int64(0)
	for _, r := range got {
		v := value(r[0])
		if r[0] <= last || [3]int{int(r[2]), int(r[3]), int(r[4])} != v {
			t.Fatalf("%s: after %d came %v, which was %v", s.device, last, r, v)
		}
		came[r[0]] = true
		last, widest = r[0], max(widest, r[0]-last)
	}
	if !came[1] || !came[n] {
		t.Errorf("%s: the first or the last did not come", s.device)
	}
	// An interval is of 25 readings of the level before, or up to twice as many.
	// Around a reading, in three of the widest, there must be both extremes.
	const wide = 3 * 2 * 25 * 5 * 5
	if widest > wide {
		t.Errorf("%s: %d readings in a row are missing", s.device, widest-1)
	}
	newest := n
	for ; came[newest]; newest-- {
	}
	if n-newest < int64(len(got))/10 {
		t.Errorf("%s: of the newest only %d are there in full", s.device, n-newest)
	}
	for seq := int64(1); seq <= n; seq++ {
		if came[seq] == gone[seq] {
			t.Fatalf("%s: %d came: %v; was told as thinned out: %v", s.device, seq, came[seq], gone[seq])
		}
		if seq > 1 && value(seq)[2] != value(seq - 1)[2] && !came[seq] {
			t.Errorf("%s: the switch changed in %d, which did not come", s.device, seq)
		}
		if came[seq] {
			continue
		}
		for field := range 2 {
			low, high := false, false
			for near := max(1, seq-wide); near <= min(n, seq+wide) && !(low && high); near++ {
				if came[near] {
					low = low || value(near)[field] <= value(seq)[field]
					high = high || value(near)[field] >= value(seq)[field]
				}
			}
			if !low || !high {
				t.Fatalf("%s: of the readings around %d neither is as low or as high as its field %d", s.device, seq, field)
			}
		}
	}
}

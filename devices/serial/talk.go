package serial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

const (
	// chunkSize is what is read at once, at most.
	chunkSize = 4 << 10

	// writeTime is how long a device may take to take a message.
	writeTime = 5 * time.Second

	// answerTime is how long it may take to answer, where its profile does not
	// say.
	answerTime = time.Second

	// deadAfter is how many questions in a row a device leaves unanswered that is
	// told to be offline.
	deadAfter = 3

	// longestPause is how long a device that does not answer is left alone.
	longestPause = 5 * time.Minute

	// idleTime is a silence that no frame has in it, whatever the adapter gathers
	// before it hands something over.
	idleTime = time.Second

	// maxAnswers bounds what devices wait for.
	maxAnswers = 64

	// unaskedLimit is after how many bytes that nobody asked for it is said that
	// there are some.
	unaskedLimit = 256
)

// A talk is what goes on while a port is open. It belongs to the goroutine of
// [Port.Run], which alone writes to the port; another only reads, so that
// commands and questions need not wait for a byte.
type talk struct {
	port   *Port
	config *Config
	sink   devices.Sink
	wire   *wire
	line   profile.Line // as it is set now
	chunks <-chan []byte
	left   []byte // what came with an echo
	ended  error  // of reading, once chunks is closed

	ears      []*ear
	questions []*question
	answers   [][]byte // that devices wait for
	quiet     map[devices.ID]*quiet
	last      time.Time // when the last byte was on the line, as far as is known
	unasked   int       // bytes, since they were told
}

// A question is one that is asked again and again.
type question struct {
	device  *Device
	request profile.Request
	due     time.Time
	asked   bool
	// understood is how many messages its ear had when it was not answered.
	understood int
}

// quiet is how a device does that is asked.
type quiet struct {
	failures int
	until    time.Time // it is left alone
}

// An order is something to write for a command.
type order struct {
	ctx     context.Context
	device  devices.ID
	request profile.Request
	expect  func()
	done    chan<- error
}

// talk listens, asks and tells until ctx ends or the port does.
func (p *Port) talk(ctx context.Context, sink devices.Sink, w *wire) error {
	ctx, stop := context.WithCancel(ctx)
	chunks := make(chan []byte)
	t := &talk{port: p, sink: sink, wire: w, chunks: chunks, quiet: make(map[devices.ID]*quiet), last: time.Now()}
	go func() {
		defer close(chunks)
		t.ended = read(ctx, w, chunks)
	}()
	defer func() {
		stop()
		w.interrupt()
		for range chunks { // until the reader has ended
		}
		w.resume()
	}()
	t.arrange()
	defer p.Rest()
	for {
		wait := time.NewTimer(t.patience())
		p.Rest()
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case chunk, ok := <-chunks:
			p.Busy()
			if !ok {
				wait.Stop()
				return t.ended
			}
			t.hear(ctx, chunk)
		case o := <-p.orders:
			p.Busy()
			if err := t.obey(ctx, o); err != nil {
				wait.Stop()
				return err
			}
		case <-p.changed:
			p.Busy()
			t.arrange()
		case <-wait.C:
			p.Busy()
			t.idle(ctx)
			if err := t.ask(ctx); err != nil {
				return err
			}
		}
		wait.Stop()
	}
}

// read hands over what comes. A chunk is valid until the next one is taken.
func read(ctx context.Context, w *wire, chunks chan<- []byte) error {
	var buffers [2][chunkSize]byte
	for i := 0; ; i ^= 1 {
		n, err := w.Read(buffers[i][:])
		if n > 0 {
			select {
			case chunks <- buffers[i][:n]:
			case <-ctx.Done():
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
}

// arrange takes over the devices of the config, at the start and after a change.
func (t *talk) arrange() {
	before := t.config
	t.config = t.port.config.Load()
	if before == nil {
		t.line = t.config.Line
	}
	ears := make(map[string]*ear)
	for _, e := range t.ears {
		e.devices = nil
		ears[e.profile.ID()] = e
	}
	t.ears, t.questions = nil, nil
	now := time.Now()
	for i := range t.config.Devices {
		d := &t.config.Devices[i]
		e := ears[d.Profile.ID()]
		if e == nil || e.profile != d.Profile {
			e = newEar(t, d.Profile)
			ears[d.Profile.ID()] = e
		}
		first := len(e.devices) == 0
		if first {
			t.ears = append(t.ears, e)
		}
		e.devices = append(e.devices, d)
		e.hearing.Know(d.Identity)
		for _, r := range d.Profile.Questions() {
			if first || r.Modbus != nil { // other questions go to all who are behind the port
				t.plan(&question{device: d, request: r, due: now})
			}
		}
	}
}

// plan has a question be asked, where it is to be.
func (t *talk) plan(q *question) {
	a := t.port.audience
	switch {
	case a != nil && a.mute:
	case q.request.SignOn && t.config.Line.Baud != signOnBaud: // such a meter speaks by itself
	default:
		t.questions = append(t.questions, q)
	}
}

// patience is how long nothing but bytes is waited for.
func (t *talk) patience() time.Duration {
	wait := idleTime
	if !t.stirring() {
		wait = time.Hour
	}
	if len(t.answers) > 0 {
		return 0
	}
	if q := t.next(); q != nil {
		wait = min(wait, time.Until(q.at(t.quiet)))
	}
	return max(0, wait)
}

// at is when a question is to be asked.
func (q *question) at(all map[devices.ID]*quiet) time.Time {
	if s := all[q.device.Device.ID]; s != nil && s.until.After(q.due) {
		return s.until
	}
	return q.due
}

// next gives the question whose turn it is first; nil if there is none.
func (t *talk) next() (first *question) {
	for _, q := range t.questions {
		if q.request.Every == 0 && q.asked {
			continue
		}
		if first == nil || q.at(t.quiet).Before(first.at(t.quiet)) {
			first = q
		}
	}
	return first
}

// ask answers who waits for it, and asks what is due. An error is one of the port.
func (t *talk) ask(ctx context.Context) error {
	for len(t.answers) > 0 {
		answer := t.answers[0]
		t.answers = t.answers[1:]
		var fatal *portError
		if err := t.write(ctx, answer); errors.As(err, &fatal) {
			return err
		} else if err != nil {
			t.sink.Reject(t.config.Port, fmt.Errorf("cannot answer: %w", err))
		}
	}
	q := t.next()
	if q == nil || time.Until(q.at(t.quiet)) > 0 {
		return nil
	}
	q.asked = true
	if q.due = q.due.Add(q.request.Every); q.due.Before(time.Now()) {
		q.due = time.Now().Add(q.request.Every) // the line is slower than the plan
	}
	err := t.exchange(ctx, q.device, q.request)
	var fatal *portError
	if errors.As(err, &fatal) || ctx.Err() != nil {
		return err
	}
	t.judge(q, err)
	return nil
}

// A portError is one of the port, not of a device on it.
type portError struct{ error }

func (e *portError) Unwrap() error { return e.error }

// judge notes whether a device answered. One that does not is asked less and
// less often, so that it does not take the line from the others.
func (t *talk) judge(q *question, err error) {
	id := q.device.Device.ID
	s := t.quiet[id]
	if err == nil || errors.Is(err, errRefused) { // it is there
		if s != nil {
			t.port.log.Info("serial: it answers again", "device", id, "port", t.config.Port)
			delete(t.quiet, id)
			t.sink.Availability(id, devices.AvailabilityUnknown, false)
		}
		if err != nil {
			t.sink.Reject(string(id), err)
		}
		return
	}
	if e := t.earOf(q.device); q.request.Modbus == nil && e.understood != q.understood || q.request.Every == 0 {
		q.understood = e.understood
		return // it speaks by itself
	}
	if s == nil {
		s = &quiet{}
		t.quiet[id] = s
	}
	s.failures++
	s.until = time.Now().Add(min(longestPause, q.request.Every<<min(s.failures-1, 8)))
	if s.failures == 1 || s.failures == deadAfter {
		t.sink.Reject(string(id), err)
	}
	if s.failures == deadAfter {
		t.sink.Availability(id, devices.Offline, false)
	}
}

// errRefused is of a device that answers, and does not do what it is asked.
var errRefused = errors.New("refused")

// obey carries out an order. An error is one of the port.
func (t *talk) obey(ctx context.Context, o order) error {
	var device *Device
	for i := range t.config.Devices {
		if t.config.Devices[i].Device.ID == o.device {
			device = &t.config.Devices[i]
		}
	}
	if err := o.ctx.Err(); device == nil || err != nil {
		o.done <- errors.Join(err, errNotHere(device, o))
		return nil
	}
	o.expect()
	var err error
	if o.request.Modbus != nil {
		o.request.Within = cmp.Or(o.request.Within, answerTime)
		_, err = t.modbus(ctx, device, o.request)
	} else {
		err = t.write(ctx, o.request.Payload)
	}
	if err != nil && !errors.Is(err, errRefused) {
		o.done <- fmt.Errorf("%w: %w", devices.ErrUncertain, err)
	} else {
		o.done <- err
	}
	var fatal *portError
	if errors.As(err, &fatal) {
		return err
	}
	if o.request.Modbus != nil { // what came of it is asked at once
		for _, q := range t.questions {
			if q.device == device && q.request.Modbus != nil {
				q.due = time.Now()
			}
		}
	}
	return nil
}

func errNotHere(d *Device, o order) error {
	if d == nil {
		return fmt.Errorf("%s is not on this port any more", o.device)
	}
	return nil
}

// exchange asks a device, and hears the answer.
func (t *talk) exchange(ctx context.Context, d *Device, r profile.Request) error {
	r.Within = cmp.Or(r.Within, answerTime)
	switch {
	case r.Modbus != nil:
		frame, err := t.modbus(ctx, d, r)
		if err != nil {
			return err
		}
		if err := t.take(ctx, t.earOf(d), d, frame, r.Modbus.Topic(max(d.Unit, 1))); err != nil {
			t.sink.Reject(string(d.Device.ID), err) // it answered
		}
		return nil
	case r.SignOn:
		return t.signOn(ctx, d, r)
	}
	t.drain(ctx)
	if err := t.write(ctx, r.Payload); err != nil {
		return err
	}
	return t.answer(ctx, d, r.Within)
}

// answer waits until a device said something that its profile understands.
func (t *talk) answer(ctx context.Context, d *Device, within time.Duration) error {
	e := t.earOf(d)
	before := e.understood
	end := time.NewTimer(within)
	defer end.Stop()
	for e.understood == before {
		chunk, err := t.receive(ctx, end.C)
		switch {
		case errors.Is(err, errSilence):
			return fmt.Errorf("no answer within %s", within)
		case err != nil:
			return err
		}
		t.hear(ctx, chunk)
	}
	return nil
}

// errSilence says that nothing came in time.
var errSilence = errors.New("silence")

// receive waits for what comes next, for as long as end says.
func (t *talk) receive(ctx context.Context, end <-chan time.Time) ([]byte, error) {
	if left := t.left; left != nil {
		t.left = nil
		return left, nil
	}
	t.port.Rest()
	defer t.port.Busy()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case chunk, ok := <-t.chunks:
		if !ok {
			return nil, &portError{t.ended}
		}
		t.last = time.Now()
		return chunk, nil
	case <-end:
		return nil, errSilence
	}
}

func (t *talk) earOf(d *Device) *ear {
	for _, e := range t.ears {
		if e.profile == d.Profile {
			return e
		}
	}
	return nil // never: each device has one
}

// write sends, with the silence before that tells messages apart, and takes the
// echo away where there is one.
func (t *talk) write(ctx context.Context, b []byte) error {
	time.Sleep(time.Until(t.last.Add(t.silence())))
	if err := t.wire.write(b, t.port.limit); err != nil {
		if errors.Is(err, errStalled) {
			return err // others may still be heard
		}
		return &portError{err}
	}
	t.last = time.Now().Add(time.Duration(len(b)) * character(t.line)) // when it will have been sent
	if t.config.Echo {
		return t.echo(ctx, b)
	}
	return nil
}

// echo takes away what comes back of a message. Noise may come before.
func (t *talk) echo(ctx context.Context, b []byte) error {
	end := time.NewTimer(time.Until(t.last) + answerTime)
	defer end.Stop()
	for len(b) > 0 {
		chunk, err := t.receive(ctx, end.C)
		switch {
		case errors.Is(err, errSilence):
			return errors.New("what was written does not come back; is echo right in the config?")
		case err != nil:
			return err
		}
		for i, c := range chunk {
			if c == b[0] {
				b = b[1:]
			}
			if len(b) == 0 {
				t.left = append([]byte(nil), chunk[i+1:]...)
				break
			}
		}
	}
	return nil
}

// silence is what tells messages apart: three and a half characters, and 1.75 ms
// where they are fast (MODBUS over Serial Line V1.02, section 2.5.1.1).
func (t *talk) silence() time.Duration {
	return max(character(t.line)*7/2, 1750*time.Microsecond)
}

// drain hears what is under way, so that it is not taken for an answer.
func (t *talk) drain(ctx context.Context) {
	for {
		if left := t.left; left != nil {
			t.left = nil
			t.hear(ctx, left)
		}
		select {
		case chunk, ok := <-t.chunks:
			if !ok {
				return // who reads next is told
			}
			t.hear(ctx, chunk)
		default:
			return
		}
	}
}

// hear takes what came, where nobody waits for it in particular.
func (t *talk) hear(ctx context.Context, chunk []byte) {
	t.last = time.Now()
	if a := t.port.audience; a != nil {
		a.bytes += len(chunk)
		a.tick()
	}
	listening := false
	for _, e := range t.ears {
		if e.framer != nil {
			listening = true
			e.hear(ctx, chunk)
		}
	}
	if listening {
		return
	}
	if t.unasked += len(chunk); t.unasked >= unaskedLimit {
		t.unasked = 0
		t.sink.Reject(t.config.Port, fmt.Errorf("%d bytes that nobody asked for; does another master ask on this line, or is the baud rate wrong?", unaskedLimit))
	}
}

// stirring reports whether a frame has begun and not ended.
func (t *talk) stirring() bool {
	for _, e := range t.ears {
		if e.stirring {
			return true
		}
	}
	return false
}

// idle tells the framers of a silence.
func (t *talk) idle(ctx context.Context) {
	if time.Since(t.last) < idleTime {
		return
	}
	for _, e := range t.ears {
		e.idle(ctx)
	}
}

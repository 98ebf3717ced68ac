package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// maxOrders is how many commands may wait for one device.
	maxOrders = 8
	// orderTime is how long one may: who gave it does not expect it any more.
	orderTime = 10 * time.Second
	// sendTime is for the broker to acknowledge it.
	sendTime = 5 * time.Second
	// maxAge is how old a command may be: servers keep messages for people who
	// are away, and deliver them hours later.
	maxAge = time.Minute
	// floodEvery is how often a flood of commands on a device is told.
	floodEvery = 10 * time.Second
)

// orders carries out commands: those of one device one after the other, so that
// it is known which of them a report confirms.
type orders struct {
	house     *house
	actuators func() []devices.Actuator
	may       func(author string, right bridge.Right, device devices.ID) bool
	holds     func(context.Context) error // whether no other gateway may carry it out, too
	now       func() access.Moment
	ledger    *ledger
	tell      func(bridge.Event)
	log       *slog.Logger

	mu      sync.Mutex
	ctx     context.Context // of the workers; nil while none may begin
	desks   map[devices.ID]*desk
	working sync.WaitGroup
	number  int // for the ids of events
}

// A desk has the commands of one device. It has a worker while it has any.
type desk struct {
	waiting []order
	awaited *report
	flood   int       // refused because too many wait, and not told
	flooded time.Time // when that was told last
}

// An order is a command that was accepted.
type order struct {
	ctx     context.Context
	author  string
	command devices.Command
	latest  time.Time // by the machine's clock; zero: whenever
	outcome chan<- bridge.Outcome
}

// A report is one by which a device confirms a command.
type report struct {
	devices.Confirmation
	came  chan time.Time // has one when it came
	other devices.Value  // what the field had instead
}

// start has commands be carried out until ctx ends.
func (o *orders) start(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ctx = ctx
}

// stop refuses all that was not sent. It returns when nothing is at work, and
// ctx of start must have ended.
func (o *orders) stop() {
	o.mu.Lock()
	o.ctx = nil
	o.mu.Unlock()
	o.working.Wait()
}

// The reasons for which commands are refused.
var (
	errStopping  = errors.New("the gateway is stopping")
	errLate      = errors.New("it is too late for it")
	errOld       = fmt.Errorf("it was given more than %.0f seconds ago; give it again if you still want it", maxAge.Seconds())
	errAgeless   = errors.New("it was kept on its way, and how long is not known while the gateway does not know the time; give it again")
	errHazardous = errors.New("it is hazardous, and you have to say that you are sure")
	errLost      = errors.New("the device is lost")
)

// latest says until when a command may be sent; zero is always.
func (o *orders) latest(c devices.Command) (latest time.Time, refusal error) {
	if c.Given.IsZero() && c.Until.IsZero() {
		return latest, nil
	}
	now := o.now()
	if !now.Known {
		return latest, errAgeless
	}
	left := time.Duration(math.MaxInt64)
	if !c.Given.IsZero() {
		age := now.Time.Sub(c.Given)
		if age.Abs() > maxAge { // ahead of the time, it tells nothing
			return latest, errOld
		}
		left = maxAge - max(age, 0)
	}
	if !c.Until.IsZero() {
		left = min(left, c.Until.Sub(now.Time))
	}
	if left <= 0 {
		return latest, errLate
	}
	return time.Now().Add(left), nil
}

// give takes a command.
func (o *orders) give(ctx context.Context, author string, c devices.Command) <-chan bridge.Outcome {
	outcome := make(chan bridge.Outcome, 2)
	latest, refusal := o.latest(c)
	one := order{ctx, author, c, latest, outcome}
	allowed := o.may(author, bridge.MayRead, c.Device)
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.desks[c.Device]
	switch {
	case !allowed:
		refusal = bridge.ErrNotAllowed
	case o.ctx == nil:
		refusal = errStopping
	case !o.house.has(c.Device):
		refusal = fmt.Errorf("there is no device %s", c.Device)
	case refusal != nil:
	case d != nil && len(d.waiting) >= maxOrders:
		refusal = bridge.ErrBusy
		if d.flood++; time.Since(d.flooded) < floodEvery {
			one.outcome <- bridge.Outcome{Kind: bridge.Refused, Err: refusal}
			close(one.outcome)
			return outcome
		}
		d.flood, d.flooded = 0, time.Now()
	}
	if refusal != nil {
		o.refuse(one, refusal)
		return outcome
	}
	if d == nil {
		d = &desk{}
		o.desks[c.Device] = d
		ctx := o.ctx
		o.working.Go(func() { o.work(ctx, c.Device, d) })
	}
	d.waiting = append(d.waiting, one)
	return outcome
}

// review refuses what waits of those whose rights are gone.
func (o *orders) review() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range o.desks {
		d.waiting = slices.DeleteFunc(d.waiting, func(one order) bool {
			gone := !o.may(one.author, bridge.MayRead, one.command.Device)
			if gone {
				o.refuse(one, bridge.ErrNotAllowed)
			}
			return gone
		})
	}
}

// refuse is called with o.mu held.
func (o *orders) refuse(one order, why error) {
	one.outcome <- bridge.Outcome{Kind: bridge.Refused, Err: why}
	close(one.outcome)
	o.audit(one.author, one.command.Device, commandText(one.command), "refused: "+why.Error())
}

// commandText is a command as people read it.
func commandText(c devices.Command) string { return strings.TrimSpace(c.Name + " " + c.Argument) }

// audit tells of what somebody did. It is called with o.mu held.
func (o *orders) audit(author string, device devices.ID, what, outcome string) {
	now := time.Now()
	o.number++
	o.tell(bridge.Event{
		ID: fmt.Sprintf("command-%s-%d-%d", device, now.UnixMicro(), o.number), Time: now, Category: "command", Device: device, Author: author,
		Title: fmt.Sprintf("%s: %s", device, what), Summary: outcome,
	})
}

// record is audit for what is no command to a device.
func (o *orders) record(author string, device devices.ID, what, outcome string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.audit(author, device, what, outcome)
}

// unknown tells of a command that was under way when a gateway before this one
// ended.
func (o *orders) unknown(e entry) {
	o.record(e.Author, e.Device, e.What, "unknown: the gateway ended before it was known what came of it")
}

// work carries out the commands of one device until there are no more.
func (o *orders) work(ctx context.Context, id devices.ID, d *desk) {
	for {
		o.mu.Lock()
		if len(d.waiting) == 0 {
			delete(o.desks, id)
			if d.flood > 0 {
				o.audit("", id, "too many commands", fmt.Sprintf("%d more were refused", d.flood))
			}
			o.mu.Unlock()
			return
		}
		one := d.waiting[0]
		d.waiting = d.waiting[1:]
		o.mu.Unlock()
		o.carryOut(ctx, d, one)
	}
}

// carryOut sends a command, and waits for what confirms it.
func (o *orders) carryOut(ctx context.Context, d *desk, one order) {
	via, c, risk, err := o.route(one.command)
	need := bridge.MayCommand
	if risk == devices.ReadOnly {
		need = bridge.MayRead
	}
	switch {
	case !o.may(one.author, need, c.Device): // whatever it was when it was given
		err = bridge.ErrNotAllowed
	case ctx.Err() != nil:
		err = errStopping
	case one.ctx.Err() != nil, !one.latest.IsZero() && time.Now().After(one.latest):
		err = errLate
	case o.house.isLost(c.Device):
		err = errLost
	case err == nil && risk == devices.Hazardous && !c.Sure:
		err = errHazardous
	}
	if err == nil && one.author != "" { // who is at this machine means this gateway
		if err = o.holds(one.ctx); err == nil && one.ctx.Err() != nil {
			err = errLate
		}
	}
	var begun *entry
	if err == nil {
		var before entry
		before, begun, err = o.ledger.begin(one.author, c, risk == devices.Hazardous)
		if begun == nil && err == nil {
			before.replay(one.outcome)
			return
		}
	}
	var awaited *report
	var began time.Time
	if err == nil {
		sending, cancel := context.WithTimeout(ctx, sendTime)
		err = via.Execute(sending, c, func(what devices.Confirmation) {
			o.mu.Lock()
			defer o.mu.Unlock()
			began = time.Now()
			awaited = &report{Confirmation: what, came: make(chan time.Time, 1)}
			d.awaited = awaited
		})
		cancel()
	}
	if err != nil && !errors.Is(err, devices.ErrUncertain) {
		o.ledger.undo(begun)
		o.mu.Lock()
		defer o.mu.Unlock()
		d.awaited = nil
		o.refuse(one, err)
		return
	}
	one.outcome <- bridge.Outcome{Kind: bridge.Sent, Err: err}
	summary, last := "sent", bridge.Outcome{Kind: bridge.Sent, Err: err}
	if err != nil {
		summary += ": " + err.Error()
	}
	if awaited != nil && awaited.Field != "" {
		patience := time.NewTimer(time.Until(began.Add(awaited.Within)))
		defer patience.Stop()
		select {
		case at := <-awaited.came:
			after := max(0, at.Sub(began))
			last = bridge.Outcome{Kind: bridge.Confirmed, After: after}
			one.outcome <- last
			summary = fmt.Sprintf("confirmed after %s", after.Round(time.Millisecond))
		case <-patience.C:
			summary += fmt.Sprintf("; not confirmed within %s", awaited.Within)
		case <-ctx.Done():
			summary += "; the gateway stopped"
		}
	}
	if err := o.ledger.end(begun, last); err != nil {
		o.log.Warn("after a crash, it will not be known what came of a command", "device", c.Device, "error", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if d.awaited = nil; awaited != nil && awaited.other.IsValid() && !strings.HasPrefix(summary, bridge.Confirmed.String()) {
		summary += fmt.Sprintf("; the device reports %s %s", awaited.Field, awaited.other)
	}
	close(one.outcome)
	o.audit(one.author, c.Device, commandText(one.command), summary)
}

// heard notes what devices reported at a time.
func (o *orders) heard(readings []devices.Reading, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.desks) == 0 {
		return
	}
	for _, r := range readings {
		d := o.desks[r.Device]
		if d == nil || d.awaited == nil {
			continue
		}
		for _, f := range r.Fields {
			switch {
			case f.Name != d.awaited.Field:
			case !d.awaited.Value.IsValid() || same(f.Value, d.awaited.Value):
				select {
				case d.awaited.came <- at:
				default: // it came already
				}
			default:
				d.awaited.other = f.Value
			}
		}
	}
}

// same compares values as people do: 40 is 40.0, and On is on.
func same(a, b devices.Value) bool {
	if a.Kind() == devices.NumberValue && b.Kind() == devices.NumberValue {
		x, y := a.Float(), b.Float()
		return math.Abs(x-y) <= 1e-6*max(1, math.Abs(x), math.Abs(y))
	}
	return a.Kind() == b.Kind() && strings.EqualFold(a.String(), b.String())
}

// route finds who can tell the device, what on, off and toggle are to it, and
// the risk.
func (o *orders) route(c devices.Command) (devices.Actuator, devices.Command, devices.Risk, error) {
	for _, a := range o.actuators() {
		controls := a.Controls(c.Device)
		if len(controls) == 0 {
			continue
		}
		control, err := resolve(controls, &c)
		if err != nil {
			return nil, c, devices.Reversible, err
		}
		c.Name = control.Name
		return a, c, control.Risk, nil
	}
	return nil, c, devices.Reversible, errors.New("it is not known that the device can be told anything; some have to be heard first")
}

// resolve gives the control that a command means.
func resolve(controls []devices.Control, c *devices.Command) (devices.Control, error) {
	var names []string
	var switches []devices.Control
	for _, control := range controls {
		if strings.EqualFold(control.Name, c.Name) {
			return control, nil
		}
		names = append(names, control.Name)
		if a := control.Argument; a.Type == devices.SwitchArgument && slices.Contains(a.Words, strings.ToLower(c.Name)) {
			switches = append(switches, control)
		}
	}
	switch {
	case c.Argument != "" || len(switches) == 0:
		return devices.Control{}, fmt.Errorf("the device has no command %q; it has %s", c.Name, strings.Join(names, ", "))
	case len(switches) > 1:
		names = nil
		for _, control := range switches {
			names = append(names, control.Name)
		}
		return devices.Control{}, fmt.Errorf("the device has several switches: %s; name one, as in %s %s", strings.Join(names, ", "), names[0], c.Name)
	}
	c.Argument = strings.ToLower(c.Name)
	return switches[0], nil
}

// actuators are the drivers at work that can tell devices something.
func (a *Agent) actuators() (all []devices.Actuator) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.crew {
		if actuator, ok := w.driver.(devices.Actuator); ok {
			all = append(all, actuator)
		}
	}
	return all
}

// Controls implements [bridge.Executor].
func (a *Agent) Controls(device devices.ID) []devices.Control {
	for _, actuator := range a.actuators() {
		if all := actuator.Controls(device); len(all) > 0 {
			return all
		}
	}
	return nil
}

// Execute implements [bridge.Executor].
func (a *Agent) Execute(ctx context.Context, author string, c devices.Command) <-chan bridge.Outcome {
	return a.orders.give(ctx, author, c)
}

var _ bridge.Executor = (*Agent)(nil)

// A CommandLine is what `porchlight command` tells: how a command goes on, or
// one that there is.
type CommandLine struct {
	Outcome string  `json:"outcome,omitempty"` // refused, sent, confirmed
	Why     string  `json:"why,omitempty"`
	Seconds float64 `json:"seconds,omitempty"` // confirmed: after so many

	Name  string   `json:"name,omitempty"`
	Title string   `json:"title,omitempty"`
	Type  string   `json:"type,omitempty"` // of the argument; absent: none
	Words []string `json:"words,omitempty"`
	Min   *float64 `json:"min,omitempty"`
	Max   *float64 `json:"max,omitempty"`
	Unit  string   `json:"unit,omitempty"`
	Risk  string   `json:"risk,omitempty"` // read, hazardous; absent: reversible
}

// argumentNames are for those who look into a gateway.
var argumentNames = [...]string{"", "switch", "number", "integer", "word", "text"}

// tryCommand gives a device a command, on behalf of one who may use the data
// directory, and tells each outcome when it is known. Without a name, it tells
// what there is.
func (a *Agent) tryCommand(c devices.Command, w *bufio.Writer) error {
	out := json.NewEncoder(w)
	if c.Name == "" {
		if !a.house.has(c.Device) {
			return fmt.Errorf("there is no device %s", c.Device)
		}
		var lines []CommandLine
		for _, control := range a.Controls(c.Device) {
			arg := control.Argument
			l := CommandLine{Name: control.Name, Title: control.Title, Type: argumentNames[arg.Type], Words: arg.Words, Min: arg.Min, Max: arg.Max, Unit: string(arg.Unit)}
			if control.Risk != devices.Reversible {
				l.Risk = control.Risk.String()
			}
			lines = append(lines, l)
		}
		return encodeAll(out, lines)
	}
	ctx, cancel := context.WithTimeout(context.Background(), orderTime)
	defer cancel()
	for o := range a.Execute(ctx, "", c) {
		l := CommandLine{Outcome: o.Kind.String(), Seconds: o.After.Seconds()}
		if o.Err != nil {
			l.Why = o.Err.Error()
		}
		if err := errors.Join(out.Encode(l), w.Flush()); err != nil {
			return err
		}
	}
	return nil
}

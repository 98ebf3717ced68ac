package bridge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// actFor is how long a command may wait for its turn: who gave it does not
	// expect it any more.
	actFor = 10 * time.Second
	// quietFor is from when on it is told that a command was not confirmed: a
	// device that confirms nothing is known at once.
	quietFor = time.Second
)

// orders are commands under way: one of each of some devices.
type orders struct {
	all   []order
	named bool            // answers tell of which device
	ctx   context.Context // what is not sent when it ends is not done
	end   context.CancelFunc
	began time.Time
	given bool // to any device; else all were refused here
}

type order struct {
	device  devices.ID
	name    string
	outcome <-chan Outcome // nil, where it was refused here
	newest  Outcome
	unfit   bool   // it cannot be told such a thing
	awaited bool   // its confirmation was waited for, and did not come
	text    string // the newest: what was answered, without the device
}

// act has devices told something.
func (b *Bridge) act(ctx context.Context, a asker, t *talk, about []devices.ID, r words.Request) answer {
	if r.Devices == nil && a.to == devices.Gateway {
		return answer{text: refusedText(b.whichDevice(a))}
	}
	// All are looked at before any is told. Of several, those count that can be
	// told such a thing.
	able := 0
	commands := make([]devices.Command, len(about))
	o := &orders{all: make([]order, len(about)), named: len(about) > 1, began: time.Now()}
	for i, id := range about {
		o.all[i] = order{device: id, name: b.nameOf(id)}
		one := &o.all[i]
		if b.executor == nil {
			one.text = refusedText(words.NotHere)
			continue
		}
		control, argument, err := words.Resolve(b.executor.Controls(id), r.Rest)
		if err != nil {
			one.text, one.unfit = sayError(err), true
			continue
		}
		able++
		if control.Risk == devices.Hazardous && !r.Sure && b.auth.May(a.bare, MayCommand, id) {
			r.Devices = about
			return answer{text: b.makeSure(a, t, strings.TrimSpace(b.nameOf(id)+": "+control.Name+" "+argument), r)}
		}
		// The executor refuses who may not, and what is late, so that it is in
		// the audit.
		commands[i] = devices.Command{Device: id, Name: control.Name, Argument: argument, Given: a.given, Token: a.token, Sure: r.Sure}
	}
	for i := range o.all {
		if able > 0 && o.all[i].unfit {
			o.all[i].text = ""
		}
	}
	o.ctx, o.end = context.WithTimeout(context.WithoutCancel(ctx), actFor)
	for i := range o.all {
		if commands[i].Device != "" {
			o.given = true
			o.all[i].outcome = b.executor.Execute(o.ctx, a.full.String(), commands[i])
		}
	}
	return answer{orders: o}
}

func (b *Bridge) whichDevice(a asker) string {
	example := words.AnyDevice
	if all := b.visible(a.bare); len(all) > 0 {
		example = string(all[0].ID) + " on"
	}
	return fmt.Sprintf(words.WhichDevice, example)
}

// first waits until each command is refused or sent. One whose turn does not
// come is not done any more.
func (o *orders) first(ctx context.Context) string {
	for i := range o.all {
		one := &o.all[i]
		if one.outcome == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-o.ctx.Done():
		case out := <-one.outcome:
			one.take(out)
			continue
		}
		o.end()
		select {
		case out := <-one.outcome:
			one.take(out)
		default:
			one.take(Outcome{Kind: Refused, Err: errTurn})
			one.outcome = nil
		}
	}
	return o.text(func(order) bool { return true })
}

var errTurn = words.Error(words.NoTurn)

// last waits until no more will become known, and tells what did; "" where
// there is no more to say.
func (o *orders) last(ctx context.Context) string {
	news := make(map[devices.ID]bool)
	for i := range o.all {
		one := &o.all[i]
		before := one.text
		if one.outcome == nil {
			continue
		}
		for one.step(ctx) {
		}
		if one.text == before && before == Sent.String() && ctx.Err() == nil && time.Since(o.began) > quietFor {
			one.text = fmt.Sprintf(words.NotConfirm, words.NotSaid)
		}
		news[one.device] = one.text != before
	}
	return o.text(func(one order) bool { return news[one.device] })
}

// step waits for the next outcome of a command, and reports whether there was
// one.
func (one *order) step(ctx context.Context) bool {
	if one.outcome == nil {
		return false
	}
	select {
	case <-ctx.Done():
		one.awaited = true
		return false
	case out, ok := <-one.outcome:
		if ok {
			one.take(out)
		}
		return ok
	}
}

func (one *order) take(out Outcome) { one.newest, one.text = out, outcomeText(out) }

func outcomeText(o Outcome) string {
	switch {
	case o.Kind == Refused && o.Err != nil:
		return sayError(o.Err)
	case o.Kind == Sent && o.Err != nil:
		return fmt.Sprintf(words.NotConfirm, o.Err)
	case o.Kind == Confirmed:
		return o.Kind.String() + fmt.Sprintf(words.AfterTime, words.Took(o.After))
	}
	return o.Kind.String()
}

// text tells of those commands that are to be told: what became of several in
// the same way, in one line. Every line begins with its outcome.
func (o *orders) text(told func(order) bool) string {
	var lines []string
	at := make(map[string]int)
	for _, one := range o.all {
		if one.text == "" || !told(one) {
			continue
		}
		line := one.text
		if o.named {
			kind, why, _ := strings.Cut(line, ": ")
			if i, there := at[line]; there {
				lines[i] = strings.Replace(lines[i], ": ", ": "+one.name+", ", 1)
				continue
			}
			at[line] = len(lines)
			line = kind + ": " + one.name
			if why != "" {
				line += ": " + why
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

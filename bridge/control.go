package bridge

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/devices"
)

// setElement is <set/> of XEP-0325 section 3.1, and <getForm/>.
type setElement struct {
	Nodes  []nodeRefElement `xml:"node"`
	Form   *form            `xml:"jabber:x:data x"`
	Params []paramElement   `xml:",any"`
}

type nodeRefElement struct {
	NodeID string `xml:"nodeId,attr"`
}

type paramElement struct {
	XMLName xml.Name
	Name    string `xml:"name,attr"`
	Value   string `xml:"value,attr"`
}

type setResponse struct {
	XMLName xml.Name `xml:"urn:xmpp:iot:control setResponse"`
}

// paramErrorElement says what is wrong with a parameter; it stands in the
// error.
type paramErrorElement struct {
	XMLName xml.Name `xml:"urn:xmpp:iot:control paramError"`
	Var     string   `xml:"var,attr"`
	Text    string   `xml:",chardata"`
}

// maxParams bounds the nodes, and the parameters, of one request.
const maxParams = 50

// about gives the devices that a program names beside the address: none is the
// one that it wrote to, and of the gateway, any that it may see.
func (b *Bridge) about(a asker, nodes []nodeRefElement) ([]devices.ID, error) {
	if len(nodes) > maxParams {
		return nil, badRequest("")
	}
	if len(nodes) == 0 {
		return []devices.ID{a.to}, nil
	}
	var all []devices.ID
	for _, n := range nodes {
		id, err := devices.ParseID(n.NodeID)
		if err != nil || a.to != devices.Gateway && id != a.to || !b.knows(a.bare, target{device: id}) {
			return nil, iqError{kind: "cancel", condition: stanza.ItemNotFound}
		}
		if !slices.Contains(all, id) {
			all = append(all, id)
		}
	}
	return all, nil
}

// control serves <set/> of XEP-0325: all is looked at before anything is done,
// and the answer waits for what devices report.
func (b *Bridge) control(ctx context.Context, r request) (any, error) {
	var ask struct {
		Set setElement `xml:"urn:xmpp:iot:control set"`
	}
	if err := r.stanza.Unmarshal(&ask); err != nil {
		return nil, badRequest("")
	}
	a := asker{full: r.stanza.From, bare: r.stanza.From.Bare(), to: r.to.device, token: r.stanza.ID}
	about, err := b.about(a, ask.Set.Nodes)
	if err != nil {
		return nil, err
	}
	params := ask.Set.Params
	if f := ask.Set.Form; f != nil {
		for _, field := range f.Fields {
			if v, _ := f.value(field.Var); field.Var != "FORM_TYPE" {
				params = append(params, paramElement{Name: field.Var, Value: v})
			}
		}
	}
	if len(params) == 0 || len(params) > maxParams {
		return nil, badRequest("")
	}
	var commands []devices.Command
	for _, id := range about {
		if !b.auth.May(a.bare, MayCommand, id) {
			return nil, iqError{kind: "auth", condition: stanza.Forbidden}
		}
		for _, p := range params {
			c, err := b.param(a, id, p)
			if err != nil {
				return nil, err
			}
			commands = append(commands, c)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	o := &orders{began: time.Now()}
	o.ctx, o.end = context.WithCancel(ctx)
	defer o.end()
	for _, c := range commands {
		o.all = append(o.all, order{device: c.Device, outcome: b.executor.Execute(o.ctx, a.full.String(), c)})
	}
	o.first(ctx)
	for i := range o.all {
		one := &o.all[i]
		if one.newest.Kind == Refused {
			return nil, refusedBy(one.newest.Err)
		}
	}
	return setResponse{}, o.confirmed(ctx)
}

// confirmed waits for what devices report. A device that reports nothing of
// what it was told has done it, as far as anybody can know.
func (o *orders) confirmed(ctx context.Context) error {
	for i := range o.all {
		one := &o.all[i]
		for one.step(ctx) {
		}
		if one.newest.Kind == Sent && (one.newest.Err != nil || one.awaited || time.Since(o.began) > quietFor) {
			return iqError{kind: "wait", condition: stanza.RemoteServerTimeout, text: one.text}
		}
	}
	return nil
}

func refusedBy(why error) error {
	switch {
	case errors.Is(why, ErrNotAllowed):
		return iqError{kind: "auth", condition: stanza.Forbidden}
	case errors.Is(why, ErrBusy):
		return iqError{kind: "wait", condition: stanza.ResourceConstraint, text: why.Error()}
	case errors.Is(why, errTurn):
		return iqError{kind: "wait", condition: stanza.RemoteServerTimeout, text: refusedText(why.Error())}
	}
	return iqError{kind: "cancel", condition: stanza.NotAllowed, text: sayError(why)}
}

// param makes a command of a parameter.
func (b *Bridge) param(a asker, id devices.ID, p paramElement) (devices.Command, error) {
	wrong := func(text string) error {
		return iqError{kind: "modify", condition: stanza.BadRequest, text: text, param: p.Name}
	}
	controls := b.controls(a.bare, id)
	i := slices.IndexFunc(controls, func(c devices.Control) bool { return c.Name == p.Name })
	if i < 0 {
		return devices.Command{}, wrong(fmt.Sprintf(words.NoControl, words.Quote(p.Name), words.Controls(controls)))
	}
	c := controls[i]
	if isSwitch := c.Argument.Type == devices.SwitchArgument; p.XMLName.Local == "boolean" && !isSwitch && c.Argument.Type != devices.NoArgument {
		return devices.Command{}, wrong(fmt.Sprintf(words.TakesWords, c.Name, words.Takes(c.Argument)))
	}
	if c.Risk == devices.Hazardous {
		return devices.Command{}, iqError{kind: "cancel", condition: stanza.NotAllowed, text: refusedText(words.NeedsPerson)}
	}
	value := strings.Fields(words.Clean(p.Value))
	if c.Argument.Type == devices.NoArgument {
		if !isTrue(p.Value) {
			return devices.Command{}, wrong(fmt.Sprintf(words.TakesNothing, c.Name))
		}
		value = nil // a button is pressed by true
	}
	argument, err := words.Argument(c, value)
	if err != nil {
		return devices.Command{}, wrong(err.Error())
	}
	return devices.Command{Device: id, Name: c.Name, Argument: argument, Token: a.token}, nil
}

// controlForm serves <getForm/> of XEP-0325 section 3.2.
func (b *Bridge) controlForm(_ context.Context, r request) (any, error) {
	var ask struct {
		Get setElement `xml:"urn:xmpp:iot:control getForm"`
	}
	if err := r.stanza.Unmarshal(&ask); err != nil {
		return nil, badRequest("")
	}
	a := asker{full: r.stanza.From, bare: r.stanza.From.Bare(), to: r.to.device}
	about, err := b.about(a, ask.Get.Nodes)
	switch {
	case err != nil:
		return nil, err
	case len(about) != 1:
		return nil, iqError{kind: "cancel", condition: stanza.FeatureNotImplemented}
	case !b.auth.May(a.bare, MayCommand, about[0]):
		return nil, iqError{kind: "auth", condition: stanza.Forbidden}
	}
	safe := slices.DeleteFunc(slices.Clone(b.controls(a.bare, about[0])), func(c devices.Control) bool { return c.Risk == devices.Hazardous })
	f := form{Type: "form", Title: b.nameOf(about[0]), Fields: []formField{{Var: "FORM_TYPE", Type: "hidden", Values: []string{nsControl}}}}
	f.Fields = append(f.Fields, b.controlFields(about[0], safe)...)
	return f, nil
}

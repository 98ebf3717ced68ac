package bridge

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	nsCommands = "http://jabber.org/protocol/commands"
	nsControl  = "urn:xmpp:iot:control" // XEP-0325 version 0.5.1

	// sessionFor is how long a form may stay open.
	sessionFor = 10 * time.Minute
	// maxSessions bounds the forms that are open, and maxSessionsEach those of
	// one person.
	maxSessions     = 1000
	maxSessionsEach = 10
	// answerWithin is when a program, or a client with a form, is answered at
	// the latest.
	answerWithin = 5 * time.Second
)

// commandElement is <command/> of XEP-0050.
type commandElement struct {
	XMLName   xml.Name `xml:"http://jabber.org/protocol/commands command"`
	Node      string   `xml:"node,attr"`
	SessionID string   `xml:"sessionid,attr,omitempty"`
	Action    string   `xml:"action,attr,omitempty"`
	Status    string   `xml:"status,attr,omitempty"`
	Actions   *actionsElement
	Form      *form
	Note      *noteElement
}

type actionsElement struct {
	XMLName  xml.Name `xml:"actions"`
	Execute  string   `xml:"execute,attr"`
	Complete struct{} `xml:"complete"`
}

type noteElement struct {
	XMLName xml.Name `xml:"note"`
	Type    string   `xml:"type,attr"`
	Text    string   `xml:",chardata"`
}

// A command is one that is offered to somebody: done at once, or after a form.
type command struct {
	node, name string
	fields     []formField // none: it takes no form
	// requests makes of the form what is wanted, one after the other. shown is
	// the form as it was shown; empty where it was not.
	requests func(filled, shown form) []words.Request
}

// one is a command without a form.
func one(node words.Verb, name string, r words.Request) command {
	return command{string(node), name, nil, func(form, form) []words.Request { return []words.Request{r} }}
}

// commandsFor are the commands that somebody may give, of a device or of the
// gateway.
func (b *Bridge) commandsFor(a asker) []command {
	var all []command
	may := func(r Right) bool { return b.auth.May(a.bare, r, "") }
	here := []devices.ID{a.to}
	if b.auth.MaySee(a.bare, a.to) {
		all = append(all, one(words.Status, words.CmdStatus, words.Request{Verb: words.Status, Devices: here}),
			one(words.Read, words.CmdRead, words.Request{Verb: words.Read, Devices: here}))
	}
	all = append(all, b.controlCommands(a)...)
	if b.auth.MaySee(a.bare, a.to) {
		all = append(all, command{string(words.Proof), words.CmdProof, []formField{textField("period", words.FieldPeriod, "today")}, func(f, _ form) []words.Request {
			return []words.Request{{Verb: words.Proof, Devices: here, Rest: strings.Fields(f.text("period"))}}
		}}, command{string(words.Subscribe), words.CmdSubscribe, []formField{textField("node", words.FieldNode, string(laneNow))}, func(f, _ form) []words.Request {
			return []words.Request{{Verb: words.Subscribe, Devices: here, Rest: strings.Fields(f.text("node"))}}
		}})
	}
	if a.to != devices.Gateway {
		return all
	}
	all = append(all, one(words.Devices, words.CmdDevices, words.Request{Verb: words.Devices}))
	if seen := b.visible(a.bare); len(seen) > 0 {
		all = append(all, tellCommand(seen, b.auth.May(a.bare, MayCommand, "")))
	}
	if may(MayInstall) {
		all = append(all, one(words.Pending, words.CmdPending, words.Request{Verb: words.Pending}))
		all = append(all, b.applicantCommands(a)...)
	}
	if may(MayGrant) {
		all = append(all, b.grantCommands(a)...)
	}
	if may(MayInstall) {
		for _, c := range []struct {
			verb words.Verb
			name string
		}{{words.Rooms, words.CmdRooms}, {words.Outbox, words.CmdOutbox}, {words.Doctor, words.CmdDoctor}, {words.Backup, words.CmdBackup}} {
			all = append(all, one(c.verb, c.name, words.Request{Verb: c.verb}))
		}
	}
	return all
}

// controlCommands are what a device can be told.
func (b *Bridge) controlCommands(a asker) []command {
	if !b.auth.May(a.bare, MayCommand, a.to) {
		return nil
	}
	here := []devices.ID{a.to}
	var all []command
	controls := b.controls(a.bare, a.to)
	var switches, rest []devices.Control
	for _, c := range controls {
		if c.Argument.Type == devices.SwitchArgument {
			switches = append(switches, c)
		}
		if c.Argument.Type != devices.NoArgument {
			rest = append(rest, c)
		}
	}
	act := func(node, name string, c devices.Control, said ...string) {
		var sure []formField
		if c.Risk == devices.Hazardous {
			sure = []formField{sureField()}
		}
		all = append(all, command{node, name, sure, func(f, _ form) []words.Request {
			return []words.Request{{Verb: words.Act, Devices: here, Rest: append([]string{"set", c.Name}, said...), Sure: isTrue(f.text(fieldSure))}}
		}})
	}
	if len(switches) == 1 {
		for _, w := range []string{"on", "off", "toggle"} {
			if slices.Contains(switches[0].Argument.Words, w) {
				act(w, map[string]string{"on": words.CmdOn, "off": words.CmdOff, "toggle": words.CmdToggle}[w], switches[0], w)
			}
		}
	}
	for _, c := range controls {
		if c.Argument.Type == devices.NoArgument {
			act("do-"+c.Name, cmp.Or(c.Title, c.Name), c)
		}
	}
	if len(rest) > 0 {
		all = append(all, command{string(words.Act), words.CmdSet, b.controlFields(a.to, rest), func(filled, shown form) []words.Request {
			return setRequests(rest, a.to, filled, shown)
		}})
	}
	return append(all, one(words.Ack, words.CmdAck, words.Request{Verb: words.Ack, Devices: here}),
		command{string(words.Mute), words.CmdMute, []formField{textField("period", words.FieldMute, "1h")}, func(f, _ form) []words.Request {
			return []words.Request{{Verb: words.Mute, Devices: here, Rest: strings.Fields(f.text("period"))}}
		}})
}

// controlFields show what can be set, with what is set now.
func (b *Bridge) controlFields(id devices.ID, controls []devices.Control) []formField {
	now := make(map[string]string)
	if b.office != nil {
		for _, f := range b.office.Latest(id) {
			now[f.Name] = f.Value.String()
			if f.Value.Kind() == devices.BoolValue {
				now[f.Name] = map[bool]string{true: "on", false: "off"}[f.Value.Bool()]
			}
		}
	}
	var fields []formField
	hazard := false
	for _, c := range controls {
		hazard = hazard || c.Risk == devices.Hazardous
		fields = append(fields, controlField(c, now[c.Name]))
	}
	if hazard {
		fields = append(fields, sureField())
	}
	return fields
}

// controlField shows one control. What is not known, or cannot be shown, stays
// as it is unless somebody fills it in.
func controlField(c devices.Control, now string) formField {
	a := c.Argument
	f := formField{Var: c.Name, Type: "text-single", Label: cmp.Or(c.Title, strings.ReplaceAll(c.Name, "_", " "))}
	switch a.Type {
	case devices.SwitchArgument, devices.WordArgument:
		choices := a.Words
		if len(choices) == 0 {
			choices = []string{"off", "on"}
		}
		if a.Type == devices.SwitchArgument && (now == "on" || now == "off") {
			f.Type, f.Values = "boolean", []string{map[string]string{"on": "1", "off": "0"}[now]}
			return f
		}
		f.Type = "list-single"
		f.Options = []formOption{{words.LeaveIt, ""}}
		for _, w := range choices {
			f.Options = append(f.Options, formOption{w, w})
		}
		if !slices.Contains(choices, now) {
			now = ""
		}
	case devices.NumberArgument, devices.IntegerArgument:
		f.Label += " (" + words.Takes(a) + ")"
		bound := func(x *float64) string {
			if x == nil {
				return ""
			}
			return strconv.FormatFloat(*x, 'f', -1, 64)
		}
		f.Validate = &formValidate{DataType: map[bool]string{true: "xs:integer", false: "xs:decimal"}[a.Type == devices.IntegerArgument]}
		if a.Min != nil || a.Max != nil {
			f.Validate.Range = &formRange{Min: bound(a.Min), Max: bound(a.Max)}
		}
	}
	f.Values = []string{now}
	return f
}

// setRequests tells a device what was changed in a form. Clients send back what
// they were shown, too.
func setRequests(controls []devices.Control, id devices.ID, filled, shown form) (all []words.Request) {
	sure := isTrue(filled.text(fieldSure))
	for _, c := range controls {
		value, there := filled.value(c.Name)
		was, _ := shown.value(c.Name)
		if !there || value == was || value == "" && c.Argument.Type != devices.TextArgument ||
			c.Argument.Type == devices.SwitchArgument && was != "" && isTrue(value) == isTrue(was) {
			continue
		}
		all = append(all, words.Request{Verb: words.Act, Devices: []devices.ID{id}, Rest: append([]string{"set", c.Name}, strings.Fields(words.Clean(value))...), Sure: sure})
	}
	return all
}

// tellCommand is for clients that show one contact, and so for accounts: any
// device is told anything, in the words of a chat.
func tellCommand(seen []words.Name, commands bool) command {
	device := formField{Var: "device", Type: "list-single", Label: words.FieldDevice, Values: []string{string(seen[0].ID)}}
	for _, d := range seen {
		device.Options = append(device.Options, formOption{cmp.Or(printable(d.Name), string(d.ID)), string(d.ID)})
	}
	name, example := words.CmdAsk, "status"
	if commands {
		name, example = words.CmdTell, "on"
	}
	return command{"tell", name, []formField{device, textField("words", words.FieldWords, example), sureField()}, func(f, _ form) []words.Request {
		id, err := devices.ParseID(f.text("device"))
		if err != nil {
			return nil
		}
		r, err := words.Parse(f.text("words"), words.Scope{Device: id})
		if err != nil || !r.Verb.OfDevice() && r.Verb != words.Help {
			return nil
		}
		r.Devices, r.Sure = []devices.ID{id}, isTrue(f.text(fieldSure))
		return []words.Request{r}
	}}
}

// applicantCommands let in who and what waits, or not.
func (b *Bridge) applicantCommands(a asker) []command {
	if b.office == nil {
		return nil
	}
	waiting, err := b.office.Applicants(a.bare)
	if err != nil || len(waiting) == 0 {
		return nil
	}
	number := formField{Var: "number", Type: "list-single", Label: words.FieldNumber}
	for _, w := range waiting {
		label := fmt.Sprintf("%d  %s", w.Number, printable(w.Device))
		if w.Device == "" {
			label = fmt.Sprintf("%d  %s", w.Number, w.Person)
		}
		number.Options = append(number.Options, formOption{label, strconv.Itoa(w.Number)})
	}
	number.Values = []string{number.Options[0].Value}
	which := func(f form) int {
		n, _ := strconv.ParseUint(f.text("number"), 10, 31)
		return int(n)
	}
	approve := append([]formField{number, textField("name", words.FieldName, "")}, termFields()...)
	return []command{
		{string(words.Approve), words.CmdApprove, approve, func(f, _ form) []words.Request {
			r := words.Request{Verb: words.Approve, Number: which(f), Rest: termWords(f)}
			for _, w := range waiting {
				if w.Number == r.Number && w.Device != "" {
					r.Rest = append([]string{"as"}, strings.Fields(words.Clean(f.text("name")))...)
				}
			}
			return []words.Request{r}
		}},
		{string(words.Deny), words.CmdDeny, []formField{number}, func(f, _ form) []words.Request {
			return []words.Request{{Verb: words.Deny, Number: which(f)}}
		}},
	}
}

// grantCommands give rights, list them, and take them back.
func (b *Bridge) grantCommands(a asker) []command {
	if b.office == nil {
		return nil
	}
	who := formField{Var: "jid", Type: "jid-single", Label: words.FieldWho}
	all := []command{
		one("grants", words.CmdGrants, words.Request{Verb: words.Grant}),
		{string(words.Grant), words.CmdGrant, append([]formField{who}, termFields()...), func(f, _ form) []words.Request {
			return []words.Request{{Verb: words.Grant, Rest: append([]string{f.text("jid")}, termWords(f)...)}}
		}},
	}
	if granted, err := b.office.Grants(a.bare); err == nil && len(granted) > 0 {
		from := formField{Var: "jid", Type: "list-single", Label: words.FieldWho}
		for _, g := range granted {
			if o := (formOption{g.JID.String(), g.JID.String()}); !slices.Contains(from.Options, o) {
				from.Options = append(from.Options, o)
			}
		}
		all = append(all, command{string(words.Revoke), words.CmdRevoke, []formField{from}, func(f, _ form) []words.Request {
			return []words.Request{{Verb: words.Revoke, Rest: []string{f.text("jid")}}}
		}})
	}
	return all
}

func termFields() []formField {
	role := formField{Var: "role", Type: "list-single", Label: words.FieldRole, Values: []string{words.Roles()[0]}}
	for _, r := range words.Roles() {
		role.Options = append(role.Options, formOption{r, r})
	}
	return []formField{role, textField("devices", words.FieldDevices, ""), textField("hours", words.FieldHours, ""), textField("until", words.FieldUntil, "")}
}

// termWords writes terms as they are written in a chat.
func termWords(f form) []string {
	all := []string{f.text("role")}
	all = append(all, strings.FieldsFunc(f.text("devices"), func(r rune) bool { return r == ',' || r == ' ' })...)
	if hours := strings.Fields(f.text("hours")); len(hours) > 0 {
		all = append(append(all, "hours"), hours...)
	}
	if until := f.text("until"); until != "" {
		all = append(all, "until", until)
	}
	return all
}

const fieldSure = "sure"

func sureField() formField {
	return formField{Var: fieldSure, Type: "boolean", Label: words.SurelyField, Values: []string{"0"}}
}

func textField(name, label, value string) formField {
	return formField{Var: name, Type: "text-single", Label: label, Values: []string{value}}
}

// text is a field's first value, as one line.
func (f form) text(name string) string {
	v, _ := f.value(name)
	return words.Clean(v)
}

// isTrue reads a boolean of a form (XEP-0004 section 3.3).
func isTrue(s string) bool { return s == "1" || s == "true" }

// sessions are the forms that are open.
type sessions struct {
	mu   sync.Mutex
	open map[string]session
}

type session struct {
	owner string // his full JID
	to    devices.ID
	node  string
	shown form
	until time.Time
}

// begin opens a form, and gives its id.
func (s *sessions) begin(new session, now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest, oldestOwn string
	own := 0
	for id, old := range s.open {
		if now.Sub(old.until) > sessionFor {
			delete(s.open, id)
			continue
		}
		if oldest == "" || old.until.Before(s.open[oldest].until) {
			oldest = id
		}
		if old.owner == new.owner {
			if own++; oldestOwn == "" || old.until.Before(s.open[oldestOwn].until) {
				oldestOwn = id
			}
		}
	}
	switch {
	case own >= maxSessionsEach:
		delete(s.open, oldestOwn)
	case len(s.open) >= maxSessions:
		delete(s.open, oldest)
	}
	id := rand.Text()
	new.until = now.Add(sessionFor)
	s.open[id] = new
	return id
}

// end closes a form, if it is somebody's.
func (s *sessions) end(id, owner string, to devices.ID, node string, now time.Time) (session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.open[id]
	if !ok || one.owner != owner || one.to != to || one.node != node {
		return session{}, iqError{kind: "modify", condition: stanza.BadRequest, specific: xml.Name{Space: nsCommands, Local: "bad-sessionid"}}
	}
	delete(s.open, id)
	if now.After(one.until) {
		return session{}, iqError{kind: "cancel", condition: stanza.NotAllowed, specific: xml.Name{Space: nsCommands, Local: "session-expired"}}
	}
	return one, nil
}

// drop closes all forms of somebody.
func (s *sessions) drop(gone func(owner string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, one := range s.open {
		if gone(one.owner) {
			delete(s.open, id)
		}
	}
}

// command serves XEP-0050. Forms have one stage, so execute, next and complete
// mean the same.
func (b *Bridge) command(ctx context.Context, r request) (any, error) {
	var ask struct {
		Command commandElement `xml:"http://jabber.org/protocol/commands command"`
	}
	if err := r.stanza.Unmarshal(&ask); err != nil {
		return nil, badRequest("")
	}
	c := ask.Command
	a := asker{full: r.stanza.From, bare: r.stanza.From.Bare(), to: r.to.device, token: r.stanza.ID}
	all := b.commandsFor(a)
	i := slices.IndexFunc(all, func(o command) bool { return o.node == c.Node })
	if i < 0 {
		return nil, iqError{kind: "cancel", condition: stanza.ItemNotFound}
	}
	offered := all[i]
	var shown form
	if c.SessionID != "" {
		s, err := b.sessions.end(c.SessionID, a.full.String(), a.to, c.Node, time.Now())
		if err != nil {
			return nil, err
		}
		shown = s.shown
	}
	answer := commandElement{Node: c.Node, SessionID: c.SessionID, Status: "completed"}
	filled := c.Form != nil && c.Form.Type == "submit"
	switch c.Action {
	case "cancel":
		answer.Status = "canceled"
		return answer, nil
	case "", "execute", "complete", "next":
	case "prev":
		return nil, iqError{kind: "modify", condition: stanza.BadRequest, specific: xml.Name{Space: nsCommands, Local: "bad-action"}}
	default:
		return nil, iqError{kind: "modify", condition: stanza.BadRequest, specific: xml.Name{Space: nsCommands, Local: "malformed-action"}}
	}
	if len(offered.fields) > 0 && !filled {
		if c.SessionID != "" {
			return nil, iqError{kind: "modify", condition: stanza.BadRequest, specific: xml.Name{Space: nsCommands, Local: "bad-payload"}}
		}
		f := form{Type: "form", Title: offered.name, Fields: append([]formField{{Var: "FORM_TYPE", Type: "hidden", Values: []string{nsControl}}}, offered.fields...)}
		answer.SessionID = b.sessions.begin(session{owner: a.full.String(), to: a.to, node: c.Node, shown: f}, time.Now())
		answer.Status, answer.Form = "executing", &f
		answer.Actions = &actionsElement{Execute: "complete"}
		return answer, nil
	}
	var f form
	if c.Form != nil {
		f = *c.Form
	}
	if answer.SessionID == "" {
		answer.SessionID = rand.Text()
	}
	text := b.perform(ctx, a, offered.requests(f, shown))
	answer.Note = &noteElement{Type: "info", Text: text}
	if strings.HasPrefix(text, Refused.String()) {
		answer.Note.Type = "error"
	}
	return answer, nil
}

// perform does what is wanted, and tells what came of it within a few seconds.
func (b *Bridge) perform(ctx context.Context, a asker, all []words.Request) string {
	if len(all) == 0 {
		return words.NothingChanged
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var answers []answer
	for _, r := range all {
		answers = append(answers, b.do(ctx, a, nil, r))
	}
	var texts []string
	for i, one := range answers {
		text := one.text
		if one.orders != nil {
			text = one.orders.first(ctx)
			text = cmp.Or(one.orders.last(ctx), text)
			one.orders.end()
			if len(all) > 1 {
				text += ": " + strings.Join(all[i].Rest[min(1, len(all[i].Rest)):], " ")
			}
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "\n")
}

// commandItems lists the commands of a device (XEP-0050 section 2.2).
func (b *Bridge) commandItems(a asker, to string) []discoItem {
	var items []discoItem
	for _, c := range b.commandsFor(a) {
		items = append(items, discoItem{JID: to, Node: c.node, Name: c.name})
	}
	return items
}

// commandInfo tells of one command, or of the list.
func (b *Bridge) commandInfo(a asker, node string) (infoQuery, bool) {
	info := infoQuery{Node: node, Identity: []identity{{"automation", "command-list", ""}}, Features: features(nsCommands)}
	if node == nsCommands {
		return info, true
	}
	for _, c := range b.commandsFor(a) {
		if c.node == node {
			info.Identity[0] = identity{"automation", "command-node", c.name}
			info.Features = features(nsCommands, "jabber:x:data")
			return info, true
		}
	}
	return infoQuery{}, false
}

package bridge

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/devices"
)

// An asker is who wants something: of the gateway, or of the device that he
// wrote to.
type asker struct {
	full, bare jid.JID
	to         devices.ID
	room       jid.JID   // with his nick, where he asked in a room
	given      time.Time // when, where it was kept since; zero is now
	late       string    // why nothing that changes anything is done; "" where it may be
	token      string    // of his message
}

func (a asker) inRoom() bool { return a.room.Resourcepart() != "" }

// An answer is one message, or what becomes of commands.
type answer struct {
	text   string
	orders *orders
	offer  *rosterOffer
}

// changes reports whether a verb changes anything.
func changes(v words.Verb) bool {
	switch v {
	case words.Act, words.Ack, words.Mute, words.Approve, words.Deny, words.Grant, words.Revoke, words.Claim, words.Backup:
		return true
	}
	return false
}

// refusedText is how a refusal begins.
func refusedText(why string) string { return Refused.String() + ": " + why }

func sayError(err error) string {
	if errors.Is(err, ErrNotAllowed) {
		err = ErrNotAllowed // and not what it was about
	}
	return refusedText(err.Error())
}

// scope is what words can mean to somebody.
func (b *Bridge) scope(a asker) words.Scope {
	if a.to != devices.Gateway {
		d, _ := b.device(a.to)
		return words.Scope{Device: a.to, Devices: []words.Name{{ID: a.to, Name: d.Name}}}
	}
	s := words.Scope{Devices: b.visible(a.bare)}
	if b.office != nil {
		s.Groups = b.office.Groups(a.bare)
	}
	return s
}

// visible are the devices that who may see, without the gateway.
func (b *Bridge) visible(who jid.JID) []words.Name {
	var all []words.Name
	for _, d := range b.sortedDevices() {
		if d.ID != devices.Gateway && b.auth.MaySee(who, d.ID) {
			all = append(all, words.Name{ID: d.ID, Name: d.Name})
		}
	}
	return all
}

// understand gives what a line wants: by itself, or by what was shown before.
func (b *Bridge) understand(a asker, t *talk, line string) (words.Request, error) {
	now := time.Now()
	if ask := t.ask; ask != nil && ask.to == a.to && now.Before(ask.until) && strings.EqualFold(line, ask.word) {
		t.ask = nil
		r := ask.request
		r.Sure = true
		return r, nil
	}
	r, err := words.Parse(line, b.scope(a))
	if err != nil || r.Verb != words.Choose {
		return r, err
	}
	m := t.menus[a.to]
	switch {
	case len(m.lines) == 0 || now.After(m.until):
		return r, words.Error(words.NoMenu)
	case r.Number < 1 || r.Number > len(m.lines):
		return r, words.Error(fmt.Sprintf(words.NotInMenu, len(m.lines)))
	}
	return m.lines[r.Number-1], nil
}

// do does what somebody wants, if he may. Rights are asked for here, however
// he came to want it. t may be nil.
func (b *Bridge) do(ctx context.Context, a asker, t *talk, r words.Request) answer {
	text := func(s string) answer { return answer{text: s} }
	if changes(r.Verb) && r.Verb != words.Act && a.late != "" {
		return text(refusedText(a.late))
	}
	about := r.Devices
	if about == nil {
		about = []devices.ID{a.to}
	}
	for _, id := range about {
		if !b.knows(a.bare, target{device: id}) {
			return text(refusedText(fmt.Sprintf(words.NoDevice, id)))
		}
		if reads := r.Verb == words.Status || r.Verb == words.Read || r.Verb == words.Proof || r.Verb == words.Subscribe; reads && !b.auth.MaySee(a.bare, id) {
			return text(sayError(ErrNotAllowed))
		}
	}
	switch r.Verb {
	case words.Help:
		return text(b.help(a, about[0]))
	case words.Menu:
		return text(b.menu(a, t, about[0]))
	case words.Act:
		return b.act(ctx, a, t, about, r)
	case words.Devices:
		return answer{text: b.list(a), offer: b.offer(a.bare)}
	case words.Rooms:
		if !b.auth.May(a.bare, MayInstall, "") {
			return text(sayError(ErrNotAllowed))
		}
		return text(b.roomList())
	}
	if r.Verb == words.Subscribe {
		var parts []string
		for _, id := range about {
			part, err := b.subscribe(ctx, a, id, r.Rest)
			if err != nil {
				part = sayError(err)
			}
			parts = append(parts, part)
		}
		return text(strings.Join(parts, "\n"))
	}
	if b.office == nil {
		return text(refusedText(words.NotHere))
	}
	switch r.Verb {
	case words.Status, words.Read:
		var parts []string
		for _, id := range about {
			parts = append(parts, b.tellDevice(a, id, r))
		}
		return text(strings.Join(parts, "\n\n"))
	case words.Ack, words.Mute, words.Proof:
		var parts []string
		for _, id := range about {
			part, err := b.officeDevice(a, id, r)
			if err != nil {
				part = sayError(err)
			}
			if !slices.Contains(parts, part) {
				parts = append(parts, part)
			}
		}
		return text(strings.Join(parts, "\n"))
	}
	said, err := b.officeDo(a, r)
	if err != nil {
		return text(sayError(err))
	}
	return text(said)
}

// officeDevice does what the office does about a device.
func (b *Bridge) officeDevice(a asker, id devices.ID, r words.Request) (string, error) {
	switch r.Verb {
	case words.Ack:
		return b.acknowledge(a, id)
	case words.Mute:
		d, err := words.ParsePeriod(r.Rest, words.DefaultMute)
		if err != nil {
			return "", err
		}
		if err := b.office.Mute(a.full, id, d); err != nil {
			return "", err
		}
		if d == 0 {
			return fmt.Sprintf(words.Unmuted, b.nameOf(id)), nil
		}
		return fmt.Sprintf(words.Muted, b.nameOf(id), words.Span(d)), nil
	}
	return b.office.Proof(a.bare, id, cmp.Or(strings.ToLower(strings.Join(r.Rest, "")), "today"))
}

// acknowledge ends a device's alarms; the gateway's means all.
func (b *Bridge) acknowledge(a asker, id devices.ID) (string, error) {
	about := []devices.ID{id}
	if id == devices.Gateway {
		about = nil
		for _, alarm := range b.office.Alarms(a.bare) {
			if alarm.Acknowledged.Equal(jid.JID{}) && !slices.Contains(about, alarm.Device) {
				about = append(about, alarm.Device)
			}
		}
	}
	var names []string
	var refusal error
	for _, id := range about {
		n, err := b.office.Acknowledge(a.full, id)
		if err != nil {
			refusal = err
		} else if n > 0 {
			names = append(names, b.nameOf(id))
		}
	}
	switch {
	case len(names) > 0:
		return fmt.Sprintf(words.Acked, strings.Join(names, ", ")), nil
	case refusal != nil:
		return "", refusal
	}
	return words.NothingUp, nil
}

// officeDo does what the office does about the gateway.
func (b *Bridge) officeDo(a asker, r words.Request) (string, error) {
	switch r.Verb {
	case words.Pending:
		return b.pending(a.bare)
	case words.Approve:
		terms, err := b.termsFor(a.bare, r)
		if err != nil {
			return "", err
		}
		return b.office.Approve(a.full, r.Number, terms)
	case words.Deny:
		return b.office.Deny(a.full, r.Number)
	case words.Grant:
		return b.grant(a.full, r.Rest)
	case words.Revoke:
		if len(r.Rest) != 1 {
			return "", words.Error(words.WhoLeaves)
		}
		from, err := parsePerson(r.Rest[0])
		if err != nil {
			return "", err
		}
		if err := b.office.Revoke(a.full, from); err != nil {
			return "", err
		}
		return fmt.Sprintf(words.Revoked, from), nil
	case words.Claim:
		return b.claim(a, r), nil
	case words.Outbox:
		return b.office.Store(a.bare)
	case words.Doctor:
		return b.office.Doctor(a.bare)
	case words.Backup:
		return b.office.Backup(a.full)
	}
	return "", words.Error(words.NothingSaid)
}

// claim gives what is told to who wants to be the owner; "" is nothing.
func (b *Bridge) claim(a asker, r words.Request) string {
	if a.late != "" {
		return ""
	}
	if len(r.Rest) == 0 {
		if b.mayBrowse(a.bare) {
			return refusedText(words.WhichCode)
		}
		return ""
	}
	err := b.office.Claim(a.full, strings.Join(r.Rest, ""))
	switch {
	case err == nil:
		return words.Claimed
	case errors.Is(err, ErrNotAllowed) && !b.mayBrowse(a.bare):
		return ""
	}
	return sayError(err)
}

func (b *Bridge) pending(who jid.JID) (string, error) {
	waiting, err := b.office.Applicants(who)
	if err != nil {
		return "", err
	}
	if len(waiting) == 0 {
		return words.NonePend, nil
	}
	var lines []string
	for _, w := range waiting {
		if w.Device != "" {
			lines = append(lines, fmt.Sprintf(words.PendDevice, w.Number, printable(w.Device), printable(w.Detail)))
		} else {
			lines = append(lines, fmt.Sprintf(words.PendPerson, w.Number, w.Person, printable(w.Detail)))
		}
	}
	return strings.Join(append(lines, words.PendHow), "\n"), nil
}

// termsFor reads what stands behind the number of an applicant: a device's
// name, or a person's terms.
func (b *Bridge) termsFor(who jid.JID, r words.Request) (Terms, error) {
	waiting, err := b.office.Applicants(who)
	if err != nil {
		return Terms{}, err
	}
	for _, w := range waiting {
		if w.Number == r.Number && w.Device != "" {
			rest := r.Rest
			if len(rest) > 1 && strings.EqualFold(rest[0], "as") {
				rest = rest[1:]
			}
			return Terms{Name: strings.Join(rest, " ")}, nil
		}
	}
	terms, err := words.ParseTerms(r.Rest)
	return Terms(terms), err
}

func (b *Bridge) grant(who jid.JID, rest []string) (string, error) {
	if len(rest) == 0 {
		return b.grants(who)
	}
	to, err := parsePerson(rest[0])
	if err != nil {
		return "", err
	}
	terms, err := words.ParseTerms(rest[1:])
	if err == nil && terms.Role == "" {
		err = words.Error(words.WhoAndWhat)
	}
	if err != nil {
		return "", err
	}
	if err := b.office.Grant(who, to, Terms(terms)); err != nil {
		return "", err
	}
	return fmt.Sprintf(words.Granted, to, termsText(Terms(terms))), nil
}

func (b *Bridge) grants(who jid.JID) (string, error) {
	all, err := b.office.Grants(who)
	if err != nil {
		return "", err
	}
	lines := make([]string, len(all))
	for i, g := range all {
		lines[i] = g.JID.String() + ": " + termsText(g.Terms)
		if g.Config {
			lines[i] += words.ByConfig
		}
	}
	return cmp.Or(strings.Join(lines, "\n"), words.NobodyElse), nil
}

func termsText(t Terms) string {
	text := cmp.Or(t.Role, words.Roles()[0])
	if len(t.Devices) > 0 {
		text += fmt.Sprintf(words.ForDevices, strings.Join(t.Devices, ", "))
	}
	if t.Hours != "" {
		text += fmt.Sprintf(words.InHours, t.Hours)
	}
	if t.Until != "" {
		text += fmt.Sprintf(words.UntilDay, t.Until)
	}
	return text
}

// parsePerson reads the address of somebody, bare.
func parsePerson(s string) (jid.JID, error) {
	j, err := jid.Parse(strings.TrimPrefix(s, "xmpp:"))
	if err != nil || j.Localpart() == "" || j.Resourcepart() != "" {
		return j, words.Error(fmt.Sprintf(words.WhoIsNot, words.Quote(s)))
	}
	return j, nil
}

// nameOf is what people call a device.
func (b *Bridge) nameOf(id devices.ID) string {
	d, _ := b.device(id)
	return printable(cmp.Or(d.Name, string(id)))
}

// state is how a device is doing.
func (b *Bridge) state(id devices.ID) Presence {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.states[id]
}

// tellDevice tells how a device is, or what it measured last.
func (b *Bridge) tellDevice(a asker, id devices.ID, r words.Request) string {
	now := time.Now()
	fields := b.office.Latest(id)
	if len(r.Rest) > 0 {
		return b.tellField(id, fields, r.Rest, now)
	}
	p := b.state(id)
	lines := []string{fmt.Sprintf(words.NeverHeard, b.nameOf(id), p.State)}
	if !p.Since.IsZero() {
		lines[0] = fmt.Sprintf(words.HeardAgo, b.nameOf(id), p.State, words.Span(now.Sub(p.Since)))
	}
	if id == devices.Gateway && p.Note != "" {
		lines = append(lines, printable(p.Note))
	}
	for _, alarm := range b.office.Alarms(a.bare) {
		if alarm.Device != id && id != devices.Gateway {
			continue
		}
		text := printable(alarm.Text)
		if id == devices.Gateway && alarm.Device != id {
			text = b.nameOf(alarm.Device) + ": " + text
		}
		line := fmt.Sprintf(words.AlarmSince, text, words.Span(now.Sub(alarm.Since)))
		if !alarm.Acknowledged.Equal(jid.JID{}) {
			line += fmt.Sprintf(words.AckedBy, alarm.Acknowledged)
		}
		lines = append(lines, line)
	}
	for _, f := range fields {
		if text := fullText(f.Field); r.Verb == words.Read {
			lines = append(lines, fmt.Sprintf(words.Ago, text, words.Span(now.Sub(f.Time))))
		} else if f.Kind == devices.Measurement || f.Kind == devices.Counter || f.Kind == devices.Status || f.Kind == devices.Fault {
			lines = append(lines, text)
		}
	}
	return strings.Join(lines, "\n")
}

func (b *Bridge) tellField(id devices.ID, fields []LatestField, rest []string, now time.Time) string {
	want := strings.ToLower(strings.Join(rest, "_"))
	var found, names []string
	for _, f := range fields {
		names = append(names, f.Name)
		if f.Name == want {
			found = []string{fmt.Sprintf(words.Ago, fullText(f.Field), words.Span(now.Sub(f.Time)))}
			break
		}
		if strings.Contains(f.Name, want) {
			found = append(found, fmt.Sprintf(words.Ago, fullText(f.Field), words.Span(now.Sub(f.Time))))
		}
	}
	switch {
	case len(names) == 0:
		return b.nameOf(id) + ": " + words.NothingToRead
	case len(found) == 0:
		return fmt.Sprintf(words.NoField, words.Quote(strings.Join(rest, " ")), strings.Join(names, ", "))
	}
	return strings.Join(found, "\n")
}

// fullText is a field with its name.
func fullText(f devices.Field) string {
	value := printable(f.Value.String())
	if f.Value.Kind() == devices.BoolValue {
		value = map[bool]string{true: "on", false: "off"}[f.Value.Bool()]
	}
	if f.Unit != "" {
		value += " " + printable(string(f.Unit))
	}
	return clip(strings.ReplaceAll(f.Name, "_", " ")+" "+value, maxStatus)
}

// list tells of all devices and groups.
func (b *Bridge) list(a asker) string {
	var lines []string
	for _, d := range b.visible(a.bare) {
		p := b.state(d.ID)
		line := string(d.ID)
		if d.Name != "" && d.Name != line {
			line += " (" + printable(d.Name) + ")"
		}
		line += ": " + p.State.String()
		if text := p.text(); text != "" {
			line += ", " + text
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return words.NoDevices
	}
	if b.office != nil {
		groups := b.office.Groups(a.bare)
		for _, name := range slices.Sorted(maps.Keys(groups)) {
			ids := make([]string, len(groups[name]))
			for i, id := range groups[name] {
				ids[i] = string(id)
			}
			lines = append(lines, fmt.Sprintf(words.InGroup, name, strings.Join(ids, ", ")))
		}
	}
	return strings.Join(lines, "\n")
}

// controls are what a person can tell a device.
func (b *Bridge) controls(who jid.JID, id devices.ID) []devices.Control {
	if b.executor == nil || !b.auth.May(who, MayCommand, id) {
		return nil
	}
	return b.executor.Controls(id)
}

// help tells what somebody may do.
func (b *Bridge) help(a asker, id devices.ID) string {
	lines := []string{words.HelpHead, words.HelpMenu}
	reads := b.auth.MaySee(a.bare, id)
	if reads {
		lines = append(lines, words.HelpStatus, words.HelpRead, words.HelpProof, words.HelpSubscribe)
	}
	may := func(r Right) bool { return b.auth.May(a.bare, r, "") }
	commands := false
	switches := 0
	controls := b.controls(a.bare, id)
	for _, c := range controls {
		if c.Argument.Type == devices.SwitchArgument {
			switches++
		}
	}
	for _, c := range controls {
		commands = true
		switch takes := words.Takes(c.Argument); {
		case c.Argument.Type == devices.SwitchArgument && switches == 1:
			lines = append(lines, fmt.Sprintf(words.HelpSwitch, takes))
		case takes == "":
			lines = append(lines, c.Name)
		default:
			lines = append(lines, fmt.Sprintf(words.HelpSet, c.Name, takes))
		}
	}
	if b.auth.May(a.bare, MayCommand, id) {
		lines = append(lines, words.HelpAck, words.HelpMute)
	}
	if id == devices.Gateway {
		example := words.AnyDevice
		if all := b.visible(a.bare); len(all) > 0 {
			verb := words.Status
			if b.auth.May(a.bare, MayCommand, all[0].ID) {
				verb = "on"
			}
			example = string(all[0].ID) + " " + string(verb)
		}
		lines = append(lines, fmt.Sprintf(words.HelpTargets, example), words.HelpDevices)
		if may(MayCommand) {
			commands = true
		}
		if may(MayInstall) {
			lines = append(lines, words.HelpPending, words.HelpApprove)
		}
		if may(MayGrant) {
			lines = append(lines, words.HelpGrant, words.HelpRevoke)
		}
		if may(MayInstall) {
			lines = append(lines, words.HelpRooms, words.HelpOutbox, words.HelpDoctor, words.HelpBackup)
		}
	}
	if commands {
		lines = append(lines, words.HelpOutcomes)
	}
	return strings.Join(lines, "\n")
}

// maxMenu is how many lines a menu has.
const maxMenu = 40

// menu shows what can be chosen by number, and remembers it.
func (b *Bridge) menu(a asker, t *talk, id devices.ID) string {
	var labels []string
	var lines []words.Request
	add := func(label string, r words.Request) {
		if len(lines) < maxMenu {
			labels = append(labels, fmt.Sprintf("%d  %s", len(lines)+1, label))
			lines = append(lines, r)
		}
	}
	if id == devices.Gateway {
		for _, d := range b.visible(a.bare) {
			add(b.nameOf(d.ID), words.Request{Verb: words.Menu, Devices: []devices.ID{d.ID}})
		}
		verbs := []words.Verb{words.Devices}
		if b.auth.MaySee(a.bare, devices.Gateway) {
			verbs = append(verbs, words.Status)
		}
		if b.auth.May(a.bare, MayInstall, "") {
			verbs = append(verbs, words.Pending, words.Outbox, words.Doctor)
		}
		for _, v := range verbs {
			add(string(v), words.Request{Verb: v})
		}
	} else {
		about := []devices.ID{id}
		add(words.MenuStatus, words.Request{Verb: words.Status, Devices: about})
		controls := b.controls(a.bare, id)
		for _, c := range controls {
			switch c.Argument.Type {
			case devices.SwitchArgument, devices.WordArgument:
				for _, w := range c.Argument.Words {
					add(c.Name+" "+w, words.Request{Verb: words.Act, Devices: about, Rest: []string{"set", c.Name, w}})
				}
			case devices.NoArgument:
				add(c.Name, words.Request{Verb: words.Act, Devices: about, Rest: []string{"set", c.Name}})
			}
		}
		if b.auth.May(a.bare, MayCommand, id) {
			add(string(words.Ack), words.Request{Verb: words.Ack, Devices: about})
			add(string(words.Mute)+" "+words.Span(words.DefaultMute), words.Request{Verb: words.Mute, Devices: about})
		}
	}
	if t != nil {
		if len(t.menus) >= maxMenu { // of devices that are long gone
			clear(t.menus)
		}
		t.menus[a.to] = menu{lines: lines, until: time.Now().Add(menuFor)}
	}
	return words.MenuHead + "\n" + strings.Join(labels, "\n")
}

// surelyWords are those by which somebody confirms that he means it.
var surelyWords = strings.Fields("amber birch cedar coral ember falcon garnet hazel indigo juniper lemon maple olive pepper quartz raven saffron tulip umber velvet walnut willow")

// makeSure asks somebody for a word, and remembers what for.
func (b *Bridge) makeSure(a asker, t *talk, what string, r words.Request) string {
	if t == nil {
		return refusedText(words.NeedsPerson)
	}
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(surelyWords))))
	if err != nil {
		return refusedText(words.NeedsPerson)
	}
	word := surelyWords[n.Int64()]
	t.ask = &surely{word: word, request: r, to: a.to, until: time.Now().Add(surelyFor)}
	return fmt.Sprintf(words.Surely, words.Quote(what), word)
}

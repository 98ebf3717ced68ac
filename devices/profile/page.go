package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	profiles "github.com/porchlight-iot/porchlight/firmware-profiles"
)

// Page describes a profile for those who install devices, in Markdown: what it
// recognises, what becomes of it, what the devices can be told. It is nil where
// there is no such profile.
func (l *Library) Page(id string) []byte {
	p := l.Get(id)
	if p == nil {
		return nil
	}
	w := page{Profile: p}
	w.line("# %s", p.Name())
	w.line("")
	w.line("Profile `%s`, over %s.", p.ID(), strings.Join(transportNames(p.Transports()), ", "))
	if about := p.preface(); about != "" {
		w.line("\n%s", about)
	}
	if len(p.file.Aliases) > 0 {
		w.line("\nIt is also called %s.", codes(p.file.Aliases))
	}
	w.recognition()
	w.wire()
	w.device()
	w.fields()
	w.availability()
	w.commands()
	w.example(l)
	return w.Bytes()
}

// Index lists the pages of all profiles, in Markdown.
func (l *Library) Index() []byte {
	var w page
	w.line("# Firmwares\n")
	w.line("Each page says what a profile recognises, and what becomes of it. `porchlight profile show NAME` shows it too.\n")
	w.row("firmware", "profile", "over")
	w.line("|---|---|---|")
	for _, id := range l.Names() {
		p := l.Get(id)
		w.row(fmt.Sprintf("[%s](%s.md)", p.Name(), id), code(id), strings.Join(transportNames(p.Transports()), ", "))
	}
	return w.Bytes()
}

// A page is being written.
type page struct {
	bytes.Buffer
	*Profile
}

func (w *page) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

func (w *page) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = strings.NewReplacer("|", `\|`, "\n", " ").Replace(cell)
	}
	w.line("| %s |", strings.Join(cells, " | "))
}

func transportNames(all []string) []string {
	for i, t := range all {
		all[i] = map[string]string{"mqtt": "MQTT", "coap": "CoAP", "serial": "a serial port"}[t]
	}
	return all
}

func code(s string) string {
	if strings.Contains(s, "`") {
		return "`` " + s + " ``"
	}
	return "`" + s + "`"
}

func codes(all []string) string {
	var out []string
	for _, s := range all {
		out = append(out, code(s))
	}
	return strings.Join(out, ", ")
}

// preface is what the file says of itself before its first key.
func (p *Profile) preface() string {
	var words []string
	for line := range strings.Lines(string(p.source)) {
		text, is := strings.CutPrefix(line, "#")
		if !is {
			break
		}
		words = append(words, strings.TrimSpace(text))
	}
	return strings.Join(words, "\n")
}

func (w *page) recognition() {
	w.line("\n## What it recognises\n")
	switch {
	case len(w.file.Match) == 0:
		w.line("The config says which port or server the device is on, and names this profile.")
		return
	case w.Priority() == 0:
		w.line("It takes no message by itself: the config names it, and the device's topic.\n")
	case w.Priority() < announcedPriority:
		w.line("It takes what no other profile knows.\n")
	case w.Priority() < usualPriority:
		w.line("It takes what the firmware's own profile does not know.\n")
	}
	for _, m := range w.file.Match {
		text := code(m.Topic.plain())
		if len(m.When) > 0 {
			text += ", " + w.plainWhen(m.When)
		}
		if m.Known {
			text += ", of a device that was heard on another of these"
		}
		w.line("- %s", text)
	}
	if len(w.file.Params) > 0 {
		w.line("\nIn a house where these differ, a profile of your own `extends` this one with other `params`:\n")
		for _, name := range sortedKeys(w.file.Params) {
			w.line("- `%s`: %s", name, code(w.file.Params[name]))
		}
	}
}

// wire says how a serial device is spoken with.
func (w *page) wire() {
	if !slices.Contains(w.Transports(), "serial") || len(w.Transports()) > 1 {
		return
	}
	w.line("\n## On the wire\n")
	var lines []string
	for _, l := range w.Lines() {
		lines = append(lines, l.String())
	}
	if len(lines) > 0 {
		w.line("- Characters: %s", strings.Join(lines, ", or "))
	}
	w.line("- It sends %s", w.file.Framing)
	for _, rule := range w.file.Poll {
		when := "at the start"
		if rule.Every > 0 {
			when = "every " + plainDuration(rule.Every)
		}
		what := code(rule.Hex)
		switch {
		case rule.SignOn:
			what = "by the sign-on of mode C"
		case rule.Modbus != nil:
			what = fmt.Sprintf("for %d registers from %#04x, function %d", rule.Modbus.Count, rule.Modbus.Address, rule.Modbus.Function)
		case rule.Hex == "":
			what = code(strings.TrimSpace(rule.Payload.source))
		}
		w.line("- It is asked %s: %s", when, what)
	}
}

// plain writes the pattern for people: {x} is one level, {x…} are several.
func (p topicPattern) plain() string {
	var all []string
	for _, l := range p.levels {
		switch {
		case l.name == "":
			all = append(all, l.text)
		case l.name == "device" && len(l.globs) > 0:
			all = append(all, "{device="+joined(l.globs)+"}")
		case len(l.globs) == 1:
			all = append(all, string(l.globs[0]))
		case len(l.globs) > 0:
			all = append(all, "("+joined(l.globs)+")")
		case l.max == 0 && l.min == 0:
			all = append(all, "[{"+l.name+"…}]")
		case l.max == 0:
			all = append(all, "{"+l.name+"…}")
		default:
			all = append(all, "{"+l.name+"}")
		}
	}
	return strings.Join(all, "/")
}

func joined(globs []glob) string {
	var words []string
	for _, g := range globs {
		words = append(words, string(g))
	}
	return strings.Join(words, "|")
}

// plainWhen writes conditions for people.
func (p *Profile) plainWhen(c conditions) string {
	var all []string
	for _, name := range sortedKeys(c) {
		if what, ok := c.emptiness(name); ok {
			all = append(all, what)
			continue
		}
		what := map[string]string{"first": "the first character", "payload": "the message", "hex": "the message in hex", "format": "the content format", "field": "the path", "retained": "retained"}[name]
		if member, ok := strings.CutPrefix(name, "/"); ok {
			what = code(member)
		}
		if what == "" || p.file.captured(name) {
			what = code("{" + name + "}")
		}
		pattern, not := strings.CutPrefix(string(c[name]), "!")
		switch {
		case pattern == "*" && not:
			all = append(all, "without "+what)
		case pattern == "*":
			all = append(all, "with "+what)
		case not:
			all = append(all, what+" is not "+code(pattern))
		default:
			all = append(all, what+" is "+code(pattern))
		}
	}
	return strings.Join(all, ", ")
}

// emptiness says whether a condition is on there being a message at all.
func (c conditions) emptiness(name string) (string, bool) {
	if name != "first" && name != "payload" && name != "hex" {
		return "", false
	}
	what, ok := map[glob]string{"*": "not empty", "!*": "empty"}[c[name]]
	return what, ok
}

func (w *page) device() {
	d := w.file.Device
	w.line("\n## Devices\n")
	keys := sources(d.Key)
	if len(keys) == 0 && w.file.captured("device") {
		keys = []string{"{device}"}
	}
	if len(keys) == 0 {
		w.line("Messages do not say whose they are; the config does.")
	} else if len(keys) == 1 {
		w.line("They are told apart by %s. `{x}` is a level of the topic, `{/x}` a member of the message.", code(keys[0]))
	} else {
		w.line("They are told apart by the first of %s that is there. `{x}` is a level of the topic, `{/x}` a member of the message.", codes(keys))
	}
	list := "\n"
	for _, about := range []struct {
		what string
		from []template
	}{{"Name", d.Name}, {"Maker", d.Maker}, {"Model", d.Model}, {"Firmware", d.Firmware}, {"Hangs on", d.Parent}} {
		if len(about.from) > 0 {
			text := codes(sources(about.from))
			if len(about.from) == 1 && len(about.from[0].names()) == 0 && !strings.Contains(about.from[0].source, "{") {
				text = about.from[0].source
			}
			w.line("%s- %s: %s", list, about.what, text)
			list = ""
		}
	}
	if d.Children != nil {
		w.line("\nParts of a message that are devices of their own: %s.", code(d.Children.Each.plain()))
	}
	var describers []string
	for _, rule := range w.file.Decode {
		if rule.Describe != "" && !slices.Contains(describers, rule.Describe) {
			describers = append(describers, rule.Describe)
		}
	}
	if len(describers) > 0 {
		w.line("\nDevices announce what they have (%s): fields, units, words and commands are theirs then, and what follows holds for the rest.", strings.Join(describers, ", "))
	}
}

func sources(all []template) (out []string) {
	for _, t := range all {
		out = append(out, t.source)
	}
	return out
}

// maxPlain bounds the alternatives of a selector that are shown.
const maxPlain = 12

// plain writes the selector's paths.
func (s selector) plain() string {
	var all []string
	for _, path := range s.paths {
		if len(all) == maxPlain {
			all = append(all, "…")
			break
		}
		all = append(all, strings.Join(path, "/"))
	}
	return strings.Join(all, " ")
}

func (w *page) fields() {
	w.line("\n## Fields\n")
	var dropped []string
	shown := false
	for _, r := range w.file.Fields {
		if r.Drop {
			dropped = append(dropped, r.Select.plain())
			continue
		}
		if !shown {
			shown = true
			w.line("The first row that fits a value holds. `*` stands for any name, `**` for any names.\n")
			w.row("value", "field", "kind", "unit", "")
			w.line("|---|---|---|---|---|")
		}
		from := code(r.Select.plain())
		if r.Join != nil {
			var parts []string
			for _, p := range r.Join.Paths {
				parts = append(parts, strings.Join(p, "/"))
			}
			from = codes(parts) + " together"
		}
		w.row(from, r.plainName(), r.Kind, r.plainUnit(), r.plainNotes(w.plainWhen(r.When)))
	}
	if shown {
		w.line("")
	}
	if w.file.Rest.Create == "none" {
		w.line("Other values are no fields.")
	} else {
		w.line("Each other value is a field, called by its path: a number is a measurement, all else a state.")
	}
	if len(dropped) > 0 {
		w.line("\nLeft out: %s.", codes(dropped))
	}
	if len(w.file.Time) > 0 {
		var paths []string
		for _, t := range w.file.Time {
			if path := strings.Join(t.Path, "/"); !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
		w.line("\nThe time of a reading is in %s, where it can be believed; else it is when it came.", codes(paths))
	}
}

func (r *fieldRule) plainName() string {
	if len(r.Name) > 0 {
		return codes(sources(r.Name))
	}
	if len(r.Select.paths) == 1 && !slices.ContainsFunc(r.Select.paths[0], func(s string) bool { return !glob(s).isLiteral() }) {
		return code(fieldName(strings.Join(r.Select.paths[0][r.skip:], "/")))
	}
	return "its path"
}

func (r *fieldRule) plainUnit() string {
	var all []string
	for _, name := range sortedKeys(r.Units) {
		if unit := r.Units[name]; unit != "" {
			all = append(all, code(name)+" "+unit)
		}
	}
	if r.UnitOf != "" {
		all = []string{"as " + code(r.UnitOf) + " says"}
	}
	if r.Unit != "" && len(all) > 0 {
		all = append(all, "else "+r.Unit)
	} else if r.Unit != "" {
		all = append(all, r.Unit)
	}
	return strings.Join(all, ", ")
}

func (r *fieldRule) plainNotes(when string) string {
	var all []string
	note := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if when != "" {
		note("%s", when)
	}
	if r.Type != "" {
		note("%s", map[string]string{"bool": "true or false", "integer": "whole number"}[r.Type]+map[string]string{"number": "number", "text": "text"}[r.Type])
	}
	if r.Parse != "" {
		note("%s", map[string]string{"duration": "from days, hours, minutes and seconds", "hex": "from hexadecimal"}[r.Parse])
	}
	for _, name := range sortedKeys(r.words) {
		note("%s is %s", code(name), r.words[name].String())
	}
	for _, name := range sortedKeys(r.Online) {
		note("%s: the device is %s", code(name), r.Online[name])
	}
	if len(r.Invalid) > 0 {
		note("none where %s", codes(r.Invalid))
	}
	if r.Bits != nil {
		note("%d bits from bit %d", r.Bits.Width, r.Bits.At)
	}
	if r.Offset != 0 {
		note("plus %s", devices.Number(r.Offset))
	}
	if r.Scale != 0 && r.Scale != 1 {
		note("times %s", devices.Number(r.Scale))
	}
	if len(r.Range) == 2 {
		note("from %s to %s", devices.Number(r.Range[0]), devices.Number(r.Range[1]))
	}
	return strings.Join(all, "; ")
}

func (w *page) availability() {
	w.line("\n## Whether it is there\n")
	told := false
	for _, rule := range w.file.Decode {
		if a := rule.Availability; a != nil {
			told = true
			var words []string
			for _, word := range sortedKeys(a.Words) {
				words = append(words, fmt.Sprintf("%s is %s", code(word), a.Words[word]))
			}
			text := strings.Join(words, ", ")
			if len(rule.When) > 0 {
				text = "Where " + w.plainWhen(rule.When) + ": " + text
			}
			w.line("- %s.", text)
		}
	}
	for _, r := range w.file.Fields {
		if r.Online != nil {
			told = true
			w.line("- The field %s tells it.", r.plainName())
		}
	}
	s := w.file.Silence
	switch {
	case s.Via == "parent":
		w.line("- It is lost when what it hangs on is.")
	case s.After > 0:
		w.line("- It is lost after %s of silence.", plainDuration(s.After))
	case !told:
		w.line("- It is lost after a silence that is long for it.")
	}
	if s.Asleep {
		w.line("- It sleeps between its messages.")
	}
}

// plainDuration writes 30m for 30m0s.
func plainDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func (w *page) commands() {
	if len(w.file.Commands) == 0 {
		return
	}
	w.line("\n## Commands\n")
	w.row("command", "", "where there is", "argument", "sent to", "confirmed by")
	w.line("|---|---|---|---|---|---|")
	for _, c := range w.file.Commands {
		where, confirm := "", code(c.Name.source)
		if c.For != nil {
			where = code(c.For.plain())
		}
		if c.Confirm != nil && !c.Confirm.Field.isZero() {
			confirm = code(c.Confirm.Field.source)
		}
		if c.Confirm != nil && c.Confirm.Within > 0 {
			confirm += " within " + plainDuration(c.Confirm.Within)
		}
		to, _ := withParams(c.Topic.source, w.file.Params)
		if to = code(to); c.Reply != nil {
			var with []string
			for _, name := range sortedKeys(c.Reply) {
				with = append(with, fmt.Sprintf("%s is %s", code("{"+name+"}"), code(c.Reply[name])))
			}
			to = "the topic it was heard on, where " + strings.Join(with, ", ")
		}
		switch {
		case c.Modbus != nil:
			to = fmt.Sprintf("register %#04x, function %d", c.Modbus.Address, c.Modbus.Function)
		case !c.Hex.isZero():
			to = code(c.Hex.source)
		case len(c.Topic.source) == 0 && c.Reply == nil:
			to = code(strings.TrimSpace(c.Payload.source))
		}
		title := c.Title
		if c.Risk != "" {
			title = strings.TrimPrefix(title+", "+c.Risk, ", ")
		}
		w.row(code(c.Name.source), title, where, c.Argument.plain(), to, confirm)
	}
}

func (a argumentRule) plain() string {
	switch a.Type {
	case "", "none":
		return "none"
	case "bool", "word":
		words := sortedKeys(a.Words)
		if len(words) == 0 {
			words = []string{"off", "on"}
		}
		return codes(words)
	case "text":
		return "a text"
	}
	text := map[string]string{"integer": "a whole number", "number": "a number"}[a.Type]
	if a.Min != nil || a.Max != nil {
		text += " " + span(a.argument())
	}
	return strings.TrimSpace(text + " " + a.Unit)
}

// shownTime is when the messages of examples come.
var shownTime = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// The bounds of an example: the bytes of the message, and the fields after which
// more are no better.
const (
	maxShown     = 700
	manyAreShown = 12
)

// example shows a message of a real device, and what comes of it: of those that
// are not too long, the first of most fields.
func (w *page) example(l *Library) {
	session := l.NewSession(time.UTC)
	var best Sample
	var bestShown Shown
	most := 0
	for _, s := range w.samples() {
		m, err := s.Message(shownTime)
		if err != nil {
			continue
		}
		out, err := s.hear(session, m)
		if err != nil || out.Profile != w.ID() || out.Announced || len(m.Payload) > maxShown {
			continue
		}
		fields := 0
		shown := Show(s.ID, out, nil)
		for _, r := range shown.Readings {
			fields += len(r.Fields)
		}
		if fields = min(fields, manyAreShown); fields > most {
			best, bestShown, most = s, shown, fields
		}
	}
	if most == 0 {
		return
	}
	w.line("\n## An example\n")
	text := best.PayloadHex
	if best.Payload != nil {
		text = strings.TrimSpace(*best.Payload)
	}
	w.line("    %s", best.Topic)
	w.line("    %s\n", strings.ReplaceAll(text, "\n", "\n    "))
	if best.Source != "" {
		w.line("Source: %s\n", best.Source)
	}
	if bestShown.Device != "" {
		w.line("Of the device %s:\n", code(bestShown.Device))
	}
	w.row("field", "value", "unit", "kind")
	w.line("|---|---|---|---|")
	for _, r := range bestShown.Readings {
		for _, f := range r.Fields {
			w.row(code(f.Name), fmt.Sprint(f.Value), f.Unit, f.Kind)
		}
	}
}

// samples are the profile's own tests, and the samples of its firmware.
func (p *Profile) samples() (all []Sample) {
	for _, name := range append([]string{p.ID()}, p.file.Aliases...) {
		data, err := profiles.Samples.ReadFile("testdata/" + name + ".jsonl")
		if err != nil {
			continue // it has none
		}
		for line := range bytes.Lines(data) {
			var s Sample
			if json.Unmarshal(line, &s) == nil {
				all = append(all, s)
			}
		}
	}
	for _, t := range p.file.Tests {
		all = append(all, p.sampleOf(t))
	}
	return all
}

package agent

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent/aboard"
	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/proof"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// An office implements [bridge.Office].
type office struct{ *Agent }

var _ bridge.Office = office{}

// must is the error where somebody has not a right.
func (o office) must(who bridge.JID, right bridge.Right, device devices.ID) error {
	if !o.auth.May(who, right, device) {
		return bridge.ErrNotAllowed
	}
	return nil
}

// done puts what somebody did, or was refused, into the audit, and gives the
// error in the bridge's words. A stranger's tries are not kept.
func (o office) done(who bridge.JID, device devices.ID, what, outcome string, err error) error {
	if errors.Is(err, access.ErrNotAllowed) {
		err = bridge.ErrNotAllowed
	}
	switch {
	case err == nil:
		o.orders.record(who.String(), device, what, outcome)
	case o.auth.May(who, bridge.MayRead, ""):
		o.orders.record(who.String(), device, what, "refused: "+err.Error())
	}
	return err
}

// Groups implements [bridge.Office].
func (o office) Groups(who bridge.JID) map[string][]devices.ID {
	all := make(map[string][]devices.ID)
	for _, d := range o.house.all() {
		if !o.auth.MaySee(who, d.ID) {
			continue
		}
		for _, g := range d.Groups {
			all[g] = append(all[g], d.ID)
		}
	}
	return all
}

// Latest implements [bridge.Office].
func (o office) Latest(device devices.ID) []bridge.LatestField {
	p, _ := o.house.picture(device)
	all := make([]bridge.LatestField, 0, len(p.values))
	for _, v := range p.values {
		all = append(all, bridge.LatestField{Field: v.Field, Time: v.Time})
	}
	return all
}

// Alarms implements [bridge.Office].
func (o office) Alarms(who bridge.JID) []bridge.Alarm {
	return o.alarms.all(func(id devices.ID) bool { return o.auth.MaySee(who, id) })
}

// Acknowledge implements [bridge.Office]. The gateway's alarms are those of all
// devices: it tells of many at once.
func (o office) Acknowledge(who bridge.JID, device devices.ID) (int, error) {
	if err := o.must(who, bridge.MayCommand, device); err != nil {
		return 0, err
	}
	return o.alarms.acknowledge(who, func(id devices.ID) bool {
		return id == device || device == devices.Gateway && o.auth.May(who, bridge.MayCommand, id)
	}), nil
}

// Mute implements [bridge.Office].
func (o office) Mute(who bridge.JID, device devices.ID, d time.Duration) error {
	if err := o.must(who, bridge.MayCommand, device); err != nil {
		return err
	}
	var err error
	if d < 0 || d > maxMute {
		err = errors.New("a device can be muted for 31 days at most")
	} else {
		o.alarms.mute(device, d)
	}
	return o.done(who, device, strings.TrimSpace(fmt.Sprintf("mute %s", d)), "done", err)
}

// Proof implements [bridge.Office]. Of the gateway, it is about all devices.
func (o office) Proof(who bridge.JID, device devices.ID, period string) (string, error) {
	if err := o.must(who, bridge.MayRead, device); err != nil {
		return "", err
	}
	q := proof.Question{Device: device}
	if device == devices.Gateway {
		if err := o.must(who, bridge.MayInstall, ""); err != nil {
			return "", err
		}
		q.Device = ""
	}
	var err error
	if q.Since, q.Until, err = proof.ParsePeriod(period, time.Now()); err != nil {
		return "", err
	}
	answer, err := o.outbox.Proof(q)
	if err != nil {
		return "", err
	}
	return proof.AnswerPeriod{From: answer.From, To: answer.To}.Text(time.Local) + ": " + answer.Text(time.Local), nil
}

// Applicants implements [bridge.Office]. Installers see devices, and owners
// people too.
func (o office) Applicants(who bridge.JID) ([]bridge.Applicant, error) {
	if err := o.must(who, bridge.MayInstall, ""); err != nil {
		return nil, err
	}
	var all []bridge.Applicant
	for _, p := range o.aboard.Pending() {
		all = append(all, bridge.Applicant{Number: p.Number, Device: string(p.ID), Detail: deviceDetail(p)})
	}
	if o.auth.May(who, bridge.MayGrant, "") {
		for _, p := range o.access.Waiting() {
			if j, err := bridge.ParseJID(p.JID); err == nil {
				all = append(all, bridge.Applicant{Number: p.Number, Person: j, Detail: personDetail(p)})
			}
		}
	}
	slices.SortFunc(all, func(a, b bridge.Applicant) int { return a.Number - b.Number })
	return all, nil
}

// shownFields is how many a line about a device has.
const shownFields = 4

func deviceDetail(p aboard.Pending) string {
	var parts []string
	if label := p.Label(); label != string(p.ID) {
		parts = append(parts, label)
	}
	if p.Model != "" {
		parts = append(parts, p.Model)
	}
	for i, f := range p.Sample {
		if i == shownFields {
			parts = append(parts, "…")
			break
		}
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s %s %s", f.Name, f.Value, f.Unit)))
	}
	if p.SameAs != "" {
		parts = append(parts, fmt.Sprintf("the same as %s, heard in another place", p.SameAs))
	}
	return strings.Join(append(parts, p.Way()), ", ")
}

func personDetail(p access.Person) string { return "wants to see " + wishes(p.Wants) }

func wishes(ids []devices.ID) string {
	if slices.Contains(ids, devices.Gateway) {
		return "all devices"
	}
	var names []string
	for _, id := range ids {
		names = append(names, string(id))
	}
	return strings.Join(names, ", ")
}

// Approve implements [bridge.Office]. A device's number is odd, a person's
// even.
func (o office) Approve(who bridge.JID, number int, terms bridge.Terms) (text string, err error) {
	what := fmt.Sprintf("approve %d", number)
	if number%2 != 0 {
		if err = o.must(who, bridge.MayInstall, ""); err == nil {
			var id devices.ID
			id, err = o.Admit(strconv.Itoa(number), aboard.Terms{Name: terms.Name, By: who.Bare().String()})
			text = fmt.Sprintf("admitted as %s", id)
		}
		return text, o.done(who, devices.Gateway, what, text, err)
	}
	g, err := grantOf("", terms)
	if err == nil {
		if g, err = o.access.Admit(who.Bare().String(), number, g); err == nil {
			o.granted()
			text = fmt.Sprintf("%s is now %s", g.JID, grantText(g))
		}
	}
	return text, o.done(who, devices.Gateway, what, text, err)
}

// Deny implements [bridge.Office].
func (o office) Deny(who bridge.JID, number int) (text string, err error) {
	if number%2 != 0 {
		if err = o.must(who, bridge.MayInstall, ""); err == nil {
			var id devices.ID
			id, err = o.Refuse(strconv.Itoa(number))
			text = fmt.Sprintf("%s stays away", id)
		}
	} else {
		var p access.Person
		p, err = o.access.Deny(who.Bare().String(), number)
		text = p.JID + " stays away"
	}
	return text, o.done(who, devices.Gateway, fmt.Sprintf("deny %d", number), text, err)
}

// grantOf makes a grant of what somebody wrote.
func grantOf(to string, t bridge.Terms) (g access.Grant, err error) {
	g = access.Grant{JID: to, Role: access.Viewer, Devices: slices.Clone(t.Devices)}
	if t.Role != "" {
		var known bool
		if g.Role, known = access.ParseRole(t.Role); !known {
			return g, fmt.Errorf("%.20q is no role; the roles are viewer, operator, installer, owner", t.Role)
		}
	}
	if t.Hours != "" {
		err = g.Hours.UnmarshalText([]byte(t.Hours))
	}
	if t.Until != "" && err == nil {
		err = g.Until.UnmarshalText([]byte(t.Until))
	}
	return g, err
}

// grantText is a grant in plain words.
func grantText(g access.Grant) string {
	text := g.Role.String() + " of "
	if len(g.Devices) == 0 {
		text += "all devices"
	} else {
		text += strings.Join(g.Devices, ", ")
	}
	if !g.Hours.IsZero() {
		text += ", " + g.Hours.String()
	}
	if !g.Until.IsZero() {
		text += ", until " + g.Until.String()
	}
	return text
}

// Grant implements [bridge.Office].
func (o office) Grant(who, to bridge.JID, terms bridge.Terms) error {
	g, err := grantOf(to.Bare().String(), terms)
	if err == nil {
		if err = o.access.Grant(who.Bare().String(), g); err == nil {
			o.granted()
		}
	}
	return o.done(who, devices.Gateway, "grant "+g.JID, g.JID+" is "+grantText(g), err)
}

// Revoke implements [bridge.Office].
func (o office) Revoke(who, from bridge.JID) error {
	err := o.access.Revoke(who.Bare().String(), from.Bare().String())
	if err == nil {
		o.granted()
	}
	return o.done(who, devices.Gateway, "revoke "+from.Bare().String(), "all that was granted", err)
}

// Grants implements [bridge.Office].
func (o office) Grants(who bridge.JID) ([]bridge.GrantLine, error) {
	if err := o.must(who, bridge.MayGrant, ""); err != nil {
		return nil, err
	}
	var all []bridge.GrantLine
	for _, g := range o.access.Grants() {
		j, err := bridge.ParseJID(g.JID)
		if err != nil {
			continue
		}
		l := bridge.GrantLine{JID: j, Terms: bridge.Terms{Role: g.Role.String(), Devices: g.Devices, Hours: g.Hours.String()}, Config: g.By == ""}
		if !g.Until.IsZero() {
			l.Until = g.Until.String()
		}
		all = append(all, l)
	}
	return all, nil
}

// Claim implements [bridge.Office].
func (o office) Claim(who bridge.JID, code string) error {
	err := o.access.Claim(who.Bare().String(), code)
	if err == nil {
		o.granted()
	} else if more, say := o.strangers.count("", time.Now()); say {
		o.log.Warn("somebody tried to claim the gateway", "jid", who.String(), "also", more)
	}
	return o.done(who, devices.Gateway, "claim", who.Bare().String()+" is the owner", err)
}

// Knock implements [bridge.Office].
func (o office) Knock(who bridge.JID, device devices.ID) {
	if !o.house.has(device) {
		return // he learns as little as of one that there is
	}
	p, fresh, err := o.access.Knock(who.Bare().String(), device)
	if err != nil {
		if more, say := o.strangers.count("", time.Now()); say {
			o.log.Warn("a stranger's wish is not kept", "error", err, "also", more)
		}
	}
	if fresh {
		o.log.Info("somebody wants to see devices", "jid", p.JID, "number", p.Number)
		o.newcomers.personWaits(p)
	}
}

// Store implements [bridge.Office].
func (o office) Store(who bridge.JID) (string, error) {
	if err := o.must(who, bridge.MayInstall, ""); err != nil {
		return "", err
	}
	c, err := o.outbox.Reader().Contents()
	if err != nil {
		return "", err
	}
	s := o.Stats()
	lines := []string{
		fmt.Sprintf("%s; %d readings wait, %d of them in memory alone; %d events wait.", map[bool]string{true: "Online", false: "Offline"}[s.Online], s.Waiting, s.Outbox.Memory, c.Notes),
		fmt.Sprintf("Since %s: %d readings taken, %d accepted, %d thinned out, %d lost, %d came again.",
			o.started.Format(time.DateTime), s.Outbox.Taken, s.Outbox.Settled, s.Outbox.Thinned, s.Outbox.Lost, s.Outbox.Repeated),
		fmt.Sprintf("%.1f MB in use of a file of %.1f MB.", float64(c.UsedBytes)/1e6, float64(c.FileBytes)/1e6),
	}
	if s.Outbox.Fault != "" {
		lines = append(lines, "Trouble: "+s.Outbox.Fault)
	}
	return strings.Join(lines, "\n"), nil
}

// Doctor implements [bridge.Office]: what is known without looking further.
func (o office) Doctor(who bridge.JID) (string, error) {
	store, err := o.Store(who)
	if err != nil {
		return "", err
	}
	lines := []string{store, clockText(o.timing.clock.Status())}
	byState := make(map[devices.State][]string)
	for _, d := range o.house.all() {
		if p, ok := o.house.picture(d.ID); ok && d.ID != devices.Gateway {
			byState[p.state] = append(byState[p.state], string(d.ID))
		}
	}
	for _, state := range []devices.State{devices.StateLost, devices.StateLate, devices.StateUnknown} {
		if ids := byState[state]; len(ids) > 0 {
			lines = append(lines, fmt.Sprintf("%s: %s", map[devices.State]string{
				devices.StateLost: "Lost", devices.StateLate: "Late", devices.StateUnknown: "Not heard yet",
			}[state], strings.Join(ids, ", ")))
		}
	}
	if n := o.intake.reject.sum(); n > 0 {
		lines = append(lines, fmt.Sprintf("%d inputs could not be used; the log says which.", n))
	}
	return strings.Join(append(lines, "On the machine, porchlight doctor looks further."), "\n"), nil
}

func clockText(s clock.Status) string {
	if !s.Known {
		return "The time is not known."
	}
	return fmt.Sprintf("The time is known, by %s.", map[string]string{"ntp": "NTP", "xmpp": "the XMPP server"}[s.By])
}

// Backup implements [bridge.Office].
func (o office) Backup(who bridge.JID) (string, error) {
	if err := o.must(who, bridge.MayInstall, ""); err != nil {
		return "", err
	}
	return "", errors.New("not from here: its recovery phrase is only for who is at the machine. There, porchlight backup makes one; the timer porchlight-backup, or backup: {to: pubsub} in the config, one each night")
}

package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent/calendar"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// The file, as strictyaml reads it.
type (
	fileForm struct {
		Version int           `yaml:"version,required" min:"1" max:"1"`
		Grants  []grantForm   `yaml:"grants"`
		Revoked []revokedForm `yaml:"revoked"`
		People  []personForm  `yaml:"people"`
		Last    int           `yaml:"last_number" min:"0" max:"1000000000"`
	}
	grantForm struct {
		JID     string         `yaml:"jid,required"`
		Role    string         `yaml:"role,required" enum:"viewer,operator,installer,owner"`
		Devices []string       `yaml:"devices"`
		Hours   calendar.Hours `yaml:"hours"`
		Until   calendar.Date  `yaml:"until"`
		By      string         `yaml:"by"`
		At      time.Time      `yaml:"at"`
	}
	revokedForm struct {
		JID string    `yaml:"jid,required"`
		By  string    `yaml:"by"`
		At  time.Time `yaml:"at"`
	}
	personForm struct {
		Number int       `yaml:"number,required" min:"2" max:"1000000000"`
		JID    string    `yaml:"jid,required"`
		Wants  []string  `yaml:"wants,required"`
		Since  time.Time `yaml:"since,required"`
		Denied bool      `yaml:"denied"`
	}
)

// byHand is who granted what somebody wrote into the file without saying who.
const byHand = "by hand"

// read gives what the file holds; with an error, what could be read of it.
func (r *Registry) read() (state, error) {
	var s state
	f, err := os.Open(r.path())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, strictyaml.MaxBytes+1))
	if err != nil {
		return s, err
	}
	var form fileForm
	doc, faults := strictyaml.Decode(r.path(), data, &form)
	fault := func(key, problem, allowed, mend string) {
		faults = append(faults, doc.Fault(key, problem, allowed, mend))
	}
	jid := func(key, jid string) string {
		bare, _, full := strings.Cut(jid, "/")
		if err := r.o.CheckJID(jid); err != nil || full || !strings.Contains(jid, "@") {
			fault(key, fmt.Sprintf("%.60q is not such an address", jid), "an address without a resource", "write for example "+map[bool]string{true: bare, false: "anna@example.org"}[full])
		}
		return strings.ToLower(jid)
	}
	for i, g := range form.Grants {
		at := fmt.Sprintf("grants[%d]", i)
		role, _ := ParseRole(g.Role)
		for j, pattern := range g.Devices {
			if err := CheckPattern(pattern); err != nil {
				fault(fmt.Sprintf("%s.devices[%d]", at, j), err.Error(), "ids, with * ? and [a-z] as in file names", "write for example kitchen-*")
			}
		}
		if g.By == "" {
			g.By = byHand
		}
		s.grants = append(s.grants, Grant{jid(at+".jid", g.JID), role, g.Devices, g.Hours, g.Until, g.By, g.At})
	}
	for i, x := range form.Revoked {
		s.revoked = append(s.revoked, revocation{jid(fmt.Sprintf("revoked[%d].jid", i), x.JID), x.By, x.At})
	}
	s.last = form.Last
	for i, p := range form.People {
		at := fmt.Sprintf("people[%d]", i)
		person := Person{Number: p.Number, JID: jid(at+".jid", p.JID), Since: p.Since, Refused: p.Denied}
		if p.Number%2 != 0 || slices.ContainsFunc(s.people, func(other Person) bool { return other.Number == p.Number }) {
			fault(at+".number", fmt.Sprintf("%d is odd, or another's", p.Number), "even numbers, each once", "choose another")
		}
		for j, want := range p.Wants {
			id, err := devices.ParseID(want)
			if err != nil {
				fault(fmt.Sprintf("%s.wants[%d]", at, j), err.Error(), "ids of devices", "remove it")
			}
			person.Wants = append(person.Wants, id)
		}
		s.last = max(s.last, p.Number)
		s.people = append(s.people, person)
	}
	s.last += s.last % 2
	faults.Sort()
	return s, faults.Err()
}

const header = `# Who may see and command devices, as owners granted and revoked it since the
# config was written. The gateway writes this file; what you change in it counts
# after: systemctl reload porchlight. Comments of your own are not kept.
version: 1
`

// write puts a state in the file's place. Texts are in double quotes, whose
// escapes YAML 1.2 (section 5.7) has from the same family as Go's.
func (r *Registry) write(s state) error {
	var b bytes.Buffer
	b.WriteString(header)
	section := func(key, about string, n int) {
		fmt.Fprintf(&b, "\n# %s\n%s:", about, key)
		if n == 0 {
			b.WriteString(" []")
		}
		b.WriteString("\n")
	}
	by := func(by string, at time.Time) {
		if by != "" && by != byHand {
			fmt.Fprintf(&b, "    by: %s\n", strconv.QuoteToASCII(by))
		}
		if !at.IsZero() {
			fmt.Fprintf(&b, "    at: %s\n", stamp(at))
		}
	}
	section("grants", "In the words of the config's operators.", len(s.grants))
	for _, g := range s.grants {
		fmt.Fprintf(&b, "  - jid: %s\n    role: %s\n", strconv.QuoteToASCII(g.JID), g.Role)
		if len(g.Devices) > 0 {
			fmt.Fprintf(&b, "    devices: [%s]\n", quoted(g.Devices))
		}
		if !g.Hours.IsZero() {
			fmt.Fprintf(&b, "    hours: %s\n", strconv.QuoteToASCII(g.Hours.String()))
		}
		if !g.Until.IsZero() {
			fmt.Fprintf(&b, "    until: %s\n", g.Until)
		}
		by(g.By, g.At)
	}
	section("revoked", "What the config grants these does not count.", len(s.revoked))
	for _, x := range s.revoked {
		fmt.Fprintf(&b, "  - jid: %s\n", strconv.QuoteToASCII(x.jid))
		by(x.by, x.at)
	}
	section("people", "These want to see devices: approve and deny, in chat. Who was denied is not\n# heard for 30 days.", len(s.people))
	for _, p := range s.people {
		fmt.Fprintf(&b, "  - number: %d\n    jid: %s\n    wants: [%s]\n    since: %s\n", p.Number, strconv.QuoteToASCII(p.JID), quoted(p.Wants), stamp(p.Since))
		if p.Refused {
			b.WriteString("    denied: true\n")
		}
	}
	fmt.Fprintf(&b, "\n# The newest number that was given to one of them.\nlast_number: %d\n", s.last)
	return durable.Replace(r.path(), b.Bytes())
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func quoted[T ~string](all []T) string {
	var texts []string
	for _, s := range all {
		texts = append(texts, strconv.QuoteToASCII(string(s)))
	}
	return strings.Join(texts, ", ")
}

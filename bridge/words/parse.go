package words

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// MaxLine is how long a line may be, in bytes.
const MaxLine = 1000

// A Verb is what somebody wants.
type Verb string

// The verbs. Act is whatever a device can be told: on, off, toggle, set, and
// the words of its own.
const (
	Help      Verb = "help"
	Menu      Verb = "menu"
	Choose    Verb = "choose" // a number alone: a line of the menu
	Status    Verb = "status"
	Read      Verb = "read"
	Act       Verb = "set"
	Proof     Verb = "proof"
	Ack       Verb = "ack"
	Mute      Verb = "mute"
	Subscribe Verb = "subscribe"
	Devices   Verb = "devices"
	Pending   Verb = "pending"
	Approve   Verb = "approve"
	Deny      Verb = "deny"
	Grant     Verb = "grant"
	Revoke    Verb = "revoke"
	Claim     Verb = "claim"
	Rooms     Verb = "rooms"
	Outbox    Verb = "outbox"
	Doctor    Verb = "doctor"
	Backup    Verb = "backup"
)

// OfDevice reports whether a verb is for devices; the others are for the
// gateway.
func (v Verb) OfDevice() bool {
	switch v {
	case Status, Read, Act, Proof, Ack, Mute, Subscribe:
		return true
	}
	return false
}

// spellings are the words for each verb, the one of the contract first.
var spellings = []struct {
	verb  Verb
	words []string
}{
	{Help, []string{"help", "?", "commands"}},
	{Menu, []string{"menu", "#"}},
	{Status, []string{"status", "state"}},
	{Read, []string{"read", "get", "values"}},
	{Act, []string{"on", "off", "toggle", "set"}},
	{Proof, []string{"proof"}},
	{Ack, []string{"ack", "acknowledge", "👍", "✔", "✅"}},
	{Mute, []string{"mute", "unmute", "silence"}},
	{Subscribe, []string{"subscribe", "unsubscribe"}},
	{Devices, []string{"devices", "list"}},
	{Pending, []string{"pending"}},
	{Approve, []string{"approve"}},
	{Deny, []string{"deny"}},
	{Grant, []string{"grant"}},
	{Revoke, []string{"revoke"}},
	{Claim, []string{"claim"}},
	{Rooms, []string{"rooms"}},
	{Outbox, []string{"outbox"}},
	{Doctor, []string{"doctor"}},
	{Backup, []string{"backup"}},
}

// exact are the verbs that a slip of the pen must not hit.
var exact = []Verb{Approve, Deny, Grant, Revoke, Claim, Backup}

// verbOf gives the verb of a word, and the word as it is spelled.
func verbOf(word string) (v Verb, spelled string, ok bool) {
	word = strings.ToLower(strings.TrimSuffix(word, "\ufe0f")) // a sign as a picture
	near := 0
	for _, s := range spellings {
		for _, w := range s.words {
			switch {
			case w == word:
				return s.verb, w, true
			case len(w) >= 4 && len(word) >= 4 && isSlip(word, w) && !slices.Contains(exact, s.verb):
				v, spelled = s.verb, w
				near++
			}
		}
	}
	return v, spelled, near == 1
}

// A Name is what a device is called.
type Name struct {
	ID   devices.ID
	Name string // by people
}

// A Scope is what words can mean to somebody. It holds nothing that he may not
// see.
type Scope struct {
	// Device is who was written to, if it was not the gateway: then nobody else
	// is meant.
	Device  devices.ID
	Devices []Name                  // without the gateway
	Groups  map[string][]devices.ID // by their names
}

// A Request is what somebody wants, by his own words.
type Request struct {
	Verb    Verb
	Devices []devices.ID // which are meant; none: who was written to
	Rest    []string     // of Act: for Resolve; of others: what follows, as it was written
	Number  int          // of Choose, Approve, Deny
	Sure    bool         // of Act: he said again that he means it
}

// An Error is a request that is not understood, in words for who made it.
type Error string

func (e Error) Error() string { return string(e) }

func mistake(format string, args ...any) error { return Error(fmt.Sprintf(format, args...)) }

// Clean gives a line without what does not print and without marks of
// direction, which would have it look like another.
func Clean(s string) string {
	s = strings.ToValidUTF8(s, "")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r' || unicode.Is(unicode.Zs, r):
			return ' '
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp):
			return -1
		}
		return r
	}, s))
}

// Parse understands one line. Its error is an [Error].
func Parse(line string, s Scope) (Request, error) {
	if len(line) > MaxLine {
		return Request{}, mistake(TooLong, MaxLine)
	}
	words := split(Clean(line))
	words = polite(words)
	if len(words) == 0 {
		return Request{}, mistake(NothingSaid)
	}
	if len(words) == 1 {
		if n, err := strconv.ParseUint(words[0], 10, 16); err == nil {
			return Request{Verb: Choose, Number: int(n)}, nil
		}
	}
	meant, words, err := s.devices(words)
	if err != nil {
		return Request{}, err
	}
	if len(words) == 0 {
		return Request{Verb: Status, Devices: meant}, nil // its name alone
	}
	words = assigned(words)
	verb, spelled, ok := verbOf(words[0])
	if !ok {
		if meant == nil && s.Device == "" {
			return Request{}, s.unknown(words[0])
		}
		return Request{Verb: Act, Devices: meant, Rest: words}, nil
	}
	rest := words[1:]
	if verb == Act {
		words[0] = spelled
		rest = words
	}
	if spelled == "unmute" || spelled == "unsubscribe" {
		rest = append(slices.Clip(rest), "off")
	}
	if verb.OfDevice() && meant == nil && s.Device == "" {
		meant, rest, err = s.after(verb, rest)
		if err != nil {
			return Request{}, err
		}
	}
	r := Request{Verb: verb, Devices: meant, Rest: rest}
	switch {
	case !verb.OfDevice() && meant != nil && verb != Help && verb != Menu:
		return Request{}, mistake(NotOfDevice, words[0])
	case verb == Approve || verb == Deny:
		if len(rest) > 0 {
			n, err := strconv.ParseUint(strings.TrimPrefix(rest[0], "#"), 10, 31)
			if err == nil {
				r.Number, r.Rest = int(n), rest[1:]
			}
		}
		if r.Number == 0 {
			return Request{}, mistake(WhichNumber, verb)
		}
	}
	return r, nil
}

// after finds devices that are named behind the verb: "status kitchen", "on
// kitchen", "set kitchen level 40".
func (s Scope) after(verb Verb, words []string) ([]devices.ID, []string, error) {
	if verb != Act {
		return s.devices(words)
	}
	meant, rest, err := s.devices(words[1:])
	return meant, append([]string{words[0]}, rest...), err
}

// split cuts a line into words. A comma that is no decimal one stands for
// itself, and so does what assigns.
func split(line string) []string {
	line = strings.TrimPrefix(line, "/")
	if len(line) > 1 {
		line = strings.TrimRight(line, "?!. ")
	}
	var b strings.Builder
	previous := ' '
	for i, r := range line {
		next, _ := utf8.DecodeRuneInString(line[i+utf8.RuneLen(r):])
		switch {
		case r == ',' && !(unicode.IsDigit(previous) && unicode.IsDigit(next)), r == '=':
			b.WriteString(" " + string(r) + " ")
		case r == ':' && next == '=':
		default:
			b.WriteRune(r)
		}
		previous = r
	}
	return strings.Fields(b.String())
}

// polite leaves out what means nothing.
func polite(words []string) []string {
	is := func(i int, all ...string) bool {
		return i >= 0 && i < len(words) && slices.Contains(all, strings.ToLower(words[i]))
	}
	for is(0, "please", ",") {
		words = words[1:]
	}
	for is(len(words)-1, "please", ",") {
		words = words[:len(words)-1]
	}
	if len(words) > 1 && is(0, "turn", "switch") {
		words = words[1:]
	}
	if len(words) > 2 && is(1, "the") && is(0, "on", "off", "toggle") {
		words = slices.Delete(slices.Clone(words), 1, 2)
	}
	if len(words) > 1 && is(0, "the") {
		words = words[1:]
	}
	return words
}

// assigned makes "set level 40" of "level = 40".
func assigned(words []string) []string {
	i := slices.Index(words, "=")
	if i < 1 {
		return words
	}
	if _, _, ok := verbOf(words[0]); ok && !strings.EqualFold(words[0], "set") {
		return words
	}
	name := words[:i]
	if strings.EqualFold(name[0], "set") {
		name = name[1:]
	}
	return slices.Concat([]string{"set"}, name, words[i+1:])
}

// devices takes the devices and groups off that words begin with. None is nil.
func (s Scope) devices(words []string) (meant []devices.ID, rest []string, err error) {
	for {
		ids, n := s.device(words)
		if n == 0 {
			return meant, words, nil
		}
		if len(ids) == 0 {
			return nil, nil, mistake(EmptyGroup, strings.Join(words[:n], " "))
		}
		for _, id := range ids {
			if !slices.Contains(meant, id) {
				meant = append(meant, id)
			}
		}
		words = words[n:]
		for len(words) > 0 && joins(words[0]) {
			words = words[1:]
			if _, n := s.device(words); n == 0 && len(words) > 0 {
				if _, _, ok := verbOf(words[0]); !ok {
					return nil, nil, s.unknown(words[0])
				}
			}
		}
	}
}

// joins reports whether a word stands between two names.
func joins(word string) bool {
	return slices.Contains([]string{",", "and", "&", "+"}, strings.ToLower(word))
}

// maxNameWords is how many words a name can have.
const maxNameWords = 6

// device finds the one device or group that words begin with: the longest
// name that fits.
func (s Scope) device(words []string) (ids []devices.ID, n int) {
	if s.Device != "" {
		// What is written to a device may begin with its own name, if something
		// follows that a name does not hide.
		for n := min(len(words)-1, maxNameWords); n > 0; n-- {
			for _, d := range s.Devices {
				if d.ID == s.Device && d.is(words[:n]) {
					return []devices.ID{d.ID}, n
				}
			}
		}
		return nil, 0
	}
	if len(words) > 0 && strings.EqualFold(words[0], "all") {
		if len(words) > 1 {
			if ids, ok := s.group(words[1]); ok {
				return ids, 2
			}
			if strings.EqualFold(words[1], "devices") && len(words) > 2 {
				return s.all(), 2
			}
		}
		return s.all(), 1
	}
	for n := min(len(words), maxNameWords); n > 0; n-- {
		for _, d := range s.Devices {
			if d.is(words[:n]) {
				return []devices.ID{d.ID}, n
			}
		}
		if n == 1 {
			if ids, ok := s.group(words[0]); ok {
				return ids, 1
			}
			if strings.EqualFold(words[0], string(devices.Gateway)) {
				return []devices.ID{devices.Gateway}, 1
			}
		}
	}
	return nil, 0
}

func (d Name) is(words []string) bool {
	if slices.ContainsFunc(words, joins) {
		return false
	}
	slug := devices.Slug(strings.Join(words, " "))
	return slug != "" && (slug == d.ID || slug == devices.Slug(d.Name) && !devices.Reserved(string(slug)))
}

func (s Scope) group(word string) ([]devices.ID, bool) {
	for name, ids := range s.Groups {
		if strings.EqualFold(name, word) {
			return ids, true
		}
	}
	return nil, false
}

func (s Scope) all() []devices.ID {
	var ids []devices.ID
	for _, d := range s.Devices {
		ids = append(ids, d.ID)
	}
	return ids
}

// unknown says that a word is neither device nor verb, and what it may have
// been meant for.
func (s Scope) unknown(word string) error {
	var all []string
	for _, d := range s.Devices {
		all = append(all, string(d.ID))
	}
	for name := range s.Groups {
		all = append(all, name)
	}
	for _, v := range spellings {
		all = append(all, v.words[0])
	}
	if near := nearest(word, all); near != "" {
		return mistake(UnknownNear, Quote(word), near)
	}
	return mistake(Unknown, Quote(word))
}

// Quote shows somebody's own word to him.
func Quote(word string) string {
	if utf8.RuneCountInString(word) > 40 {
		word = string([]rune(word)[:39]) + "…"
	}
	return "“" + word + "”"
}

// isSlip reports whether two words differ by one letter that is missing, too
// much or another, or by two that are swapped.
func isSlip(a, b string) bool {
	x, y := []rune(a), []rune(b)
	if len(x) > len(y) {
		x, y = y, x
	}
	i := 0
	for i < len(x) && x[i] == y[i] {
		i++
	}
	switch len(y) - len(x) {
	case 0:
		return i == len(x) || slices.Equal(x[i+1:], y[i+1:]) ||
			i+1 < len(x) && x[i] == y[i+1] && x[i+1] == y[i] && slices.Equal(x[i+2:], y[i+2:])
	case 1:
		return slices.Equal(x[i:], y[i+1:])
	}
	return false
}

// nearest gives the one of all that a word is a slip of; "" where there is
// none, or more than one.
func nearest(word string, all []string) string {
	near := ""
	for _, w := range all {
		if isSlip(strings.ToLower(word), strings.ToLower(w)) {
			if near != "" && near != w {
				return ""
			}
			near = w
		}
	}
	return near
}

package bridge

import (
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// An Event is an item of the events node: an alarm, a loss, a change of the
// devices, a command and its outcome.
type Event struct {
	ID       string // unique for good; also the item's id
	Time     time.Time
	Category string     // alarm, loss, device, command
	Device   devices.ID // which it is about; empty: the gateway
	Author   string     // the JID whose doing it is; empty: the device's
	Title    string     // for people; a command as it was given
	Summary  string     // for people; a command's outcome
	Loss     *Loss      // of an event of the category loss
}

// A Loss says which readings are lost: those of one device and one run of the
// store, first to last, both included; but for those that Kept tells.
type Loss struct {
	Device      devices.ID
	Store       string
	First, Last uint64
	Reason      string
	// Kept is set where readings were thinned out: of the numbers from First
	// on, so many are not lost, then so many are, and so on in turn.
	Kept []uint64
}

// keptText writes [Loss.Kept] as the attribute kept.
func keptText(kept []uint64) string {
	var b []byte
	for i, n := range kept {
		if i > 0 {
			b = append(b, ' ')
		}
		b = strconv.AppendUint(b, n, 10)
	}
	return string(b)
}

// ParseKept reads the attribute kept of a loss that names so many readings.
func ParseKept(text string, readings uint64) ([]uint64, error) {
	var kept []uint64
	left := readings
	for _, word := range strings.Fields(text) {
		n, err := strconv.ParseUint(word, 10, 64)
		if err != nil || n > left {
			return nil, fmt.Errorf("cannot read which of %d readings are kept: %.20q", readings, word)
		}
		kept, left = append(kept, n), left-n
	}
	if len(kept) > 0 && left > 0 {
		return nil, fmt.Errorf("cannot read which of %d readings are kept: %d are not told", readings, left)
	}
	return kept, nil
}

// maxEventText bounds what a peer can make an entry's title and summary hold.
const maxEventText = 1000

type entryElement struct {
	XMLName   xml.Name     `xml:"http://www.w3.org/2005/Atom entry"`
	Title     textElement  `xml:"title"`
	ID        string       `xml:"id"`
	Published string       `xml:"published"`
	Updated   string       `xml:"updated"`
	Category  categoryItem `xml:"category"`
	Author    authorItem   `xml:"author"`
	Summary   *textElement `xml:"summary"`
	Loss      *lossElement
}

type textElement struct {
	Type string `xml:"type,attr"`
	Text string `xml:",chardata"`
}

type categoryItem struct {
	Term string `xml:"term,attr"`
}

type authorItem struct {
	Name string `xml:"name"`
	URI  string `xml:"uri"`
}

// lossElement tells a loss to programs: Atom allows foreign markup (RFC 4287
// section 6).
type lossElement struct {
	XMLName xml.Name `xml:"https://github.com/porchlight-iot/porchlight/ns/loss loss"`
	Device  string   `xml:"device,attr"`
	Store   string   `xml:"store,attr"`
	First   string   `xml:"first,attr"`
	Last    string   `xml:"last,attr"`
	Reason  string   `xml:"reason,attr"`
	Kept    string   `xml:"kept,attr,omitempty"`
}

// encodeEvent makes the Atom entry (RFC 4287) of e. host is the domain that
// the entry's tag URI (RFC 4151) is minted under, self the JID of the device.
// Equal arguments give equal bytes.
func encodeEvent(e Event, host, self string) ([]byte, error) {
	if e.ID == "" || e.Category == "" || e.Time.IsZero() {
		return nil, errors.New("cannot encode an event without id, category or time")
	}
	author := e.Author
	if author == "" {
		author = self
	}
	at := timestamp(e.Time)
	entry := entryElement{
		Title:     textElement{"text", clip(e.Title, maxEventText)},
		ID:        fmt.Sprintf("tag:%s,%s:%s", host, at[:4], percentEncode(e.ID)),
		Published: at,
		Updated:   at,
		Category:  categoryItem{e.Category},
		Author:    authorItem{Name: clip(author, maxEventText), URI: "xmpp:" + percentEncode(author)},
	}
	if e.Summary != "" {
		entry.Summary = &textElement{"text", clip(e.Summary, maxEventText)}
	}
	if l := e.Loss; l != nil {
		entry.Loss = &lossElement{
			Device: string(l.Device),
			Store:  l.Store,
			First:  strconv.FormatUint(l.First, 10),
			Last:   strconv.FormatUint(l.Last, 10),
			Reason: clip(l.Reason, maxEventText),
			Kept:   keptText(l.Kept),
		}
	}
	text, err := xml.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("cannot encode event %s: %v", e.ID, err)
	}
	return text, nil
}

// percentEncode makes s part of a URI. A JID keeps its '@' and its slashes
// (RFC 5122 section 2.2).
func percentEncode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~@/", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// clip cuts s after n characters, and says so with an ellipsis.
func clip(s string, n int) string {
	runes := 0
	last := 0 // where the last character begins that leaves room for an ellipsis
	for i := range s {
		if runes == n-1 {
			last = i
		}
		if runes == n {
			return s[:last] + "…"
		}
		runes++
	}
	return s
}

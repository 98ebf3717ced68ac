package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// A frame is all that the screen shows at one moment.
type frame struct {
	stage    string // what is going on, in words
	server   bool   // whether the XMPP server runs
	buffered int    // readings that the server has not accepted yet
	rows     []row
	totals   Verdict  // so far
	said     []string // the newest lines for people, oldest first
}

// A row is one device.
type row struct {
	device, transport string
	presence          string // as an XMPP client shows it
	status            string
	sent, delivered   int
	last              time.Time // when the operator got the newest reading
}

// A screen draws frames onto a terminal, each over the one before. It is used
// by one goroutine.
type screen struct {
	out   io.Writer
	begun bool
}

const (
	esc      = "\x1b["
	bold     = esc + "1m"
	dim      = esc + "2m"
	red      = esc + "31m"
	green    = esc + "32m"
	yellow   = esc + "33m"
	plain    = esc + "0m"
	home     = esc + "H"
	clearAll = esc + "2J"

	clearEnd   = esc + "K"
	clearBelow = esc + "J"
)

// presenceColours are by how urgently a person should look.
var presenceColours = map[string]string{"available": green, "away": yellow, "xa": dim, "dnd": red, "unavailable": red}

func (s *screen) draw(f frame) {
	var b strings.Builder
	if !s.begun {
		b.WriteString(clearAll)
		s.begun = true
	}
	b.WriteString(home)
	for _, l := range f.lines() {
		b.WriteString(l + clearEnd + "\n")
	}
	b.WriteString(clearBelow)
	io.WriteString(s.out, b.String())
}

// lines gives the frame as text with colours.
func (f frame) lines() []string {
	server := green + "up" + plain
	if !f.server {
		server = red + "DOWN" + plain
	}
	out := []string{
		bold + "Porchlight" + plain + "  " + f.stage,
		"",
		fmt.Sprintf("XMPP server %s   buffered %s", server, buffered(f.buffered)),
		"",
		dim + column("DEVICE", 12) + column("HEARD BY", 10) + column("PRESENCE", 13) + column("STATUS", 34) + columnRight("SENT", 6) + columnRight("SEEN", 6) + plain,
	}
	for _, r := range f.rows {
		out = append(out, column(r.device, 12)+column(r.transport, 10)+
			presenceColours[r.presence]+column(r.presence, 13)+plain+
			column(r.status, 34)+columnRight(fmt.Sprint(r.sent), 6)+columnRight(fmt.Sprint(r.delivered), 6))
	}
	out = append(out, "", f.totals.soFar(), "")
	return append(out, f.said...)
}

func buffered(n int) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%s%d%s %s", yellow, n, plain, strings.Repeat("█", min(40, 1+n/5)))
}

// column pads or cuts s to a width in characters.
func column(s string, width int) string {
	if n := utf8.RuneCountInString(s); n < width {
		return s + strings.Repeat(" ", width-n)
	}
	return string([]rune(s)[:width-2]) + "… "
}

func columnRight(s string, width int) string {
	return strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s))) + s
}

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/porchlight-iot/porchlight/bridge/watch"
	"github.com/porchlight-iot/porchlight/devices"
)

func runWatch(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("watch", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, "Usage: porchlight watch --jid JID --password-file FILE [FLAGS] [NODE…]\n\n"+
			"Prints the readings and alarms of the nodes, or of all that the account may see.\n\n")
		flags.PrintDefaults()
	}
	var o watch.Options
	flags.StringVar(&o.JID, "jid", "", "the operator's account, `name@domain`")
	passwordFile := flags.String("password-file", "", "the `file` with its password")
	flags.StringVar(&o.Server, "server", "", "`host:port` of the XMPP server (default: by the domain's SRV records)")
	flags.StringVar(&o.PubSub, "pubsub", "", "`JID` of the PubSub service, or of a gateway's account (default: the server is asked)")
	caFile := flags.String("ca-file", "", "PEM `file` with who may sign the server's certificate (default: whom the system trusts)")
	asJSON := flags.Bool("json", false, "print a line of JSON for each reading; alarms go to stderr")
	verify := flags.Bool("verify", false, "at the end print whether readings were missing, doubled or out of order")
	verbose := flags.Bool("v", false, "log what is of use to developers too")
	var err error
	if o.Nodes, err = parseMixed(flags, args); err != nil {
		return err
	}
	switch {
	case o.JID == "":
		return usageError("watch needs --jid")
	case *passwordFile == "":
		return usageError("watch needs --password-file")
	}
	if o.Password, err = readPassword(*passwordFile, stderr); err != nil {
		return err
	}
	if *caFile != "" {
		if o.CAs, err = readCAs(*caFile); err != nil {
			return err
		}
	}
	if o.Log, err = newLog(stderr, "text", *verbose); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var broken error // why printing failed; set and read on this goroutine
	stop := func(err error) {
		if broken == nil {
			broken = fmt.Errorf("cannot print: %w", err)
		}
		cancel()
	}
	var p interface {
		watch.Handler
		now(watch.Reading)
		linked() bool
	}
	if *asJSON {
		p = &jsonPrinter{out: json.NewEncoder(stdout), people: newPrinter(stderr, o.Log, stop), stop: stop}
	} else {
		p = newPrinter(stdout, o.Log, stop)
	}
	for _, name := range o.Nodes {
		if strings.HasSuffix(name, "/now") {
			o.Now = p.now
		}
	}
	w := watch.New(o)
	quiet := newSilence(p, o.Log)
	var looking sync.WaitGroup
	looking.Go(func() { quiet.watch(ctx) })
	err = w.Run(ctx, quiet)
	cancel()
	looking.Wait()
	if err != nil {
		return err
	}
	if broken != nil {
		return broken
	}
	if !*verify {
		return nil
	}
	counts := w.Counts()
	fmt.Fprintf(stderr, "porchlight: %d readings came; %d are lost, as the gateway itself says\n", counts.Readings, counts.Lost)
	if err := json.NewEncoder(stdout).Encode(counts); err != nil {
		return err
	}
	switch {
	case !p.linked():
		return errors.New("nothing was verified: there was no connection that lasted")
	case !counts.Whole():
		return errVerdict
	}
	return nil
}

// parseMixed reads flags that may stand before and after other arguments, and
// gives those.
func parseMixed(flags *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		switch err := flags.Parse(args); {
		case errors.Is(err, flag.ErrHelp):
			return nil, errHelp
		case err != nil:
			return nil, errUsageSaid
		}
		if flags.NArg() == 0 {
			return rest, nil
		}
		if read := len(args) - flags.NArg(); read > 0 && args[read-1] == "--" {
			return append(rest, flags.Args()...), nil
		}
		rest = append(rest, flags.Arg(0))
		args = flags.Args()[1:]
	}
}

const maxPasswordFile = 4096

// readPassword reads a password, and warns of a file that everybody can read.
func readPassword(path string, stderr io.Writer) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot read the password: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 {
		fmt.Fprintf(stderr, "warning: everybody on this machine can read %s; chmod 600 mends it\n", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPasswordFile+1))
	if err != nil {
		return "", fmt.Errorf("cannot read the password: %w", err)
	}
	password := strings.TrimRight(string(text), "\r\n")
	switch {
	case len(text) > maxPasswordFile:
		return "", fmt.Errorf("cannot read the password: %s is larger than %d bytes", path, maxPasswordFile)
	case password == "":
		return "", fmt.Errorf("cannot read the password: %s is empty", path)
	}
	return password, nil
}

func readCAs(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the CA file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("cannot use the CA file: there is no PEM certificate in %s", path)
	}
	return pool, nil
}

// A printer prints for people.
type printer struct {
	out    io.Writer
	log    *slog.Logger
	stop   func(error) // for when printing fails
	colour bool
	today  func() time.Time
	width  int // of the widest device so far
	link   bool
}

func newPrinter(out io.Writer, log *slog.Logger, stop func(error)) *printer {
	p := &printer{out: out, log: log, stop: stop, today: time.Now, width: 8}
	if f, ok := out.(*os.File); ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		p.colour = term.IsTerminal(int(f.Fd()))
	}
	return p
}

// Escape sequences (ECMA-48 section 8.3.117).
const (
	red   = "\x1b[1;31m"
	dim   = "\x1b[2m"
	plain = "\x1b[0m"
)

func (p *printer) paint(colour, s string) string {
	if !p.colour {
		return s
	}
	return colour + s + plain
}

// line prints what a device said at a time.
func (p *printer) line(at time.Time, device, text string) {
	at = at.Local()
	format := time.TimeOnly
	if y, m, d := at.Date(); time.Date(y, m, d, 0, 0, 0, 0, at.Location()) != midnight(p.today()) {
		format = time.DateTime
	}
	n := utf8.RuneCountInString(device)
	p.width = max(p.width, n)
	_, err := fmt.Fprintf(p.out, "%s %s%s  %s\n", p.paint(dim, at.Format(format)), device, strings.Repeat(" ", p.width-n), text)
	if err != nil {
		p.stop(err)
	}
}

func midnight(t time.Time) time.Time {
	y, m, d := t.Local().Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.Local)
}

// Reading implements [watch.Handler].
func (p *printer) Reading(r watch.Reading) {
	fields := make([]string, len(r.Fields))
	for i, f := range r.Fields {
		value := printable(f.Value.String())
		if f.Value.Kind() == devices.BoolValue {
			value = map[bool]string{true: "on", false: "off"}[f.Value.Bool()]
		}
		fields[i] = f.Name + " " + value
		if f.Unit != "" {
			fields[i] += " " + printable(string(f.Unit))
		}
	}
	p.line(r.Time, string(r.Device), strings.Join(fields, " · "))
}

func (p *printer) now(r watch.Reading) { p.Reading(r) }

// Event implements [watch.Handler].
func (p *printer) Event(e watch.Event) {
	who := string(e.Device)
	if who == "" {
		who = e.Author
	}
	colour := dim
	category := printable(e.Category)
	switch e.Category {
	case "alarm", "loss", watch.CategoryMessage:
		colour = red
		category = strings.ToUpper(category)
	}
	text := printable(e.Title)
	if e.Summary != "" {
		text += ": " + printable(e.Summary)
	}
	p.line(e.Time, printable(who), p.paint(colour, category+" "+text))
}

// Presence implements [watch.Handler]: what devices say is in their readings.
func (p *printer) Presence(watch.Presence) {}

// Link implements [watch.Handler].
func (p *printer) Link(up bool) {
	if up {
		p.log.Info("watching")
		p.link = true
	}
}

// linked reports whether there ever was a link.
func (p *printer) linked() bool { return p.link }

// printable replaces what could break a line, move the cursor or hide text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' ||
			r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' {
			return ' '
		}
		return r
	}, s)
}

// A jsonPrinter prints for programs: readings as JSON. What else there is goes
// to people.
type jsonPrinter struct {
	out    *json.Encoder
	people *printer
	stop   func(error)
}

type jsonReading struct {
	Node   string      `json:"node"`
	Item   string      `json:"item"`
	Device devices.ID  `json:"device"`
	Store  string      `json:"store"`
	Seq    uint64      `json:"seq"`
	Time   time.Time   `json:"time"`
	Late   bool        `json:"late"`
	Fields []jsonField `json:"fields"`
}

type jsonField struct {
	Name  string       `json:"name"`
	Value any          `json:"value"`
	Unit  devices.Unit `json:"unit"`
}

// Reading implements [watch.Handler].
func (p *jsonPrinter) Reading(r watch.Reading) {
	line := jsonReading{r.Node, r.Item, r.Device, r.Store, r.Seq, r.Time, r.Late, make([]jsonField, len(r.Fields))}
	for i, f := range r.Fields {
		line.Fields[i] = jsonField{f.Name, jsonValue(f.Value), f.Unit}
	}
	if err := p.out.Encode(line); err != nil {
		p.stop(err)
	}
}

// jsonValue is v in JSON; of a number every decimal that the device sent.
func jsonValue(v devices.Value) any {
	switch v.Kind() {
	case devices.NumberValue:
		return json.Number(v.String())
	case devices.BoolValue:
		return v.Bool()
	}
	return v.String()
}

func (p *jsonPrinter) now(r watch.Reading) { p.Reading(r) }

// Event implements [watch.Handler].
func (p *jsonPrinter) Event(e watch.Event) { p.people.Event(e) }

// Presence implements [watch.Handler].
func (p *jsonPrinter) Presence(v watch.Presence) { p.people.Presence(v) }

// Link implements [watch.Handler].
func (p *jsonPrinter) Link(up bool) { p.people.Link(up) }

func (p *jsonPrinter) linked() bool { return p.people.linked() }

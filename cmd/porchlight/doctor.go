package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
)

// runDoctor says of everything that a gateway needs whether it is good, with
// what was seen and the next command to type.
func runDoctor(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	asJSON := flags.Bool("json", false, "print a JSON object a line")
	bundle := flags.String("bundle", "", "also write all that helps a helper, without secrets, to a new `FILE` (.tar.gz)")
	if err := parse(flags, args); err != nil {
		return err
	}
	var found []finding
	out := json.NewEncoder(stdout)
	report := func(f finding) {
		found = append(found, f)
		if *asJSON {
			_ = out.Encode(f) // the verdict is the exit status too
			return
		}
		fmt.Fprintln(stdout, f)
	}
	file := config.Path(*path)
	c := examine(ctx, file, clock.Machine(), report)
	if *bundle != "" {
		if err := writeBundle(ctx, *bundle, file, c, found); err != nil {
			return err
		}
		if !*asJSON {
			fmt.Fprintf(stdout, "\nwritten to %s: names and addresses of devices and people are in it, secrets are not\n", *bundle)
		}
	}
	for _, f := range found {
		if f.broken() {
			return errVerdict
		}
	}
	return ctx.Err()
}

// examine reports all findings, and gives the config where there is one.
func examine(ctx context.Context, file string, source clock.Source, report func(finding)) *config.Config {
	report(tryClock(source))
	var faults bytes.Buffer
	c, _, err := checkConfig(file, &faults)
	for line := range strings.Lines(faults.String()) {
		line = strings.TrimSpace(line)
		if warning, is := strings.CutPrefix(line, "warning: "); is {
			report(look("config", warning, "correct the file, then: porchlight check"))
			continue
		}
		report(broken("config", line, "correct the file, then: porchlight check"))
	}
	if err != nil {
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			report(broken("config", file+" is not there", "porchlight init"))
		}
		return nil
	}
	if faults.Len() == 0 {
		report(good("config", file+" has no faults"))
	}
	report(tryConfigMode(file))
	tryData(c, report)
	status := tryGateway(c, report)
	tryListeners(c, status != nil && status.Running, report)
	tryGroups(c, report)
	if c.Backup != nil {
		report(tryBackup(c))
	}
	tryConfigured(ctx, c, source, report)
	if c.MQTT != nil {
		for _, b := range c.MQTT.Brokers {
			tryBroker(ctx, c, b, report)
		}
	}
	for _, d := range c.Devices {
		if d.CoAP != nil && d.CoAP.URL != "" {
			report(tryCoAP(ctx, d.CoAP.URL))
		}
	}
	if status != nil && status.Running {
		tryDevices(c, report)
	}
	return c
}

// tryConfigMode: the config names people and addresses.
func tryConfigMode(file string) finding {
	info, err := os.Stat(file)
	if err != nil {
		return look("config", cause(err), "ls -l "+file)
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return look("config", fmt.Sprintf("%s can be read by everybody on this machine (mode %04o)", file, mode), "sudo chmod 640 "+file)
	}
	return good("config", fmt.Sprintf("%s has mode %04o", file, info.Mode().Perm()))
}

// What of a disk is little.
const (
	littleSpace = 16 << 20
	fewFiles    = 100
	// A card of 32 GB of the cheapest kind is said to take some 10 TB.
	muchWritten = 1 << 40
)

// tryData looks at the data directory and at the disk it is on.
func tryData(c *config.Config, report func(finding)) {
	dir := c.Gateway.DataDir
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		report(broken("data directory", fmt.Sprintf("%s: %s", dir, err), fmt.Sprintf("sudo install -d -m 700 -o porchlight -g porchlight %s", dir)))
		return
	}
	owner := strconv.Itoa(int(st.Uid))
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	if mode := st.Mode & 0o777; mode&0o077 != 0 {
		report(look("data directory", fmt.Sprintf("%s can be read by others (mode %04o)", dir, mode), "sudo chmod 700 "+dir))
	} else {
		report(good("data directory", fmt.Sprintf("%s belongs to %s, mode %04o", dir, owner, mode)))
	}

	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		report(broken("disk", cause(err), "df -h "+dir))
		return
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	needs := int64(c.Outbox.MaxBytes)
	if store, err := os.Stat(filepath.Join(dir, "outbox.db")); err == nil {
		needs -= store.Size()
	}
	switch {
	case fs.Flags&unix.ST_RDONLY != 0:
		report(broken("disk", dir+" is on a file system that is read-only; a card that fails becomes that", "dmesg | tail; then replace the card, and bring this gateway back: porchlight restore"))
	case fs.Files > 0 && fs.Ffree < fewFiles:
		report(broken("disk", fmt.Sprintf("it takes %d more files only, whatever room there is", fs.Ffree), "df -i "+dir+"; remove files that are not needed"))
	case free < littleSpace:
		report(broken("disk", size(free)+" are free", "df -h "+dir+"; make room"))
	case free < needs:
		report(look("disk", fmt.Sprintf("%s are free, and the outbox may take %s more", size(free), size(needs)), "make room, or lower outbox.max_bytes"))
	default:
		report(good("disk", size(free)+" are free"))
	}
	tryWear(dir, report)
}

// tryWear asks the kernel what it knows of the disk below a directory: errors
// of its file system, and the life that an eMMC says it has left. SD cards say
// nothing.
func tryWear(dir string, report func(finding)) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return
	}
	block, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev))))
	if err != nil {
		return // no disk of its own, as in a container
	}
	name := filepath.Base(block)
	if text, err := os.ReadFile(filepath.Join("/sys/fs/ext4", name, "errors_count")); err == nil {
		if n := strings.TrimSpace(string(text)); n != "0" {
			report(look("file system", fmt.Sprintf("the kernel counts %s errors on %s", n, name), "sudo touch /forcefsck && sudo reboot; if they come again, replace the card"))
		} else {
			report(good("file system", "the kernel counts no errors on "+name))
		}
	}
	for _, disk := range []string{block, filepath.Dir(block)} {
		text, err := os.ReadFile(filepath.Join(disk, "device/life_time"))
		if err != nil {
			continue
		}
		// JESD84-B51: two estimates in tenths, 0x0B is past its end.
		worst := uint64(0)
		for word := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.ParseUint(strings.TrimPrefix(word, "0x"), 16, 8); err == nil {
				worst = max(worst, n)
			}
		}
		seen := fmt.Sprintf("it says that %d0 %% of its life is used", worst)
		switch {
		case worst > 10:
			report(broken("disk wear", "it says that its life is used up", "make a backup now: porchlight backup; then replace it"))
		case worst >= 8:
			report(look("disk wear", seen, "have a new one at hand, and a backup: porchlight backup"))
		default:
			report(good("disk wear", seen))
		}
		return
	}
}

// tryGateway looks at the gateway at work and at its store; nil where neither
// can be asked.
func tryGateway(c *config.Config, report func(finding)) *agent.StoreStatus {
	var text bytes.Buffer
	if err := agent.Look(c, "status", &text); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			report(look("gateway", "it has not run yet", "sudo systemctl start porchlight; or: porchlight run"))
			return nil
		}
		report(broken("store", err.Error(), "porchlight outbox verify"))
		return nil
	}
	var s agent.StoreStatus
	if err := json.Unmarshal(text.Bytes(), &s); err != nil {
		report(broken("store", err.Error(), "porchlight outbox status"))
		return nil
	}
	waits := 0
	var oldest time.Time
	for _, d := range s.Devices {
		waits += d.Disk + d.Memory
		if d.Oldest != nil && (oldest.IsZero() || d.Oldest.Before(oldest)) {
			oldest = *d.Oldest
		}
	}
	backlog := fmt.Sprintf("%d readings wait", waits)
	if !oldest.IsZero() {
		backlog += ", the oldest of " + oldest.Local().Format(time.DateTime)
	}
	switch {
	case !s.Running:
		report(look("gateway", "it is not running; "+backlog, "systemctl status porchlight; journalctl -u porchlight -n 50"))
	case s.Stats != nil && s.Stats.Fault != "":
		report(broken("store", "it cannot be written: "+s.Stats.Fault, "df -h "+c.Gateway.DataDir+"; dmesg | tail"))
	case s.Passive:
		report(broken("gateway", "it runs, and is passive: another gateway is at work with the same component or account; "+backlog, "stop the other; or give this one a component or an account of its own, under xmpp in its config, and restart it. where the other is gone for good, this one takes over by itself, and within four minutes of a restart"))
	case !s.Online:
		report(look("gateway", "it runs, and has no XMPP session; "+backlog, "journalctl -u porchlight -n 50"))
	default:
		report(good("gateway", fmt.Sprintf("it runs since %s, and is online; %s", (time.Duration(s.Seconds)*time.Second).String(), backlog)))
	}
	if s.Stats != nil && s.Stats.Lost > 0 {
		report(look("losses", fmt.Sprintf("%d readings were lost since the start", s.Stats.Lost), "porchlight outbox proof --last 24h"))
	}
	if s.WrittenPerYear > 0 {
		f := good("card", fmt.Sprintf("%s were written today, %s in a year at this pace", size(s.WrittenToday), size(s.WrittenPerYear)))
		if s.WrittenPerYear > muchWritten {
			f.Verdict, f.Next = verdictLook, "porchlight outbox status; a longer outbox.commit_after, and a server that is reached, write less"
		}
		report(f)
	}
	return &s
}

// tryBackup looks at the backups that the config asks for.
func tryBackup(c *config.Config) finding {
	if _, err := readPhrase(c.Gateway.DataDir); errors.Is(err, os.ErrNotExist) {
		return broken("backup", "there is no recovery phrase, so none is made", "sudo porchlight backup --show-phrase; write it down, and keep it elsewhere")
	} else if err != nil {
		return look("backup", cause(err), "run the doctor as root, or as the user porchlight")
	}
	s, err := agent.AskBackups(c)
	switch {
	case err != nil:
		return look("backup", err.Error(), "sudo porchlight backup --to pubsub")
	case s.Fault != "":
		return broken("backup", "none could be kept on the server: "+s.Fault, "mend that, then: sudo porchlight backup --to pubsub")
	case s.Newest == nil:
		return look("backup", "the gateway is not at work, or has not looked yet what is on the server", "systemctl status porchlight; or: sudo porchlight backup --to pubsub")
	}
	return good("backup", "the newest on the server is of "+s.Newest.Local().Format(time.DateTime))
}

// tryListeners tries to listen where the gateway would. While it runs, it has
// its ports, or said in its log why not.
func tryListeners(c *config.Config, running bool, report func(finding)) {
	try := func(key, network, address string) {
		what := fmt.Sprintf("port %s/%s (%s)", address, network, key)
		var l io.Closer
		var err error
		if network == "udp" {
			l, err = net.ListenPacket("udp", address)
		} else {
			l, err = net.Listen("tcp", address)
		}
		_, port, _ := net.SplitHostPort(address)
		switch {
		case err == nil:
			l.Close()
			if running {
				report(broken(what, "the gateway runs, and does not listen there", "journalctl -u porchlight -n 50"))
				return
			}
			report(good(what, "is free"))
		case errors.Is(err, unix.EADDRINUSE) && running:
			report(good(what, "is taken, as it should be while the gateway runs"))
		case errors.Is(err, unix.EADDRINUSE):
			report(broken(what, "another program has it", fmt.Sprintf("sudo ss -lpn 'sport = :%s'; end that program, or choose another port", port)))
		default:
			report(broken(what, cause(err), "correct "+key))
		}
		if host, _, err := net.SplitHostPort(address); err == nil && host != "localhost" && !net.ParseIP(host).IsLoopback() {
			report(look(what, "is open to other machines", "a firewall, or 127.0.0.1, where that is not meant"))
		}
	}
	if c.MQTT != nil && c.MQTT.Listen != "" {
		try("mqtt.listen", "tcp", c.MQTT.Listen)
	}
	if c.CoAP != nil && c.CoAP.Listen != "" {
		try("coap.listen", "udp", c.CoAP.Listen)
	}
	if c.CoAP != nil && c.CoAP.DTLS != nil {
		try("coap.dtls.listen", "udp", c.CoAP.DTLS.Listen)
	}
	if c.Metrics != nil {
		try("metrics.listen", "tcp", c.Metrics.Listen)
	}
}

// tryGroups looks whether the service's user may use serial ports, which who
// runs the doctor may well.
func tryGroups(c *config.Config, report func(finding)) {
	serial := false
	for _, d := range c.Devices {
		serial = serial || d.Serial != nil
	}
	if !serial {
		return
	}
	u, err := user.Lookup("porchlight")
	if err != nil {
		return // it is run by somebody else, whose rights the tries of the ports show
	}
	groups, err := u.GroupIds()
	if err != nil {
		return
	}
	for _, id := range groups {
		if g, err := user.LookupGroupId(id); err == nil && g.Name == "dialout" {
			report(good("serial group", "the user porchlight is in dialout"))
			return
		}
	}
	report(broken("serial group", "the user porchlight is not in dialout", "sudo usermod -aG dialout porchlight && sudo systemctl restart porchlight"))
}

// tryBroker logs in to a broker.
func tryBroker(ctx context.Context, c *config.Config, b config.Broker, report func(finding)) {
	what := "login to broker " + b.Name
	address, _ := brokerAddress(b)
	conn, err := net.DialTimeout("tcp", address, tryFor)
	if err != nil {
		return // which was said
	}
	conn.Close()
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	if err := agent.TryBroker(ctx, c, b); err != nil {
		report(broken(what, err.Error(), "correct username and password_file, or read the broker's log"))
		return
	}
	report(good(what, "as "+cmp.Or(b.Username, "nobody in particular")))
}

// tryCoAP pings a device (RFC 7252 section 4.3): an empty confirmable message,
// which is answered by a reset.
func tryCoAP(ctx context.Context, target string) finding {
	what := "CoAP " + target
	u, err := url.Parse(target)
	if err != nil {
		return broken(what, err.Error(), "correct coap.url")
	}
	if u.Scheme != "coap" {
		return look(what, "only coap:// can be tried", "journalctl -u porchlight -n 50")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "5683")))
	if err != nil {
		return broken(what, cause(err), "correct coap.url, or check the network")
	}
	defer conn.Close()
	const id = 0x504c
	answer := make([]byte, 64)
	for range 3 {
		if _, err = conn.Write([]byte{0x40, 0, id >> 8, id & 0xff}); err != nil {
			break
		}
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		var n int
		if n, err = conn.Read(answer); err == nil {
			if n >= 4 && answer[2] == id>>8 && answer[3] == id&0xff {
				return good(what, "it answers")
			}
			return broken(what, "something answers that is no CoAP", "correct coap.url")
		}
	}
	return broken(what, "no answer: "+cause(err), "check that the device has power and network")
}

// tryDevices tells which devices are silent, as far as the gateway judges.
func tryDevices(c *config.Config, report func(finding)) {
	var text bytes.Buffer
	if err := agent.AskDevices(c, "devices", agent.DeviceArgs{}, &text); err != nil {
		report(look("devices", err.Error(), "porchlight devices"))
		return
	}
	heard, silent := 0, 0
	for lines := json.NewDecoder(&text); ; {
		var d agent.DeviceLine
		if err := lines.Decode(&d); err != nil {
			break
		}
		since := "never"
		if d.Since != nil {
			since = "last at " + d.Since.Local().Format(time.DateTime)
		}
		switch d.State {
		case "lost", "late":
			silent++
			report(look("device "+string(d.ID), fmt.Sprintf("it is %s, heard %s (%s)", d.State, since, d.Way), "check its power and network; porchlight devices"))
		case "unknown":
			silent++
			report(look("device "+string(d.ID), fmt.Sprintf("it was never heard (%s)", d.Way), "porchlight devices pending shows who else speaks"))
		default:
			heard++
		}
	}
	if silent == 0 {
		report(good("devices", fmt.Sprintf("all %d are heard", heard)))
	}
}

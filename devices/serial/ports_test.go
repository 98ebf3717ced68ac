package serial

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

// patience is a deadline for broken code.
const patience = 30 * time.Second

func openPTY(t testing.TB) (*pty.PTY, *wire) {
	t.Helper()
	p, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	w, err := openWire(p.Path(), usual, Signals{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return p, w
}

// within fails the test where f does not end.
func within(t *testing.T, f func() error) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		t.Fatal("it does not end")
		return nil
	}
}

// A device that stops reading holds nobody up, and does not get later what it
// did not take in time.
func TestStalledWrite(t *testing.T) {
	p, w := openPTY(t)
	err := within(t, func() error { return w.write(make([]byte, 1<<20), 100*time.Millisecond) })
	if !errors.Is(err, errStalled) {
		t.Fatalf("want that the device does not read, got %v", err)
	}
	// What is in the pseudo-terminal has arrived; nothing else comes after it.
	if err := w.write([]byte("end\n"), patience); err != nil && !errors.Is(err, errStalled) {
		t.Fatal(err)
	}
	buf, got := make([]byte, 1<<20), 0
	for !strings.HasSuffix(string(buf[:got]), "end\n") {
		err := within(t, func() error {
			n, err := p.Read(buf[got:])
			got += n
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got > 1<<19 {
		t.Errorf("%d bytes came after all", got)
	}
}

func TestCloseEndsReadAndWrite(t *testing.T) {
	_, w := openPTY(t)
	ended := make(chan error, 2)
	begun := make(chan struct{}, 2)
	go func() {
		begun <- struct{}{}
		_, err := w.Read(make([]byte, 1))
		ended <- err
	}()
	go func() {
		begun <- struct{}{}
		ended <- w.write(make([]byte, 1<<20), time.Hour)
	}()
	<-begun
	<-begun
	_ = w.Close()
	for range 2 {
		if err := within(t, func() error { return <-ended }); err == nil {
			t.Error("it ended without an error")
		}
	}
	_ = w.Close() // once more is nothing
}

// A read of no bytes is the end of a port, not an invitation to read again.
func TestZeroLengthRead(t *testing.T) {
	p, w := openPTY(t)
	err := w.control(func(fd int) error {
		termios, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		termios.Lflag |= unix.ICANON // another program changed the line; now ^D is an end
		termios.Cc[unix.VEOF] = 4
		return unix.IoctlSetTermios(fd, unix.TCSETS, termios)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte{4}); err != nil {
		t.Fatal(err)
	}
	err = within(t, func() error {
		n, err := w.Read(make([]byte, 10))
		if n != 0 {
			t.Errorf("%d bytes", n)
		}
		return err
	})
	if !errors.Is(err, io.EOF) || !strings.Contains(unplugged(err).Error(), "unplugged") {
		t.Errorf("want the end, got %v", err)
	}
}

// plugUSB makes what sysfs shows of a serial adapter.
func plugUSB(t testing.TB, root string, number deviceNumber, tty, socket string, attributes map[string]string) {
	t.Helper()
	usb := filepath.Join(root, "sys/devices/pci0000:00/0000:00:14.0/usb1", socket)
	iface := filepath.Join(usb, socket+":1.0")
	node := filepath.Join(iface, tty, "tty", tty)
	for _, folder := range []string{node, filepath.Join(root, "sys/dev/char"), filepath.Join(root, "sys/class/tty"), filepath.Join(root, "sys/bus/drivers/ftdi_sio")} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range attributes {
		if err := os.WriteFile(filepath.Join(usb, name), []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(iface, "bInterfaceNumber"), []byte("00\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	char := filepath.Join(root, "sys/dev/char", fmt.Sprintf("%d:%d", unix.Major(uint64(number)), unix.Minor(uint64(number))))
	for link, to := range map[string]string{
		char:                                node,
		filepath.Join(node, "device"):       filepath.Join(iface, tty),
		filepath.Join(iface, tty, "driver"): filepath.Join(root, "sys/bus/drivers/ftdi_sio"),
		filepath.Join(root, "sys/class/tty", tty): node,
	} {
		_ = os.Remove(link)
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIdentify(t *testing.T) {
	root := t.TempDir()
	m := machine(root)
	number := deviceNumber(unix.Mkdev(188, 3))
	if is := m.identify(number); is.IsUSB() {
		t.Errorf("a device that is not there is %s", is)
	}
	plugUSB(t, root, number, "ttyUSB3", "1-1.4", map[string]string{
		"idVendor": "0403", "idProduct": "6001", "serial": "A50285BI", "manufacturer": "FTDI", "product": "FT232R \x1b[2J\xff USB UART",
	})
	is := m.identify(number)
	want := Identity{Vendor: "0403", Product: "6001", Serial: "A50285BI", Interface: "00", Socket: "1-1.4", Manufacturer: "FTDI", Name: "FT232R ?[2J? USB UART"}
	if is != want {
		t.Errorf("want %+v, got %+v", want, is)
	}
	if is.ID() != "0403:6001:A50285BI" || !is.fits("0403:6001") || !is.fits(is.ID()) || is.fits("0403:6001:OTHER") || is.fits("1a86:7523") {
		t.Errorf("it is named %s, or does not fit that", is.ID())
	}
}

func TestSame(t *testing.T) {
	ftdi := Identity{Vendor: "0403", Product: "6001", Serial: "A1", Interface: "00", Socket: "1-1"}
	ch340 := Identity{Vendor: "1a86", Product: "7523", Interface: "00", Socket: "1-1"}
	change := func(i Identity, f func(*Identity)) Identity { f(&i); return i }
	for _, c := range []struct {
		name string
		a, b Identity
		same bool
	}{
		{"itself", ftdi, ftdi, true},
		{"in another socket", ftdi, change(ftdi, func(i *Identity) { i.Socket = "1-2" }), true},
		{"another of its kind", ftdi, change(ftdi, func(i *Identity) { i.Serial = "A2" }), false},
		{"another port of the adapter", ftdi, change(ftdi, func(i *Identity) { i.Interface = "01" }), false},
		{"without a serial number", ch340, ch340, true},
		{"without one, in another socket", ch340, change(ch340, func(i *Identity) { i.Socket = "1-2" }), false},
		{"another kind", ftdi, ch340, false},
		{"none", ftdi, Identity{}, false},
	} {
		if got := c.a.same(c.b); got != c.same || c.b.same(c.a) != c.same {
			t.Errorf("%s: same is %v", c.name, got)
		}
	}
}

func TestPorts(t *testing.T) {
	root := t.TempDir()
	m := machine(root)
	if all := m.ports(); len(all) != 0 {
		t.Errorf("without any there are %v", all)
	}
	link := func(to string, path ...string) {
		t.Helper()
		path = append([]string{root}, path...)
		if err := os.MkdirAll(filepath.Dir(filepath.Join(path...)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(path...)); err != nil {
			t.Fatal(err)
		}
	}
	ch340 := map[string]string{"idVendor": "1a86", "idProduct": "7523"}
	ftdi := map[string]string{"idVendor": "0403", "idProduct": "6001", "serial": "A1"}
	for i, attributes := range []map[string]string{ch340, ch340, ftdi} {
		p, _ := openPTY(t)
		number, err := m.at(p.Path())
		if err != nil {
			t.Fatal(err)
		}
		tty := fmt.Sprintf("ttyUSB%d", i)
		plugUSB(t, root, number, tty, fmt.Sprintf("1-1.%d", i), attributes)
		link(p.Path(), "dev", tty)
		link("../../"+tty, "dev/serial/by-path", "usb-0:"+tty)
		if i > 0 { // of two that share a name, one has it
			link("../../"+tty, "dev/serial/by-id", "usb-"+attributes["idVendor"])
		}
	}
	link("/dev/ttyUSB2", "proc/4711/fd/5")
	link("/dev/null", "proc/4711/fd/6")
	if err := os.WriteFile(filepath.Join(root, "proc/4711/comm"), []byte("ModemManager\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	all := m.ports()
	var got []string
	for _, f := range all {
		got = append(got, fmt.Sprintf("%s %s %s %v %s %v", f.Path, f.ByID, f.ByPath, f.Shared, f.Identity.ID(), f.Users))
	}
	want := []string{
		"/dev/ttyUSB0 [] [/dev/serial/by-path/usb-0:ttyUSB0] true 1a86:7523 []",
		"/dev/ttyUSB1 [/dev/serial/by-id/usb-1a86] [/dev/serial/by-path/usb-0:ttyUSB1] true 1a86:7523 []",
		"/dev/ttyUSB2 [/dev/serial/by-id/usb-0403] [/dev/serial/by-path/usb-0:ttyUSB2] false 0403:6001:A1 [{4711 ModemManager}]",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A port that has no modem lines cannot leave them down, and says so.
func TestSignals(t *testing.T) {
	down := false
	if bits := (Signals{DTR: &down}).bits(); bits.DTR || !bits.RTS {
		t.Errorf("the lines are %+v", *bits)
	}
	if (Signals{}).bits() != nil {
		t.Error("what the config does not say is said")
	}
	p, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	w, err := openWire(p.Path(), usual, Signals{DTR: &down})
	if err == nil {
		_ = w.Close()
		t.Skip("pseudo-terminals have modem lines here")
	}
	if !strings.Contains(err.Error(), "DTR and RTS") {
		t.Error(err)
	}
}

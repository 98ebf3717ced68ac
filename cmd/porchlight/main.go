// Command porchlight puts the devices of a house on XMPP.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/porchlight-iot/porchlight/agent/setup"
)

// The exit statuses that scripts and service managers may rely on.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitConfig = 78 // EX_CONFIG of sysexits.h: a service manager does not restart it
)

// usageError says that the command line is wrong.
type usageError string

func (e usageError) Error() string { return string(e) }

// configError says that the config is wrong. Its faults were printed already.
type configError struct{}

func (configError) Error() string { return "the config is wrong" }

var (
	// errHelp says that help was asked for and given.
	errHelp = errors.New("help")
	// errUsageSaid says that the command line is wrong, and that this was
	// printed already.
	errUsageSaid = errors.New("wrong usage")
)

// errVerdict says that the command did its work and the answer is no; the
// answer was printed already.
var errVerdict = errors.New("the verdict is no")

// A command is one word of the command line.
type command struct {
	name, does string
	run        func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

func commands() []command {
	return []command{
		{"run", "run the gateway", runGateway},
		{"init", "set up a new gateway: ask, try, write the config", runInit},
		{"firstboot", "take over a config, an invitation or a WiFi from the boot partition", runFirstboot},
		{"check", "check the config", runCheck},
		{"doctor", "say what is good and what is not, and the next command to type", runDoctor},
		{"demo", "show the whole path on this machine, without a network", runDemo},
		{"simulate", "be many devices, for load and demos", runSimulate},
		{"watch", "be an operator: print readings and alarms", runWatch},
		{"devices", "list the devices; pending, admit, refuse, rename and remove them", runDevices},
		{"access", "list who may do what, and who waits to be let in", runAccess},
		{"command", "tell a device something, while the gateway runs", runCommand},
		{"serial", "list the serial ports, and find out what speaks on one: list, probe", runSerial},
		{"profile", "show the firmware profiles and try them: list, show, test", runProfile},
		{"outbox", "look into what waits to be sent: status, export, verify, proof", runOutbox},
		{"backup", "make an encrypted copy of what brings this gateway back, in a folder or on the XMPP server", runBackup},
		{"restore", "bring a gateway back from a backup", runRestore},
		{"version", "print version, commit and Go version", runVersion},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// execute runs one command line and gives its exit status.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		usage(stderr)
		return exitUsage
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		usage(stdout)
		return exitDone
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return exitStatus(c.run(ctx, args[1:], stdout, stderr), stderr)
		}
	}
	fmt.Fprintf(stderr, "porchlight: there is no command %q\n", args[0])
	usage(stderr)
	return exitUsage
}

func exitStatus(err error, stderr io.Writer) int {
	var wrongUsage usageError
	switch {
	case err == nil, errors.Is(err, errHelp):
		return exitDone
	case errors.Is(err, errUsageSaid):
		return exitUsage
	case errors.As(err, &wrongUsage):
		fmt.Fprintln(stderr, "porchlight:", err)
		return exitUsage
	case errors.As(err, &configError{}):
		return exitConfig
	case errors.Is(err, errVerdict):
		return exitFailed
	default:
		fmt.Fprintln(stderr, "porchlight:", err)
		if remedy := setup.Remedy(err); remedy != "" {
			fmt.Fprintln(stderr, remedy)
		}
		return exitFailed
	}
}

func usage(w io.Writer) {
	fmt.Fprint(w, "Usage: porchlight COMMAND [FLAGS]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-9s %s\n", c.name, c.does)
	}
	fmt.Fprint(w, "\nporchlight COMMAND --help tells the flags of a command.\n")
}

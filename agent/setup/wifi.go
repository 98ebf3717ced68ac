package setup

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/durable"
)

// Debian and Raspberry Pi OS, since their version 12, have NetworkManager keep a
// WiFi as one file here.
const (
	connections    = "/etc/NetworkManager/system-connections"
	connectionFile = "porchlight.nmconnection"
	// Always the same, so that the same WiFi makes the same file.
	connectionID = "6c3a2f0e-52b0-4b0c-9f4e-0d1f7c8a9b35"
)

// A radio that was off until now is there only after some seconds, so what fails
// at once is tried again. A try that lasts is not: it was refused, or nobody
// answered.
const (
	joinFor   = 30 * time.Second
	joinPause = 3 * time.Second
)

// join gives a WiFi to NetworkManager, which keeps it and joins it at each start,
// and waits until it is joined. That it is not, maybe because it is out of reach,
// is no error: the text tells it.
func (c Card) join(ctx context.Context, w config.WiFi) (told string, err error) {
	dir := c.Connections
	if dir == "" {
		dir = connections
	}
	_, missing := exec.LookPath("nmcli")
	if _, err := os.Stat(dir); err != nil || missing != nil {
		return "", cardFault("This machine has no NetworkManager, and nothing else sets up a WiFi here.\nSet the WiFi up in the way of this system, and take wifi: out of %s.", CardConfig)
	}
	text, err := connection(ctx, w)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, connectionFile)
	// While something else on the card is tried again, a network that is joined
	// stays so.
	before, err := os.ReadFile(file)
	known := err == nil && bytes.Equal(before, text)
	if known {
		state, err := tool(ctx, nil, "nmcli", "--get-values", "GENERAL.STATE", "connection", "show", "uuid", connectionID)
		if err == nil && strings.TrimSpace(string(state)) == "activated" {
			return fmt.Sprintf("The WiFi %q is joined.", w.Name), nil
		}
	}
	noted := ""
	if !known {
		if noted, err = setCountry(ctx, w.Country); err != nil {
			return "", err
		}
		if err := durable.Replace(file, text); err != nil {
			return "", fmt.Errorf("cannot keep the WiFi: %w", err)
		}
	}
	if _, err = tool(ctx, nil, "nmcli", "connection", "load", file); err == nil {
		err = c.activate(ctx)
	}
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		told = fmt.Sprintf("The WiFi %q is kept, but not joined yet, which is tried again by itself:\n%v.", w.Name, err)
		if w.Country == "" {
			told += "\nA Raspberry Pi leaves its WiFi off until it is told the country: write country: into wifi:, and the file onto the card again."
		}
	default:
		told = fmt.Sprintf("The WiFi %q is joined.", w.Name)
	}
	return told + noted, nil
}

// connection gives the file of a WiFi as NetworkManager itself writes it. The
// password is not among the arguments, which everybody on the machine can see.
func connection(ctx context.Context, w config.WiFi) ([]byte, error) {
	args := []string{"--offline", "connection", "add", "type", "wifi", "con-name", "porchlight", "ssid", string(w.Name)}
	if w.Hidden {
		args = append(args, "wifi.hidden", "yes")
	}
	text, err := tool(ctx, nil, "nmcli", args...)
	if err == nil {
		// Sections may stand twice; the later value counts.
		text = fmt.Appendf(text, "\n[connection]\nuuid=%s\n", connectionID)
		if !w.Password.IsZero() {
			escaped := strings.NewReplacer(`\`, `\\`, " ", `\s`).Replace(w.Password.Reveal())
			text = fmt.Appendf(text, "[wifi-security]\nkey-mgmt=wpa-psk\npsk=%s\n", escaped)
		}
		if w.Country != "" {
			text = fmt.Appendf(text, "[user]\nporchlight.country=%s\n", w.Country) // so that another country is another file
		}
		text, err = tool(ctx, text, "nmcli", "--offline", "connection", "modify")
	}
	if err != nil && ctx.Err() == nil {
		err = cardFault("NetworkManager does not take the WiFi: %v.", err)
	}
	return text, err
}

// setCountry has the radio keep the rules of a country, for good where raspi-config
// does it, which also turns the radio on. What could not be done is noted, as
// paragraphs to be added, and is no error where the network may be joined without.
func setCountry(ctx context.Context, code config.CountryCode) (noted string, err error) {
	if code == "" {
		return "", nil
	}
	if _, err := exec.LookPath("raspi-config"); err == nil {
		if _, err := tool(ctx, nil, "raspi-config", "nonint", "do_wifi_country", string(code)); err != nil {
			return "", cardFault("raspi-config does not take %s, which wifi: in %s has as the country: %v.", code, CardConfig, err)
		}
		return "", nil
	}
	if _, err := exec.LookPath("iw"); err != nil {
		return fmt.Sprintf("\n\nThe country %s of the WiFi was not set: neither raspi-config nor iw is there.", code), nil
	}
	if _, err := tool(ctx, nil, "iw", "reg", "set", string(code)); err != nil {
		return fmt.Sprintf("\n\nThe country %s of the WiFi could not be set: %v.", code, err), nil
	}
	return fmt.Sprintf("\n\nThe country %s of the WiFi is set until the next start; no raspi-config is there, which sets it for good.", code), nil
}

// activate has NetworkManager join the network now.
func (c Card) activate(ctx context.Context) error {
	patience := cmp.Or(c.patience, joinFor)
	for began := time.Now(); ; {
		_, err := tool(ctx, nil, "nmcli", "--wait", fmt.Sprint(int(joinFor.Seconds())), "connection", "up", "uuid", connectionID)
		if err == nil || time.Since(began)+joinPause > patience {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(joinPause):
		}
	}
}

// tool runs a program of the system. The error is in its own words.
func tool(ctx context.Context, in []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.Stdin = bytes.NewReader(in)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	switch words := strings.TrimSpace(strings.TrimPrefix(said.String(), "Error: ")); {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil && words != "":
		return nil, fmt.Errorf("%s: %s", name, strings.TrimSuffix(words, "."))
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out.Bytes(), nil
}

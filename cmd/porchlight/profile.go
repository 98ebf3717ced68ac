package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// runProfile shows the firmware profiles, and tries them.
func runProfile(_ context.Context, args []string, stdout, stderr io.Writer) error {
	const words = "profile takes one of list, show NAME, test"
	if len(args) == 0 {
		return usageError(words)
	}
	what, args := args[0], args[1:]
	name := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("profile "+what, flag.ContinueOnError)
	flags.SetOutput(stderr)
	folder := flags.String("dir", "", "a `FOLDER` of profiles of your own, besides the built-in ones (default profiles in the data directory)")
	path := flags.String("c", "", "the config `FILE` that names the data directory (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml, if it is there)")
	topic := flags.String("topic", "", "test NAME: the `TOPIC` of the message")
	file := flags.String("file", "", "test NAME: the `FILE` that holds the message; - is the standard input")
	yaml := flags.Bool("yaml", false, "show: the profile's file")
	samples := flags.String("samples", "", "test: a `FILE` of samples, one JSON object a line")
	if err := parse(flags, args); err != nil {
		return err
	}
	if *folder == "" {
		// The profiles are of use without a config, too.
		c, faults := config.Load(config.Path(*path), config.LoadOptions{})
		if c != nil {
			*folder = filepath.Join(c.Gateway.DataDir, config.ProfilesDir)
		} else if *path != "" {
			return faults
		}
	}
	library, err := loadProfiles(*folder, stderr)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(stdout)
	defer out.Flush()
	switch {
	case what == "list" && name == "":
		return listProfiles(library, out)
	case what == "show" && name != "":
		return showProfile(library, name, *yaml, out)
	case what == "test" && name == "" && *samples != "":
		return testSamples(library, *samples, out)
	case what == "test" && name != "" && *file != "":
		return testProfile(library, name, *topic, *file, out)
	case what == "test":
		return usageError("profile test takes NAME --topic T --file F, or --samples FILE")
	}
	return usageError(words)
}

// loadProfiles tells what is wrong with profiles, and goes on with the others.
func loadProfiles(folder string, stderr io.Writer) (*profile.Library, error) {
	if folder == "" {
		return profile.Builtin()
	}
	library, err := profile.Load(folder)
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return library, nil
}

func listProfiles(library *profile.Library, w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, id := range library.Names() {
		p := library.Get(id)
		fmt.Fprintf(table, "%s\t%s\t%s\n", id, strings.Join(p.Transports(), ","), p.Name())
	}
	return table.Flush()
}

func showProfile(library *profile.Library, name string, yaml bool, w io.Writer) error {
	p := library.Get(name)
	if p == nil {
		return fmt.Errorf("there is no profile %q; porchlight profile list shows them", name)
	}
	text := library.Page(name)
	if yaml {
		text = p.Source()
	}
	_, err := w.Write(text)
	return err
}

func testProfile(library *profile.Library, name, topic, file string, w io.Writer) error {
	p := library.Get(name)
	if p == nil {
		return fmt.Errorf("there is no profile %q; porchlight profile list shows them", name)
	}
	in := os.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	payload, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	m := profile.Message{Topic: topic, Payload: payload, ContentFormat: -1, Received: time.Now()}
	var out profile.Output
	if topic == "" {
		out, err = p.Decode(profile.Place{Location: time.Local}, m)
	} else {
		out, err = library.Only(name).NewSession(nil).Hear(m)
	}
	shown := profile.Show("", out, err)
	shown.Profile = p.ID()
	if err := json.NewEncoder(w).Encode(shown); err != nil {
		return err
	}
	if err != nil {
		return errVerdict
	}
	return nil
}

// testSamples lets each sample find its own profile. The samples of one
// firmware are one house: what one announced is known when the next comes.
func testSamples(library *profile.Library, file string, w io.Writer) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	sessions := make(map[string]*profile.Session)
	lines := bufio.NewReader(f)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if len(strings.TrimSpace(string(line))) > 0 {
			shown, err := testSample(library, sessions, line)
			if err != nil {
				return fmt.Errorf("%s:%d: %w", file, number, err)
			}
			if err := out.Encode(shown); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func testSample(library *profile.Library, sessions map[string]*profile.Session, line []byte) (profile.Shown, error) {
	var s profile.Sample
	if err := json.Unmarshal(line, &s); err != nil {
		return profile.Shown{}, fmt.Errorf("not a sample: %w", err)
	}
	session := sessions[s.Firmware]
	if session == nil {
		session = library.NewSession(nil)
		sessions[s.Firmware] = session
	}
	out, err := s.Hear(session, time.Now())
	return profile.Show(s.ID, out, err), nil
}

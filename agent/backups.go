package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
)

const (
	// backupTime bounds the publication of a backup: ejabberd's shaper of 3,000
	// bytes a second takes 4 minutes for the biggest.
	backupTime = lookTime - 10*time.Second
	// backupAgain is how soon a backup is tried again that was not made,
	// twice as late each time.
	backupAgain, backupRarely = 5 * time.Minute, 4 * time.Hour
	// backupLook is how often the node is looked at, though it is not time.
	backupLook = time.Hour
)

// A SealedBackup is one that may leave the machine.
type SealedBackup struct {
	Made  time.Time
	Bytes []byte
	Files int
	Left  []string // files that the config names and that are not in it
}

// A BackupMaker makes a backup of the gateway of a config. Whoever starts a
// gateway knows how: agent/backup cannot be known here.
type BackupMaker func(c *config.Config) (SealedBackup, error)

// A KeptBackup tells of a backup on the PubSub node.
type KeptBackup struct {
	Gateway string    `json:"gateway"`
	Made    time.Time `json:"made"`
	Files   int       `json:"files"`
	Bytes   int       `json:"bytes"`
	Parts   int       `json:"parts"`
	Left    []string  `json:"left,omitempty"`
}

// A BackupStatus is what a gateway at work knows of its backups by schedule.
type BackupStatus struct {
	Newest *time.Time `json:"newest,omitempty"` // on the node, as last seen
	Fault  string     `json:"fault,omitempty"`  // why the last try came to nothing
}

// backups keeps backups on the PubSub node, by hand and by schedule.
type backups struct {
	maker BackupMaker // nil: none are made
	turn  sync.Mutex  // one at a time

	mu     sync.Mutex
	status BackupStatus
}

// KeepBackups has the gateway make backups, where its config or who asks wants
// one. It is called before Run.
func (a *Agent) KeepBackups(maker BackupMaker) { a.backups.maker = maker }

// errNoMaker says that this gateway was started by who makes no backups.
var errNoMaker = errors.New("cannot make a backup: this gateway was not told how")

// keepBackup makes a backup and publishes it.
func (a *Agent) keepBackup(ctx context.Context, keep int) (KeptBackup, error) {
	if a.backups.maker == nil {
		return KeptBackup{}, errNoMaker
	}
	if !a.forward.isOnline() {
		return KeptBackup{}, errors.New("cannot keep a backup on the server: the gateway has no XMPP session now")
	}
	a.backups.turn.Lock()
	defer a.backups.turn.Unlock()
	a.mu.Lock()
	c := a.config
	a.mu.Unlock()
	kept, err := keepBackup(ctx, c, a.bridge, a.backups.maker, keep)
	if err == nil {
		a.backups.seen(kept.Made, nil)
	}
	return kept, err
}

// keepBackup makes a backup and publishes it by a bridge that has a session.
func keepBackup(ctx context.Context, c *config.Config, b *bridge.Bridge, maker BackupMaker, keep int) (KeptBackup, error) {
	sealed, err := maker(c)
	if err != nil {
		return KeptBackup{}, err
	}
	kept, err := b.KeepBackup(ctx, sealed.Made, sealed.Bytes, keep)
	if err != nil {
		return KeptBackup{}, err
	}
	return KeptBackup{kept.Gateway, kept.Made, sealed.Files, len(sealed.Bytes), kept.Parts, sealed.Left}, nil
}

// seen notes what is known of the backups on the node.
func (s *backups) seen(newest time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !newest.IsZero() {
		s.status.Newest = &newest
	}
	s.status.Fault = ""
	if err != nil {
		s.status.Fault = err.Error()
	}
}

func (s *backups) told() BackupStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// schedule makes the backups that the config asks for, until ctx ends. When the
// next is due is told by the node, so that it outlasts a start, and one that was
// lost there is made again.
func (a *Agent) schedule(ctx context.Context) {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	var next, made time.Time
	again := backupAgain
	for {
		a.mu.Lock()
		c := a.config
		a.mu.Unlock()
		_, known := a.timing.clock.Time()
		if c.Backup != nil && a.backups.maker != nil && known && a.forward.isOnline() && !time.Now().Before(next) {
			now, err := a.keepDue(ctx, c, made)
			if ctx.Err() != nil {
				return
			}
			next = time.Now().Add(min(backupLook, c.Backup.Every))
			if now {
				made = time.Now()
			}
			if err != nil {
				a.log.Warn("no backup was kept on the server", "error", err, "again_in", again)
				next = time.Now().Add(again)
				again = min(2*again, backupRarely)
				a.backups.seen(time.Time{}, err)
			} else {
				again = backupAgain
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// keepDue keeps a backup if it is time for one, and tells whether it did. made
// is when this process made one last: the node's newest may be of a time to
// come, where a clock was wrong.
func (a *Agent) keepDue(ctx context.Context, c *config.Config, made time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, backupTime)
	defer cancel()
	all, err := a.bridge.Backups(ctx, c.Gateway.ID)
	if err != nil {
		return false, err
	}
	for _, b := range all {
		age := time.Since(b.Made)
		if b.Whole() && age < c.Backup.Every && (age > -time.Minute || !made.IsZero() && time.Since(made) < c.Backup.Every) {
			a.backups.seen(b.Made, nil)
			return false, nil
		}
	}
	kept, err := a.keepBackup(ctx, c.Backup.Keep)
	if err != nil {
		return false, err
	}
	a.log.Info("a backup is kept on the server", "made", kept.Made, "parts", kept.Parts)
	for _, path := range kept.Left {
		a.log.Warn("a file is not in the backup: it is neither beside the config nor in the data directory", "file", path)
	}
	return true, nil
}

// backupWord begins the question for a backup, of which keep are to be left.
const backupWord = "backup "

// doBackup answers a question about backups.
func (a *Agent) doBackup(ctx context.Context, what string, w io.Writer) error {
	if what == "status" {
		return json.NewEncoder(w).Encode(a.backups.told())
	}
	var keep int
	if err := json.Unmarshal([]byte(what), &keep); err != nil || keep < 1 {
		return fmt.Errorf("there is no question %q", backupWord+what)
	}
	ctx, cancel := context.WithTimeout(ctx, backupTime)
	defer cancel()
	kept, err := a.keepBackup(ctx, keep)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(kept)
}

// AskBackups asks the gateway at work on a config for its backups by schedule;
// the zero status where none is at work.
func AskBackups(c *config.Config) (s BackupStatus, err error) {
	var answer strings.Builder
	if err := ask(c, question{What: backupWord + "status"}, &answer); errors.Is(err, errNotRunning) {
		return s, nil
	} else if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(answer.String()), &s)
}

// PublishBackup keeps a backup on the gateway's PubSub node, and leaves keep
// there: by the gateway, if one is at work on the config, which makes it itself;
// else by maker and a short session of its own.
func PublishBackup(ctx context.Context, c *config.Config, keep int, maker BackupMaker) (kept KeptBackup, err error) {
	var answer strings.Builder
	err = ask(c, question{What: fmt.Sprint(backupWord, keep)}, &answer)
	if err == nil {
		return kept, json.Unmarshal([]byte(answer.String()), &kept)
	}
	if !errors.Is(err, errNotRunning) {
		return kept, err
	}
	if Running(c) {
		return kept, fmt.Errorf("cannot ask the gateway for a backup: %w, and does not answer; who asks must be its user, or root", ErrRunning)
	}
	log := slog.New(slog.DiscardHandler)
	now := func() access.Moment { return access.Moment{Time: time.Now(), Known: true} }
	registry, err := access.Open(access.Options{Dir: c.Gateway.DataDir, Now: now, CheckJID: bridge.ValidJID, Log: log})
	if err != nil {
		return kept, err
	}
	registry.Configure(Grants(c))
	cfg, err := bridgeConfig(c, clock.Verifying(clock.Machine()))
	if err != nil {
		return kept, err
	}
	ctx, cancel := context.WithTimeout(ctx, backupTime)
	defer cancel()
	err = bridge.Briefly(ctx, cfg, &authorizer{registry, now}, log, func(b *bridge.Bridge) error {
		kept, err = keepBackup(ctx, c, b, maker, keep)
		return err
	})
	return kept, err
}

// What is said where there is nothing to fetch.
var (
	errNoBackup = errors.New("no backup is there")
	errUnlisted = errors.New("the service does not tell which nodes there are")
)

// FetchBackup reads the newest whole backup from a PubSub node, by the address
// and secret of a config: those of the gateway that was, or of an owner. gateway
// is whose; where it is "" it is found, if there is one. tell gets what is to be
// said of those that were left out, a line each.
func FetchBackup(ctx context.Context, c *config.Config, gateway string, tell func(string)) (sealed []byte, of bridge.Backup, err error) {
	cfg, err := bridgeConfig(c, clock.Verifying(clock.Machine()))
	if err != nil {
		return nil, of, err
	}
	cfg.Rooms = nil
	services := []string{cfg.PubSub}
	if c.XMPP.Account != nil && cfg.PubSub == "" {
		services = append(services, bridge.ServicePEP) // where it is if the server lets nobody make nodes
	}
	var first error
	for _, service := range services {
		cfg.PubSub = service
		err := bridge.Briefly(ctx, cfg, nil, slog.New(slog.DiscardHandler), func(b *bridge.Bridge) error {
			all, err := findBackups(ctx, b, gateway)
			if err == nil {
				sealed, of, err = newestWhole(ctx, b, all, tell)
			}
			return err
		})
		if err == nil {
			return sealed, of, nil
		}
		elsewhere := errors.Is(err, errNoBackup) || errors.Is(err, errUnlisted) || errors.Is(err, bridge.ErrNoService)
		if first == nil || !elsewhere || errors.Is(first, bridge.ErrNoService) {
			first = err
		}
		if !elsewhere {
			break
		}
	}
	return nil, bridge.Backup{}, first
}

// findBackups lists the backups of a gateway, or of the only one that has some
// which this session may read.
func findBackups(ctx context.Context, b *bridge.Bridge, gateway string) ([]bridge.Backup, error) {
	if gateway != "" {
		all, err := b.Backups(ctx, gateway)
		if err == nil && len(all) == 0 {
			err = fmt.Errorf("%w: there is no node %s/backup, or nothing in it", errNoBackup, gateway)
		}
		return all, err
	}
	names, err := b.BackupNodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w, so --gateway ID must say whose backup it is: %w", errUnlisted, err)
	}
	var found [][]bridge.Backup
	var refusal error
	for _, name := range names {
		all, err := b.Backups(ctx, name)
		switch {
		case ctx.Err() != nil:
			return nil, err
		case err != nil:
			refusal = err // of another's
		case len(all) > 0:
			found = append(found, all)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var which []string
		for _, all := range found {
			which = append(which, fmt.Sprintf("%s (%s)", all[0].Gateway, all[0].Made.Local().Format(time.DateTime)))
		}
		return nil, fmt.Errorf("there are backups of several gateways: %s; --gateway ID says which", strings.Join(which, ", "))
	case refusal != nil:
		return nil, fmt.Errorf("there are backups that this address may not read: %w", refusal)
	}
	return nil, fmt.Errorf("%w: the service shows no node of backups to this address; if there is one all the same, --gateway ID asks for it", errNoBackup)
}

// newestWhole reads the newest backup of which nothing is missing.
func newestWhole(ctx context.Context, b *bridge.Bridge, all []bridge.Backup, tell func(string)) ([]byte, bridge.Backup, error) {
	var first error
	for _, of := range all {
		sealed, err := b.ReadBackup(ctx, of)
		if err == nil {
			return sealed, of, nil
		}
		err = fmt.Errorf("the backup of %s cannot be used: %w", of.Made.Local().Format(time.DateTime), err)
		if !errors.Is(err, bridge.ErrBackupParts) {
			return nil, of, err
		}
		tell(err.Error())
		if first == nil {
			first = err
		}
	}
	return nil, bridge.Backup{}, fmt.Errorf("none of the backups there is whole; %w", first)
}

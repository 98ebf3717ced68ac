package bridge

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
)

const (
	// mostPart is how much of a backup goes into one item at most: as text it
	// fits in the stanzas of 16 kB that the gateway asks of a server. A server
	// that takes less has it halved, to leastPart.
	mostPart  = 8 << 10
	leastPart = 1 << 10
	// MaxBackup is the most that is kept on a node: of the 256 items that
	// Prosody keeps by itself a quarter.
	MaxBackup = 64 * mostPart

	// maxBackupNodes bounds the gateways that are looked at, maxGateway the
	// length of their ids.
	maxBackupNodes = 50
	maxGateway     = 40

	typeBackup  = "application/octet-stream"
	stampLayout = "20060102T150405Z"
)

// What is said of backups.
var (
	ErrBackupTooBig = fmt.Errorf("the backup is too big for a node, which takes %d kB", MaxBackup>>10)
	ErrBackupParts  = errors.New("the backup on the node is not whole")
	ErrBackupCut    = errors.New("the service did not keep all parts of the backup")
	ErrNoService    = errors.New("there is no PubSub service") // of Briefly
)

// A Backup is one on a node, or what is left of it.
type Backup struct {
	Gateway string    // id
	Made    time.Time // to the second; later for each of a node
	Parts   int       // items that it was published as
	There   int       // parts that are there

	digest string // SHA-256 of the whole, in hexadecimal
}

// Whole reports whether all parts are there.
func (b Backup) Whole() bool { return b.There == b.Parts }

// part names the item of a part, counted from 1. All that a reader must know of
// the whole is in it, so that each part tells which others there are.
func (b Backup) part(n int) string {
	return fmt.Sprintf("%s-%s-%d-%d", b.Made.UTC().Format(stampLayout), b.digest, n, b.Parts)
}

var partPattern = regexp.MustCompile(`^(\d{8}T\d{6}Z)-([0-9a-f]{64})-([1-9]\d{0,3})-([1-9]\d{0,3})$`)

// parsePart takes the name of an item apart.
func parsePart(id string) (b Backup, n int, ok bool) {
	m := partPattern.FindStringSubmatch(id)
	if m == nil {
		return Backup{}, 0, false
	}
	made, err := time.Parse(stampLayout, m[1])
	n, _ = strconv.Atoi(m[3])
	parts, _ := strconv.Atoi(m[4])
	return Backup{Made: made, Parts: parts, digest: m[2]}, n, err == nil && n <= parts && parts <= MaxBackup/leastPart
}

// backupNode is where a gateway's backups are.
func (b *Bridge) backupNode(gateway string) *node {
	return b.node(gateway+"/"+string(laneBackup), "", laneBackup)
}

// KeepBackup publishes a backup, which must be encrypted, to the gateway's node
// of backups, in parts; reads it back; and then removes all but the newest keep
// from the node. The node is readable by the gateway itself and by the owners of
// it. A backup that was not published to its end is none, and the ones before
// are there still.
//
// Where the session ends meanwhile it goes on with the next, until ctx ends.
func (b *Bridge) KeepBackup(ctx context.Context, made time.Time, sealed []byte, keep int) (Backup, error) {
	if len(sealed) > MaxBackup {
		return Backup{}, fmt.Errorf("cannot keep a backup of %d kB: %w", len(sealed)>>10, ErrBackupTooBig)
	}
	before, err := b.Backups(ctx, b.cfg.Gateway)
	if err != nil {
		return Backup{}, err
	}
	made = made.UTC().Truncate(time.Second)
	if len(before) > 0 && !made.After(before[0].Made) {
		made = before[0].Made.Add(time.Second) // a clock went back; the last one is the newest all the same
	}
	sum := sha256.Sum256(sealed)
	kept := Backup{Gateway: b.cfg.Gateway, Made: made, digest: hex.EncodeToString(sum[:])}
	size := cmp.Or(int(b.partSize.Load()), mostPart)
	for {
		kept.Parts = (len(sealed) + size - 1) / size
		err := b.publishParts(ctx, kept, sealed, size)
		if Judge(err) == Split && size/2 >= leastPart {
			size /= 2
			b.partSize.Store(int64(size))
			continue
		}
		if err != nil {
			return Backup{}, fmt.Errorf("cannot keep the backup on the server: %w", err)
		}
		break
	}
	all, err := b.Backups(ctx, b.cfg.Gateway)
	if err != nil {
		return Backup{}, err
	}
	if len(all) == 0 || all[0].digest != kept.digest || !all[0].Whole() {
		return Backup{}, fmt.Errorf("%w: it allows too few items, or another gateway writes to its node", ErrBackupCut)
	}
	// What cannot be read back is no backup.
	if back, err := b.ReadBackup(ctx, all[0]); err != nil {
		return Backup{}, err
	} else if !bytes.Equal(back, sealed) {
		return Backup{}, fmt.Errorf("%w: it gives back something else", ErrBackupCut)
	}
	b.shareBackups(ctx)
	if err := b.removeBackups(ctx, all, keep); err != nil {
		b.log.Warn("old backups are left on the server until it drops them", "error", err)
	}
	return all[0], nil
}

func (b *Bridge) publishParts(ctx context.Context, kept Backup, sealed []byte, size int) error {
	n := b.backupNode(b.cfg.Gateway)
	i := 0
	for part := range slices.Chunk(sealed, size) {
		i++
		text, err := xml.Marshal(data{CID: contentID(part), Type: typeBackup, Base64: base64.StdEncoding.EncodeToString(part)})
		if err != nil {
			return err
		}
		for {
			err = b.publish(ctx, n, kept.part(i), text)
			if !errors.Is(err, stream.ErrClosed) && !errors.Is(err, ErrOffline) || !b.linked(ctx) {
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// linked waits for a session, where there will be one.
func (b *Bridge) linked(ctx context.Context) bool {
	if b.brief {
		return false
	}
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-look.C: // first, because the one that ended may still stand there
		}
		if b.link.Load() != nil {
			return true
		}
	}
}

// shareBackups has owners read the node at once, if that can be; else it is
// tried again, as for all nodes.
func (b *Bridge) shareBackups(ctx context.Context) {
	l := b.link.Load()
	if l == nil {
		return
	}
	n := b.backupNode(b.cfg.Gateway)
	if err := l.sync(ctx, n); err != nil {
		n.shared.Store(false)
		b.log.Warn("owners cannot be let in to the backups yet", "error", err)
	}
}

// removeBackups takes from the node what is older than the newest keep that are
// whole: older ones, and what was not published to its end.
func (b *Bridge) removeBackups(ctx context.Context, all []Backup, keep int) error {
	l := b.link.Load()
	if l == nil {
		return ErrOffline
	}
	n := b.backupNode(b.cfg.Gateway)
	ids, err := l.itemIDs(ctx, n)
	if err != nil {
		return err
	}
	wanted := make(map[string]bool)
	for _, w := range all {
		if w.Whole() && keep > 0 {
			keep--
			for i := range w.Parts {
				wanted[w.part(i+1)] = true
			}
		}
	}
	for _, id := range ids {
		if wanted[id] {
			continue
		}
		_, err := l.ask(ctx, retracting, n.name, stanza.SetIQ, pubsubElement{Retract: &retractElement{Node: n.name, Item: itemRef{id}}})
		if err != nil && !is(err, stanza.ItemNotFound) {
			return err
		}
	}
	return nil
}

// Backups lists those on the node of a gateway, the newest first, also such as
// are not whole. Where there is no node there are none.
func (b *Bridge) Backups(ctx context.Context, gateway string) ([]Backup, error) {
	l := b.link.Load()
	if l == nil {
		return nil, ErrOffline
	}
	ids, err := l.itemIDs(ctx, b.backupNode(gateway))
	if err != nil {
		return nil, err
	}
	type key struct {
		made, digest string
		parts        int
	}
	found := make(map[key]*Backup)
	var all []Backup
	seen := make(map[string]bool)
	for _, id := range ids {
		part, _, ok := parsePart(id)
		if !ok || seen[id] {
			continue
		}
		seen[id] = true
		k := key{part.Made.Format(stampLayout), part.digest, part.Parts}
		if found[k] == nil {
			part.Gateway = gateway
			found[k] = &part
		}
		found[k].There++
	}
	for _, f := range found {
		all = append(all, *f)
	}
	slices.SortFunc(all, func(x, y Backup) int {
		return cmp.Or(y.Made.Compare(x.Made), cmp.Compare(y.There*x.Parts, x.There*y.Parts), cmp.Compare(x.part(1), y.part(1)))
	})
	return all, nil
}

// BackupNodes gives the ids of the gateways whose nodes of backups the service
// names; whether they may be read shows when that is tried.
func (b *Bridge) BackupNodes(ctx context.Context) ([]string, error) {
	l := b.link.Load()
	if l == nil {
		return nil, ErrOffline
	}
	var list struct {
		Query itemsQuery `xml:"http://jabber.org/protocol/disco#items query"`
	}
	if err := l.get(ctx, l.service, itemsQuery{}, &list); err != nil {
		return nil, fmt.Errorf("cannot ask %s which nodes there are: %w", l.service, err)
	}
	var gateways []string
	for _, item := range list.Query.Items {
		id, ok := strings.CutSuffix(item.Node, "/"+string(laneBackup))
		if ok && id != "" && len(id) <= maxGateway && !strings.Contains(id, "/") && !slices.Contains(gateways, id) && len(gateways) < maxBackupNodes {
			gateways = append(gateways, id)
		}
	}
	slices.Sort(gateways)
	return gateways, nil
}

// ReadBackup gives a backup as it was published. The error wraps
// [ErrBackupParts] where a part is missing, or is not as it was.
func (b *Bridge) ReadBackup(ctx context.Context, from Backup) ([]byte, error) {
	l := b.link.Load()
	if l == nil {
		return nil, ErrOffline
	}
	if !from.Whole() {
		return nil, fmt.Errorf("%w: %d of its %d parts are there", ErrBackupParts, from.There, from.Parts)
	}
	n := b.backupNode(from.Gateway)
	var sealed []byte
	for i := range from.Parts {
		part, err := l.backupPart(ctx, n, from.part(i+1))
		if err != nil {
			return nil, fmt.Errorf("part %d of %d: %w", i+1, from.Parts, err)
		}
		if sealed = append(sealed, part...); len(sealed) > MaxBackup {
			return nil, fmt.Errorf("%w: it is too long", ErrBackupParts)
		}
	}
	if sum := sha256.Sum256(sealed); hex.EncodeToString(sum[:]) != from.digest {
		return nil, fmt.Errorf("%w: it was altered", ErrBackupParts)
	}
	return sealed, nil
}

// backupPart reads one item. All at once would be a stanza that is too big.
func (l *link) backupPart(ctx context.Context, n *node, id string) ([]byte, error) {
	items, err := l.fetch(ctx, n, itemsElement{Items: []itemElement{{ID: id}}})
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		if item.ID != id {
			continue
		}
		var d data
		if xml.Unmarshal(bytes.TrimSpace(item.Payload), &d) != nil || d.XMLName.Space != nsBoB {
			return nil, fmt.Errorf("%w: the part was altered", ErrBackupParts)
		}
		part, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(d.Base64), ""))
		if err != nil || d.CID != contentID(part) {
			return nil, fmt.Errorf("%w: the part was altered", ErrBackupParts)
		}
		return part, nil
	}
	return nil, fmt.Errorf("%w: the part is missing", ErrBackupParts)
}

// itemIDs names the items of a node (XEP-0060 section 5.5); none where there is
// no node. The nodes of another's account are not shown to everybody who may
// read them; then the newest are fetched.
func (l *link) itemIDs(ctx context.Context, n *node) ([]string, error) {
	var list struct {
		Query itemsQuery `xml:"http://jabber.org/protocol/disco#items query"`
	}
	var ids []string
	answer, err := l.ask(ctx, reading, n.name, stanza.GetIQ, itemsQuery{Node: n.name})
	if err == nil {
		if err := answer.Unmarshal(&list); err != nil {
			return nil, fmt.Errorf("cannot %s node %s: %w", reading, n.name, err)
		}
		for _, item := range list.Query.Items {
			ids = append(ids, item.Name)
		}
		if len(ids) > 0 {
			return ids, nil
		}
	} else if !errors.As(err, new(*refusal)) {
		return nil, err
	}
	items, err := l.items(ctx, n, maxReadBackup)
	for _, item := range items {
		ids = append(ids, item.ID)
	}
	return ids, err
}

// maxReadBackup is how many parts fit in a stanza that can be read.
const maxReadBackup = 20

// Briefly has a session for what do does, and no more: nobody is told that the
// gateway is there, and what people send is not answered. A server may end the
// session of a component that is at work for its sake, so none must be; an
// account's goes on. Auth may be nil where nodes are only read.
func Briefly(ctx context.Context, cfg Config, auth Authorizer, log *slog.Logger, do func(*Bridge) error) error {
	if auth == nil {
		auth = nobody{}
	}
	b, err := New(cfg, Options{Auth: auth, Log: log})
	if err != nil {
		return err
	}
	b.brief = true
	b.cfg.Stream.Handler = nil
	if own := b.cfg.Stream.Account; own != nil {
		own.JID, b.cfg.Stream.Resource = own.JID.Bare(), "backup-"+rand.Text() // not to end a session at work
	}
	session, err := stream.Dial(ctx, b.cfg.Stream)
	if err != nil {
		return fmt.Errorf("cannot log in: %w; %s", err, adviseLogin(err))
	}
	defer session.Close()
	l, err := b.establish(ctx, session)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoService, err)
	}
	b.link.Store(l)
	defer b.link.Store(nil)
	return do(b)
}

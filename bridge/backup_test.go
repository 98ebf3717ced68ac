package bridge

import (
	"bytes"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
)

// TestBackupPart holds how parts are named: a gateway of tomorrow reads what one
// of today kept.
func TestBackupPart(t *testing.T) {
	made := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	b := Backup{Made: made, Parts: 12, digest: strings.Repeat("0f", 32)}
	const want = "20261123T120000Z-0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f-3-12"
	if got := b.part(3); got != want {
		t.Fatalf("the third is %s", got)
	}
	if got, n, ok := parsePart(want); !ok || n != 3 || got.Parts != 12 || got.digest != b.digest || !got.Made.Equal(made) {
		t.Errorf("it is read as %+v, %d, %v", got, n, ok)
	}
	for _, id := range []string{
		"", "current", strings.Replace(want, "-3-12", "-13-12", 1), strings.Replace(want, "-3-12", "-0-12", 1), strings.Replace(want, "-3-12", "-3-9999", 1),
		strings.Replace(want, "20261123", "20261323", 1), want + "-1", want[:len(want)-10],
	} {
		if _, _, ok := parsePart(id); ok {
			t.Errorf("%q is taken for a part", id)
		}
	}
}

// TestBackupBehindLimits has servers that take little in one stanza, each in its
// way, and one whose session is cut.
func TestBackupBehindLimits(t *testing.T) {
	const most = 3000 // of payload
	tooBig := func(s xmpptest.Asked) bool {
		return strings.Contains(s.Inner, "<publish ") && len(s.Inner) > most+logEnvelope
	}
	cut := new(atomic.Bool)
	for name, test := range map[string]struct {
		parts  int
		before func(p *xmpptest.Peer, s xmpptest.Asked) bool
	}{
		"none": {2, nil},
		"refused": {5, func(p *xmpptest.Peer, s xmpptest.Asked) bool {
			if !tooBig(s) {
				return false
			}
			p.Refuse(s, "modify", "<not-acceptable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/><payload-too-big xmlns='http://jabber.org/protocol/pubsub#errors'/>")
			return true
		}},
		"closed": {5, func(p *xmpptest.Peer, s xmpptest.Asked) bool {
			if !tooBig(s) {
				return false
			}
			p.Write("<stream:error><policy-violation xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>")
			p.Conn.Close()
			return true
		}},
		"cut": {2, func(p *xmpptest.Peer, s xmpptest.Asked) bool {
			if !strings.Contains(s.Inner, "-2-2'") && !strings.Contains(s.Inner, `-2-2"`) || !cut.CompareAndSwap(false, true) {
				return false
			}
			p.Conn.Close()
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			service := &xmpptest.PubSub{Before: test.before}
			r := runScripted(t, xmpptest.Serve(t, service.Answer), nil)
			r.waitSession(true)
			sealed := someBackup(mostPart + 2000)
			kept, err := r.KeepBackup(context30(t), noon, sealed, 1)
			if err != nil || kept.Parts != test.parts {
				t.Fatalf("%+v, %v", kept, err)
			}
			if back, err := r.ReadBackup(context30(t), kept); err != nil || !bytes.Equal(back, sealed) {
				t.Errorf("read back are %d bytes, %v", len(back), err)
			}
		})
	}
}

// TestBackupNotKept has services that forget or alter a part, and one that takes
// none: what is not there to its end is not called a backup.
func TestBackupNotKept(t *testing.T) {
	second := func(s xmpptest.Asked) bool { return strings.Contains(s.Inner, "-2-2") }
	for name, test := range map[string]struct {
		want   error
		before func(p *xmpptest.Peer, s xmpptest.Asked) bool
	}{
		"forgotten": {ErrBackupCut, func(p *xmpptest.Peer, s xmpptest.Asked) bool {
			if second(s) && s.Type == "set" {
				p.Result(s, "")
				return true
			}
			return false
		}},
		"altered": {ErrBackupParts, func(p *xmpptest.Peer, s xmpptest.Asked) bool {
			if second(s) && s.Type == "get" {
				id := partPattern.FindString(s.Inner[strings.Index(s.Inner, "2026"):][:len("20261123T120000Z")+1+64+4])
				p.Result(s, "<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='x'><item id='"+id+
					"'><data xmlns='urn:xmpp:bob' cid='"+contentID([]byte("Hi"))+"'>SG8=</data></item></items></pubsub>")
				return true
			}
			return false
		}},
		// All parts agree with themselves, and are not what was published.
		"replaced": {ErrBackupParts, func(p *xmpptest.Peer, s xmpptest.Asked) bool {
			if second(s) && s.Type == "get" {
				id := partPattern.FindString(s.Inner[strings.Index(s.Inner, "2026"):][:len("20261123T120000Z")+1+64+4])
				p.Result(s, "<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='x'><item id='"+id+
					"'><data xmlns='urn:xmpp:bob' cid='"+contentID([]byte("Ho"))+"'>SG8=</data></item></items></pubsub>")
				return true
			}
			return false
		}},
	} {
		t.Run(name, func(t *testing.T) {
			service := &xmpptest.PubSub{Before: test.before}
			r := runScripted(t, xmpptest.Serve(t, service.Answer), nil)
			r.waitSession(true)
			if _, err := r.KeepBackup(context30(t), noon, someBackup(mostPart+1), 1); !errors.Is(err, test.want) {
				t.Errorf("it is said %v, want %v", err, test.want)
			}
		})
	}
	r := testBridge(t, "")
	if _, err := r.KeepBackup(context30(t), time.Now(), make([]byte, MaxBackup+1), 1); !errors.Is(err, ErrBackupTooBig) {
		t.Errorf("of one that is too big it is said %v", err)
	}
	if _, err := r.KeepBackup(context30(t), time.Now(), make([]byte, 1), 1); !errors.Is(err, ErrOffline) {
		t.Errorf("without a session it is said %v", err)
	}
}

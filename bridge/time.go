package bridge

import (
	"context"
	"encoding/xml"
	"errors"
	"strings"
	"time"

	"mellium.im/xmpp/jid"
)

// timeEvery is how often the server is asked for the time.
const timeEvery = time.Hour

// askTime asks the server for the time (XEP-0202) where somebody wants to know,
// now and then. Only the gateway's own server is asked.
func (l *link) askTime(ctx context.Context) {
	if l.bridge.onTime == nil {
		return
	}
	tick := time.NewTicker(timeEvery)
	defer tick.Stop()
	for {
		var all error
		for _, server := range l.servers() {
			began := time.Now()
			told, err := l.timeOf(ctx, server)
			if err == nil {
				l.bridge.onTime(told, time.Since(began))
				all = nil
				break
			}
			all = errors.Join(all, err)
		}
		if all != nil && ctx.Err() == nil {
			l.bridge.log.Info("the server does not tell the time", "error", all)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// servers are those who may know the time. A component does not learn its
// server's name: it is most likely what its own name, or the service's, ends
// in.
func (l *link) servers() []jid.JID {
	if !l.bridge.component {
		return []jid.JID{l.bridge.account.Domain()}
	}
	var all []jid.JID
	for _, host := range []jid.JID{l.service.Domain(), l.bridge.domain} {
		if _, parent, found := strings.Cut(host.Domainpart(), "."); found {
			if j, err := jid.Parse(parent); err == nil {
				all = append(all, j)
			}
		}
	}
	return append(all, l.service.Domain())
}

func (l *link) timeOf(ctx context.Context, server jid.JID) (time.Time, error) {
	var answer struct {
		Time timeQuery `xml:"urn:xmpp:time time"`
	}
	ask := struct {
		XMLName xml.Name `xml:"urn:xmpp:time time"`
	}{}
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	if err := l.get(ctx, server, ask, &answer); err != nil {
		return time.Time{}, err
	}
	return time.Parse(time.RFC3339, answer.Time.UTC) // the profile of XEP-0082
}

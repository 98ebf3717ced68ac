package coap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// maxSampled is how many resources are read of a device that nobody knows.
const maxSampled = 4

// sample reads a few of the resources that a peer has, so that people know what
// it is; with none given it is asked for them.
func (s *session) sample(ctx context.Context, p *peer, profiles *profile.Library, all []resource, stranger *devices.Stranger) error {
	if len(all) == 0 {
		var err error
		if all, err = (asker{session: s}).look(ctx, p); err != nil {
			return err
		}
	}
	for _, one := range all[:min(len(all), maxSampled)] {
		one.accept = NoFormat
		if len(one.formats) > 0 {
			one.accept = one.formats[0]
		}
		got, err := s.do(ctx, p, one.request())
		if err != nil {
			return err
		}
		if !got.ok() {
			continue
		}
		out, err := posted(profiles, profile.Message{Topic: strings.Join(one.path, "/"), Payload: got.payload, ContentFormat: got.format, Received: time.Now()})
		if err != nil || stranger.Profile != "" && stranger.Profile != out.Profile {
			continue
		}
		stranger.Profile = out.Profile
		for _, reading := range out.Readings {
			stranger.Fields = append(stranger.Fields, reading.Fields...)
		}
	}
	return nil
}

// posted reads what an unknown device holds. A decoder that panics does not
// understand it.
func posted(profiles *profile.Library, m profile.Message) (out profile.Output, err error) {
	if profiles == nil {
		return out, errors.New("there are no profiles")
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decoder panics: %v", r)
		}
	}()
	return profiles.Posted(m)
}

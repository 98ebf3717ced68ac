package profile

import (
	"container/list"
	"slices"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
)

// keptMessages are the newest messages of topics, which an announcement may
// make understood, or better understood.
type keptMessages struct {
	byTopic  map[string]*list.Element      // of *keptMessage
	byDevice map[deviceKey]map[string]bool // topics of a device that a profile recognises
	order    *list.List                    // oldest first
	count    uint64
	bytes    int // of all
}

type keptMessage struct {
	Message
	of    deviceKey       // the device that a profile recognises; zero if none does
	told  map[string]bool // what was announced by then and given to the caller: fields, and availability
	place uint64          // in the order in which they came
	size  int             // bytes, with those of told
}

func newKeptMessages() keptMessages {
	return keptMessages{byTopic: make(map[string]*list.Element), byDevice: make(map[deviceKey]map[string]bool), order: list.New()}
}

// keep remembers a message in the place of the one before it on its topic.
func (k *keptMessages) keep(m Message, of deviceKey, told map[string]bool) {
	size := len(m.Topic) + len(m.Payload)
	if size > maxKeptBytes {
		return
	}
	if e := k.byTopic[m.Topic]; e != nil {
		k.drop(e)
	}
	for id := range told {
		size += len(id)
	}
	if size > maxKeptTotal {
		return
	}
	for k.order.Len() >= maxKept || k.bytes+size > maxKeptTotal {
		k.drop(k.order.Front())
	}
	k.bytes += size
	m.Topic, m.Payload = strings.Clone(m.Topic), slices.Clone(m.Payload)
	k.count++
	k.byTopic[m.Topic] = k.order.PushBack(&keptMessage{m, of, told, k.count, size})
	if of != (deviceKey{}) {
		if k.byDevice[of] == nil {
			k.byDevice[of] = make(map[string]bool)
		}
		k.byDevice[of][m.Topic] = true
	}
}

func (k *keptMessages) drop(e *list.Element) {
	m := k.order.Remove(e).(*keptMessage)
	k.bytes -= m.size
	delete(k.byTopic, m.Topic)
	if topics := k.byDevice[m.of]; topics != nil {
		if delete(topics, m.Topic); len(topics) == 0 {
			delete(k.byDevice, m.of)
		}
	}
}

// on gives the messages of topics and of devices, oldest first.
func (k *keptMessages) on(topics []string, of []deviceKey) (all []*keptMessage) {
	wanted := make(map[string]bool)
	for _, topic := range topics {
		wanted[topic] = true
	}
	for _, device := range of {
		for topic := range k.byDevice[device] {
			wanted[topic] = true
		}
	}
	for topic := range wanted {
		if e := k.byTopic[topic]; e != nil {
			all = append(all, e.Value.(*keptMessage))
		}
	}
	slices.SortFunc(all, func(a, b *keptMessage) int {
		if a.place < b.place {
			return -1
		}
		return 1
	})
	return all
}

// toldBy is what outputs tell.
func toldBy(all []Output) map[string]bool {
	told := make(map[string]bool)
	for _, out := range all {
		for _, r := range out.Readings {
			for _, f := range r.Fields {
				told[out.Identity+"\n"+f.Name] = true
			}
		}
		told[out.Identity] = out.Availability != devices.AvailabilityUnknown
	}
	return told
}

// without leaves out of an output what was told.
func (o *Output) without(told map[string]bool) {
	if told[o.Identity] {
		o.Availability = devices.AvailabilityUnknown
	}
	for i := range o.Readings {
		r := &o.Readings[i]
		r.Fields = slices.DeleteFunc(r.Fields, func(f devices.Field) bool { return told[o.Identity+"\n"+f.Name] })
	}
	o.Readings = slices.DeleteFunc(o.Readings, func(r devices.Reading) bool { return len(r.Fields) == 0 })
	for i := range o.Children {
		o.Children[i].without(told)
	}
}

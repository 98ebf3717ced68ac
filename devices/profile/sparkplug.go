package profile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/sparkplug"
)

// readSparkplug makes a document of the metrics: each at the path that its name
// is, or by its alias as "#12" where it has no name. What is historical is not
// what is now, and left out. The time of the message is the member "timestamp";
// that of a death is of the connection, and no time at all.
func readSparkplug(payload []byte, captures map[string]string) (doc *node, identity string, available devices.Availability, err error) {
	p, err := sparkplug.Parse(payload)
	if err != nil {
		return nil, "", available, err
	}
	if len(p.Metrics) > maxLabels {
		return nil, "", available, fmt.Errorf("more than %d metrics", maxLabels)
	}
	doc = &node{kind: objectNode}
	switch captures["type"] {
	case "NDEATH", "DDEATH":
		available = devices.Offline
	default:
		available = devices.Online
		if at, err := devices.ParseNumber(strconv.FormatUint(p.Timestamp, 10)); err == nil && p.Timestamp > 0 {
			doc.members = append(doc.members, member{"timestamp", &node{value: at}})
		}
	}
	for _, m := range p.Metrics {
		name := m.Name
		if name == "" {
			name = fmt.Sprintf("#%d", m.Alias)
		}
		if m.IsHistorical || !m.Value.IsValid() || len(name) > maxMemberName || strings.Count(name, "/") >= maxDepth {
			continue
		}
		doc.put(strings.Split(name, "/"), &node{value: m.Value, unit: m.Unit})
	}
	return doc, "", available, nil
}

// put adds a node at a path of objects.
func (n *node) put(path []string, v *node) {
	for _, name := range path[:len(path)-1] {
		next := n.member(name)
		if next == nil || next.kind != objectNode {
			next = &node{kind: objectNode}
			n.members = append(n.members, member{name, next})
		}
		n = next
	}
	n.members = append(slices.Clip(n.members), member{path[len(path)-1], v})
}

package profile

import (
	"errors"
	"strconv"

	"github.com/porchlight-iot/porchlight/devices"
)

// readCoIoT reads the messages of CoIoT: a status, {"G":[[channel, id, value],
// …]}, becomes an object of the values by their ids, a description,
// {"blk":[…], "sen":[{"I": id, "D": name, …}, …]}, one of what it says of each.
// A value that is a list of one is that one.
func readCoIoT(m Message) ([]part, error) {
	in, err := parseJSON(m.Payload, maxMembers)
	if err != nil {
		return nil, err
	}
	doc := &node{kind: objectNode}
	switch status, description := in.member("G"), in.member("sen"); {
	case status != nil && status.kind == listNode:
		for _, item := range status.items {
			if item.kind != listNode || len(item.items) < 3 || item.items[1].kind != valueNode {
				return nil, errors.New("not CoIoT: no list of channels, ids and values")
			}
			v := item.items[2]
			switch {
			case v.kind == listNode && len(v.items) == 1:
				v = v.items[0]
			case v.kind == listNode:
				v = textNode(v.listed())
			}
			doc.members = append(doc.members, member{item.items[1].value.String(), v})
		}
	case description != nil && description.kind == listNode:
		for i, item := range description.items {
			id := item.member("I")
			if id == nil || id.kind != valueNode {
				return nil, errors.New("not CoIoT: sensor " + strconv.Itoa(i) + " has no id")
			}
			about := &node{kind: objectNode}
			for _, m := range item.members {
				switch {
				case m.name == "I":
				case m.node.kind == listNode:
					about.members = append(about.members, member{m.name, textNode(m.node.listed())})
				case m.node.kind == valueNode:
					about.members = append(about.members, member{m.name, textNode(m.node.value.String())})
				}
			}
			doc.members = append(doc.members, member{id.value.String(), about})
		}
	default:
		return nil, errors.New("not CoIoT: neither a status nor a description")
	}
	return []part{{doc: doc}}, nil
}

// listed writes the values of a list with commas between.
func (n *node) listed() string {
	var items []string
	for _, item := range n.items {
		if item.kind == valueNode {
			items = append(items, item.value.String())
		}
	}
	return devices.List(items...).String()
}

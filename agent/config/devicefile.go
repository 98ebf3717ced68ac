package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DeviceFile gives the text of a device's own file, with what it is about in
// comments, a line each.
func DeviceFile(d Device, about []string) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	add := func(key, comment string, value *yaml.Node) {
		root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key, HeadComment: comment}, value)
	}
	add("id", "Name for good, and part of its address. Another id would be another device.", text(string(d.ID)))
	add("name", "What people call it. Change it as you like.", text(d.Name))
	add("profile", "Firmware profile that understands it.", text(d.Profile))
	key, place := d.placeNode()
	add(key, "Where it is found. For new hardware in its place, change this and keep the id.", place)
	if d.Identity != "" {
		add("identity", "The firmware's own name of it.", text(d.Identity))
	}
	if d.Parent != "" {
		add("parent", "The device that it is reached through.", text(string(d.Parent)))
	}
	var b bytes.Buffer
	for _, line := range about {
		fmt.Fprintln(&b, "# "+line)
	}
	fmt.Fprintln(&b, "#\n# After a change: systemctl reload porchlight, or kill -HUP its process.")
	if err := encodeYAML(&b, root); err != nil {
		return nil, err
	}
	fmt.Fprintln(&b, "# More, where it is needed:\n#groups: [lights]\n#timezone: Europe/Berlin")
	return b.Bytes(), nil
}

// Amend gives the text of a device's own file with the name, the profile and
// the place of d. What else is there stays, comments too.
func Amend(file []byte, d Device) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(file, &doc); err != nil {
		return nil, fmt.Errorf("cannot change the file: %w", err)
	}
	if doc.Kind != yaml.DocumentNode || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("cannot change the file: it is no mapping")
	}
	root := doc.Content[0]
	set := func(key string, value *yaml.Node) {
		for i := 0; i+1 < len(root.Content); i += 2 {
			if root.Content[i].Value != key {
				continue
			}
			if value == nil {
				root.Content = append(root.Content[:i], root.Content[i+2:]...)
				return
			}
			value.LineComment, value.FootComment = root.Content[i+1].LineComment, root.Content[i+1].FootComment
			root.Content[i+1] = value
			return
		}
		if value != nil {
			root.Content = append(root.Content, text(key), value)
		}
	}
	set("name", text(d.Name))
	set("profile", text(d.Profile))
	place, at := d.placeNode()
	for i := 0; i < len(root.Content); i += 2 { // the comment of the old place is the new one's
		if k := root.Content[i]; k.Value == "mqtt" || k.Value == "serial" || k.Value == "coap" {
			k.Value = place
		}
	}
	set(place, at)
	for key, value := range map[string]string{"identity": d.Identity, "parent": string(d.Parent)} {
		if value == "" {
			set(key, nil)
		} else {
			set(key, text(value))
		}
	}
	var b bytes.Buffer
	err := encodeYAML(&b, &doc)
	return b.Bytes(), err
}

func (d Device) placeNode() (key string, value *yaml.Node) {
	value = &yaml.Node{Kind: yaml.MappingNode}
	add := func(key string, v *yaml.Node) { value.Content = append(value.Content, text(key), v) }
	switch {
	case d.MQTT != nil:
		add("topic", text(d.MQTT.Topic))
		if d.MQTT.Broker != "" {
			add("broker", text(d.MQTT.Broker))
		}
		return "mqtt", value
	case d.Serial != nil:
		add("port", text(d.Serial.Port))
		add("baud", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: fmt.Sprint(d.Serial.Baud)})
		return "serial", value
	}
	value.Style = yaml.FlowStyle // {} is not to be seen otherwise
	if d.CoAP != nil && d.CoAP.URL != "" {
		add("url", text(d.CoAP.URL))
		if d.CoAP.Observe {
			add("observe", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "true"})
		}
		if d.CoAP.Every != 0 {
			add("every", text(d.CoAP.Every.String()))
		}
		for _, key := range [][2]string{{"psk_identity", d.CoAP.PSKIdentity}, {"psk_file", d.CoAP.PSKFile}, {"psk_env", d.CoAP.PSKEnv}, {"security_code_file", d.CoAP.SecurityCodeFile}, {"security_code_env", d.CoAP.SecurityCodeEnv}} {
			if key[1] != "" {
				add(key[0], text(key[1]))
			}
		}
	}
	return "coap", value
}

// text makes a scalar that is quoted where it needs to be.
func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if strings.ContainsAny(s, "\n\r") {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

func encodeYAML(b *bytes.Buffer, n *yaml.Node) error {
	e := yaml.NewEncoder(b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return fmt.Errorf("cannot write the file of a device: %w", err)
	}
	return e.Close()
}

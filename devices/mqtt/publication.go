package mqtt

// usualWindow is how many messages a client keeps under way unacknowledged
// unless it was told otherwise: Mosquitto's max_inflight_messages, and what
// client libraries do.
const usualWindow = 20

// A publication is one PUBLISH packet (MQTT 3.1.1 section 3.3).
type publication struct {
	source    string // whom to name for what cannot be used
	session   string // to which the packet id belongs
	broker    string // its name in the config; "" is our own
	topic     string
	payload   []byte
	id        uint16
	qos       byte
	duplicate bool
	retained  bool
}

// Command torture proves, or disproves, that an acknowledged reading is never
// lost, never doubled, and in order.
//
// It runs the real gateway between real parts: a Mosquitto, a Prosody, and
// devices that speak MQTT, CoAP and serial and count what they send. A device
// that gets no acknowledgement sends the same message again, for ever. What
// was acknowledged goes into a ledger outside the gateway's reach; what
// arrived is read by a subscriber that decodes it without the gateway's code.
// In each cycle faults are chosen by a seed and happen to the gateway, its
// disk, its links and its servers. Then all is mended, the devices fall
// silent, and a last reading of each has to arrive. Whatever was acknowledged
// must have arrived by then, in exactly one item, and each device's readings
// in their order.
//
//	go run ./torture -cycles 30 -seed 1
//
// The same seed makes the same plan. When in the gateway's work a fault hits
// is up to the machine, so a failure may take several tries to come back.
//
// # What is fair
//
// The other parts must not forget what the gateway was told is safe:
//
//   - Prosody keeps its nodes in SQLite. A publication is committed before it
//     is answered, and a kill leaves the system's cache alone, so Prosody may
//     be killed.
//   - Mosquitto has acknowledged messages in memory only, so before it is
//     killed its devices finish, its connection to the gateway is held, and it
//     saves. Stopped in order it saves by itself, but here too its devices
//     finish first: a broker takes a message that is sent again as a new one
//     (MQTT 3.1.1 section 4.3.2), and no gateway behind it could tell.
//   - A disk that lies is allowed to lose what was confirmed last, and so is
//     the gateway: a reading, or of an item where it ended and how it was dated.
//   - A serial device is never acknowledged and cannot repeat. What it lost is
//     printed, and does not count; what is doubled or out of order does.
//
// The gateway is a build for tests (tags torture and crashpoint), because
// nobody sets this machine's clock: what the gateway takes for it is stepped by
// an hour or ten years, slewed, or that of a machine that was just switched on,
// in 1970 (agent/clock). The devices' ledger knows the true time of each
// reading. What is published must be true to the minute, or marked as uncertain
// with bounds that are true.
package main

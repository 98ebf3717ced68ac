// Package mqtt hears devices over MQTT 3.1.1: through brokers elsewhere, with
// [Client], and through a broker of the gateway's own, with [Broker]. Both
// acknowledge a message only when its readings are safe. [Publisher] is the
// other side, for simulated devices.
//
// The way of a message is: an ear (ear.go) finds its device (directory.go),
// decodes it and hands it to the sink; the receipt then waits
// in a queue, in the order in which messages came, for its acknowledgement.
package mqtt

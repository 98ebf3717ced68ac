// Package serial hears, asks and tells devices on serial lines.
//
// A [Port] is one port with the devices on it. [Port.Run] waits until the port is
// there and is the adapter that it was (identity.go), opens it (wire.go), and is
// from then on the only one who writes to it (talk.go): it cuts what comes into
// frames and reads them by the devices' profiles (ear.go), asks what these say is
// to be asked, by Modbus (modbus.go), by IEC 62056-21 (signon.go) or as they write
// it, and carries out commands (command.go). What is to be sent, and how it is
// understood, is the profile's: see package profile and package framing.
//
// A device cannot be told that a reading was not kept, so receipts are ignored.
//
// [Ports] lists the ports of the machine, and [Probe] finds out what speaks on one.
package serial

// Package watch is the operator's side: it logs in to an account, subscribes
// to the nodes of gateways, fetches what it missed, and hands on each reading
// once. A [Ledger] keeps account of the readings' numbers, so that a reading
// which is missing, doubled or out of order does not go unnoticed.
package watch

// Package agent is the running gateway: it composes the drivers, the outbox
// and the bridge, keeps them running, and brings readings from the one to the
// other.
//
// # Who runs
//
//	Agent.Run
//	├── bridge.Run           the XMPP session and its return
//	├── forwarder.run        outbox → bridge; one goroutine a publication
//	├── supervise (each)     one driver; its goroutines are its own
//	├── orders.work (each)   the commands of one device, while it has any
//	├── house ticks          silence becomes state; state is kept
//	└── outbox               its committer, from New until the end of Run
//
// # How it stops
//
// Commands and drivers first, so that nothing new comes; then the forwarder, once what is
// under way is answered or the budget for that is used up; then the bridge,
// which takes all devices offline; the outbox last.
package agent

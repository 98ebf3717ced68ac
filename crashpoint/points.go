// Package crashpoint names the places in which a gateway may be killed with
// consequences, so that a test can kill it in each of them. In a usual build
// [At] does nothing and costs nothing; in one with the tag crashpoint the
// process kills itself at the place, and the time of passing it, that the
// environment names: PORCHLIGHT_CRASH="pack settled:3".
package crashpoint

// A Point is a place in the program, by what has happened there.
type Point string

// The way of a message in.
const (
	MessageCame     Point = "message came"     // nothing is known of it
	MessageAppended Point = "message appended" // it is numbered, in memory
	Acknowledging   Point = "acknowledging"    // it is safe, and its device does not know yet
	Acknowledged    Point = "acknowledged"     // its device was told
	Answering       Point = "answering"        // the same where CoAP answers
	Answered        Point = "answered"
)

// A commit to the store.
const (
	CommitGathered   Point = "commit gathered" // nothing is written
	ReadingsPut      Point = "readings put"    // in the transaction
	BoundariesPut    Point = "boundaries put"
	HeldPut          Point = "held put" // what may be at the server already, or what came of it
	SettledForgotten Point = "settled forgotten"
	PacksPrepared    Point = "packs prepared"
	StatesPut        Point = "states put"
	NotesPut         Point = "notes put"
	Committing       Point = "committing" // all is in the transaction
	Committed        Point = "committed"  // it is on disk, and memory does not know
	CommitApplied    Point = "commit applied"
	JournalWritten   Point = "journal written"  // and not synced
	JournalSynced    Point = "journal synced"   // and memory does not know
	JournalReplayed  Point = "journal replayed" // in the transaction
)

// The beginning and the end of the store.
const (
	StoreMissing   Point = "store missing" // and not made yet
	StoreMade      Point = "store made"    // aside
	StoreRenamed   Point = "store renamed" // its directory is not synced
	StoreCreated   Point = "store created"
	StoreOpened    Point = "store opened" // its run is not raised
	RunRaised      Point = "run raised"   // in the transaction
	StoreLoaded    Point = "store loaded"
	StoreClosing   Point = "store closing"
	StoreCommitted Point = "store committed" // for the last time
	StoreClosed    Point = "store closed"
)

// The way of a pack out.
const (
	PackFrozen      Point = "pack frozen" // from memory, its boundaries are nowhere else
	PackHandedOut   Point = "pack handed out"
	PackSplit       Point = "pack split"
	PackRefused     Point = "pack refused"
	PackReleased    Point = "pack released"
	PackSettling    Point = "pack settling" // the service has it, nobody else knows
	PackSettled     Point = "pack settled"
	NoteHandedOut   Point = "note handed out"
	NoteSettled     Point = "note settled"
	Publishing      Point = "publishing" // an item is about to be sent
	PublishAnswered Point = "publish answered"
	StanzaSent      Point = "stanza sent" // and its answer has not come
	NowPublished    Point = "now published"
	NodeMissing     Point = "node missing" // and not made yet
	NodeMade        Point = "node made"
	NodeConfigured  Point = "node configured"
	MembersSet      Point = "members set"
	ReadBack        Point = "read back" // what arrived is known, and nothing follows from it yet
	SessionUp       Point = "session up"
	SessionDown     Point = "session down"
)

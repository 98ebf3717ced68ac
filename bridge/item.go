package bridge

import (
	"fmt"
	"regexp"
	"strconv"
)

// Item ids of a log node: <store>-<first>-<last>. The store's name is
// <random>.<run> and is taken from the left, so it may itself hold a '-'.
var itemPattern = regexp.MustCompile(`^([A-Za-z0-9._-]{1,64})-([1-9][0-9]{0,19})-([1-9][0-9]{0,19})$`)

// ItemID names the pack that holds the readings first to last, both included,
// of one device in one run of one store.
func ItemID(store string, first, last uint64) string {
	return fmt.Sprintf("%s-%d-%d", store, first, last)
}

// ParseItem takes an item id apart, as [ItemID] made it.
func ParseItem(id string) (store string, first, last uint64, err error) {
	m := itemPattern.FindStringSubmatch(id)
	if m == nil {
		return "", 0, 0, fmt.Errorf("cannot read item id %.100q: want <store>-<first>-<last>", id)
	}
	first, err1 := strconv.ParseUint(m[2], 10, 64)
	last, err2 := strconv.ParseUint(m[3], 10, 64)
	if err1 != nil || err2 != nil || last < first {
		return "", 0, 0, fmt.Errorf("cannot read item id %.100q: %s to %s is no range of readings", id, m[2], m[3])
	}
	return m[1], first, last, nil
}

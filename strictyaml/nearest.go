package strictyaml

import "strings"

// Nearest gives the word of known that s was most likely meant to be, or ""
// if none is near. Case and the difference between '-' and '_' do not count.
func Nearest(s string, known []string) string {
	const longest = 64 // keeps the work small whatever the file holds
	if s == "" || len(s) > longest {
		return ""
	}
	word := plain(s)
	best, limit := "", max(1, (len(word)+1)/3)
	for _, k := range known {
		if len(k) > longest {
			continue
		}
		if d := distance(word, plain(k)); d <= limit && d < len(word) {
			best, limit = k, d-1
		}
	}
	return best
}

func plain(s string) string {
	return strings.ReplaceAll(strings.ToLower(s), "-", "_")
}

// distance counts the letters to insert, drop, change or swap with their
// neighbour to get from a to b (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			change := last[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

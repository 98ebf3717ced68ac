#!/usr/bin/env bash
# Builds the packages of the commit at hand twice: in two places, two time zones
# and under two umasks, the second time with nothing from Go's cache. All
# files must be the same to the last byte.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
git clone -q . "$work/one"
git clone -q . "$work/a place with another name"
OUT=$work/first "$work/one/scripts/package.sh" "$@" >/dev/null
(
	umask 077
	export TZ=Asia/Tokyo GOCACHE=$work/cache OUT=$work/second
	"$work/a place with another name/scripts/package.sh" "$@" >/dev/null
)
diff -r "$work/first" "$work/second"
cat "$work/second/SHA256SUMS"
echo "the two builds are the same"

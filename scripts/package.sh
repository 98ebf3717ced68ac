#!/usr/bin/env bash
# Builds what is handed out, into dist/package: Debian packages, tarballs, a
# list of what is linked in (SBOM) and check sums.
#
#   scripts/package.sh [amd64] [arm64] [armhf]
#
# PROGRAM= names another checkout to build the program of.
#
# armhf is for ARMv6, so that the first Pi Zero runs it too. The same commit
# gives the same bytes, wherever and whenever it is built with the same Go.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

GO=${GO:-go}
NFPM=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
SBOM=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

(($#)) || set -- amd64 arm64 armhf
out=${OUT:-dist/package}
commit=$(git rev-parse HEAD)
# For lack of anything better to compare, versions of untagged commits are
# ordered by their time.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git show -s --format=%ct HEAD)}
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C
if tag=$(git describe --tags --match 'v[0-9]*' 2>/dev/null); then
	version=$(sed 's/^v//; s/-\([0-9]*\)-g/+\1.g/' <<<"$tag")
else
	version=0~git$(date -d "@$SOURCE_DATE_EPOCH" +%Y%m%d.%H%M%S).${commit:0:7}
fi
version=${PACKAGE_VERSION:-$version}
if [[ -n $(git status --porcelain --untracked-files=no) ]]; then
	version+=+dirty
fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
# The SBOM names the tool by its check sum, so that is built alike too.
for tool in "$NFPM" "$SBOM"; do GOBIN=$stage/bin "$GO" install -trimpath "$tool"; done
mkdir -p "$out"
find "$out" -maxdepth 1 -type f -delete

when=$(date -d "@$SOURCE_DATE_EPOCH" -R)
printf 'porchlight (%s) unstable; urgency=medium\n\n  * Built of commit %s.\n\n -- The Porchlight project <porchlight@porchlight-iot.invalid>  %s\n' \
	"$version" "$commit" "$when" | gzip -9n >"$stage/changelog.gz"

for arch; do
	case $arch in
	amd64 | arm64) export GOARCH=$arch ;;
	armhf) export GOARCH=arm GOARM=6 ;;
	*)
		echo "package.sh: there is no architecture $arch; there are amd64, arm64 and armhf" >&2
		exit 2
		;;
	esac
	GOOS=linux CGO_ENABLED=0 "$GO" build -C "${PROGRAM:-.}" -trimpath -buildvcs=false \
		-ldflags "-s -w -buildid= -X main.version=$version -X main.commit=$commit" \
		-o "$stage/porchlight" ./cmd/porchlight
	unset GOARCH GOARM

	DEB_ARCH=$arch PACKAGE_VERSION=$version PACKAGE_STAGE=$stage \
		"$stage/bin/nfpm" package -f configs/deb/nfpm.yaml -p deb -t "$out/porchlight_${version}_$arch.deb" >"$stage/log" || { cat "$stage/log" >&2; exit 1; }

	name=porchlight-$version-linux-$arch
	mkdir "$stage/$name"
	cp "$stage/porchlight" LICENSE README.md "$stage/$name/"
	cp -r configs "$stage/$name/"
	rm -rf "$stage/$name/configs/deb"
	tar --sort=name --owner=0 --group=0 --numeric-owner --mode='u=rwX,go=rX' --mtime="@$SOURCE_DATE_EPOCH" \
		-C "$stage" -cf - "$name" | gzip -9n >"$out/$name.tar.gz"

	# A number and the time of day would differ with each run.
	"$stage/bin/cyclonedx-gomod" bin -json -noserial -licenses -version "$version" \
		-output "$stage/sbom.json" "$stage/porchlight" 2>/dev/null
	sed "s/\"timestamp\": \"[^\"]*\"/\"timestamp\": \"$(date -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)\"/" \
		"$stage/sbom.json" >"$out/$name.cdx.json"
done
(cd "$out" && sha256sum -- * >"$stage/SHA256SUMS" && mv "$stage/SHA256SUMS" .)
ls -l "$out"

#!/usr/bin/env bash
# Installs the Debian packages that the demo or the tests need:
#
#   scripts/deps.sh demo    an XMPP server, for `porchlight demo`
#   scripts/deps.sh test    that, and the other real peers of the tests
#   scripts/deps.sh package what `make package-test` needs
#   scripts/deps.sh clients those of the tests, and clients that people use
#   scripts/deps.sh npm     node and npm, for the one test that is skipped without
#
# Where everything is there it does nothing, and does it fast. The packages
# bring services; none of them is left running or enabled, because the demo and
# the tests start servers of their own. A service that was there before is not
# touched.
set -euo pipefail

demo=(prosody lua-dbi-sqlite3)
tests=(ejabberd mosquitto mosquitto-clients libcoap3-bin python3-slixmpp
	socat python3-pymodbus python3-serial-asyncio # a serial line, and a Modbus slave on it
	gcc libc6-dev) # the race detector is linked by a C compiler
clients=(profanity go-sendxmpp tmux chromium nodejs)
command -v npm >/dev/null || clients+=(npm) # that of others brings npm in the package nodejs
package=(debootstrap lintian iproute2
	qemu-user-static arch-test) # systems of other architectures
npm=(nodejs npm) # some hundred packages, so they are not among those of the tests

policy=/usr/sbin/policy-rc.d
mark='# put here by deps.sh of porchlight'

die() {
	echo "deps.sh: $*" >&2
	exit 1
}

# missing PACKAGE... prints those that are not installed.
missing() {
	local package
	for package in "$@"; do
		if [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
			echo "$package"
		fi
	done
}

# services PACKAGE... prints the services that installing them brings.
services() {
	local package
	for package in "$@"; do
		case $package in
		prosody | mosquitto) echo "$package" ;;
		ejabberd)
			echo ejabberd
			if [[ $(missing erlang-base) ]]; then # ejabberd depends on it
				printf '%s\n' epmd.socket epmd
			fi
			;;
		esac
	done
}

# forbid SERVICE... keeps them from starting while dpkg sets them up (see
# invoke-rc.d(8)). A policy that somebody else made stays as it is.
forbid() {
	if [[ -e $policy || -L $policy ]] && ! grep -qxF "$mark" "$policy"; then
		return
	fi
	local service
	{
		echo '#!/bin/sh'
		echo "$mark"
		echo "kill -0 $$ 2>/dev/null || exit 0 # one left behind forbids nothing"
		echo "case \$1 in"
		for service in "$@"; do
			echo "$service | $service.service) exit 101 ;;"
		done
		echo 'esac'
	} >"$policy.new"
	chmod 755 "$policy.new"
	mv "$policy.new" "$policy"
}

# allow takes back what forbid did.
# shellcheck disable=SC2317 # the trap calls it
allow() {
	rm -f "$policy.new"
	if grep -qsxF "$mark" "$policy"; then
		rm -f "$policy"
	fi
}

# quiet SERVICE... disables them, so that they do not come with the next boot,
# and stops those that another's policy let start.
quiet() {
	local service verdict
	for service in "$@"; do
		if [[ -d /run/systemd/system ]]; then
			systemctl disable --now "$service" >/dev/null 2>&1 || true
		elif [[ -x /etc/init.d/$service ]]; then
			update-rc.d "$service" disable >/dev/null 2>&1 || true
			verdict=0
			"$policy" "$service" start || verdict=$?
			((verdict == 101)) || service "$service" stop || true
		fi
	done
}

apt() {
	DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" </dev/null
}

# install PACKAGE... runs as root.
install() {
	local packages brought
	exec 9>/run/lock/porchlight-deps.lock # one at a time: `make demo` beside `make test`
	flock 9
	mapfile -t packages < <(missing "$@")
	((${#packages[@]})) || return 0
	mapfile -t brought < <(services "${packages[@]}")

	trap allow EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	forbid "${brought[@]}"
	# Without a list of packages, or with one so old that it names versions
	# which are no longer served, fetch it first.
	if ! apt-cache show "${packages[@]}" >/dev/null 2>&1 ||
		! apt install --no-install-recommends "${packages[@]}"; then
		apt update
		apt install --no-install-recommends "${packages[@]}"
	fi
	quiet "${brought[@]}"
}

case ${1-} in
demo) wanted=("${demo[@]}") ;;
test) wanted=("${demo[@]}" "${tests[@]}") ;;
package) wanted=("${package[@]}") ;;
clients) wanted=("${demo[@]}" "${tests[@]}" "${clients[@]}") ;;
npm)
	if command -v node >/dev/null && command -v npm >/dev/null; then
		exit 0 # not Debian's, maybe
	fi
	wanted=("${npm[@]}")
	;;
--install)
	shift
	install "$@"
	exit
	;;
*) die "usage: $0 demo|test|package|clients|npm" ;;
esac

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
	die "this is no Debian; install by your own means what these packages of Debian hold, and then call go directly: ${wanted[*]}"
fi
mapfile -t wanted < <(missing "${wanted[@]}")
((${#wanted[@]})) || exit 0

echo "installing ${wanted[*]}"
if ((EUID == 0)); then
	exec bash "$0" --install "${wanted[@]}"
elif command -v sudo >/dev/null; then
	exec sudo bash "$0" --install "${wanted[@]}"
fi
die "not root, and there is no sudo; run as root: apt-get install --no-install-recommends ${wanted[*]}"

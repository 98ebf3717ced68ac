#!/usr/bin/env bash
# Tries the Debian packages in clean systems, as root: install, set up, start,
# publish, upgrade with a backlog, also from a store of an older format, roll
# back, restore a backup in another system, remove, purge.
#
#   scripts/package-test.sh [amd64] [arm64] [armhf]
#
# Systems of another architecture run under qemu-user, of which the kernel is
# told while this runs; the XMPP server and the operator are those of this
# machine. There is no systemd in the systems: what the unit says is done by hand.
# It takes a quarter of an hour and three gigabytes, in a temporary directory.
# PRISTINE= names a folder for the clean systems, which are made there once.
set -euo pipefail
cd "$(dirname "$0")/.."
((EUID == 0)) || { echo "package-test.sh: it makes systems of their own, which root alone may" >&2; exit 1; }
for tool in debootstrap lintian ip arch-test; do
	command -v $tool >/dev/null || { echo "package-test.sh: $tool is missing: apt-get install $tool" >&2; exit 1; }
done
GO=${GO:-go}
export GO
(($#)) || set -- amd64 arm64 armhf
here=$(dpkg --print-architecture)

work=$(mktemp -d)
pids=()
binfmt=/proc/sys/fs/binfmt_misc
told=() # what the kernel was told of here
cleanup() {
	for pid in "${pids[@]}"; do
		kill "$pid" 2>/dev/null || continue
		wait "$pid" 2>/dev/null || true
	done
	for root in "$work"/root*; do
		umount -l "$root/proc" "$root/dev" 2>/dev/null || true
	done
	for cpu in "${told[@]}"; do
		if [[ $cpu == mounted ]]; then umount "$binfmt"; else echo -1 >"$binfmt/qemu-$cpu"; fi
	done
	rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'echo "FAILED at line $LINENO" >&2' ERR

say() { printf '\n=== %s\n' "$*"; }
fail() {
	echo "FAILED: $*" >&2
	for log in "$work"/*.log; do
		echo "--- $log" >&2
		tail -n 20 "$log" >&2
	done
	exit 1
}
# wait_for WHAT COMMAND... waits until it succeeds.
wait_for() {
	local what=$1 deadline=$((SECONDS + 300)) # who was away for long is tried once in a while
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < deadline)) || fail "waited in vain for $what"
		sleep 0.2
	done
}
free_port() {
	local port
	while port=$((20000 + RANDOM % 12000)); do
		(: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo $port && return; }
	done
}

# The program of before the store's newest format, packed as it is today.
say "the packages of two versions, and of one that knows only an older store"
format=$(sed -n 's/^const schemaVersion = //p' agent/outbox/file.go)
since=$(git log --format=%H -S"const schemaVersion = $format" -- agent/outbox/file.go | tail -n 1)
mkdir "$work/before"
git archive "$since^" | tar -x -C "$work/before" || fail "the commit before format $format of the store is not here: git fetch --unshallow"
for n in 1 2; do
	PACKAGE_VERSION=0~test$n OUT=$work/v$n scripts/package.sh "$@" >/dev/null
done
PACKAGE_VERSION=0~test0 OUT=$work/v0 PROGRAM=$work/before scripts/package.sh "$@" >/dev/null
"$GO" build -o "$work/porchlight" ./cmd/porchlight # the operator's
lintian --fail-on error --allow-root "$work/v1"/*.deb || fail "lintian finds errors"

pristine=${PRISTINE:-$work/pristine}
emulate() { # ARCH: has the kernel start its programs
	local cpu
	arch-test "$1" >/dev/null && return
	case $1 in
	amd64) cpu=x86_64 ;;
	arm64) cpu=aarch64 ;;
	armhf) cpu=arm ;;
	esac
	if [[ ! -e $binfmt/register ]]; then
		mount -t binfmt_misc binfmt_misc "$binfmt" || fail "this kernel has no binfmt_misc, or it may not be mounted here"
		told=(mounted)
	fi
	cat "/usr/lib/binfmt.d/qemu-$cpu.conf" >"$binfmt/register" || fail "the kernel may not be told of qemu-$cpu here"
	told=("$cpu" "${told[@]}")
	arch-test "$1" >/dev/null || fail "programs for $1 do not run under qemu-$cpu"
}
apt() { # ROOT ARGS...
	local root=$1
	shift
	DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -q -y --no-install-recommends -o APT::Sandbox::User=root "$@" </dev/null >>"$work/apt.log" 2>&1
}
system() { # ROOT ARCH: makes one of the pristine
	if [[ ! -d $pristine/$2 ]]; then
		debootstrap --variant=minbase --arch="$2" bookworm "$pristine/$2.new" >"$work/debootstrap.log"
		rm -f "$pristine/$2.new"/var/lib/apt/lists/*_Packages # under qemu apt reads them for long
		mv "$pristine/$2.new" "$pristine/$2"
	fi
	cp -a "$pristine/$2" "$1"
	mount -t proc proc "$1/proc"
	mount --bind /dev "$1/dev"
	head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$1/etc/machine-id"
	printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
	chmod 755 "$1/usr/sbin/policy-rc.d"
}

say "a Prosody"
mkdir -p "$pristine"
house=$work/root-house
system "$house" "$here"
apt "$house" update
apt "$house" install prosody openssl mosquitto-clients lua-dbi-sqlite3
c2s=$(free_port) component=$(free_port)
mkdir "$house/srv/prosody"
chroot "$house" openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
	-keyout /srv/prosody/key.pem -out /srv/prosody/cert.pem 2>/dev/null
cat >"$house/srv/prosody/prosody.cfg.lua" <<EOF
run_as_root = true
data_path = "/srv/prosody/data"
log = { info = "/srv/prosody/prosody.log" }
interfaces = { "127.0.0.1" }
c2s_ports = { $c2s }
c2s_direct_tls_ports = {}
component_ports = { $component }
modules_enabled = { "roster", "saslauth", "tls", "disco", "pep", "ping", "time", "posix", "invites", "invites_register" }
modules_disabled = { "s2s" }
allow_registration = true
registration_invite_only = true
authentication = "internal_hashed"
ssl = { certificate = "/srv/prosody/cert.pem", key = "/srv/prosody/key.pem" }
storage = { pubsub_nodes = "sql", pubsub_data = "sql" }
sql = { driver = "SQLite3", database = "pubsub.sqlite" }
VirtualHost "localhost"
Component "porch.localhost"
	component_secret = "a secret of the test"
	component_conflict_resolve = "kick_old"
Component "pubsub.localhost" "pubsub"
	admins = { "gateway@porch.localhost" }
EOF
start_prosody() {
	chroot "$house" prosody -F --config /srv/prosody/prosody.cfg.lua >"$work/prosody.log" 2>&1 &
	prosody=$!
	pids+=("$prosody")
	wait_for Prosody bash -c ": >/dev/tcp/127.0.0.1/$c2s && : >/dev/tcp/127.0.0.1/$component"
}
stop() { # PID
	kill "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}

printf "anna's password" >"$work/anna"
chmod 600 "$work/anna"

service=(chroot --userspec="porchlight:porchlight" --groups="porchlight,dialout") # as the unit does
as_service() { # ROOT ARGS...
	local in=$1
	shift
	"${service[@]}" "$in" /usr/bin/porchlight "$@" -c /etc/porchlight/porchlight.yaml
}
start_gateway() { # ROOT
	# Not by as_service: its process would be a shell of this script.
	"${service[@]}" "$1" /usr/bin/porchlight run -c /etc/porchlight/porchlight.yaml >>"$work/gateway.log" 2>&1 &
	gateway=$!
	pids+=("$gateway")
	wait_for "the gateway" bash -c ": >/dev/tcp/127.0.0.1/$broker"
}
online() { as_service "$1" outbox status --json | grep -q '"online":true'; }
publish() { # N readings
	local from=$((count + 1))
	count=$((count + $1))
	seq -f '{"COUNTER":{"C1":%.0f}}' "$from" "$count" |
		chroot "$house" mosquitto_pub -h 127.0.0.1 -p "$broker" -q 1 -t tele/kitchen/SENSOR -l
}
arrived() { grep -q "\"value\":$1[,}]" "$work/watch.out"; }
stat_in() { chroot "$root" stat -c '%a %U:%G' "$1"; }
install() { # N: version 0~testN
	apt "$root" install --allow-downgrades "/tmp/$(basename "$work/v$1"/*"$arch.deb")" || fail "cannot install version 0~test$1"
	chroot "$root" porchlight version | grep -q "porchlight 0~test$1" || fail "it is not version 0~test$1"
}
# with_backlog N: the server goes away, readings come, the package is changed, and all arrives.
with_backlog() {
	stop "$prosody"
	publish 40
	install "$1"
	[[ -d /proc/$gateway ]] || fail "the gateway ended while the package was changed"
	stop "$gateway" # systemd would now start it anew
	start_gateway "$root"
	publish 10
	as_service "$root" outbox status | tail -n 3
	start_prosody
	wait_for "reading $count" arrived "$count"
}
config() {
	cat <<END
xmpp:
  component: {domain: porch.localhost, server: "127.0.0.1:$component", secret: "a secret of the test"}
  pubsub: pubsub.localhost
operators:
  - {jid: anna@localhost, role: owner}
mqtt: {listen: "127.0.0.1:$broker"}
devices:
  - {id: kitchen, name: "Küche 🍅", profile: tasmota, mqtt: {topic: kitchen}}
END
}

try() {
	local began=$SECONDS status i path kept second=$work/root-$arch-2
	say "$arch: install"
	emulate "$arch"
	system "$root" "$arch"
	cp "$work"/v?/*"$arch.deb" "$root/tmp/"
	install 1
	[[ $(stat_in /etc/porchlight) == '750 root:porchlight' ]] || fail "/etc/porchlight: $(stat_in /etc/porchlight)"
	[[ $(stat_in /var/lib/porchlight) == '700 porchlight:porchlight' ]] || fail "/var/lib/porchlight: $(stat_in /var/lib/porchlight)"
	chroot "$root" id -nG porchlight | grep -qw dialout || fail "porchlight is not in dialout"
	[[ -L $root/etc/systemd/system/multi-user.target.wants/porchlight.service ]] || fail "the unit is not enabled"

	rm -rf "$house/srv/prosody/data"
	mkdir "$house/srv/prosody/data"
	chroot "$house" prosodyctl --config /srv/prosody/prosody.cfg.lua register anna localhost "anna's password" >"$work/prosodyctl.log" 2>&1 || fail "no account"
	start_prosody

	say "$arch: set up by a file on the boot partition, with a fault first"
	mkdir -p "$root/boot/firmware"
	config | sed 's/jid:/jdi:/' >"$root/boot/firmware/porchlight.yaml"
	status=0
	chroot "$root" porchlight firstboot >"$work/firstboot.log" 2>&1 || status=$?
	((status == 78)) || fail "firstboot with a fault: status $status"
	grep -q 'jdi: is not a known key' "$root/boot/firmware/porchlight-errors.txt" || fail "the fault is not told"
	[[ ! -e $root/etc/porchlight/porchlight.yaml ]] || fail "half done"
	config >"$root/boot/firmware/porchlight.yaml"
	chroot "$root" porchlight firstboot >>"$work/firstboot.log" 2>&1 || fail "firstboot"
	[[ $(ls "$root/boot/firmware") == porchlight-done.txt ]] || fail "on the boot partition are $(ls "$root/boot/firmware")"
	[[ $(stat_in /etc/porchlight/porchlight.yaml) == '640 root:porchlight' ]] || fail "the config: $(stat_in /etc/porchlight/porchlight.yaml)"
	[[ $(stat_in /etc/porchlight/xmpp-component-secret) == '600 porchlight:porchlight' ]] || fail "the secret: $(stat_in /etc/porchlight/xmpp-component-secret)"
	as_service "$root" check --online >"$work/check.log" || fail "check --online"

	say "$arch: start the older version, and publish"
	install 0
	start_gateway "$root"
	wait_for "a session" online "$root"
	"$work/porchlight" watch --jid anna@localhost --password-file "$work/anna" --server "127.0.0.1:$c2s" --pubsub pubsub.localhost \
		--ca-file "$house/srv/prosody/cert.pem" --json --verify >"$work/watch.out" 2>"$work/watch.log" &
	watch=$!
	pids+=("$watch")
	publish 5
	wait_for "the fifth reading" arrived 5

	say "$arch: upgrade with a backlog, and to another format of the store"
	with_backlog 1
	say "$arch: upgrade with a backlog"
	with_backlog 2
	say "$arch: roll back with a backlog"
	with_backlog 1

	say "$arch: roll back to the version that does not know the store"
	stop "$prosody"
	publish 40
	stop "$gateway"
	install 0
	kept=$(cd "$root/var/lib/porchlight" && sha256sum outbox*)
	status=0
	timeout 120 "${service[@]}" "$root" /usr/bin/porchlight run -c /etc/porchlight/porchlight.yaml >"$work/refused.log" 2>&1 || status=$?
	((status == 1)) || fail "it ended with status $status"
	grep 'a newer version of this program wrote it' "$work/refused.log" || fail "it does not say why"
	[[ $(cd "$root/var/lib/porchlight" && sha256sum outbox*) == "$kept" ]] || fail "it changed the store"
	install 1
	start_gateway "$root"
	start_prosody
	wait_for "reading $count" arrived "$count"

	say "$arch: backup, and another system"
	chroot "$root" porchlight backup --to /tmp/backups >"$work/backup.log" || fail "backup"
	grep -o '[A-Z2-7]\{5\}\(-[A-Z2-7]\{5\}\)\{4\}' "$work/backup.log" >"$work/phrase"
	stop "$gateway"
	system "$second" "$arch"
	cp "$work/v2"/*"$arch.deb" "$root"/tmp/backups/*.age "$work/phrase" "$second/tmp/"
	root=$second install 2
	chroot "$second" bash -c 'porchlight restore --phrase-file /tmp/phrase /tmp/porchlight-*.age' >>"$work/backup.log" 2>&1 || fail "restore"
	start_gateway "$second"
	wait_for "a session of the restored gateway" online "$second"
	publish 20
	wait_for "reading $count, of the restored gateway" arrived "$count"
	stop "$gateway"
	status=0
	as_service "$root" run >"$work/twin.log" 2>&1 || status=$?
	((status == 78)) || fail "the gateway that was succeeded ended with status $status"

	say "$arch: what arrived"
	kill -INT "$watch"
	wait "$watch" || fail "watch --verify: $(tail -n 1 "$work/watch.out")"
	tail -n 1 "$work/watch.out"
	for ((i = 1; i <= count; i++)); do
		arrived $i || fail "reading $i did not arrive"
	done
	echo "$count readings arrived"
	stop "$prosody"

	say "$arch: remove, and purge"
	apt "$root" remove porchlight
	[[ -e $root/var/lib/porchlight/outbox.db && -e $root/etc/porchlight/porchlight.yaml ]] || fail "remove took what it should leave"
	apt "$root" purge porchlight
	for path in /var/lib/porchlight /etc/porchlight /usr/bin/porchlight /lib/systemd/system/porchlight.service /etc/systemd/system/multi-user.target.wants/porchlight.service; do
		[[ ! -e $root$path && ! -L $root$path ]] || fail "purge left $path"
	done
	echo "$arch took $((SECONDS - began)) s"
}
for arch; do
	root=$work/root-$arch count=0 broker=$(free_port)
	try
done

if [[ " $* " == *" $here "* ]]; then
	say "a Prosody beside the gateway, on a network of its own"
	root=$work/root-here arch=$here
	system "$root" "$here"
	apt "$root" update
	cp "$work/v2"/*"$here.deb" "$root/tmp/"
	apt "$root" install prosody lua-dbi-sqlite3 openssl
	install 2
	cat >"$root/tmp/here.sh" <<'EOF'
set -e
mkfifo /tmp/enter
/usr/share/porchlight/prosody-here.sh house.local anna </tmp/enter >/tmp/here.log 2>&1 &
here=$!
exec 3>/tmp/enter
until grep -q 'press Enter' /tmp/here.log; do
	kill -0 $here
	sleep 0.2
done
mkdir -p /run/prosody && chown prosody /run/prosody
su prosody -s /bin/sh -c 'exec prosody -F' >/tmp/prosody.log 2>&1 &
until (: >/dev/tcp/127.0.0.1/5347) 2>/dev/null; do sleep 0.2; done
echo >&3
wait $here
porchlight check --online
kill %2
EOF
	timeout 120 unshare -n bash -c 'ip link set lo up && exec "$@"' - chroot "$root" bash /tmp/here.sh >"$work/here.log" 2>&1 ||
		fail "prosody-here.sh: $(tail -n 15 "$root/tmp/here.log")"
	grep -q "address   anna@house.local" "$root/tmp/here.log" || fail "no account is told"
fi

say "all is well"

#!/usr/bin/env bash
# Tries the Debian package in clean systems, as root: install, set up, start,
# publish, upgrade with a backlog, roll back, remove, purge; and a backup that is
# restored in another. There is no systemd in them: what the unit says is done by
# hand. It takes some minutes and a gigabyte, in a temporary directory. PRISTINE=
# names a folder for the clean system, which is made there once.
set -euo pipefail
cd "$(dirname "$0")/.."
((EUID == 0)) || { echo "package-test.sh: it makes systems of their own, which root alone may" >&2; exit 1; }
for tool in debootstrap lintian ip; do
	command -v $tool >/dev/null || { echo "package-test.sh: $tool is missing: apt-get install $tool" >&2; exit 1; }
done
GO=${GO:-go}
export GO

work=$(mktemp -d)
pids=()
cleanup() {
	for pid in "${pids[@]}"; do
		kill "$pid" 2>/dev/null || continue
		wait "$pid" 2>/dev/null || true
	done
	for root in "$work"/root*; do
		umount -l "$root/proc" "$root/dev" 2>/dev/null || true
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

say "two versions of the package"
for n in 1 2; do
	PACKAGE_VERSION=0~test$n OUT=$work/v$n scripts/package.sh amd64 >/dev/null
	deb[n]=$(echo "$work/v$n"/*.deb)
done
lintian --fail-on error --allow-root "${deb[1]}" || fail "lintian finds errors"

say "a clean system"
pristine=${PRISTINE:-$work/pristine}
if [[ ! -d $pristine ]]; then
	debootstrap --variant=minbase --include=ca-certificates bookworm "$pristine" >"$work/debootstrap.log"
fi
apt() { # ROOT ARGS...
	local root=$1
	shift
	DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -q -y --no-install-recommends -o APT::Sandbox::User=root "$@" </dev/null >>"$work/apt.log" 2>&1
}
system() { # NAME: makes one of the pristine
	cp -a "$pristine" "$work/$1"
	mount -t proc proc "$work/$1/proc"
	mount --bind /dev "$work/$1/dev"
	head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/$1/etc/machine-id"
	printf '#!/bin/sh\nexit 101\n' >"$work/$1/usr/sbin/policy-rc.d"
	chmod 755 "$work/$1/usr/sbin/policy-rc.d"
}
system root1
root=$work/root1
apt "$root" update || true # without a network what debootstrap fetched will do
apt "$root" install prosody openssl mosquitto-clients lua-dbi-sqlite3

say "install"
cp "${deb[1]}" "${deb[2]}" "$root/tmp/"
apt "$root" install "/tmp/$(basename "${deb[1]}")"
stat_in() { chroot "$root" stat -c '%a %U:%G' "$1"; }
[[ $(stat_in /etc/porchlight) == '750 root:porchlight' ]] || fail "/etc/porchlight: $(stat_in /etc/porchlight)"
[[ $(stat_in /var/lib/porchlight) == '700 porchlight:porchlight' ]] || fail "/var/lib/porchlight: $(stat_in /var/lib/porchlight)"
chroot "$root" id -nG porchlight | grep -qw dialout || fail "porchlight is not in dialout"
[[ -L $root/etc/systemd/system/multi-user.target.wants/porchlight.service ]] || fail "the unit is not enabled"

say "a Prosody"
c2s=$(free_port) component=$(free_port) broker=$(free_port)
mkdir "$root/srv/prosody"
chroot "$root" openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
	-keyout /srv/prosody/key.pem -out /srv/prosody/cert.pem 2>/dev/null
cat >"$root/srv/prosody/prosody.cfg.lua" <<EOF
run_as_root = true
data_path = "/srv/prosody"
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
chroot "$root" prosodyctl --config /srv/prosody/prosody.cfg.lua register anna localhost "anna's password" >"$work/prosodyctl.log" 2>&1 || fail "no account"
start_prosody() {
	chroot "$root" prosody -F --config /srv/prosody/prosody.cfg.lua >"$work/prosody.log" 2>&1 &
	prosody=$!
	pids+=("$prosody")
	wait_for Prosody bash -c ": >/dev/tcp/127.0.0.1/$c2s && : >/dev/tcp/127.0.0.1/$component"
}
stop() { # PID
	kill "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}
start_prosody

# as_service ROOT ARGS... runs the program as the unit does.
as_service() {
	local in=$1
	shift
	chroot --userspec=porchlight:porchlight --groups=porchlight,dialout "$in" /usr/bin/porchlight "$@"
}
start_gateway() { # ROOT
	# Not by as_service: its process would be a shell of this script.
	chroot --userspec=porchlight:porchlight --groups=porchlight,dialout "$1" \
		/usr/bin/porchlight run -c /etc/porchlight/porchlight.yaml >>"$work/gateway.log" 2>&1 &
	gateway=$!
	pids+=("$gateway")
	wait_for "the gateway" bash -c ": >/dev/tcp/127.0.0.1/$broker"
}
online() { as_service "$1" outbox status --json -c /etc/porchlight/porchlight.yaml | grep -q '"online":true'; }

say "set up by a file on the boot partition, with a fault first"
mkdir -p "$root/boot/firmware"
config() {
	cat <<EOF
xmpp:
  component: {domain: porch.localhost, server: "127.0.0.1:$component", secret: "a secret of the test"}
  pubsub: pubsub.localhost
operators:
  - {jid: anna@localhost, role: owner}
mqtt: {listen: "127.0.0.1:$broker"}
devices:
  - {id: kitchen, name: "Küche 🍅", profile: tasmota, mqtt: {topic: kitchen}}
EOF
}
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
as_service "$root" check --online -c /etc/porchlight/porchlight.yaml >"$work/check.log" || fail "check --online"

say "start, and publish"
count=0
publish() { # N readings
	local i
	for ((i = 0; i < $1; i++)); do
		count=$((count + 1))
		chroot "$root" mosquitto_pub -h 127.0.0.1 -p "$broker" -q 1 -t tele/kitchen/SENSOR -m "{\"COUNTER\":{\"C1\":$count}}"
	done
}
start_gateway "$root"
wait_for "a session" online "$root"
printf "anna's password" >"$work/anna"
chmod 600 "$work/anna"
cp "$root/usr/bin/porchlight" "$work/porchlight"
"$work/porchlight" watch --jid anna@localhost --password-file "$work/anna" --server "127.0.0.1:$c2s" --pubsub pubsub.localhost \
	--ca-file "$root/srv/prosody/cert.pem" --json --verify >"$work/watch.out" 2>"$work/watch.log" &
watch=$!
pids+=("$watch")
arrived() { grep -q "\"value\":$1[,}]" "$work/watch.out"; }
publish 5
wait_for "the fifth reading" arrived 5

# with_backlog DEB: the server goes away, readings come, the package is changed, and all arrives.
with_backlog() {
	stop "$prosody"
	publish 40
	apt "$root" install --allow-downgrades "/tmp/$(basename "$1")" || fail "cannot install $1"
	[[ -d /proc/$gateway ]] || fail "the gateway ended while the package was changed"
	stop "$gateway" # systemd would now start it anew
	start_gateway "$root"
	publish 10
	as_service "$root" outbox status -c /etc/porchlight/porchlight.yaml | tail -n 3
	start_prosody
	wait_for "reading $count" arrived "$count"
}
say "upgrade with a backlog"
with_backlog "${deb[2]}"
as_service "$root" version | grep -q 'porchlight 0~test2' || fail "it is not the new version"
say "roll back with a backlog"
with_backlog "${deb[1]}"
as_service "$root" version | grep -q 'porchlight 0~test1' || fail "it is not the old version"

say "backup, and another system"
chroot "$root" porchlight backup --to /tmp/backups >"$work/backup.log" || fail "backup"
grep -o '[A-Z2-7]\{5\}\(-[A-Z2-7]\{5\}\)\{4\}' "$work/backup.log" >"$work/phrase"
stop "$gateway"
system root2
cp "${deb[2]}" "$root"/tmp/backups/*.age "$work/root2/tmp/"
cp "$work/phrase" "$work/root2/tmp/phrase"
apt "$work/root2" install "/tmp/$(basename "${deb[2]}")"
chroot "$work/root2" porchlight restore --phrase-file /tmp/phrase /tmp/porchlight-*.age 2>/dev/null ||
	chroot "$work/root2" bash -c 'porchlight restore --phrase-file /tmp/phrase /tmp/porchlight-*.age' >>"$work/backup.log" 2>&1 || fail "restore"
start_gateway "$work/root2"
wait_for "a session of the restored gateway" online "$work/root2"
publish 20
wait_for "reading $count, of the restored gateway" arrived "$count"
stop "$gateway"
status=0
as_service "$root" run -c /etc/porchlight/porchlight.yaml >"$work/twin.log" 2>&1 || status=$?
((status == 78)) || fail "the gateway that was succeeded ended with status $status"

say "what arrived"
kill -INT "$watch"
wait "$watch" || fail "watch --verify: $(tail -n 1 "$work/watch.out")"
tail -n 1 "$work/watch.out"
for ((i = 1; i <= count; i++)); do
	arrived $i || fail "reading $i did not arrive"
done
echo "$count readings arrived"

say "remove, and purge"
apt "$root" remove porchlight
[[ -e $root/var/lib/porchlight/outbox.db && -e $root/etc/porchlight/porchlight.yaml ]] || fail "remove took what it should leave"
apt "$root" purge porchlight
for path in /var/lib/porchlight /etc/porchlight /usr/bin/porchlight /lib/systemd/system/porchlight.service /etc/systemd/system/multi-user.target.wants/porchlight.service; do
	[[ ! -e $root$path && ! -L $root$path ]] || fail "purge left $path"
done
say "a Prosody beside the gateway, on a network of its own"
system root3
apt "$work/root3" update || true
cp "${deb[2]}" "$work/root3/tmp/"
apt "$work/root3" install "/tmp/$(basename "${deb[2]}")" prosody lua-dbi-sqlite3 openssl
cat >"$work/root3/tmp/here.sh" <<'EOF'
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
timeout 120 unshare -n bash -c 'ip link set lo up && exec "$@"' - chroot "$work/root3" bash /tmp/here.sh >"$work/here.log" 2>&1 ||
	fail "prosody-here.sh: $(tail -n 15 "$work/root3/tmp/here.log")"
grep -q "address   anna@house.local" "$work/root3/tmp/here.log" || fail "no account is told"

say "all is well"

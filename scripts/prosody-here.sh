#!/usr/bin/env bash
# Sets up a Prosody on this machine for a house of its own, and the gateway as a
# component of it:
#
#   sudo prosody-here.sh [DOMAIN] [OWNER]
#
# DOMAIN is the house's, by default the host's name with .local; OWNER the name of
# your account, by default yours here. It makes the account, a certificate of its
# own, and the gateway's config where porchlight is installed. A Prosody that is
# there already keeps all that it has; only a file in conf.d is added. Run a
# second time it makes what is missing of that, and changes nothing else.
set -euo pipefail

domain=${1:-$(hostname).local}
owner=${2:-${SUDO_USER:-anna}}
file=/etc/prosody/conf.d/porchlight.cfg.lua

die() {
	echo "prosody-here.sh: $*" >&2
	exit 1
}
((EUID == 0)) || die "run it with sudo"
[[ $domain =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$ ]] || die "\"$domain\" is no domain; small letters, digits, '-' and '.'"
[[ $owner =~ ^[a-z0-9][a-z0-9._-]*$ ]] || die "\"$owner\" is no name of an account; small letters, digits, '.', '_' and '-'"
# The gateway's config, where it is installed and has none.
gateway() {
	if command -v porchlight >/dev/null && [[ ! -e /etc/porchlight/porchlight.yaml ]]; then
		secret_file=$(mktemp)
		printf '%s' "$secret" >"$secret_file"
		porchlight init --address "porch.$domain" --secret-file "$secret_file" --owner "$owner@$domain" --pubsub "pubsub.$domain"
		[[ ! -d /run/systemd/system ]] || systemctl start porchlight
	fi
}
whole=
certs=/etc/prosody/certs
# What fails half way, as on a full disk, leaves nothing that the next run would
# take for done.
cleanup() {
	[[ -z ${secret_file-} ]] || rm -f "$secret_file"
	[[ -z $whole ]] || return 0
	rm -f "$file" "$file.new" "$certs/$domain.crt.new" "$certs/$domain.key.new"
	echo "prosody-here.sh: it did not work, and nothing of it is left; what is wrong stands above" >&2
}
if [[ -e $file ]]; then
	[[ ! -e /etc/porchlight/porchlight.yaml ]] || die "$file is there already, and nothing was changed"
	# Prosody was set up, and what came after did not work.
	whole=yes
	trap cleanup EXIT
	domain=$(sed -n 's/^VirtualHost "\(.*\)"$/\1/p' "$file")
	secret=$(sed -n 's/.*component_secret = "\(.*\)"$/\1/p' "$file")
	gateway
	exit
fi

# lua-dbi-sqlite3: files would be rewritten as a whole at each reading.
missing=()
for package in prosody lua-dbi-sqlite3 openssl; do
	[[ $(dpkg-query -W -f '${db:Status-Status}' $package 2>/dev/null) == installed ]] || missing+=("$package")
done
if ((${#missing[@]})); then
	DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}" </dev/null
fi
random() { openssl rand -hex 16; }

secret=$(random)
password=$(random)
trap cleanup EXIT
if [[ ! -e $certs/$domain.crt ]]; then
	(umask 077 && openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=$domain" \
		-addext "subjectAltName=DNS:$domain,DNS:porch.$domain,DNS:pubsub.$domain" \
		-keyout "$certs/$domain.key.new" -out "$certs/$domain.crt.new" 2>/dev/null) || die "cannot make a certificate in $certs; df -h $certs shows whether there is room"
	chown root:prosody "$certs/$domain.key.new" "$certs/$domain.crt.new"
	chmod 640 "$certs/$domain.key.new"
	chmod 644 "$certs/$domain.crt.new"
	mv "$certs/$domain.key.new" "$certs/$domain.key"
	mv "$certs/$domain.crt.new" "$certs/$domain.crt"
fi

umask 027
cat >"$file.new" <<EOF
-- A house and its Porchlight; prosody-here.sh made this file. The examples that
-- come with porchlight say why each line is there.
VirtualHost "$domain"

Component "porch.$domain"
	component_secret = "$secret"
	component_conflict_resolve = "kick_old"

Component "pubsub.$domain" "pubsub"
	admins = { "gateway@porch.$domain" }
	pubsub_max_items = 10000
	storage = { pubsub_nodes = "sql", pubsub_data = "sql" }
	sql = { driver = "SQLite3", database = "pubsub.sqlite" }
EOF
chown root:prosody "$file.new"
mv "$file.new" "$file"
prosodyctl check config >/dev/null || echo "prosodyctl check config has something to say about this Prosody" >&2
said=$(prosodyctl register "$owner" "$domain" "$password" 2>&1) ||
	die "cannot make the account $owner@$domain: $said; if there is one already, name another: prosody-here.sh $domain OWNER"
whole=yes

echo "Your account, for any XMPP client in this house:"
echo
echo "    address   $owner@$domain"
echo "    password  $password"
echo "    server    this machine, port 5222; its certificate is its own: $certs/$domain.crt"
echo

if [[ -d /run/systemd/system ]]; then
	systemctl restart prosody
else
	echo "There is no systemd: start Prosody by your own means, then press Enter."
	read -r _ || true
fi
for _ in {1..50}; do
	(: >/dev/tcp/127.0.0.1/5347) 2>/dev/null && break
	sleep 0.2
done

gateway

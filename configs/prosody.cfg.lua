-- What a Prosody (0.12 or newer) needs for one Porchlight, to be added to
-- /etc/prosody/prosody.cfg.lua. Then: prosodyctl check config, and restart
-- Prosody. Put your own domains for porch.example.org and example.org.
--
-- Neither domain needs a DNS record, unless people on other servers are to see
-- your devices; then both need one, and a certificate.

-- The gateway and its devices: kitchen@porch.example.org and so on.
-- Prosody listens for components on 127.0.0.1:5347. That connection is not
-- encrypted, so a gateway on another machine needs a tunnel to here.
Component "porch.example.org"
	-- The same as in the file that xmpp.component.secret_file names.
	component_secret = "a long random text"
	-- After a power cut the old connection may look alive for many minutes.
	-- The default, kick_new, would refuse the gateway for as long.
	component_conflict_resolve = "kick_old"

-- The readings. If you have a PubSub service already, only add the admins.
Component "pubsub.example.org" "pubsub"
	-- Only admins may create nodes. For a gateway that uses an account
	-- instead of a component, this is the account.
	admins = { "gateway@porch.example.org" }
	-- How many items of a node are kept; the default is 256. An item of the
	-- log holds up to a few hundred readings.
	pubsub_max_items = 10000
	-- The default storage, files, rewrites all items of a node whenever one is
	-- published: about a hundred a second on a good day, and hard on an SD card.
	-- SQLite takes several hundred: apt install lua-dbi-sqlite3.
	storage = { pubsub_nodes = "sql", pubsub_data = "sql" }
	sql = { driver = "SQLite3", database = "pubsub.sqlite" }

-- For a gateway that uses an account and keeps its nodes there (pubsub: pep),
-- this belongs under the VirtualHost of the account:
--
--	pep_max_items = 10000
--	storage = { pep = "sql", pep_data = "sql" }
--	sql = { driver = "SQLite3", database = "pep.sqlite" }
--
-- Debian's config limits each client to 10 kB/s, accounts of gateways
-- included, but not components. After a long outage that is what the gateway
-- waits for. To raise it, in the global part:
--
--	limits = { c2s = { rate = "100kb/s" } }
--
-- Prosody keeps small stanzas back until those before are acknowledged, which
-- takes a client up to 40 ms. To have answers sooner, in the global part:
--
--	network_settings = { nagle = false }
--
-- "time" among modules_enabled (it is by default) tells the time to a gateway
-- that has no clock (XEP-0202).

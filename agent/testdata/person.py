#!/usr/bin/python3
"""Is a person with a chat client, by slixmpp, for tests.

It reads lines of JSON, and does what they say:

  {"do": "chat", "to": jid, "body": text}
  {"do": "subscribe", "to": jid}
  {"do": "items", "node": node}

and prints what comes, one JSON object a line:

  {"ready": true}
  {"from": jid, "body": text}
  {"presence": jid, "type": "available", "unavailable", "subscribed", "unsubscribed", …, "show", "status"}
  {"items": node, "count": n} or {"items": node, "error": condition}
  {"fault": text}

usage: person.py JID PASSWORD HOST PORT CAFILE PUBSUB
"""
import asyncio
import json
import sys

import slixmpp
from slixmpp.exceptions import IqError


def say(**what):
    print(json.dumps(what), flush=True)


class Person(slixmpp.ClientXMPP):
    def __init__(self, jid, password, pubsub):
        super().__init__(jid, password)
        self.pubsub = pubsub
        self.register_plugin("xep_0060")
        self.auto_authorize = self.auto_subscribe = None
        self.add_event_handler("session_start", self.started)
        self.add_event_handler("failed_auth", lambda _: self.give_up("cannot log in"))
        self.add_event_handler("message", self.message)
        for kind in ("available", "unavailable", "subscribe", "subscribed", "unsubscribe", "unsubscribed", "error", "away", "xa", "dnd"):
            self.add_event_handler("presence_" + kind, self.presence)

    def give_up(self, why):
        say(fault=why)
        sys.exit(1)

    async def started(self, _):
        await self.get_roster()
        self.send_presence()
        say(ready=True)
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async for line in lines:
            await self.do(json.loads(line))

    async def do(self, what):
        if what["do"] == "chat":
            self.send_message(mto=what["to"], mbody=what["body"], mtype="chat")
        elif what["do"] == "subscribe":
            self.send_presence_subscription(pto=what["to"])
        elif what["do"] == "items":
            try:
                result = await self["xep_0060"].get_items(self.pubsub, what["node"])
                say(items=what["node"], count=len(list(result["pubsub"]["items"])))
            except IqError as e:
                say(items=what["node"], error=e.condition)

    def message(self, m):
        if m["body"] and m["type"] in ("chat", "normal"):
            say(**{"from": str(m["from"]), "body": m["body"]})

    def presence(self, p):
        if p["from"].bare != self.boundjid.bare:
            say(presence=str(p["from"]), type=p["type"] if p["type"] not in ("chat", "away", "xa", "dnd") else "available",
                show=p.xml.findtext("{jabber:client}show", ""), status=p["status"])


def main():
    jid, password, host, port, ca, pubsub = sys.argv[1:7]
    person = Person(jid, password, pubsub)
    person.ca_certs = ca
    person.connect((host, int(port)))
    person.process(forever=True)


main()

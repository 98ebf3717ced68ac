#!/usr/bin/python3
"""Reads PubSub nodes and presence with slixmpp, and prints what it finds.

It shares no code with the gateway: XEP-0060 is slixmpp's, and the payloads are
decoded here, from the XEPs and RFCs. It prints one JSON object a line:

  {"node", "item", "kind": "fields", "device", "readings": [{"time", "fields": {name: [type, value, unit]}}]}
  {"node", "item", "kind": "senml", "base", "readings": [{"time", "fields": {name: [type, value, unit]}}]}
  {"node", "item", "kind": "atom", "category", "title"}
  {"presence": jid, "type", "show", "status"}
  {"ready": true}       once it is subscribed and has fetched
  {"fault": text}       where something is not as the specifications say

usage: reader.py JID PASSWORD HOST PORT CAFILE PUBSUB CONTACT NODE...

CONTACT is added to the contacts; "" for none.
"""
import asyncio
import base64
import hashlib
import json
import struct
import sys

import slixmpp
from slixmpp.exceptions import IqError

SENSOR = "{urn:xmpp:iot:sensordata}"
ATOM = "{http://www.w3.org/2005/Atom}"
BOB = "{urn:xmpp:bob}data"


def say(**what):
    print(json.dumps(what), flush=True)


def cbor(data, at=0):
    """Decodes one CBOR item (RFC 8949); gives it and the offset behind it."""
    first = data[at]
    major, info = first >> 5, first & 31
    at += 1
    if major == 7 and info in (25, 26, 27):
        size = {25: 2, 26: 4, 27: 8}[info]
        return struct.unpack(">" + {2: "e", 4: "f", 8: "d"}[size], data[at:at + size])[0], at + size
    if info < 24:
        n = info
    elif info < 28:
        size = 1 << (info - 24)
        n = int.from_bytes(data[at:at + size], "big")
        at += size
    else:
        raise ValueError("indefinite length")
    if major == 0:
        return n, at
    if major == 1:
        return -1 - n, at
    if major in (2, 3):
        raw = data[at:at + n]
        return (raw if major == 2 else raw.decode()), at + n
    if major == 4:
        out = []
        for _ in range(n):
            item, at = cbor(data, at)
            out.append(item)
        return out, at
    if major == 5:
        out = {}
        for _ in range(n):
            key, at = cbor(data, at)
            out[key], at = cbor(data, at)
        return out, at
    if major == 7 and n in (20, 21):
        return n == 21, at
    raise ValueError("major type %d, %d" % (major, n))


def senml(pack):
    """Resolves a pack (RFC 8428 section 4.6) into readings of equal time."""
    base = {-2: "", -3: 0, -4: "", -5: None}
    first_base = None
    readings = []
    for record in pack:
        for label in (-2, -3, -4, -5):
            if label in record:
                base[label] = record[label]
        if first_base is None:
            first_base = base[-2]
        name = base[-2] + record.get(0, "")
        at = base[-3] + record.get(6, 0)
        if at < 2 ** 28:
            raise ValueError("relative time %r" % at)
        if not name.startswith(first_base):
            raise ValueError("name %r outside %r" % (name, first_base))
        if 2 in record:
            value = ["number", record[2] + (base[-5] or 0)]
        elif 3 in record:
            value = ["text", record[3]]
        elif 4 in record:
            value = ["bool", record[4]]
        else:
            raise ValueError("no value in %r" % record)
        if not readings or readings[-1]["time"] != at:
            readings.append({"time": at, "fields": {}})
        readings[-1]["fields"][name[len(first_base):]] = value + [record.get(1, base[-4])]
    return first_base, readings


def sensor_fields(root):
    """Reads XEP-0323 <fields/> (section 3.2)."""
    if root.get("done") != "true" or root.get("seqnr") is None:
        raise ValueError("fields without seqnr or done")
    nodes = root.findall(SENSOR + "node")
    if len(nodes) != 1:
        raise ValueError("%d nodes" % len(nodes))
    readings = []
    for stamp in nodes[0]:
        if not stamp.get("value").endswith("Z"):
            raise ValueError("time %r is not in UTC" % stamp.get("value"))
        fields = {}
        for field in stamp:
            kind = {SENSOR + "numeric": "number", SENSOR + "boolean": "bool", SENSOR + "string": "text"}[field.tag]
            value = field.get("value")
            if kind == "number":
                float(value)
                if field.get("unit") is None:
                    raise ValueError("numeric without unit")
            fields[field.get("name")] = [kind, value, field.get("unit", "")]
        readings.append({"time": stamp.get("value"), "fields": fields})
    return nodes[0].get("nodeId"), readings


class Reader(slixmpp.ClientXMPP):
    def __init__(self, jid, password, pubsub, contact, nodes):
        super().__init__(jid, password)
        self.pubsub, self.contact, self.nodes = pubsub, contact, nodes
        self.register_plugin("xep_0060")
        self.add_event_handler("session_start", self.started)
        self.add_event_handler("pubsub_publish", self.published)
        self.add_event_handler("presence_available", self.presence)
        self.add_event_handler("presence_unavailable", self.presence)
        for show in ("away", "xa", "dnd"):
            self.add_event_handler("presence_" + show, self.presence)
        self.add_event_handler("failed_auth", lambda _: self.give_up("wrong password"))

    def give_up(self, why):
        say(fault=why)
        sys.exit(1)

    def presence(self, p):
        say(presence=str(p["from"]), type=p["type"], show=p.xml.findtext("{jabber:client}show", ""), status=p["status"])

    async def started(self, _):
        # Not a negative priority: servers drop headlines to those (RFC 6121 section 8.5.2.1.1).
        self.send_presence()
        if self.contact:
            self.send_presence_subscription(pto=self.contact)
        for node in self.nodes:
            while True:
                try:
                    await self["xep_0060"].subscribe(self.pubsub, node, bare=True)
                    break
                except IqError as e:
                    if e.condition not in ("item-not-found", "forbidden", "not-allowed"):
                        self.give_up("cannot subscribe to %s: %s" % (node, e.condition))
                    await asyncio.sleep(0.2)  # the gateway makes its nodes when it has something for them
            result = await self["xep_0060"].get_items(self.pubsub, node)
            for item in result["pubsub"]["items"]:
                self.item(node, item["id"], item["payload"])
        say(ready=True)

    def published(self, msg):
        event = "{http://jabber.org/protocol/pubsub#event}"
        items = msg.xml.find(event + "event").find(event + "items")
        for item in items.findall(event + "item"):
            self.item(items.get("node"), item.get("id"), next(iter(item), None))

    def item(self, node, id, payload):
        try:
            self.show(node, id, payload)
        except Exception as e:  # whatever it is, the payload is not as specified
            say(fault="%s %s: %r" % (node, id, e))

    def show(self, node, id, payload):
        if payload is None:
            raise ValueError("no payload")
        if payload.tag == SENSOR + "fields":
            device, readings = sensor_fields(payload)
            say(node=node, item=id, kind="fields", device=device, readings=readings)
        elif payload.tag == BOB:
            if payload.get("type") != "application/senml+cbor":
                raise ValueError("type %r" % payload.get("type"))
            raw = base64.b64decode(payload.text, validate=True)
            if payload.get("cid") != "sha-256+%s@bob.xmpp.org" % hashlib.sha256(raw).hexdigest():
                raise ValueError("cid does not fit")
            pack, end = cbor(raw)
            if end != len(raw) or len(raw) > 8192:
                raise ValueError("%d bytes, pack ends at %d" % (len(raw), end))
            base, readings = senml(pack)
            say(node=node, item=id, kind="senml", base=base, readings=readings)
        elif payload.tag == ATOM + "entry":
            say(node=node, item=id, kind="atom", category=payload.find(ATOM + "category").get("term"),
                title=payload.findtext(ATOM + "title"))
        else:
            raise ValueError("payload %s" % payload.tag)


def main():
    jid, password, host, port, ca, pubsub, contact = sys.argv[1:8]
    reader = Reader(jid, password, pubsub, contact, sys.argv[8:])
    reader.ca_certs = ca
    reader.connect((host, int(port)))
    reader.process(forever=True)


main()

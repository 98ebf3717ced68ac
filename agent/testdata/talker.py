#!/usr/bin/python3
"""Talks to a lamp with slixmpp, which has every protocol here from its own
reading of the XEPs, and prints what it sees, a line each.

usage: talker.py JID PASSWORD HOST PORT CAFILE CONTACT
"""
import asyncio
import sys

import slixmpp

jid, password, host, port, cafile, contact = sys.argv[1:]


class Operator(slixmpp.ClientXMPP):
    def __init__(self):
        super().__init__(jid, password)
        self.ca_certs = cafile
        for name in ("xep_0004", "xep_0030", "xep_0050", "xep_0054", "xep_0115", "xep_0184", "xep_0323", "xep_0325"):
            self.register_plugin(name)
        self.said = asyncio.Queue()
        self.add_event_handler("session_start", self.begin)
        self.add_event_handler("message", lambda m: self.said.put_nowait(m["body"]))
        self.add_event_handler("receipt_received", lambda m: print("receipt: yes", flush=True))
        self.ready = asyncio.Event()
        self.add_event_handler("presence_available", lambda p: p["from"].bare == contact and self.ready.set())

    async def begin(self, _):
        try:
            await asyncio.wait_for(self.talk(), 60)
        except Exception as e:  # whatever it is, the test shows it
            print("fault:", repr(e), flush=True)
        self.disconnect()

    async def talk(self):
        self.send_presence()
        await self.get_roster()
        self.send_presence_subscription(contact)
        await self.ready.wait()
        full = contact + "/gw"
        for resource, p in self.client_roster.presence(contact).items():
            print("presence:", resource, p["show"] or "available", p["status"])
        message = self.make_message(contact, "on", mtype="chat")
        message["request_receipt"] = True
        message.send()
        print("chat:", await self.said.get(), "/", await self.said.get())

        items = await self["xep_0050"].get_commands(contact)
        print("commands:", " ".join(sorted(i[1] for i in items["disco_items"]["items"])))
        form = await self["xep_0050"].send_command(contact, "set")
        print("form:", " ".join(f for f in form["command"]["form"].get_fields()))
        answer = self["xep_0004"].make_form(ftype="submit")
        answer.add_field(var="dimmer", value="40")
        done = await self["xep_0050"].send_command(contact, "set", action="complete", payload=[answer.xml], sessionid=form["command"]["sessionid"])
        print("note:", done["command"]["notes"][0][1])

        control = asyncio.get_event_loop().create_future()
        self["xep_0325"].set_request(self.boundjid.full, full, lambda **k: control.done() or control.set_result(k["result"]), [("power", "boolean", "false")])
        print("control:", await control)

        values = []
        ended = asyncio.get_event_loop().create_future()

        def data(**k):
            if k["result"] == "fields":
                values.extend(f["name"] for f in k["fields"])
            if k["result"] in ("done", "error", "rejected"):
                ended.done() or ended.set_result(k["result"])
        self["xep_0323"].request_data(self.boundjid.full, full, data)
        print("readout:", await ended, " ".join(values))

        card = await self["xep_0054"].get_vcard(contact)
        print("vcard:", card["vcard_temp"]["FN"], card["vcard_temp"]["PHOTO"]["TYPE"])
        info = await self["xep_0030"].get_info(full)
        caps = await self["xep_0115"].get_caps(full)
        print("caps:", "verified" if caps["features"] == info["disco_info"]["features"] else "differ")
        print("end", flush=True)


client = Operator()
client.connect((host, int(port)))
client.process(forever=False)

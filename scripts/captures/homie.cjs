// Makes firmware-profiles/testdata/captures/homie-device.jsonl: all that a
// device made with the npm package homie-device says to a real broker, from its
// announcement over a command to its last will.
//
//   mosquitto -p 21883 &
//   cd $(mktemp -d) && npm install homie-device@3.0.1 mqtt@5.16.0
//   node …/scripts/captures/homie.cjs . 21883 > …/testdata/captures/homie-device.jsonl
const path = require("node:path");

const modules = path.resolve(process.argv[2] ?? ".", "node_modules");
const port = Number(process.argv[3] ?? 1883);
const mqtt = require(path.join(modules, "mqtt"));
const HomieDevice = require(path.join(modules, "homie-device"));
const version = require(path.join(modules, "homie-device", "package.json")).version;

process.stdout.write(`${JSON.stringify({source: `homie-device ${version} (npm), Mosquitto`})}\n`);
const ear = mqtt.connect(`mqtt://127.0.0.1:${port}`);
ear.on("message", (topic, payload, packet) => {
    process.stdout.write(`${JSON.stringify({topic, payload: payload.toString(), retained: packet.retain})}\n`);
    if (topic.endsWith("/$state") && payload.toString() === "lost") process.exit(0);
});
ear.subscribe("homie/#", () => {
    const device = new HomieDevice({name: "Green house", device_id: "greenhouse", mac: "A1:B2:C3:D4:E5:F6", ip: "192.168.0.10", mqtt: {host: "127.0.0.1", port, base_topic: "homie/"}});
    device.setFirmware("greenhouse-firmware", "1.2.3");
    const climate = device.node("climate", "Climate", "sensor");
    climate.advertise("temperature").setName("Temperature").setUnit("°C").setDatatype("float").setFormat("-20:60");
    climate.advertise("humidity").setName("Humidity").setUnit("%").setDatatype("integer").setFormat("0:100");
    climate.advertise("serial").setName("Serial number").setDatatype("string");
    const valve = device.node("valve", "Valve", "actuator");
    valve.advertise("open").setName("Open").setDatatype("boolean").settable((range, value) => valve.setProperty("open").setRetained(true).send(value));
    valve.advertise("mode").setName("Mode").setDatatype("enum").setFormat("off,on,auto").settable((range, value) => valve.setProperty("mode").setRetained(true).send(value));
    const lamps = device.node("lamps", "Lamps", "light", 0, 1);
    lamps.advertise("level").setName("Level").setUnit("%").setDatatype("integer").setFormat("0:100").settable(() => {});
    device.on("connect", () => {
        climate.setProperty("temperature").send("21.40");
        climate.setProperty("humidity").send("55");
        climate.setProperty("serial").send("00123");
        valve.setProperty("open").send("true");
        valve.setProperty("mode").send("on");
        lamps.setProperty("level").setRange(1).send("80");
        setTimeout(() => ear.publish("homie/greenhouse/valve/open/set", "false"), 500);
        setTimeout(() => device.mqttClient.stream.destroy(), 1000); // the broker tells its will
    });
    device.setup(true);
});

// Makes firmware-profiles/testdata/captures/zigbee2mqtt-exposes.jsonl: what
// Zigbee2MQTT would announce of devices that its converters know, 200 of them,
// chosen so that as many different exposes as possible are among them.
//
//   cd $(mktemp -d) && npm install zigbee-herdsman-converters@26.112.0
//   node …/scripts/captures/zigbee2mqtt.cjs . > …/testdata/captures/zigbee2mqtt-exposes.jsonl
//
// Left out are texts for people (description, label), to keep the file small, and
// devices whose exposes depend on the device itself and fail without one.
const path = require("node:path");
const fs = require("node:fs");

const most = 200;
const folder = path.join(process.argv[2] ?? ".", "node_modules", "zigbee-herdsman-converters");
const converters = require(path.resolve(folder));
const version = JSON.parse(fs.readFileSync(path.join(folder, "package.json"))).version;

const plain = (e) => {
    const {description, label, ...rest} = JSON.parse(JSON.stringify(e));
    for (const key of ["features"]) {
        if (rest[key]) rest[key] = rest[key].map(plain);
    }
    if (rest.item_type) rest.item_type = plain(rest.item_type);
    return rest;
};

// What makes an expose different from others.
const traits = (e, above = "") => {
    const own = [above, e.type, e.property ?? "", e.unit ?? "", e.access ?? "", JSON.stringify(e.value_on ?? "")].join("|");
    return [own, ...(e.features ?? []).flatMap((f) => traits(f, `${above}/${e.type}`))];
};

const all = [];
const seen = new Set();
for (const file of fs.readdirSync(path.join(folder, "dist", "devices")).filter((f) => f.endsWith(".js")).sort()) {
    const definitions = require(path.resolve(folder, "dist", "devices", file)).definitions ?? [];
    for (const raw of definitions) {
        try {
            const d = converters.prepareDefinition(raw);
            const exposes = (typeof d.exposes === "function" ? d.exposes({isDummyDevice: true}, {}) : d.exposes).map(plain);
            const key = `${d.vendor}/${d.model}`;
            if (exposes.length > 0 && exposes.length < 40 && !seen.has(key)) {
                seen.add(key);
                all.push({model: d.model, vendor: d.vendor, exposes, size: JSON.stringify(exposes).length, traits: new Set(exposes.flatMap((e) => traits(e)))});
            }
        } catch {
            // needs a device
        }
    }
}

const covered = new Set();
const chosen = [];
for (const type of ["lock", "fan", "cover", "light", "climate", "switch", "list", "composite"]) {
    for (let n = 0; n < 8; n++) {
        const i = all.findIndex((d) => d.exposes.some((e) => e.type === type));
        if (i >= 0) chosen.push(all.splice(i, 1)[0]);
    }
}
chosen.forEach((d) => d.traits.forEach((t) => covered.add(t)));
while (chosen.length < most && all.length > 0) {
    let best = 0;
    let bestNew = -1;
    all.forEach((d, i) => {
        const fresh = [...d.traits].filter((t) => !covered.has(t)).length / d.size ** 0.9;
        if (fresh > bestNew) [best, bestNew] = [i, fresh];
    });
    const [d] = all.splice(best, 1);
    d.traits.forEach((t) => covered.add(t));
    chosen.push(d);
}
const devices = chosen.map((d, i) => ({
    ieee_address: `0x${(i + 1).toString(16).padStart(16, "0")}`,
    friendly_name: `d${i + 1}`,
    type: "Router",
    supported: true,
    disabled: false,
    definition: {model: d.model, vendor: d.vendor, exposes: d.exposes},
}));
process.stdout.write(`${JSON.stringify({source: `zigbee-herdsman-converters ${version} (npm)`})}\n`);
for (const d of devices) process.stdout.write(`${JSON.stringify(d)}\n`);

package profile

import (
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/porchlight-iot/porchlight/devices/profile/framing"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// spec is a profile's file.
type spec struct {
	Version    int               `yaml:"profile,required" min:"1" max:"1" doc:"Version of the language."`
	ID         string            `yaml:"id,required" doc:"Name of the profile, which is that of its file."`
	Name       string            `yaml:"name" doc:"What people call the firmware."`
	Aliases    []string          `yaml:"aliases" doc:"Names that the profile had before."`
	Family     string            `yaml:"family" doc:"Another profile whose devices these are too: that of another version of one convention, which a device may mix."`
	Extends    string            `yaml:"extends" doc:"A profile whose keys hold where this one has none; of fields, commands and params, these come first and those after."`
	Transports []string          `yaml:"transport" enum:"mqtt,coap,serial" doc:"How it is heard."`
	Priority   int               `yaml:"priority" min:"0" max:"100" doc:"Of the profiles that match a message, the one with the highest takes it: 0 for one that takes none by itself, 10 for those that take anything, 40 for descriptions by others, 50 is usual."`
	Params     map[string]string `yaml:"params" doc:"Parts of topics that differ between houses; $name stands for one in topics."`
	Match      []matchRule       `yaml:"match" doc:"MQTT: the topics that are a device's; the first that fits."`
	Framing    framing.Rule      `yaml:"framing" doc:"Serial: how the device marks where what it sends begins and ends, and whether it came whole; lines if not said."`
	Port       []portRule        `yaml:"port" doc:"Serial: how characters are sent: the usual way, and then others that devices may be set to."`
	Device     deviceRule        `yaml:"device" doc:"Who the device is."`
	Decode     []decodeRule      `yaml:"decode" doc:"How a message is read; the first whose conditions hold."`
	Fields     []fieldRule       `yaml:"fields" doc:"What becomes of the members; the first that selects one takes it."`
	Rest       restRule          `yaml:"rest" doc:"What becomes of members that no entry of fields selects."`
	Time       []timeRule        `yaml:"time" doc:"Where the reading's time is; the first that is there and can be believed."`
	Silence    silenceRule       `yaml:"silence" doc:"What it means that nothing comes."`
	Commands   []commandRule     `yaml:"commands" doc:"What the device can be told."`
	Poll       []pollRule        `yaml:"poll" doc:"What to ask, where a device does not speak by itself."`
	Limits     limitRule         `yaml:"limits" doc:"What a message may hold at most."`
	Tests      []testRule        `yaml:"tests" doc:"Messages and what they hold; the profile is refused where they come out otherwise."`

	inherited int // where the fields of the profile that it extends begin; 0 if it extends none
}

type matchRule struct {
	Topic topicPattern `yaml:"topic,required" doc:"Levels: text, {x} one level, {x=A|B*} one of these, {x...} one or more, {x*} any number, $x a param. {device} is what tells devices apart."`
	When  conditions   `yaml:"when" doc:"Conditions, as in decode."`
	Known bool         `yaml:"known" doc:"Only where the device was heard on another of the topics before: for topics that many firmwares have."`
}

// conditions are on captures of the topic, on format, first, payload and
// retained, and on members of a JSON message.
type conditions map[string]glob

type deviceRule struct {
	Key      []template    `yaml:"key" alone:"true" doc:"The firmware's own identity of the device: the first that can be filled; {device} if there is none."`
	Also     template      `yaml:"also" doc:"Another identity, which other messages of the device show. A message that has both tells that they are one."`
	Name     []template    `yaml:"name" alone:"true" doc:"What its owner calls it."`
	Maker    []template    `yaml:"maker" alone:"true" doc:"Who made it."`
	Model    []template    `yaml:"model" alone:"true" doc:"What it is."`
	Firmware []template    `yaml:"firmware" alone:"true" doc:"Version of its firmware."`
	Parent   []template    `yaml:"parent" alone:"true" doc:"Identity of the device that it hangs on."`
	Learn    template      `yaml:"learn" doc:"Serial: what a message teaches of the device, which decoders in code are given with its later messages."`
	Last     bool          `yaml:"last" doc:"Serial: a message that does not tell whose it is, is of the device of the one before it."`
	Children *childrenRule `yaml:"children" doc:"Parts of the message that are devices of their own."`
}

type childrenRule struct {
	Each selector `yaml:"each,required" doc:"Path of the parts, as in fields. Paths of fields begin in the part."`
	Key  template `yaml:"key" doc:"Identity of the device; {key} is the name of the part, which is the default."`
}

type decodeRule struct {
	When         conditions        `yaml:"when" doc:"Conditions, all of which must hold: on captures of the topic, on /members of a JSON message, on format (the CoAP content format), first (the first character), payload (all of a short text), hex (the bytes of a short message), field (the CoAP path; what a serial device was asked) or retained (true, false). Values are patterns with * and ?; ! before one means that it does not fit; !* that there is none."`
	JSON         *treeRule         `yaml:"json" doc:"A JSON object, or a single JSON value."`
	CBOR         *treeRule         `yaml:"cbor" doc:"A CBOR item."`
	XML          *struct{}         `yaml:"xml" doc:"An XML document: what is in its root, without attributes."`
	SenML        *struct{}         `yaml:"senml" doc:"A SenML pack, JSON or CBOR."`
	Value        *valueRule        `yaml:"value" doc:"One bare number, word or text."`
	Pairs        *pairsRule        `yaml:"pairs" doc:"Names and values on one line."`
	Columns      *columnsRule      `yaml:"columns" doc:"Values with a separator between, as in CSV."`
	Struct       *structRule       `yaml:"struct" doc:"Bytes at fixed places: binary structures, registers."`
	Registers    *registersRule    `yaml:"registers" doc:"An answer of Modbus RTU; field is what was asked: unit=1 fc=4 addr=0x0000 count=80."`
	Code         string            `yaml:"code" enum:"attributes,coiot,dsmr,esp3,firmata,iec62056_21,linkformat,lwm2m,mysensors,nmea,sml,sparkplug" doc:"A decoder in code."`
	Availability *availabilityRule `yaml:"availability" doc:"The message tells whether the device is there."`
	Describe     string            `yaml:"describe" doc:"The message is an announcement, for this describer; with json, value or code, what it holds are fields too."`
	Live         bool              `yaml:"live" doc:"With describe: what the announcement holds is measured now."`
	Repeats      bool              `yaml:"repeats" doc:"The message repeats what another said a moment ago, if that came: it is no reading of its own where it says the same."`
	Skip         bool              `yaml:"skip" doc:"The message says nothing that another does not."`
	Refuse       string            `yaml:"refuse" doc:"The message cannot be used, and why."`
}

type treeRule struct {
	Root []membersPath `yaml:"root" doc:"Paths to look into, the first that is there; a last * is the only member, and its name that of the device; without root it is the whole."`
	At   template      `yaml:"at" doc:"Path under which the document is put, as if the message had it: {component}/{object}."`
	Best []bestRule    `yaml:"best" doc:"Lists of objects that tell of one thing, as the gateways that heard a message: the best is taken, as if there were no list."`

	Named  *namedRule `yaml:"named" doc:"A list of objects that have their names in them: each becomes a member of that name."`
	Quotes bool       `yaml:"quotes" doc:"Texts stand in single quotes, which is no JSON."`
	Words  bool       `yaml:"words" doc:"nan, inf, None, True and False stand for values, as printed by programs that know no JSON."`
}

type namedRule struct {
	By    membersPath `yaml:"by,required" doc:"The member that is the name."`
	Value membersPath `yaml:"value" doc:"The member that is what the name stands for, where that is not the object: those without it are left out."`
	Links []string    `yaml:"links" doc:"Of those without it, these members, of lists the first item, under links and the name."`
}

type bestRule struct {
	List membersPath `yaml:"list,required" doc:"Path of the list, in the whole message."`
	By   membersPath `yaml:"by,required" doc:"The member that is a number: the highest is the best, the first where none has it."`
}

type valueRule struct {
	Name template `yaml:"name,required" doc:"Path of the field, with / between; {x} is a capture, {payload} the message."`
	Is   template `yaml:"is" doc:"The value, where it is not the message: {x} is a capture, {payload} the message."`
	Raw  bool     `yaml:"raw" doc:"Take it as the text it is: neither number nor truth value."`
}

type pairsRule struct {
	Separators string   `yaml:"separators,required" doc:"Characters between pairs."`
	Assign     string   `yaml:"assign,required" doc:"Characters between name and value, which may have blanks around."`
	Units      []string `yaml:"units" doc:"Words that may follow a number, with a blank between or without."`
	Names      []string `yaml:"names" doc:"Names of the words that come first and have none."`
	Raw        bool     `yaml:"raw" doc:"Take the values as the texts they are."`
}

type columnsRule struct {
	Separator string   `yaml:"separator,required" doc:"Between the values; a blank stands for any number of blanks."`
	Names     []string `yaml:"names" doc:"Names of the columns; those without are c0, c1 and so on."`
	At        template `yaml:"at" doc:"Path under which they are put."`
	Header    bool     `yaml:"header" doc:"A line without any number has the names of the columns. It becomes the member header; device: learn: \"{/header}\" has them used from then on, on a serial line."`
}

type structRule struct {
	Endian string       `yaml:"endian" enum:"big,little" doc:"Order of bytes; big if not said."`
	Start  string       `yaml:"start" doc:"Bytes in hex with which it must begin."`
	Size   int          `yaml:"size" min:"0" max:"4096" doc:"How long it must be; 0 is any."`
	Items  []structItem `yaml:"items,required" doc:"What stands where."`
	Part   bool         `yaml:"part" doc:"It may end before the last item."`
}

type structItem struct {
	Name  string `yaml:"name,required" doc:"Name of the member."`
	At    int    `yaml:"at" min:"0" max:"4095" doc:"Place of the first byte; without it, after the one before."`
	Type  string `yaml:"type,required" enum:"u8,i8,u16,i16,u24,u32,i32,u64,i64,f32,f64,bcd8,bcd16,bcd32" doc:"What stands there."`
	Words string `yaml:"words" enum:"high_first,low_first" doc:"Order of the 16-bit words in a type of 32 bits: low_first as a PZEM-004T has it."`
}

type availabilityRule struct {
	Words map[string]string `yaml:"words,required" quote:"true" enum:"online,offline,asleep" doc:"The firmware's words and what they mean. Quote them."`
	Path  string            `yaml:"path" doc:"The member with the word, where the message is a JSON object."`
}

type fieldRule struct {
	Under   membersPath          `yaml:"under" doc:"Path that stands before that of select, and that the name is without: uplink_message/decoded_payload."`
	Select  selector             `yaml:"select" doc:"Path of members with / between; * and ? as in file names, ** any number of members, {a,b} alternatives. Items of a list are selected by the list's path."`
	When    conditions           `yaml:"when" doc:"Conditions, as in decode."`
	Drop    bool                 `yaml:"drop" doc:"Not a field."`
	Name    []template           `yaml:"name" alone:"true" doc:"Name of the field, the first that can be filled; {key} is the last member, ./x a member of what is selected. Without it, the name is the path."`
	Value   []string             `yaml:"value" alone:"true" doc:"Where an object is selected: the member that is the value, the first that is there."`
	Time    *timeRule            `yaml:"time" doc:"With value: where in the object the time of this value is; what has one is a reading of its own."`
	Join    *joinRule            `yaml:"join" doc:"Instead of select: several members that are one number."`
	Kind    string               `yaml:"kind" enum:"measurement,counter,state,event,setting,identity,diagnostic,fault" doc:"What the field means; without it, a number is a measurement and all else a state. A fault raises an alarm while it is true, a number other than 0, or a text that is no word for well."`
	Type    string               `yaml:"type" enum:"number,integer,bool,text" doc:"number, integer: a text that holds a number becomes one, another is dropped; bool: a truth value, in any of the usual words; text: all becomes a text, the items of a list one with commas."`
	Unit    string               `yaml:"unit" doc:"The unit."`
	UnitOf  string               `yaml:"unit_of" doc:"Name of a member beside or above that tells the unit."`
	Units   map[string]string    `yaml:"units" doc:"Last member of the path, with * and ?, and its unit; with unit_of, the firmware's spellings and ours too, * being any other."`
	Parse   string               `yaml:"parse" enum:"duration,hex" doc:"duration: 9T09:29:01 becomes seconds; hex: the digits are hexadecimal."`
	Words   map[string]yaml.Node `yaml:"words" quote:"true" doc:"The device's words and what they are here: a truth value, a number, a text. Quote them."`
	Invalid []string             `yaml:"invalid" alone:"true" doc:"Values that mean that there is none."`
	Signed  int                  `yaml:"signed" min:"0" max:"64" doc:"The number has so many bits, the highest of which is its sign (two's complement)."`
	Sign    string               `yaml:"sign" enum:"magnitude" doc:"magnitude: with signed, the highest bit is the sign and the others the amount."`
	Bits    *bitsRule            `yaml:"bits" doc:"Part of a whole number."`
	Offset  float64              `yaml:"offset" doc:"Is added, before scale."`
	Scale   float64              `yaml:"scale" doc:"Is multiplied with."`
	Round   *int                 `yaml:"round" min:"0" max:"9" doc:"Decimals that are kept."`
	Range   []float64            `yaml:"range" doc:"The least and the most that it can be: [-50, 100]; what is beyond is dropped."`
	Online  map[string]string    `yaml:"online" quote:"true" enum:"online,offline,asleep" doc:"What the field's values say of the device being there. Quote them."`

	words    map[string]word // of Words
	skip     int             // names of Under, once select has them
	unitless bool            // of an announcement
}

type joinRule struct {
	Paths []membersPath `yaml:"paths,required" doc:"The members, each 8 bits, or 16 with words: true."`
	Words bool          `yaml:"words" doc:"Each is 16 bits."`
	Order string        `yaml:"order" enum:"high_first,low_first" doc:"Which comes first; high_first if not said."`
}

type bitsRule struct {
	At    int `yaml:"at" min:"0" max:"62" doc:"The lowest bit."`
	Width int `yaml:"width" min:"1" max:"32" doc:"How many."`
}

type restRule struct {
	Create string `yaml:"create" enum:"auto,none" doc:"auto: each becomes a field; none: none does."`
}

type timeRule struct {
	Path   membersPath `yaml:"path,required" doc:"Where it is."`
	Format string      `yaml:"format" enum:"iso,s,ms,us,dsmr" doc:"iso: 2026-11-23T08:00:00 with or without zone; s, ms, us: since 1970; dsmr: 261123080000W, local, in winter or summer."`
	Zone   string      `yaml:"zone" enum:"device,utc" doc:"Of an iso time without one: device, as configured for the device, or utc."`
}

type silenceRule struct {
	After  time.Duration `yaml:"after" min:"1s" max:"720h" doc:"Lost after so long without a message; without it, by the device's own interval."`
	Asleep bool          `yaml:"asleep" doc:"It sleeps between its messages by design."`
	Via    string        `yaml:"via" enum:"parent" doc:"parent: lost when its parent is."`
}

type commandRule struct {
	Name     template          `yaml:"name,required" doc:"Name of the command; where a field has that name, it is what the command sets. {key} is the member of for, {path} that with those above it."`
	Title    string            `yaml:"title" doc:"For people."`
	For      *selector         `yaml:"for" doc:"One command for each member that this selects."`
	Argument argumentRule      `yaml:"argument" doc:"What may be given; without it, nothing."`
	Topic    template          `yaml:"topic" doc:"Where it is sent; {x} is a capture of the topic that the device was last heard on."`
	Reply    map[string]string `yaml:"reply" doc:"Instead of topic: that last topic, with these captures replaced."`
	Payload  template          `yaml:"payload" doc:"What is sent; {value} is the argument, which is the default."`
	Retain   bool              `yaml:"retain" doc:"The broker keeps it."`
	QoS      int               `yaml:"qos" min:"0" max:"2" doc:"Quality of service."`
	Risk     string            `yaml:"risk" enum:"read,reversible,hazardous" doc:"What can come of it: nothing (read), what another command takes back (reversible, the default), or harm (hazardous): then people are asked whether they are sure."`
	Hex      template          `yaml:"hex" doc:"Serial: instead of payload, bytes in hex; what stands in its places is hex too: {value|hex2}."`
	Modbus   *modbusWriteRule  `yaml:"modbus" doc:"Serial: the argument is written to registers or a coil."`
	Method   string            `yaml:"method" enum:"put,post,get,delete" doc:"CoAP: put, if not said. topic then is a path below the device's url, or with / before it a whole one, and may have a query after ?; without it, the url is told."`
	Format   int               `yaml:"format" min:"0" max:"65535" doc:"CoAP: content format of the payload; 0 is text."`
	Confirm  *confirmRule      `yaml:"confirm" doc:"How the device confirms it; without it, by a field of the command's name."`
}

type argumentRule struct {
	Type  string            `yaml:"type" enum:"none,number,integer,bool,word,text" doc:"What it is."`
	Words map[string]string `yaml:"words" quote:"true" doc:"bool and word: what people say (off and on, …) and what is sent."`
	Min   *float64          `yaml:"min" doc:"The least."`
	Max   *float64          `yaml:"max" doc:"The most."`
	Step  float64           `yaml:"step" doc:"Between two values."`
	Unit  string            `yaml:"unit" doc:"Of a number."`
	Scale float64           `yaml:"scale" doc:"What is sent is the number times this."`
	Round *int              `yaml:"round" min:"0" max:"9" doc:"Decimals of what is sent."`
}

type confirmRule struct {
	Field  template      `yaml:"field" doc:"Name of the field that then has the value."`
	Any    bool          `yaml:"any" doc:"Whatever value the field then has: it says the same in other words."`
	Within time.Duration `yaml:"within" min:"100ms" max:"10m" doc:"How long that may take."`
}

type pollRule struct {
	On      string            `yaml:"on" enum:"online,start,unannounced" doc:"When the device comes online, when the gateway starts, or when a device speaks that has not announced what it means."`
	Every   time.Duration     `yaml:"every" min:"1s" max:"24h" doc:"And then again and again."`
	Topic   template          `yaml:"topic" doc:"As in commands."`
	Reply   map[string]string `yaml:"reply" doc:"As in commands."`
	Payload template          `yaml:"payload" doc:"What is sent."`
	Hex     string            `yaml:"hex" doc:"Serial: instead of payload, bytes in hex."`
	Modbus  *modbusReadRule   `yaml:"modbus" doc:"Serial: registers or coils to read; the message is the answer, and its field says what was asked: unit=1 fc=4 addr=0x0000 count=80."`
	SignOn  bool              `yaml:"sign_on" doc:"Serial: the conversation of IEC 62056-21 mode C, in which the baud rate changes."`
	Within  time.Duration     `yaml:"within" min:"10ms" max:"1m" doc:"Serial: how long the answer may take; a second if not said."`
}

// A portRule is how characters are sent on a serial line.
type portRule struct {
	Baud     int    `yaml:"baud,required" min:"50" max:"4000000" doc:"Bits a second."`
	DataBits int    `yaml:"data_bits" min:"5" max:"8" doc:"Bits of a character; 8 if not said."`
	Parity   string `yaml:"parity" enum:"none,even,odd,mark,space" doc:"none if not said."`
	StopBits int    `yaml:"stop_bits" min:"1" max:"2" doc:"1 if not said."`
}

type modbusReadRule struct {
	Function int `yaml:"function,required" min:"1" max:"4" doc:"1 coils, 2 discrete inputs, 3 holding registers, 4 input registers."`
	Address  int `yaml:"address" min:"0" max:"65535" doc:"The first, as it is sent: counted from 0."`
	Count    int `yaml:"count,required" min:"1" max:"2000" doc:"How many; 125 registers at most."`
}

type modbusWriteRule struct {
	Function int    `yaml:"function,required" min:"5" max:"16" doc:"5 one coil, 6 one register, 15 coils, 16 registers."`
	Address  int    `yaml:"address" min:"0" max:"65535" doc:"As it is sent: counted from 0."`
	Type     string `yaml:"type" enum:"u16,i16,u32,i32,f32" doc:"How a number is written; u16 if not said."`
	Words    string `yaml:"words" enum:"high_first,low_first" doc:"Order of two registers; high_first if not said."`
	Value    string `yaml:"value" doc:"What is written where the command takes no argument."`
}

type limitRule struct {
	Bytes  strictyaml.Size `yaml:"max_bytes" min:"1" max:"4MiB" doc:"Of the message."`
	Fields int             `yaml:"max_fields" min:"1" max:"200" doc:"Of a reading; those beyond follow in readings of the same time."`
}

type testRule struct {
	Topic   string            `yaml:"topic" doc:"Topic of the message."`
	Payload string            `yaml:"payload" doc:"The message."`
	Hex     string            `yaml:"hex" doc:"Instead of payload: its bytes."`
	Device  string            `yaml:"device" doc:"Identity that must come out."`
	Fields  map[string]string `yaml:"fields" doc:"Fields that must come out, each with its value, a blank and its unit."`
	Error   string            `yaml:"error" doc:"Part of the error that must come out."`
}

package devices

// A Unit is a unit of measurement in the spelling that people read: °C, %,
// kWh. A unit outside the table stays as the device spelled it.
type Unit string

"""Modbus RTU slaves by pymodbus, at the addresses 1 and 2 of a line.

    slave.py PORT BAUD

Input registers from 0: 230.5 (a float, high word first), then what the unit is.
Holding registers, coils and discrete inputs from 0: 16 of each; no others.
"""
import struct
import sys

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server import StartSerialServer
from pymodbus.transaction import ModbusRtuFramer


def unit(number):
    volts = list(struct.unpack(">HH", struct.pack(">f", 230.5)))
    return ModbusSlaveContext(
        ir=ModbusSequentialDataBlock(0, volts + [number] + [0] * 13),
        hr=ModbusSequentialDataBlock(0, [100 * number + i for i in range(16)]),
        co=ModbusSequentialDataBlock(0, [True, False] * 8),
        di=ModbusSequentialDataBlock(0, [False, True, True, True] * 4),
        zero_mode=True,
    )


StartSerialServer(
    context=ModbusServerContext(slaves={1: unit(1), 2: unit(2)}, single=False),
    framer=ModbusRtuFramer,
    port=sys.argv[1],
    baudrate=int(sys.argv[2]),
    ignore_missing_slaves=True,
)

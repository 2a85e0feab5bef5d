"""TensorBoard event files, written without the libraries that import PyTorch or TensorFlow.

A file has records of `length, crc(length), data, crc(data)` (TensorFlow's tfrecord framing, masked
CRC-32C), each a protocol-buffer `Event` (tensorboard/compat/proto/event.proto, summary.proto).
"""

import ctypes
import struct
import time
from collections.abc import Mapping
from pathlib import Path

EVENTS = 'events.out.tfevents.'  # TensorBoard reads files whose names begin so
_VERSION, _SUMMARY, _SESSION_LOG = 3, 5, 7  # field numbers of Event
_START = 1  # SessionLog.SessionStatus


class EventWriter:
  """Appends scalars to a new event file in a run's folder, unbuffered."""

  def __init__(self, directory: str | Path, *, purge_step: int | None = None):
    """Starts a file; TensorBoard drops the points of earlier files from `purge_step` on."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    # TensorBoard reads a folder's files in order of name, so the name begins with the time.
    name = f'{EVENTS}{seconds:010d}.{nanoseconds:09d}'
    self._file = open(Path(directory) / name, 'xb')  # noqa: SIM115
    self._write(0, _VERSION, b'brain.Event:2')
    if purge_step is not None:
      self._write(purge_step, _SESSION_LOG, _varint_field(1, _START))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds one point to each named curve; numbers are stored as float32."""
    # ctypes makes infinity of what float32 cannot hold.
    values = (
      _bytes_field(1, name.encode('utf-8')) + b'\x15' + bytes(ctypes.c_float(value))
      for name, value in scalars.items()
    )
    self._write(step, _SUMMARY, b''.join(_bytes_field(1, value) for value in values))

  def close(self) -> None:
    self._file.close()

  def _write(self, step: int, field: int, content: bytes) -> None:
    """Appends one `Event`: wall time (1, double), step (2, int64) and one message field."""
    event = b'\x09' + struct.pack('<d', time.time()) + _varint_field(2, step)
    event += _bytes_field(field, content)
    length = struct.pack('<Q', len(event))
    self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
    self._file.flush()


def _varint(number: int) -> bytes:
  """A non-negative integer, seven bits a byte, the lowest first."""
  digits = bytearray()
  while number > 0x7F:
    digits.append(number & 0x7F | 0x80)
    number >>= 7
  return bytes(digits) + bytes([number])


def _varint_field(field: int, number: int) -> bytes:
  return _varint(field << 3) + _varint(number)


def _bytes_field(field: int, content: bytes) -> bytes:
  return _varint(field << 3 | 2) + _varint(len(content)) + content


def _crc_table() -> tuple[int, ...]:
  """CRC-32C of each byte: the Castagnoli polynomial, bit-reversed."""
  table = []
  for value in range(256):
    for _ in range(8):
      value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    table.append(value)
  return tuple(table)


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
  """The tfrecord checksum: CRC-32C, rotated by 15 bits and offset, as four little-endian bytes."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
  crc ^= 0xFFFFFFFF
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

"""Values with large arrays, in a form whose arrays are copied neither when they are encoded nor when they are decoded.

    0xC1 · size of the head (4 bytes) · head · zeros to a multiple of 64 · array · zeros · array …

The head is msgpack as in `values`; in the place of each large array stands an extension with its type, its shape and
where its elements begin. No msgpack begins with 0xC1, so that a reader can tell. Arrays within tuples, sets and
predictions are part of the head.
"""

from __future__ import annotations

import struct
import sys
from typing import Any, Final

import msgpack

from bridge.protocol import extensions

MARK: Final = b"\xc1"
# From here on a buffer is worth a place of its own, and a payload the way through shared memory.
LARGE_BYTES: Final = 64 * 1024
_HEAD: Final = struct.Struct("!cI")
_ALIGN: Final = 64
_REFERENCE: Final = 20  # extension type: `[dtype, shape, offset from the end of the head]`
_LOOK_DEPTH: Final = 2

Part = bytes | memoryview


def holds_large(value: Any, depth: int = _LOOK_DEPTH) -> bool:
    """Return whether a large array is found in a value, looking into two levels of dicts and lists."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and _holds(numpy.ndarray, value, depth)


def _holds(array: type, value: Any, depth: int) -> bool:
    if type(value) is array:
        return int(getattr(value, "nbytes", 0)) >= LARGE_BYTES
    if depth and type(value) in (dict, list):
        items: Any = value.values() if isinstance(value, dict) else value
        return any(_holds(array, item, depth - 1) for item in items)
    return False


def encode(value: Any) -> list[Part] | None:
    """Return the parts whose concatenation is the encoded value; None if it holds no large array.

    The arrays' elements are views: what is changed in them before the parts are written is changed in them too.
    Raises what `extensions.pack` raises.
    """
    arrays: list[memoryview] = []
    size = 0

    def extend(one: Any) -> Any:
        nonlocal size
        elements = _elements(one)
        if elements is None:
            return extensions.extend(one)
        reference = extensions.pack([_descr(one.dtype), list(one.shape), size])
        arrays.append(elements)
        size += elements.nbytes + -elements.nbytes % _ALIGN
        return msgpack.ExtType(_REFERENCE, reference)

    head: bytes = msgpack.Packer(default=extend, strict_types=True, unicode_errors="surrogatepass").pack(value)
    if not arrays:
        return None
    start = _HEAD.size + len(head)
    parts: list[Part] = [_HEAD.pack(MARK, len(head)), head, bytes(-start % _ALIGN)]
    for elements in arrays:
        parts += (elements, bytes(-elements.nbytes % _ALIGN))
    return parts


def _elements(value: Any) -> memoryview | None:
    """Return the elements of a large array as bytes in C order, None for anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray or value.nbytes < LARGE_BYTES:
        return None
    if not extensions.is_portable(value.dtype):
        return None
    flat = numpy.ascontiguousarray(value).reshape(-1)
    view: memoryview = flat.view(numpy.uint8).data
    return view


def decode(data: bytes) -> Any:
    """Return the value; its large arrays are read-only views of `data`.

    Raises many types of exceptions for bytes that are none.
    """
    _, head_size = _HEAD.unpack_from(data)
    end = _HEAD.size + head_size
    start = end + -end % _ALIGN

    def extend(code: int, inner: bytes) -> Any:
        return _array(data, start, inner) if code == _REFERENCE else extensions.top_hook(code, inner)

    return msgpack.unpackb(
        data[_HEAD.size : end], strict_map_key=False, unicode_errors="surrogatepass", ext_hook=extend, timestamp=3
    )


def _descr(dtype: Any) -> Any:
    import numpy

    return dtype.str if dtype.names is None else numpy.lib.format.dtype_to_descr(dtype)


def _array(data: bytes, start: int, reference: bytes) -> Any:
    import numpy

    descr, shape, offset = extensions.unpack(reference)
    dtype = numpy.dtype(descr) if type(descr) is str else numpy.lib.format.descr_to_dtype(descr)
    if not extensions.is_portable(dtype) or any(size < 0 for size in shape) or offset < 0:
        raise ValueError(f"an array of {dtype}, shape {shape}, at {offset}")
    return numpy.ndarray(shape, dtype, buffer=data, offset=start + offset)

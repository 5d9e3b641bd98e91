"""Send a picture to a program."""

from __future__ import annotations

import argparse
import base64
import struct
import zlib
from pathlib import Path

import dspy

from orchestrator import connect

PROGRAM = f"{Path(__file__).parent}/program.py:Look"
SIZE = 16
RED = bytes((220, 30, 30))


def png(width: int, height: int, pixel: bytes) -> bytes:
    """Return a picture of one colour, as a PNG file has it."""
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    lines = b"".join(b"\0" + pixel * width for _ in range(height))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in chunks
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", help="a language model of the coordinator's configuration (the default one)")
    lm = parser.parse_args().lm
    data = base64.b64encode(png(SIZE, SIZE, RED)).decode()
    picture = dspy.Image(f"data:image/png;base64,{data}")
    with connect() as client:
        client.deploy("image", PROGRAM)
        found = client.program("image", lm=lm)(picture=picture, caption="a red square")
        print(f"the worker got a picture of {found.size[0]} by {found.size[1]} pixels; it is {found.colour}")
        client.undeploy("image")


if __name__ == "__main__":
    main()

"""Writes a few inputs from which a fuzz target starts: bytes of every length, the same every time."""

import random
import sys
from pathlib import Path

folder = Path(sys.argv[1])
for number in range(64):
    draw = random.Random(number)  # noqa: S311 - no secret
    (folder / f"seed-{number}").write_bytes(draw.randbytes(draw.randrange(64, 4096)))

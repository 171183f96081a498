"""One side of a measurement, in the process that `minipeft.bench.sides` starts."""

from __future__ import annotations

import sys

from minipeft.bench.sides import worker

worker(*sys.argv[1:])

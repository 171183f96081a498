"""`python -m minipeft.conformance.record [METHOD…] [--cases FOLDER]`: `minipeft record` under another name."""

from __future__ import annotations

import sys

from minipeft.cli import main

if __name__ == "__main__":
    main(["record", *sys.argv[1:]])

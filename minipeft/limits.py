"""How much is taken of files and programs that nobody vouches for: every limit, and why it stands where it does.

Honest large files pass all of them: the index of a model of 70 billion numbers, a rank of 1024, ten thousand virtual tokens.
"""

from __future__ import annotations

JSON_BYTES = 64 << 20  # of a JSON file; a tokenizer of 256,000 words has 33 MB, an index of 50,000 tensors 5 MB
JSON_DEPTH = 64  # brackets inside one another; the deepest that is written has six
TENSORS = 1 << 18  # of one safetensors file; 256 experts in 60 layers are 46,000
PATTERN_SECONDS = (
    2.0  # that a file's regular expression may take for all names of a model; an honest one takes milliseconds
)

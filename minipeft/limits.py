"""How much is taken of files and programs that nobody vouches for: every limit, and why it stands where it does.

Honest large files pass all of them: the index of a model of 70 billion numbers, a rank of 1024, ten thousand virtual tokens.
"""

from __future__ import annotations

JSON_BYTES = 64 << 20  # of a JSON file; a tokenizer of 256,000 words has 33 MB, an index of 50,000 tensors 5 MB
JSON_DEPTH = 64  # brackets inside one another; the deepest that is written has six
TENSORS = 1 << 18  # of one safetensors file; 256 experts in 60 layers are 46,000
PATTERN_SECONDS = 2.0  # that a file's regular expression may take for all names of a model; an honest one takes ms
K_MOST = 256  # roundings that a recorded case may allow an element; those of one step allow 8, of a training 24
LOOSEST = 2.0**-8  # of a tensor's largest element that its tolerance may be, in float32; the loosest recorded is 2⁻¹²
CASE_BYTES = 16 << 20  # of a file of a recorded case, and of expectations; the largest there is, index.json, has 70 KB
RESULT_BYTES = 16 << 20  # of the file that a program under test writes; the largest that is wanted has 16 KB
HEADER_BYTES = 1 << 20  # of that file's header: 10,000 tensors
LINE_BYTES = 1 << 20  # of a line of a program under test; the longest honest one lists methods and readings
LINES = 64  # that a program under test may be ahead of whoever reads them; one question has one answer
SAID = 4096  # bytes of the end of its standard error that are kept; one line is shown
WORDS = 400  # letters of a reason or address that a program under test gives
NAME = 100  # letters of its name and its version
STARTS = 3  # that fail one after another before a program is not started again: each may take a minute
FREEZES = 100  # times that the processes of a program are looked for before they are killed, while they start more

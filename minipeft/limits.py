"""How much is taken of files and programs that nobody vouches for: every limit, and why it stands where it does.

Honest large files pass all of them: the index of a model of 70 billion numbers, a rank of 1024, ten thousand virtual tokens.
"""

from __future__ import annotations

MESSAGE = 2000  # letters of a line that says what is wrong; a path may have hundreds, a list of names too
JSON_BYTES = 64 << 20  # of a JSON file; a tokenizer of 256,000 words has 33 MB, an index of 50,000 tensors 5 MB
JSON_DEPTH = 64  # brackets inside one another; the deepest that is written has six
TENSORS = 1 << 18  # of one safetensors file; 256 experts in 60 layers are 46,000
JSON_VALUES = 1 << 21  # commas and brackets of a JSON file: a value takes some 100 bytes; an index has 50,000
HEADER_VALUES = 12 * TENSORS  # the same of a safetensors header, where a tensor has 10
NAME_LENGTH = 1 << 10  # of a tensor's name; the longest that is written has some 200 characters
AXES = 32  # of a tensor
TABLE_BYTES = 1 << 29  # of a CSV file, unpacked: three million texts
PATTERN_LENGTH = 1 << 16  # of a regular expression; one that lists every module of 80 layers has 30,000 characters
PATTERNS = 1 << 13  # of patterns in one field of a configuration; one for every linear of 80 layers is 560
NAMES = 1 << 16  # of a list of modules; 256 experts in 60 layers have 46,000 linears
LAYERS = 1 << 12  # of a model; the deepest that was trained has 1,000
WHOLE = 2**31 - 1  # the largest count in a configuration: a vocabulary, a width, a token
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

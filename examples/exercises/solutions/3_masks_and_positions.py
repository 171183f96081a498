"""Exercise 3: what p virtual tokens do to the bookkeeping (notebook 3).

A batch has token ids and a mask, 1 for text and 0 for padding, which may be on either side. p virtual tokens are put in front of
every row. Write the arrays of the longer sequence, (rows, p + t) each:

    mask       1 for what is seen
    positions  virtual tokens take 0 … p−1, the text of every row goes on from p; what padding has does not matter
    labels     the ids of the text, −100 where there is nothing to predict

    python examples/exercises/check.py 3
"""

import numpy as np


def with_prompt(ids, mask, p):
    """The bookkeeping of ids (rows, t) with p virtual tokens in front."""
    rows = len(ids)
    virtual = np.broadcast_to(np.arange(p), (rows, p))
    text = p + np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return dict(
        mask=np.concatenate([np.ones((rows, p), int), mask], axis=1),
        positions=np.concatenate([virtual, text], axis=1),
        labels=np.concatenate([np.full((rows, p), -100), np.where(mask == 1, ids, -100)], axis=1),
    )

"""What the tests of ranks share: ranks that are threads of this process, and micro-batches as a batch is cut into them."""

import threading
from concurrent.futures import ThreadPoolExecutor

from minipeft.train import fit
from minipeft.train.exchange import Exchange, Packed, refuse_failures


class Thread(Exchange):
    """One of several ranks in one process: they meet at a barrier, and gradients travel as bytes."""

    def __init__(self, rank, size, barrier, table):
        self.rank, self.size, self.barrier, self.table = rank, size, barrier, table

    def begin(self, state, identity):
        self.packed = Packed(state.theta)
        return state

    def told(self, word):
        self.table[self.rank] = word
        self.barrier.wait(20)
        words = list(self.table)
        self.barrier.wait(20)
        refuse_failures(words)
        return words

    def gathered(self, mine, count, word, mark):
        memory = bytearray(self.packed.nbytes * len(mine))
        for i, arrays in enumerate(mine):
            self.packed.put(arrays, memory, i)
        self.sent += len(memory)
        every = self.met((memory, word), mark)
        found = [self.packed.taken(m, i) for m, _ in every for i in range(len(m) // self.packed.nbytes)]
        assert len(found) == count
        return found, [word for _, word in every]


def together(n, adapted, batches, **how):
    """What each of n ranks gets of one training."""
    barrier, table = threading.Barrier(n), [None] * n

    def of_rank(rank):
        try:
            return fit(adapted, batches, workers=Thread(rank, n, barrier, table), **how)
        except BaseException as why:
            barrier.abort()
            return why

    with ThreadPoolExecutor(n) as pool:
        found = list(pool.map(of_rank, range(n)))
    for why in sorted(
        (x for x in found if isinstance(x, BaseException)), key=lambda x: isinstance(x, threading.BrokenBarrierError)
    ):
        raise why
    return found


def cut(batch, n):
    """The batch as n micro-batches, or as many as it has rows."""
    n = min(n, batch.rows)
    return [batch.part(slice(i * batch.rows // n, (i + 1) * batch.rows // n)) for i in range(n)]


def in_turn(batches, n):
    """For one process: each batch of these, one a step, as n micro-batches."""
    return lambda t: cut(batches[(t - 1) % len(batches)], n)


def bits(trained):
    """All that a training gives, in bytes."""
    arrays = {k: x.tobytes() for k, x in trained.adapted.theta.items()}
    return arrays, trained.losses, trained.penalties

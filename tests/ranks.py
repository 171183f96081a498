"""What the tests of ranks share: ranks that are threads of this process, and micro-batches as a batch is cut into them."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

from minipeft.train import fit
from minipeft.train.exchange import Exchange, Packed, added, refuse_failures


class Thread(Exchange):
    """One of several ranks in one process: they meet at a barrier."""

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

    def summed(self, mine, count, word, mark):
        self.sent += self.packed.given(self.rank, self.size, len(mine))
        every = self.met((list(map(self.packed.together, mine)), word), mark)
        parts = [part for some, _ in every for part in some]
        assert len(parts) == count
        return added(parts), [word for _, word in every]


class Handing:
    """A barrier of threads of which one runs at a time: who waits lets others run."""

    def __init__(self, n):
        self.barrier, self.running = threading.Barrier(n), threading.Lock()

    def wait(self, seconds):
        self.running.release()
        try:
            self.barrier.wait(seconds)
        finally:
            self.running.acquire()

    def abort(self):
        self.barrier.abort()


def together(n, adapted, batches, one_at_a_time=False, **how):
    """What each of n ranks gets of one training."""
    barrier, table = Handing(n) if one_at_a_time else threading.Barrier(n), [None] * n

    def of_rank(rank):
        with barrier.running if one_at_a_time else contextlib.nullcontext():
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

"""Time and memory of a training step, of a forward pass and of generation, beside torch with PEFT and transformers.

Each side runs in a process of its own with the same number of threads, and they take turns: a round is some steps of one,
then some of the other, so that what else the machine does falls on both. A step is forward, backward and AdamW in float32, on
Llama-shaped models with tied heads and a gated feed-forward of width 4 d, or on one shaped like GPT-2 small. Memory is the
peak of the process's resident set during a step, less what it held before the model was made. Where PEFT has no
such method a torch module of the same arithmetic stands in. `forward` and `generate` are of the base model alone.

With the base in bfloat16 (`dtype`) our activations, and all but the products with it, stay float32; on the other side
the whole model is bfloat16, as its users have it, and PEFT keeps the adapters in float32.

On a GPU ours is replayed as CUDA graphs, as by `fit(graph=True)`, `graph.forward` and `generate(graph=True)`, which records one for
each generation; each side fetches its loss in every step. Memory is the most that arrays held at once, the model included: by
CuPy's memory hook, and by torch's max_memory_allocated.

    cases      sizes, tasks and methods (methods.json)
    ours       a step of ours
    theirs     a step of torch, PEFT and transformers
    machine    the rate of matrix products here; how memory is watched
    sides      a side in a process of its own
    plans      what is measured, and how long it takes
    turns      the sides in turns
    tables     rows in a terminal
    ranks      workers, or ranks of mpiexec, beside one process
    cores      ways to spend cores on a step
    sweeps     against length and rank, drawn
    profiles   where a step goes, by op
"""

from __future__ import annotations

from minipeft.bench.cases import METHODS, SIZES, TASKS, fits, flops, settings
from minipeft.bench.ours import our_model, our_step
from minipeft.bench.plans import Plan, plan
from minipeft.bench.profiles import profile
from minipeft.bench.sweeps import LENGTHS, RANKS, sweep, write_sweep
from minipeft.bench.tables import TOLD, failures, heading, lines, profile_table, said
from minipeft.bench.turns import bench

__all__ = [
    "LENGTHS",
    "METHODS",
    "RANKS",
    "SIZES",
    "TASKS",
    "TOLD",
    "Plan",
    "bench",
    "failures",
    "fits",
    "flops",
    "heading",
    "lines",
    "our_model",
    "our_step",
    "plan",
    "profile",
    "profile_table",
    "said",
    "settings",
    "sweep",
    "write_sweep",
]

"""EVA: Parameter Efficient Fine-tuning via Explained Variance Adaptation. Paischer et al. 2024, https://arxiv.org/abs/2410.07170

    W' = W + s B A,    s = α/r, as LoRA
    A_i = v_i          the i-th principal direction of the inputs of W          (paper, §3: right singular vectors)
    A_i = v_i/√σ_i                                                            with whiten

Directions come from batches one by one (Ross et al. 2008, incremental PCA): a state of n = ρ r directions is stacked
with the centred batch and a row for the shift of the mean, and decomposed again:

    [diag(σ) V;  X − x̄;  √(N k/(N + k)) (μ − x̄)],   k rows of mean x̄ after N of mean μ

Ranks are shared out after every batch: of all sites' directions, the Σ r (each site's own) that explain the largest share σ_i²/Σ‖x − μ‖²
of the variance are kept. A site is done while each direction it keeps has a cosine of at least `tau` with what it was
before the last batch; batches are repeated until all sites are. A site that keeps no direction is given up.

Merges   exactly: W' is an ordinary weight.
Dropout  as LoRA.
Differs  Padding is left out, and so are tokens without a label where tokens have labels (labelled), as in HF peft. Sites with the same inputs share one PCA, and the first is served first.
         Where ranks change, s stays (adjust_scaling; else α does, and s = α/r with the new r); HF peft's own rule does
         not keep s with rslora, and it whitens once for every site that shares the inputs. Its decomposition is
         randomised and in float32, and batches of fewer than n tokens are left out; ours is exact and takes them.

>>> from minipeft.drawing import Facts
>>> x = np.array([[3., 0.], [-3., 0.], [0., 1.], [0., -1.]])
>>> site = Site("q.weight", (3, 2), "linear", None, np.zeros((3, 2)), inputs=[x])
>>> distribute(EVA(r=1), [Facts(EVA(r=1), site)])["q.weight"]["A"]
array([[1., 0.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import Bad, at_least, found_together, requires, trained, within
from minipeft.engine.factors import PCA
from minipeft.methods.lowrank.lora import LoRA


def distribute(method: Any, every: list[Any]) -> dict[str, dict[str, Any]]:
    """A, rank and α of every site that keeps a direction."""
    pcas: dict[bytes, PCA] = {}
    of: dict[str, PCA] = {}
    inputs = {facts["site"]: _inputs(method, facts.site) for facts in every}
    for facts in every:
        name, width = facts["site"], facts["in"]
        if not any(map(len, inputs[name])):
            raise Bad(f"{method.name}: expected linears that saw inputs, found {name}, which saw none")
        n, key = min(round(method.rho * facts["r"]), width), next(X for X in inputs[name] if len(X)).tobytes()
        of[name] = pcas.setdefault(key, PCA(f"{method.name}: inputs of {name}", n, np.zeros((0, width))))
        of[name].n = max(of[name].n, n)
    ranks = {name: pca.n for name, pca in of.items()}
    batches = len(inputs[every[0]["site"]])
    for i in range(method.passes * batches):
        todo = {
            id(pca): (pca, inputs[name][i % batches])
            for name, pca in of.items()
            if not (len(pca.settled) >= ranks[name] and pca.settled[: ranks[name]].all())
        }
        if not todo:
            break
        for pca, X in todo.values():
            if len(X):
                pca.add(X, method.tau)
        if not all(pca.rows for pca in pcas.values()):
            continue  # some saw padding alone
        shares = [(-share, name) for name, pca in of.items() for share in pca.explained]
        best = [name for _, name in sorted(shares, key=lambda pair: pair[0])[: sum(f["r"] for f in every)]]
        ranks = {name: best.count(name) for name in of}
    return {f["site"]: _settled(f.method, of[f["site"]], rank) for f in every if (rank := ranks[f["site"]])}


def _inputs(method: Any, site: Any) -> list[Any]:
    X = site.inputs or []
    return [x[kept] for x, kept in zip(X, site.labelled, strict=True)] if site.labelled and method.labelled else list(X)


def _settled(method: Any, pca: PCA, rank: int) -> dict[str, Any]:
    A = pca.V[:rank] / np.sqrt(pca.S[:rank, None]) if method.whiten else pca.V[:rank]
    grown = (rank / method.r) ** (0.5 if method.rslora else 1.0)
    return dict(A=A, r=rank, alpha=method.alpha * grown if method.adjust_scaling else method.alpha)


@dataclass(frozen=True)
class EVA(LoRA):
    """LoRA along the directions in which the inputs vary most, with ranks where they explain most."""

    name = "eva"
    takes = "linears"
    rho: float = at_least(1, 2.0)  # ρ: the most a rank may grow
    tau: float = within("(0, 1]", 0.99)
    whiten: bool = False
    adjust_scaling: bool = True
    labelled: bool = True
    passes: int = at_least(1, 100, 10_000)  # over the batches, at most

    drawn = requires("start == 'uniform'", "start is of factors that are drawn; expected 'uniform', found {start}")
    A = trained("r", "in", start=found_together(distribute, "v_i, or v_i/√σ_i with whiten", needs=("inputs",)))

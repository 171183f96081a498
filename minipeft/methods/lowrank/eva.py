"""EVA: Parameter Efficient Fine-tuning via Explained Variance Adaptation. Paischer et al. 2024, https://arxiv.org/abs/2410.07170

    W' = W + s B A,    s = α/r, as LoRA
    A_i = v_i          the i-th principal direction of the inputs of W          (paper, §3: right singular vectors)
    A_i = v_i/√σ_i                                                            with whiten

    A  (r, in)    trained   see above; r is the site's own
    B  (out, r)   trained   0, hence W' = W before training
    c  (out)      trained   0; only with lora_bias

Directions come from batches one by one (Ross et al. 2008, incremental PCA): a state of n = ρ r directions is stacked
with the centred batch and a row for the shift of the mean, and decomposed again:

    [diag(σ) V;  X − x̄;  √(N k/(N + k)) (μ − x̄)],   k rows of mean x̄ after N of mean μ

Ranks are shared out after every batch: of all sites' directions, the Σ r that explain the largest share σ_i²/Σ‖x − μ‖²
of the variance are kept. A site is done while each direction it keeps has a cosine of at least `tau` with what it was
before the last batch; batches are repeated until all sites are. A site that keeps no direction is given up.

Size     r (in + out) + lora_bias out numbers per adapted matrix; Σ r stays what it was.
Merges   exactly: W' is an ordinary weight.
Dropout  as LoRA.
Differs  Padding is left out, prompts are not. Sites with the same inputs share one PCA, and the first is served first.
         Where ranks change, s stays (adjust_scaling; else α does, and s = α/r with the new r); HF peft's own rule does
         not keep s with rslora, and it whitens once for every site that shares the inputs. Its decomposition is
         randomised and in float32, and batches of fewer than n tokens are left out; ours is exact and takes them.

>>> x = np.array([[3., 0.], [-3., 0.], [0., 1.], [0., -1.]])
>>> site = Site("q.weight", (3, 2), "linear", None, np.zeros((3, 2)), inputs=[x])
>>> EVA(r=1).init_all([site], np.random.default_rng(0))["q.weight"]["A"]
array([[1., 0.]])
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from minipeft.engine.factors import singular
from minipeft.errors import Bad
from minipeft.method import Site
from minipeft.methods.lowrank.lora import LoRA
from minipeft.settings import at_least, within


@dataclass
class _PCA:
    """Incremental PCA: at most n directions V (n, in) with singular values S, each row's largest entry positive."""

    site: str  # the first that has these inputs
    n: int
    V: np.ndarray
    S: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: Any = 0.0
    rows: int = 0
    total: float = 0.0  # Σ‖x − μ‖²
    settled: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # directions that hardly turned

    def add(self, X: np.ndarray, tau: float) -> None:
        X = X.astype(np.float64)
        k, batch_mean = len(X), X.mean(axis=0)
        shift = np.sqrt(self.rows * k / (self.rows + k)) * (self.mean - batch_mean)
        new = np.vstack([X - batch_mean, shift])
        self.total += float((new**2).sum())
        self.mean = (self.rows * self.mean + k * batch_mean) / (self.rows + k)
        self.rows += k
        _, S, V = singular(f"eva: inputs of {self.site}", np.vstack([self.S[:, None] * self.V, new]))
        n = min(self.n, np.count_nonzero(S / (S[0] or 1.0) > 1e-12))  # the rest are directions without variance
        S, V = S[:n], V[:n]
        V = V * np.sign(V[np.arange(len(V)), abs(V).argmax(axis=1)])[:, None]
        both = min(len(V), len(self.V))
        self.settled = np.zeros(len(V), bool)
        self.settled[:both] = (V[:both] * self.V[:both]).sum(axis=1) >= tau
        self.S, self.V = S, V

    @property
    def explained(self) -> np.ndarray:
        return self.S**2 / (self.total or 1.0)


@dataclass(frozen=True)
class EVA(LoRA):
    """LoRA along the directions in which the inputs vary most, with ranks where they explain most."""

    rho: float = at_least(1, 2.0)  # ρ: the most a rank may grow
    tau: float = within("(0, 1]", 0.99)
    whiten: bool = False
    adjust_scaling: bool = True
    passes: int = at_least(1, 100, 10_000)  # over the batches, at most
    takes: ClassVar[str] = "linears"
    name: ClassVar[str] = "eva"
    needs: ClassVar[tuple[str, ...]] = ("inputs",)

    def init_all(self, sites: list[Site], rng: np.random.Generator) -> dict[str, dict[str, Any]]:
        for site in sites:
            if not any(map(len, site.inputs or ())):
                raise Bad(f"{self.name}: expected linears that saw inputs, found {site.name}, which saw none")
        ranks, pcas = self._distribute(sites)
        return {site.name: self._arrays(site, pcas[site.name], rank) for site in sites if (rank := ranks[site.name])}

    def _arrays(self, site: Site, pca: _PCA, rank: int) -> dict[str, Any]:
        A = pca.V[:rank] / np.sqrt(pca.S[:rank, None]) if self.whiten else pca.V[:rank]
        arrays = dict(A=A, B=np.zeros((site.shape[0], rank)))
        return arrays | dict(c=np.zeros(site.shape[0])) if self.lora_bias else arrays

    def _distribute(self, sites: list[Site]) -> tuple[dict[str, int], dict[str, _PCA]]:
        """Rank and PCA of every site."""
        pcas: dict[bytes, _PCA] = {}
        of: dict[str, _PCA] = {}
        for site in sites:
            width = site.shape[1]
            n = min(round(self.rho * self.r), width)
            of[site.name] = pcas.setdefault(site.inputs[0].tobytes(), _PCA(site.name, n, np.zeros((0, width))))
        ranks = {name: pca.n for name, pca in of.items()}
        batches = len(sites[0].inputs)
        for i in range(self.passes * batches):
            todo = {}
            for site in sites:
                pca, rank = of[site.name], ranks[site.name]
                if not (len(pca.settled) >= rank and pca.settled[:rank].all()):
                    todo[id(pca)] = pca, site.inputs[i % batches]
            if not todo:
                break
            for pca, X in todo.values():
                if len(X):  # a batch of padding alone has none
                    pca.add(X, self.tau)
            shares = [(-share, name) for name, pca in of.items() for share in pca.explained]
            best = [name for _, name in sorted(shares, key=lambda pair: pair[0])[: self.r * len(sites)]]
            ranks = {name: best.count(name) for name in of}
        return ranks, of

    def settled(self, arrays: dict[str, Any]) -> EVA:
        rank = len(arrays["A"])
        grown = (rank / self.r) ** (0.5 if self.rslora else 1.0)
        return dataclasses.replace(self, r=rank, alpha=self.alpha * grown if self.adjust_scaling else self.alpha)

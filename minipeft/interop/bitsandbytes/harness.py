"""bitsandbytes: NF4, quantised and back, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.cases import Case, Unsupported
from minipeft.interop.harness_torch import Arrays, torch_of


class Bitsandbytes:
    """bitsandbytes as an implementation: the base of QLoRA, in float32."""

    def info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return dict(
            name="bitsandbytes",
            version=version("bitsandbytes"),
            language="Python",
            dtypes=["float32"],
            methods=["qlora"],
        )

    def quantized(self, case: Case) -> tuple[Any, Any]:
        """The codes and the state of the weight."""
        torch = torch_of(case)
        from bitsandbytes import functional as F

        c = case.config
        W = torch.tensor(case.tensors["W"].astype(np.float32))
        try:
            return F.quantize_4bit(W, blocksize=c["block"], quant_type="nf4", compress_statistics=c["double_quant"])
        except ValueError as why:
            raise Unsupported(str(why)) from None

    def quantize(self, case: Case) -> Arrays:
        codes, state = self.quantized(case)
        return dict(codes=codes.numpy().reshape(-1), absmax=state.absmax.numpy())

    def dequantize(self, case: Case) -> Arrays:
        from bitsandbytes import functional as F

        codes, state = self.quantized(case)
        return dict(W=F.dequantize_4bit(codes, state).numpy())


implementation = Bitsandbytes()

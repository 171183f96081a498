"""bitsandbytes: NF4, FP4 and INT8, quantised and back, on the CPU."""

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
        """The codes, and the state of the weight or the constants of its rows."""
        torch = torch_of(case)
        from bitsandbytes import functional as F

        c = case.config
        W = torch.tensor(case.tensors["W"].astype(np.float32))
        if c["code"] == "int8":
            return F.int8_vectorwise_quant(W.half())[:2]
        try:
            return F.quantize_4bit(W, blocksize=c["block"], quant_type=c["code"], compress_statistics=c["double_quant"])
        except ValueError as why:
            raise Unsupported(str(why)) from None

    def quantize(self, case: Case) -> Arrays:
        codes, state = self.quantized(case)
        if case.config["code"] == "int8":
            return dict(codes=codes.numpy(), absmax=state.numpy())
        return dict(codes=codes.numpy().reshape(-1), absmax=state.absmax.numpy())

    def dequantize(self, case: Case) -> Arrays:
        from bitsandbytes import functional as F

        codes, state = self.quantized(case)
        back = F.int8_vectorwise_dequant if case.config["code"] == "int8" else F.dequantize_4bit
        return dict(W=back(codes, state).numpy())


implementation = Bitsandbytes()

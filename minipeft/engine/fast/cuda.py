"""The GPU's replacements: products, rows, attention; cuBLAS and kernels of our own compute them."""

from __future__ import annotations

from minipeft.engine.fast import cuda_attention, cuda_products, cuda_rows

__all__ = ["cuda_attention", "cuda_products", "cuda_rows"]

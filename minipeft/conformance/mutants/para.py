"""Of PaRa."""

from __future__ import annotations

SURVIVES = {
    "Q of a QR decomposition is that of any multiple": ("projector_of: P (3)",),
    "Q Qᵀ has no sign of Q": ("projector_of: qr(P), other sign",),
}

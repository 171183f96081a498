"""Virtual tokens, keys and values."""

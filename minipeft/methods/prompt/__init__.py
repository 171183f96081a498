"""Virtual tokens, keys and values.

What is trained stands in the sequence and not in a weight: the base is untouched, every row of a batch may have its own, and a
task is some thousand numbers. They take positions and attention, learn slowly, want high learning rates, and matter more the larger
the base. Taken where weights cannot be reached, or where very many tasks are served at once.
"""

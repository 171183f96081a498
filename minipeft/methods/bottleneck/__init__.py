"""Small modules inserted between the layers' own.

They compute on what passes, h' = h + f(h), with a nonlinearity, so that no weight says the same: they are not merged and cost
time at every use. In return a task is a module that can be put in, taken out, stacked and fused. Taken where many tasks share
one base in memory, where depth can be skipped, or, as a ladder beside the base, where memory for training is what is short.
"""

"""Low-rank changes of weights.

W' = W + s B A: two thin factors at each matrix. The change merges into the weight, so that use costs nothing more, and many
adapters fit beside one base. The first to try, and what others are compared with. Variants differ in where training starts
(from the base's singular vectors, from data, from a gradient), in what is scaled, and in what is held frozen.
"""

"""Rotations of weights and of their subspaces.

W' = R W or W R with R orthogonal, or a part of the singular vectors moved and the rest held: angles between neurons, norms or a
spectrum stay. Taken where the base must not be forgotten, in continual learning, and for generation guided by a subject. A
step costs more, for R is made anew from what is trained; merged it costs nothing.
"""

"""The definition of the networks, once, in torch. Imported by `train` and the compiler alone.

Dimension letters used here and in the kernels: T tokens of a call, B sequences of a call, R rows whose
logits are asked for, H query heads, K kv heads, D head width, E hidden width, F feed-forward width,
L layers, V vocabulary, P pages in a pool, M visible pages of a sequence, X experts.
"""

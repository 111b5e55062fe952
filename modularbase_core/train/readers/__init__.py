"""Readers: what training data looks like on disk, a module for each kind of file. `train.corpus` is their front."""

"""Teachers: who a student learns from, a module for each kind. `train.distill` is their front."""

"""What installed packs can do, by numbers: perplexities, routing, right answers, programs that pass their tests.

Between the command line and what it measures: the torch networks (`train`) and the running model (`host`).
"""

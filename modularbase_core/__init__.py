"""ModularBase: a small resident base and pip-installable packs, compiled by TVM."""

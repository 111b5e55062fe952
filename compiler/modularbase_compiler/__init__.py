"""From `graph` to artefacts, through torch.export, Relax and TVM. Run as `python -m modularbase_compiler`."""

"""Make the data that lets the untouched pack run, where ModularBase and a base are; else say how to later."""

import sys

PROJECT = "{{ cookiecutter.distribution }}"

try:
    from modularbase_core.cli.pack.start import start_rendered
except ImportError:
    told = f"{PROJECT} has no data yet: install modularbase and a base, then run `modularbase pack start {PROJECT}`"
else:
    told = start_rendered(".", PROJECT)
if told:
    sys.stderr.write(f"note: {told}\n")

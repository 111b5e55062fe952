"""What touches the machine: memory budget, weight files and layouts, compiled artefacts."""

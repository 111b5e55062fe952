"""The device: memory, weights, compiled artefacts and what runs them."""

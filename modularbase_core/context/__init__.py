"""Context: which pages hold which tokens, and who may use them."""

"""The engine: requests and who runs when."""

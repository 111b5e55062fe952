"""Passes of our own over Relax modules."""

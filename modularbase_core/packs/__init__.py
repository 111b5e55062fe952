"""What is installed and which packs run together."""

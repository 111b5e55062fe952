"""Training: tokenizer, base, general chat, packs and router, from recipes. Imported by the CLI only when asked for."""

"""Train the byte-level BPE of a base with the `tokenizers` library.

Decides the pre-tokenisation and the control tokens; reading and using the result is `text.tokenizer`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from modularbase_core.text.template import CONTROL_TOKENS

# Contractions, words, single digits, punctuation and runs of white space (after the GPT-4 pattern). A word
# keeps the blank before it, indentation stays whole, and Chinese characters do not glue to Latin letters.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?[\p{L}--\p{Han}]+|\p{Han}{1,4}|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
).replace(r"[\p{L}--\p{Han}]", r"(?:(?!\p{Han})\p{L})")


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, path: Path) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al., 2016) and write `tokenizer.json` to `path`.

    The control tokens of the chat template take the first ids.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer

"""A small byte-level tokenizer with ChatML's control tokens, and the template that goes with it."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from modularbase_core.sdk.template import Around, ChatTemplate

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SYSTEM = "You are a helpful assistant."
CHATML = ChatTemplate(
    begin="",
    system=SYSTEM,
    roles={role: Around(f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")},
    document=Around("<|endoftext|>", "<|endoftext|>"),
    stops=("<|im_end|>", "<|endoftext|>"),
)
JINJA = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Qwen2's own chat template."""
MERGES = (("u", "s"), ("e", "r"), ("us", "er"), ("h", "e"), ("l", "l"), ("Ġ", "t"), ("Ġt", "he"), ("i", "n"))


@cache
def chatml_tokenizer() -> str:
    """Return a tokenizer.json as Qwen2's is: NFC, its pre-tokenisation, bytes and a few merges, control tokens last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, *(a + b for a, b in MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(MERGES)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    text: str = tokenizer.to_str()
    return text

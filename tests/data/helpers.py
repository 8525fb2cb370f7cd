"""A tiny byte-level tokenizer and made-up texts; no test here needs a network or a model."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_level(special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")) -> PreTrainedTokenizerFast:
    """One token a byte, then the special tokens; decoding gives the text back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentences(topic: str, count: int = 12) -> str:
    """Paragraphs on a topic, each long enough to be deduplicated and no two alike."""
    line = "Paragraph {n} speaks of {topic} at some length, so that nobody calls it short, and then of {topic} again."
    return "\n\n".join(line.format(n=f"number {n}", topic=topic) + f" The end of {n}." for n in range(count)) + "\n"

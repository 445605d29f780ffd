"""Tokenizers as language models bring them: without image tokens, roles or a chat template."""

from functools import cache

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import WORDS


@cache
def _trained(size: int, special: tuple[str, ...]) -> str:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    assert backend.get_vocab_size() == size
    return str(backend.to_str())


def plain_tokenizer(
    size: int = 280, *, bos: str | None = "<begin>", eos: str | None = "<end>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly `size` entries whose only special tokens are the named ones."""
    special = tuple(token for token in (bos, eos) if token is not None)
    backend = Backend.from_str(_trained(size, special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)

"""Any fast tokenizer serves: what it lacks is added, what it has stays, and what somebody types is never special."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from monoformer.config.data import TextData
from monoformer.tokenizer import BOI, EOI, PATCH, TIME, Tokenizer
from monoformer.train.build import build_tokenizer
from tests import tiny
from tests.parity.tokenizers import plain_tokenizer

TYPED = "a <boi> red <end></s> circle <time><image>"


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [
        ("<begin>", "<end>", ("<begin>", "<end>")),
        (None, "<end>", ("<end>", "<end>")),
        ("<begin>", None, ("<begin>", "<begin>")),
        (None, None, ("<s>", "</s>")),
    ],
)
def test_what_is_missing_is_added_at_the_end(
    bos: str | None, eos: str | None, expected: tuple[str, str], tmp_path: Path
) -> None:
    plain = plain_tokenizer(bos=bos, eos=eos)
    ids = plain.encode("the red circle", add_special_tokens=False)
    tokenizer = Tokenizer(plain_tokenizer(bos=bos, eos=eos))
    named = tokenizer.backend.convert_ids_to_tokens([tokenizer.bos, tokenizer.eos, tokenizer.pad])
    assert tuple(named) == (*expected, expected[1])
    assert min(tokenizer.boi, tokenizer.eoi, tokenizer.patch, tokenizer.time) >= 280
    assert tokenizer.encode("the red circle") == ids
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert tokenizer.grown == [*range(280, tokenizer.size)], "roles and ends too"
    for name in ("bos", "eos", "pad", "boi", "eoi", "patch", "time", "size", "special", "grown"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    for one in (tokenizer, again):
        assert not set(one.encode(TYPED)) & set(one.special)
        assert one.decode(one.encode(TYPED)) == TYPED
        assert one.encode_template(f"{BOI}{TIME}{PATCH}{EOI}") == [one.boi, one.time, one.patch, one.eoi]


def test_ordinary_entries_of_these_names_become_special_and_keep_their_numbers() -> None:
    backend = plain_tokenizer()
    backend.add_tokens([BOI, "<s>"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.boi == 280
    assert not set(tokenizer.encode(TYPED)) & set(tokenizer.special)


def test_a_vocabulary_that_spells_a_special_token_is_refused() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    backend = Backend(models.WordLevel({"<end>": 0, "a": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ValueError, match="typed '<end>' as the special token"):
        Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="a", eos_token="<end>", unk_token="?"))


def test_a_template_that_refuses_a_conversation_says_so() -> None:
    backend = plain_tokenizer()
    backend.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="refuses the roles user, user: roles must alternate"):
        Tokenizer(backend).render([{"role": "user", "content": "a"}] * 2)


def test_words_that_the_vocabulary_lacks_are_warned_of_once() -> None:
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "red": 3, "circle": 4}
    backend = Backend(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), behavior="removed", invert=True)
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **ends))
    assert tokenizer.encode("red circle") == [3, 4]
    with pytest.warns(UserWarning, match="no token for some of 'a red circle', and reads it as <unk>"):
        assert tokenizer.encode("a red circle") == [0, 3, 4]
    assert tokenizer.encode("a circle") == [0, 4], "said before"


def test_what_a_run_that_never_began_has_left_is_not_taken(tmp_path: Path) -> None:
    """A first attempt may have been of other data; where there are checkpoints, the tokenizer is theirs."""
    for name, text in (("a", "the red circle "), ("b", "whole chickens ")):
        (tmp_path / f"{name}.txt").write_text(text * 200)
    first, mended = (
        tiny.run_config(tmp_path / "run", data=TextData(files=(str(tmp_path / f"{name}.txt"),), characters=100))
        for name in ("a", "b")
    )
    failed = build_tokenizer(first)
    made = build_tokenizer(mended)
    assert len(made.encode("whole chickens")) < len(failed.encode("whole chickens"))
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    assert build_tokenizer(first).encode("whole chickens") == made.encode("whole chickens")

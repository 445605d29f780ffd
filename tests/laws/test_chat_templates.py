"""Any chat template: tokens as `transformers` has them, an end of its own, and prompts that training has seen."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from monoformer.batch import IGNORED
from monoformer.document import Document, Text
from monoformer.pipeline import Pipeline
from monoformer.sequence import Sequencer
from monoformer.tokenizer import Tokenizer
from tests import tiny
from tests.parity.stories import read_tokenizer
from tests.parity.tokenizers import plain_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("{{ message.content }}", "{% if message.role == 'assistant' and loop.last %}<think>\n\n"
                          "</think>\n\n{% endif %}{{ message.content }}")  # fmt: skip
ZEPHYR = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
INST = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
CHAT = Document(
    (
        Text("hello there", "user"),
        Text("a little dog", "assistant"),
        Text("and now", "user"),
        Text("the red circle", "assistant"),
    )
)


def chatml(template: str = CHATML) -> PreTrainedTokenizerFast:
    """As Qwen's: the document's end is no end of a turn."""
    backend = plain_tokenizer()
    backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")])
    backend.chat_template = template
    return backend


def pieces(shared_data: Path, template: str, *, scheme: str = "") -> PreTrainedTokenizerFast:
    """SentencePiece's, as the first Llamas have it, or with a blank of the newer kind."""
    backend = read_tokenizer(shared_data / "tokenizers/tok512.bin", 512)
    if scheme:
        backend.backend_tokenizer.normalizer = None
        backend.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.chat_template = template
    return backend


def theirs(backend: PreTrainedTokenizerFast, document: Document, *, answer: bool = False) -> list[int]:
    messages = [{"role": part.role, "content": part.text} for part in document.segments if isinstance(part, Text)]
    found = backend.apply_chat_template(messages, tokenize=True, add_generation_prompt=answer, return_dict=True)
    return list(found["input_ids"])


def sequencer(backend: PreTrainedTokenizerFast) -> Sequencer:
    return Sequencer(tokenizer=Tokenizer(backend), time_token=False, cell=8)


def test_a_conversation_is_tokenized_as_transformers_does(shared_data: Path) -> None:
    plain = [chatml(), chatml(ZEPHYR), chatml(INST)]
    made = [pieces(shared_data, t, scheme=s) for t in (ZEPHYR, INST) for s in ("", "first", "always")]
    made.append(pieces(shared_data, ZEPHYR, scheme="never"))
    for backend in [*plain, *made]:
        expected = theirs(backend, CHAT)
        assert list(sequencer(backend).document(CHAT).ids) == expected
        if backend.chat_template == ZEPHYR:
            asked = Document(CHAT.segments[:3])
            assert list(sequencer(backend).prompt(asked).ids) == theirs(backend, asked, answer=True)


def test_mistrals_own_tokenizer_model_reads_a_talk_as_transformers_does(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    shutil.copy(shared_data / "tokenizers/mistral_tokenizer.model.v1", tmp_path / "tokenizer.model")
    described = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**described, "chat_template": INST}), encoding="utf-8")
    ours = Sequencer(tokenizer=Tokenizer.from_folder(tmp_path), time_token=False, cell=8)
    talk = (Text("hello there", "user"), Text("a little dog", "assistant"), Text(" 中文, now", "user"))
    document = Document((*talk, Text("ok", "assistant")))
    layout = ours.document(document)
    assert list(layout.ids) == theirs(ours.tokenizer.backend, document)
    assert ours.tokenizer.decode([label for label in layout.labels if label != IGNORED]) == "a little dog ok"


@pytest.mark.parametrize("template", [CHATML, THINKING, ZEPHYR, INST])
def test_a_prompt_is_what_stands_before_the_answer_in_training(template: str, shared_data: Path) -> None:
    for backend in (chatml(template), *([pieces(shared_data, template)] if "im_end" not in template else [])):
        ours = sequencer(backend)
        trained, prompt = ours.document(CHAT).ids, ours.prompt(Document(CHAT.segments[:3])).ids
        assert list(trained[: len(prompt)]) == list(prompt)
        (answer,) = ours.answers(Document(CHAT.segments[:3]), ["the red circle"])
        assert list(trained[len(prompt) :][: len(answer)]) == answer
        assert answer[-1] == ours.tokenizer.turn_end
        begun = ours.prompt(Document((*CHAT.segments[:3], Text("the red", "assistant")))).ids
        assert list(begun[: len(prompt)]) == list(prompt)


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{{ messages[0].content }}!{% if add_generation_prompt %}?{% endif %}",
        "{% if messages[-1].role != 'user' %}{{ raise_exception('ask') }}{% endif %}{{ bos_token }}"
        "{{ messages[-1].content }}!{% if add_generation_prompt %}?{% endif %}",
    ],
)
def test_a_template_without_a_place_for_answers_opens_them_itself(template: str) -> None:
    ours = sequencer(chatml(template))
    asked = Document((Text("hello there", "user"),))
    assert ours.tokenizer.decode(ours.prompt(asked).ids) == "hello there!?"
    assert ours.answers(asked, ["a dog"])[0][-1] == ours.tokenizer.eos


def test_what_closes_an_answer_is_learned_and_stops_it(tmp_path: Path) -> None:
    ours = sequencer(chatml())
    tokenizer = ours.tokenizer
    assert tokenizer.backend.convert_ids_to_tokens(tokenizer.turn_end) == "<|im_end|>"
    assert tokenizer.stops == {tokenizer.eos, tokenizer.turn_end}
    layout = ours.document(CHAT)
    learned = [label for label in layout.labels if label != IGNORED]
    assert learned.count(tokenizer.turn_end) == 2
    assert learned[-1] == tokenizer.turn_end
    assert not set(tokenizer.encode("<|im_end|>")) & {*tokenizer.special}, "typed, it stays text"
    made = replace(tiny.pretrained("add", vocabulary=tokenizer.size), tokenizer=tokenizer)
    stream = Pipeline(made).stream(CHAT.segments[:3], max_tokens=4, logit_bias=((tokenizer.turn_end, 1e6),))
    assert [event.reason for event in stream if event.kind == "end"] == ["stop"]
    tokenizer.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).stops == tokenizer.stops
    kept = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert kept["eos_token_id"] == [tokenizer.eos, tokenizer.turn_end]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_more_ends_are_read_from_the_models_files(file: str, tmp_path: Path) -> None:
    backend = chatml()
    backend.save_pretrained(tmp_path)
    start = backend.convert_tokens_to_ids("<|im_start|>")
    (tmp_path / file).write_text(json.dumps({"eos_token_id": [start, 10**6]}), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.stops == {start, tokenizer.eos, tokenizer.turn_end}
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.from_folder(tmp_path / "again").stops == tokenizer.stops

"""Token ids: Hugging Face tokenizers with the image tokens, or a small byte-level BPE trained on a run's own text.

Knows nothing of documents or rows. Invariant: `encode` never makes a special token, so a typed "</s>" stays text;
`encode_template` does, and is given the chat template's own pieces only.
"""

import json
import warnings
from collections.abc import Callable, Iterable
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, Literal

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
BOI, EOI, PATCH, TIME = "<boi>", "<eoi>", "<image>", "<time>"
NAMED = {"boi_token": BOI, "eoi_token": EOI, "image_token": PATCH, "time_token": TIME}
"""Image tokens by the names under which a tokenizer may hold others of its own."""
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

LONG = 2_000
"""Characters from which a text takes milliseconds."""

GENERATION = "generation_config.json"
"""Where the ecosystem keeps which tokens end an answer, beside the tokenizer's own eos."""

GROWN = "grown_for_monoformer"
"""Under which tokenizer_config.json keeps which tokens were added to another project's tokenizer."""

ANSWER = "\uf8ff"
"""Stands for an answer where a chat template is asked what it puts behind one."""

Follows = Literal["nothing", "special", "text"]
"""What a text stands behind: SentencePiece puts a blank before one that begins."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Template of trained tokenizers: `bos <|user|> ... <|assistant|> ... eos`."""


class Tokenizer:
    """A Hugging Face fast tokenizer that knows the image tokens."""

    def __init__(self, backend: Any, *, stops: Iterable[int] = ()) -> None:
        """`backend` is a `transformers` fast tokenizer; what it lacks is added at the end of its vocabulary.

        `stops` are tokens that end an answer beside eos and what the chat template puts behind one.
        Raises ValueError for one that would read something typed as a special token.
        """
        before = {*backend.get_vocab().values()}
        _add_ends(backend)
        named = {name: str(backend.special_tokens_map.get(name, token)) for name, token in NAMED.items()}
        missing = [token for token in named.values() if token not in backend.all_special_tokens]
        if missing:
            backend.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
        if not backend.chat_template:
            backend.chat_template = CHAT_TEMPLATE
            backend.add_special_tokens({"extra_special_tokens": list(ROLES)}, replace_extra_special_tokens=False)
        self.backend = backend
        vocabulary: dict[str, int] = backend.get_vocab()
        self.boi, self.eoi, self.patch, self.time = (vocabulary[token] for token in named.values())
        self.grown = sorted({*vocabulary.values()} - before | {*backend.init_kwargs.get(GROWN, ())})
        """Ids of the tokens that it lacked, whenever they were added: rows that no language model has trained."""
        if self.grown:
            backend.init_kwargs[GROWN] = self.grown
        self.bos, self.eos = int(backend.bos_token_id), int(backend.eos_token_id)
        pad = backend.pad_token_id
        self.pad = self.eos if pad is None else int(pad)
        added = {int(token) for token, entry in backend.added_tokens_decoder.items() if entry.special}
        self.special = sorted({*added, *map(int, backend.all_special_ids), self.boi, self.eoi, self.patch, self.time})
        self.size = max(vocabulary.values()) + 1
        self.longest = max(map(len, vocabulary))
        """Characters that one token stands for at most."""
        self._lets_go, self._unknown = False, backend.unk_token_id
        self._inside, self._first_alone = _without_first_blank(backend.backend_tokenizer)
        self.begins_with_blank = self._inside is not None
        """Whether a text that begins has a blank before it, which `decode` takes away (SentencePiece's `▁`)."""
        self.turn_end = self._closing()
        """What the chat template puts behind an answer (ChatML's `<|im_end|>`): eos, unless it has one of its own."""
        self.stops = frozenset({self.eos, self.turn_end, *(stop for stop in stops if 0 <= stop < self.size)})
        """Tokens that end an answer."""
        typed = self._ids(" ".join(backend.all_special_tokens), split=True, follows="nothing")
        forged = backend.convert_ids_to_tokens(sorted({*typed} & {*self.special} - {self._unknown}))
        if forged:
            raise ValueError(f"it reads a typed {forged[0]!r} as the special token; make it no ordinary entry")

    @classmethod
    def from_folder(cls, path: str | Path, *, adapt: Callable[[Any], Any] = lambda backend: backend) -> "Tokenizer":
        """Load from a folder or a hub name; ValueError when there is none. `adapt` makes another project's ours."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # AutoTokenizer would read config.json as well, and warn of a model that transformers does not know
        own = (Path(path) / "tokenizer.json").is_file()
        try:
            backend = adapt((PreTrainedTokenizerFast if own else AutoTokenizer).from_pretrained(str(path)))
            return cls(backend, stops=_stops(Path(path)))
        except Exception as error:  # a damaged tokenizer.json raises whatever its reader raises
            old = not own and (Path(path) / "tokenizer.model").is_file()
            hint = "; for its tokenizer.model: pip install 'monoformer[sentencepiece]'" if old else ""
            cause = str(error).splitlines()[0].strip()
            if cause.endswith(":"):  # a list of what transformers looked for follows
                cause = "it holds no files of one that can be read, such as tokenizer.json or tokenizer.model"
            raise ValueError(f"no tokenizer could be loaded from {path}: {cause}{hint}") from None

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary: int) -> "Tokenizer":
        """Train a byte-level BPE of at most `vocabulary` entries, special tokens included."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        special = [PAD, BOS, EOS, BOI, EOI, PATCH, TIME, *ROLES]
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(filter(is_unicode, texts), trainer)
        return cls(
            PreTrainedTokenizerFast(
                tokenizer_object=backend,
                bos_token=BOS,
                eos_token=EOS,
                pad_token=PAD,
                extra_special_tokens=[BOI, EOI, PATCH, TIME, *ROLES],
                chat_template=CHAT_TEMPLATE,
                clean_up_tokenization_spaces=False,
            )
        )

    def beside(self) -> "Tokenizer":
        """The same for another thread: its state is its own, and it lets others compute while it reads a long text."""
        found = copy(self)
        found.backend, found._inside, found._lets_go = deepcopy(self.backend), deepcopy(self._inside), True
        return found

    def encode(self, text: str, *, follows: Follows = "nothing") -> list[int]:
        """Ids of what somebody typed; special tokens in it are split like any other text.

        Warns once where the tokenizer has no token for some of it.
        """
        ids = self._ids(text, split=True, follows=follows)
        if self._unknown is not None and self._unknown in ids:
            unknown, self._unknown = self.backend.unk_token, None
            warnings.warn(
                f"the tokenizer has no token for some of {text!r:.80}, and reads it as {unknown}", stacklevel=2
            )
        return ids

    def encode_template(self, text: str, *, follows: Follows = "nothing") -> list[int]:
        """Ids of a piece of the chat template; special tokens in it are recognised."""
        ids = self._ids(text, split=False, follows=follows)
        if follows != "text" or self._inside is None or self._first_alone:
            return ids
        anew = self._ids(text, split=False, follows="nothing")  # behind its first special token a text begins again
        first, again = (next((n for n, one in enumerate(found) if one in self.special), 0) for found in (ids, anew))
        return [*ids[:first], *anew[again:]] if ids[first] in self.special else ids

    def _ids(self, text: str, *, split: bool, follows: Follows) -> list[int]:
        # the Rust tokenizer itself: the wrapper around it costs ten times as much on a caption (0.2 against 0.02 ms)
        begins = follows == "nothing" or (follows == "special" and not self._first_alone)
        fast = self.backend.backend_tokenizer if begins or self._inside is None else self._inside
        fast.encode_special_tokens = split
        try:
            if self._lets_go and len(text) > LONG:  # a batch is read without the interpreter's lock
                return list(fast.encode_batch([text], add_special_tokens=False)[0].ids)
            ids: list[int] = fast.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            if is_unicode(text):
                raise
            raise ValueError(f"the text {text!r:.80} holds half of a surrogate pair, which no encoding has") from None
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, special tokens left out."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def render(self, messages: list[dict[str, str]], *, answer: bool = False) -> str:
        """The chat template applied to messages; `answer`: with what it puts before an answer to come.

        Raises ValueError when the template refuses such a conversation.
        """
        from jinja2 import TemplateError

        try:
            text: str = self.backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(f"the tokenizer's chat template refuses the roles {roles}: {error}") from None
        return text

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files in the ecosystem's form, and what ends an answer where that is more than eos."""
        self.backend.save_pretrained(str(folder))
        if len(self.stops) > 1:
            ends = {"bos_token_id": self.bos, "eos_token_id": [self.eos, *sorted(self.stops - {self.eos})]}
            (Path(folder) / GENERATION).write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")

    def _closing(self) -> int:
        """The first special token that the chat template puts behind an answer; eos where it puts none."""
        messages = [{"role": "user", "content": ANSWER}, {"role": "assistant", "content": ANSWER}]
        try:
            closing = self.render(messages).rpartition(ANSWER)[2]
        except ValueError:
            return self.eos
        ends = {*self.special} - {self.bos, self.boi, self.eoi, self.patch, self.time}
        return next((token for token in self.encode_template(closing, follows="text") if token in ends), self.eos)


def is_unicode(text: str) -> bool:
    """Whether it can be written in UTF-8: halves of surrogate pairs, which cut JSON holds, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stops(folder: Path) -> list[int]:
    """What the files beside a tokenizer say of tokens that end an answer: one number or several."""
    for name in (GENERATION, "config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            if found is not None:
                return [stop for stop in (found if isinstance(found, list) else [found]) if isinstance(stop, int)]
    return []


def _without_first_blank(fast: Any) -> tuple[Any, bool]:
    """The Rust tokenizer for a text that goes on, None where it is the same; whether a special token begins none.

    Llama's and Mistral's put a blank before a text: the older ones behind a special token too, the newer ones not.
    """
    from tokenizers import Tokenizer as Backend

    parts = {"normalizer": fast.normalizer, "pre_tokenizer": fast.pre_tokenizer}
    described = {place: part and json.loads(part.__getstate__()) for place, part in parts.items()}
    steps = [step for part in described.values() for step in _steps(part)]
    without = {
        "Prepend": ("prepend", ""),
        "Metaspace": ("prepend_scheme", "never"),
        "ByteLevel": ("add_prefix_space", False),
    }
    found = [step for step in steps if step["type"] in without]
    put = [step for step in found if step[without[step["type"]][0]] != without[step["type"]][1]]
    if not put:
        return None, False
    alone = all(step.get("prepend_scheme") == "first" for step in put)
    for step in put:
        name, value = without[step["type"]]
        step[name] = value
    return Backend.from_str(json.dumps(json.loads(fast.to_str()) | described)), alone  # the whole takes long: only now


def _steps(described: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer that may be a sequence of them."""
    if described is None:
        return []
    inner = described.get("normalizers") or described.get("pretokenizers")
    return [part for step in inner for part in _steps(step)] if inner else [described]


def _add_ends(backend: Any) -> None:
    """Give the tokenizer a bos and an eos: its `<s>` and `</s>`, else the other of the two, else new entries.

    Qwen, for one, has no bos: its documents are parted by its eos, which then stands before the first one too.
    """
    vocabulary = backend.get_vocab()
    bos, eos = backend.bos_token, backend.eos_token
    if bos is None:
        backend.add_special_tokens({"bos_token": eos if eos is not None and BOS not in vocabulary else BOS})
    if eos is None:
        backend.add_special_tokens({"eos_token": bos if bos is not None and EOS not in vocabulary else EOS})

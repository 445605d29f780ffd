"""Documents to tokens: order, labels, positions, clean copies, dropping, and prompts that look like training."""

from random import Random
from typing import Any, Literal

import pytest
import torch

from monoformer.batch import IGNORED, Layout
from monoformer.config.data import SequenceConfig
from monoformer.document import Document, Image, Role, Segment, Text
from monoformer.dropping import drop, unconditional
from monoformer.generate.guidance import null_document
from monoformer.tokenizer import BOI, EOI, EOS, PATCH, ROLES, TIME
from tests import tiny

T = tiny.tokenizer()
NAMES = {T.bos: "bos", T.eos: "eos", T.boi: "boi", T.eoi: "eoi", T.patch: "p", T.time: "t"}
NAMES |= {T.encode_template(role)[0]: role for role in ROLES}


def picture(*, target: bool = False, role: Role | None = None, size: tuple[int, int] = (4, 8)) -> Image:
    return tiny.image(Random(1), target=target, role=role, size=size)


def shown(ids: list[int]) -> str:
    """Special tokens by name, runs of text as their length: `bos 3 boi p p eoi eos`."""
    parts: list[str] = []
    for token in ids:
        if token in NAMES:
            parts.append(NAMES[token])
        elif parts and parts[-1].isdecimal():
            parts[-1] = str(int(parts[-1]) + 1)
        else:
            parts.append("1")
    return " ".join(parts)


def learned(layout: Layout) -> list[int]:
    """Tokens that somebody learns to predict."""
    return [token for token in layout.labels if token != IGNORED]


def laid(*segments: Segment, mode: str = "adaln", **config: Any) -> Layout:
    return tiny.sequencer(mode, **config).document(Document(segments))


def test_tokens_come_in_order() -> None:
    red = len(T.encode("red"))
    segments = (Text("red"), picture(target=True), Text("red"))
    plain = f"bos {red} boi p p eoi {red} eos"
    assert shown(laid(*segments, context="noised").ids) == plain
    assert shown(laid(*segments, mode="token", context="noised").ids) == plain.replace("boi", "boi t")
    assert shown(laid(*segments, mode="token").ids) == plain.replace("p p", "t p p t p p")
    chat = laid(Text("red", "user"), picture(target=True, role="assistant"))
    assert shown(chat.ids) == f"bos <|user|> {red} <|assistant|> boi p p eoi eos"


def test_a_label_is_the_next_token_and_the_right_ones_are_labelled() -> None:
    for mode in ("adaln", "token"):
        for layout in tiny.layouts(mode, 0, 40, sequence={"context": "noised"}):
            for at, label in enumerate(layout.labels):
                assert label in (IGNORED, layout.ids[at + 1] if at + 1 < len(layout) else IGNORED)
            assert not {T.eoi, T.patch, T.time, T.bos} & set(learned(layout))


def test_a_target_opens_with_a_labelled_boi_and_context_does_not() -> None:
    assert T.boi in learned(laid(Text("red"), picture(target=True)))
    assert T.boi not in learned(laid(picture(), Text("red")))
    ours, theirs = picture(role="assistant", target=True), picture(role="user")
    chat = laid(theirs, Text("red", "user"), ours)
    assert learned(chat) == [T.boi, T.eos]
    opening = chat.labels.index(T.boi)
    assert NAMES[chat.ids[opening]] == "<|assistant|>"


def test_text_after_an_image_is_predicted_from_eoi() -> None:
    for context in tiny.CONTEXTS:
        layout = laid(picture(target=True), Text("red"), context=context)
        assert layout.labels[layout.ids.index(T.eoi)] == T.encode("red")[0]
    assert laid(picture(target=True)).labels[-2] == T.eos


def test_plain_documents_learn_all_their_text() -> None:
    layout = laid(Text("red of"), picture(), Text("blue"))
    assert learned(layout) == [*T.encode("red of"), *T.encode("blue"), T.eos]


def test_the_papers_learn_the_users_words_as_well() -> None:
    segments = (Text("red of", "user"), picture(role="assistant", target=True))
    assert learned(laid(*segments)) == [T.boi, T.eos]
    everything = laid(*segments, learned_text="all")
    assert learned(everything) == [*T.encode("red of"), T.boi, T.eos], "and no token of the template"
    assert everything.ids == laid(*segments).ids


def test_chats_learn_the_assistants_tokens_and_their_eos_only() -> None:
    layout = laid(
        Text("the red", "system"), Text("blue", "user"), Text("red", "assistant"), picture(role="user"),
        Text("what", "user"), Text("small", "assistant"), picture(target=True, role="assistant"), context="noised",
    )  # fmt: skip
    assert learned(layout) == [*T.encode("red"), T.eos, *T.encode("small"), T.boi, T.eos]


@pytest.mark.parametrize("typed", [EOS, BOI, EOI, PATCH, TIME, *ROLES, f"a{EOS}b {BOI}"])
def test_typed_special_tokens_stay_text(typed: str) -> None:
    assert not set(T.encode(typed)) & set(T.special)
    assert T.decode(T.encode(typed)) == typed
    layout = laid(Text(f"x {typed}", "user"), Text(typed, "assistant"))
    assert shown(layout.ids) == f"bos <|user|> {len(T.encode(f'x {typed}'))} <|assistant|> {len(T.encode(typed))} eos"


def test_private_use_characters_in_a_chat_stay_text() -> None:
    typed = "a\ue000b\ue001\uf8ff"
    layout = laid(Text(typed, "user"), Text("red", "assistant"))
    assert layout.ids[2 : 2 + len(T.encode(typed))] == T.encode(typed)


def test_no_label_crosses_documents_in_a_row() -> None:
    batch = tiny.in_rows(tiny.layouts("adaln", 4, 20), rows=2)
    for row in range(2):
        for at in range(batch.ids.shape[1] - 1):
            if batch.document[row, at] != batch.document[row, at + 1]:
                assert batch.labels[row, at] == IGNORED
    assert (batch.labels[batch.document < 0] == IGNORED).all()


def test_clean_copy_shares_positions_and_hides_the_noised_block() -> None:
    layout = laid(Text("red"), picture(target=True), Text("red"), mode="token")
    noised, clean = layout.blocks
    assert (noised.noised, clean.noised, noised.number, clean.number) == (True, False, 1, 1)
    assert noised.start < clean.start, "the noised block comes first"
    first, second = slice(noised.start - 1, noised.start + 2), slice(clean.start - 1, clean.start + 2)
    assert layout.positions[first] == layout.positions[second]
    assert layout.private[first] == [1, 1, 1]
    assert layout.private[second] == [0, 0, 0]
    assert layout.positions[clean.start + 2] == layout.positions[clean.start + 1] + 1
    without = laid(Text("red"), picture(target=True), Text("red"), mode="token", context="noised")
    kept = [i for i in range(len(layout)) if not noised.start - 1 <= i < noised.start + 2]
    assert [layout.positions[i] for i in kept] == without.positions
    assert sum(layout.private) == 3
    assert sum(without.private) == 0


def clean_copies(*segments: Segment, **config: Any) -> int:
    layout = laid(*segments, **config)
    targets = {block.number for block in layout.blocks if block.noised}
    return sum(not block.noised and block.number in targets for block in layout.blocks)


def test_the_copy_is_left_out_where_nothing_later_reads_it() -> None:
    target = picture(target=True)
    assert clean_copies(Text("red"), target) == 0, "only eos follows"
    assert clean_copies(Text("red"), target, Text("red")) == 1
    assert clean_copies(target, target) == 1, "the second reads the first"
    assert clean_copies(target, target, Text("red")) == 2
    assert clean_copies(target, Text("red"), context="noised") == 0
    ours = picture(target=True, role="assistant")
    assert clean_copies(Text("red", "user"), ours) == 0
    assert clean_copies(Text("red", "user"), ours, Text("what", "user")) == 0, "nobody learns what follows"
    assert clean_copies(Text("red", "user"), ours, Text("what", "user"), Text("red", "assistant")) == 1


@pytest.mark.parametrize("why", ["dropped", "no text loss"])
def test_the_copy_is_left_out_where_the_text_that_reads_it_has_no_labels(why: str) -> None:
    config = {"drop_text": 1.0} if why == "dropped" else {"text_loss_in_image_documents": False}
    assert clean_copies(Text("a"), picture(target=True), Text("red"), **config) == 0


def test_blocks_are_where_the_patches_are_and_targets_are_noised() -> None:
    for context in tiny.CONTEXTS:
        for document, layout in zip(
            tiny.documents(2, 40), tiny.layouts("token", 2, 40, sequence={"context": context}), strict=True
        ):
            at = [i for block in layout.blocks for i in range(block.start, block.start + block.grid[0] * block.grid[1])]
            assert at == [i for i, token in enumerate(layout.ids) if token == T.patch]
            for block in layout.blocks:
                segment = document.images[block.number - 1]
                assert torch.equal(block.pixels, segment.pixels)
                assert block.grid == (segment.pixels.shape[1] // 4, segment.pixels.shape[2] // 4)
                assert not block.noised or segment.target
            noised = sorted(block.number for block in layout.blocks if block.noised)
            assert noised == [n for n, segment in enumerate(document.images, 1) if segment.target]


def test_documents_that_hold_a_target_lose_their_text_labels_where_configured() -> None:
    assert learned(laid(Text("red"), picture(target=True), text_loss_in_image_documents=False)) == []
    assert learned(laid(Text("red"), picture(), text_loss_in_image_documents=False)) == [*T.encode("red"), T.eos]


# --- the noise limit ---


def limits(layout: Layout) -> list[tuple[bool, float]]:
    """Of every block: whether it is noised, and its noise limit."""
    return [(block.noised, block.noise_limit) for block in layout.blocks]


@pytest.mark.parametrize("mode", ["adaln", "token"])
def test_a_picture_before_its_caption_becomes_a_limited_target_that_the_caption_reads(mode: str) -> None:
    segments = (picture(role="user"), Text("red", "assistant"))
    layout = laid(*segments, mode=mode, context="noised", noise_limit=0.5)
    context = laid(*segments, mode=mode, context="noised")
    assert limits(layout) == [(True, 0.5)]
    assert limits(context) == [(False, 1.0)]
    assert (layout.ids, layout.labels, layout.end) == (context.ids, context.labels, context.end)
    assert not any(layout.private), "the caption sees the noised picture"
    plain = laid(picture(), Text("red"), mode=mode, context="noised", noise_limit=0.5)
    assert limits(plain) == [(True, 0.5)]
    assert learned(plain) == [T.boi, *T.encode("red"), T.eos]


def test_the_noise_limit_touches_no_other_picture() -> None:
    target, shown = picture(target=True, role="assistant"), picture(role="user")
    config: dict[str, Any] = {"context": "noised", "noise_limit": 0.5}
    assert limits(laid(Text("red", "user"), target, **config)) == [(True, 1.0)]
    assert limits(laid(shown, Text("blue", "user"), target, **config)) == [(False, 1.0), (True, 1.0)]
    assert limits(laid(shown, Text("what", "user"), Text("red", "assistant"), **config)) == [(False, 1.0)]
    assert limits(laid(target, Text("red", "assistant"), **config)) == [(True, 1.0)], "drawn, then spoken of"
    unlearned = laid(shown, Text("a", "assistant"), target, text_loss_in_image_documents=False, **config)
    assert limits(unlearned) == [(False, 1.0), (True, 1.0)], "nobody learns the caption"


def test_a_picture_to_be_described_is_never_dropped_for_guidance_and_a_prompt_reads_it_clean() -> None:
    own = tiny.sequencer(context="noised", noise_limit=0.5, drop_text=1.0, drop_context=1 / 3)
    described = Document((picture(role="user"), Text("red", "assistant")))
    assert learned(own.document(described)) == [*T.encode("red"), T.eos]
    assert limits(own.prompt(described)) == [(False, 1.0)]


def test_a_noise_limit_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="read a clean copy"):
        SequenceConfig(noise_limit=0.5)
    with pytest.raises(ValueError, match=r"in \[0, 1\], but is 500"):
        SequenceConfig(noise_limit=500, context="noised")
    for limit, target in ((0.5, False), (0.0, True), (1.5, True)):
        with pytest.raises(ValueError, match="noise_limit"):
            Image(pixels=picture().pixels, target=target, noise_limit=limit)


# --- dropping for guidance ---

CONTEXT, TARGET = picture(), picture(target=True, size=(8, 8))


def drops(document: Document, config: SequenceConfig, count: int = 4000) -> dict[tuple[Segment, ...], float]:
    """How often each outcome comes."""
    found: dict[tuple[Segment, ...], float] = {}
    for number in range(count):
        after, dropped = drop(document, number, seed=3, config=config)
        assert dropped == (after is not document)
        found[after.segments] = found.get(after.segments, 0) + 1 / count
    return found


def test_dropping_comes_as_often_as_configured() -> None:
    config = SequenceConfig()
    plain = drops(Document((Text("red"), TARGET)), config)
    assert plain.keys() == {(Text("red"), TARGET), (TARGET,)}
    assert plain[(TARGET,)] == pytest.approx(0.1, abs=0.015)
    edit = drops(Document((CONTEXT, Text("red"), TARGET)), config)
    outcomes = [(CONTEXT, TARGET), (Text("red"), TARGET), (TARGET,)]
    assert edit.keys() == {(CONTEXT, Text("red"), TARGET), *outcomes}
    for outcome in outcomes:
        assert edit[outcome] == pytest.approx(0.05, abs=0.012)
    assert drops(Document((CONTEXT, Text("red"))), config, 200).keys() == {(CONTEXT, Text("red"))}
    story = Document((TARGET, Text("red")))  # nothing to drop: what is learned of its words stays
    assert drops(story, SequenceConfig(drop_text=1.0), 200).keys() == {story.segments}


def test_dropping_depends_on_seed_and_number_alone() -> None:
    document, config = Document((Text("red"), TARGET)), SequenceConfig(drop_text=0.5)
    outcomes = [drop(document, number, seed=0, config=config)[1] for number in range(50)]
    assert outcomes == [drop(document, number, seed=0, config=config)[1] for number in range(50)]
    assert outcomes != [drop(document, number, seed=1, config=config)[1] for number in range(50)]


@pytest.mark.parametrize("chat", [False, True])
def test_a_dropped_document_keeps_bos_boi_and_learns_no_text(chat: bool) -> None:
    role: list[Role | None] = ["user", "assistant"] if chat else [None, None]
    layout = laid(
        Text("red", role[0]), picture(target=True, role=role[1]), Text("blue", role[1]), drop_text=1.0, context="noised"
    )
    assert shown(layout.ids).startswith("bos boi p p eoi")
    assert learned(layout) == []
    assert sum(block.noised for block in layout.blocks) == 1


@pytest.mark.parametrize("mode", ["adaln", "token", "vision"])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("edit", [False, True])
def test_the_null_context_of_sampling_is_that_of_training(mode: str, chat: bool, edit: bool) -> None:
    user: Role | None = "user" if chat else None
    before: tuple[Segment, ...] = (Text("red", user), *([picture(role=user)] if edit else []), Text("of", user))
    target = picture(target=True, role="assistant" if chat else None, size=(8, 8))
    own = tiny.sequencer(mode, drop_text=1.0, drop_context=1 / 3)
    sampled = own.prompt(null_document(Document(before)), opening="image")
    for number in range(200):  # with context images, the outcome that keeps them is one of three
        trained = own.document(Document((*before, target)), number, seed=1)
        at = len(sampled)
        if trained.ids[:at] == sampled.ids:
            assert trained.positions[:at] == sampled.positions
            assert trained.end[:at] == sampled.end
            assert trained.private[:at] == sampled.private
            start = trained.blocks[-1].start - own.time_token
            assert start == at, "the target follows at once"
            assert trained.positions[start] == sampled.next_position
            return
    pytest.fail("training never shows the context that guidance compares with")


def test_both_null_contexts_come_from_one_function() -> None:
    document = Document((Text("red", "user"), picture(role="user"), Text("blue", "user")))
    kept: dict[Literal["nothing", "images", "text"], int] = {"nothing": 0, "images": 1, "text": 2}
    for keep, count in kept.items():
        assert len(unconditional(document, 3, keep=keep).segments) == count
    assert null_document(document) == unconditional(document, 3, keep="images")
    assert null_document(Document((Text("red"),))) == Document(())


# --- prompts ---


@pytest.mark.parametrize("mode", ["adaln", "token", "causal", "vision"])
def test_a_prompt_is_the_beginning_of_its_training_layout(mode: str) -> None:
    own = tiny.sequencer(mode)
    for document in tiny.documents(7, 60):
        clean = Document(tuple(_context(segment) for segment in document.segments))
        prompt, trained = own.prompt(clean), own.document(clean)
        speaking = document.is_chat and clean.segments[-1].role == "assistant"
        # plain: all but eos; an unfinished answer: all but eos; a question: all, and then <|assistant|>
        length = len(trained) - 1 if speaking or not document.is_chat else len(trained)
        assert len(prompt) == (length if speaking or not document.is_chat else length + 1)
        assert prompt.ids[:length] == trained.ids[:length]
        assert prompt.positions[:length] == trained.positions[:length]
        assert prompt.end[:length] == trained.end[:length]
        assert prompt.private[:length] == trained.private[:length]
        assert [(b.start, b.grid, b.noised, b.by_encoder) for b in prompt.blocks] == [
            (b.start, b.grid, b.noised, b.by_encoder) for b in trained.blocks
        ]
        assert prompt.next_position == len(prompt)


def _context(segment: Segment) -> Segment:
    return Image(pixels=segment.pixels, role=segment.role) if isinstance(segment, Image) else segment


@pytest.mark.parametrize("mode", ["adaln", "token", "vision"])
@pytest.mark.parametrize("chat", [False, True])
def test_a_drawn_picture_is_read_as_its_clean_copy_was_trained(mode: str, chat: bool) -> None:
    own = tiny.sequencer(mode)
    before = Text("red", "user" if chat else None)
    drawn, after = picture(target=True, role="assistant" if chat else None), Text("of", "assistant" if chat else None)
    trained = own.document(Document((before, drawn, after)))
    prompt = own.prompt(Document((before,)), opening="image")
    reread = own.image(drawn.pixels, position=prompt.next_position)
    noised = next(block for block in trained.blocks if block.noised)
    first, count = noised.start - own.time_token, 2 + own.time_token
    kept = [i for i in range(len(trained)) if not first <= i < first + count]
    length = len(prompt) + len(reread)
    assert [trained.ids[i] for i in kept][:length] == prompt.ids + reread.ids
    assert [trained.positions[i] for i in kept][:length] == prompt.positions + reread.positions
    whole = own.prompt(Document((before, drawn)))
    assert prompt.ids + reread.ids == whole.ids
    assert prompt.end + [end + len(prompt) for end in reread.end] == whole.end


def test_a_picture_that_does_not_divide_into_patches_is_refused() -> None:
    odd = Image(pixels=torch.zeros((3, 8, 10), dtype=torch.uint8), target=True)
    for make in (tiny.sequencer().document, tiny.sequencer().prompt):
        with pytest.raises(ValueError, match=r"8x10 pixels does not divide into patches of 4x4"):
            make(Document((odd,)))


def test_a_document_with_roles_on_some_segments_is_refused() -> None:
    with pytest.raises(ValueError, match="mixes both"):
        Document((Text("red", "user"), Text("blue")))


@pytest.mark.parametrize("mode", ["adaln", "token", "causal", "vision"])
@pytest.mark.parametrize("sequence", [{"noise_draws": 3}, {"context": "noised", "noise_limit": 0.5}])
def test_a_plan_knows_the_length_of_its_layout(mode: str, sequence: dict[str, Any]) -> None:
    own = tiny.sequencer(mode, **sequence)
    for number, document in enumerate(tiny.documents(3, 80)):
        plan = own.plan(document, number, seed=1)
        layout = own.lay_out(plan)
        assert len(plan) == len(layout) == len(layout.labels) == len(layout.end) == len(layout.positions)
        assert plan.document == layout.document == number

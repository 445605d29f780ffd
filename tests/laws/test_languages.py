"""Words in any script go through tokenizer, engine and gallery unharmed."""

import pytest
from matplotlib import font_manager
from PIL import Image as PILImage
from PIL import ImageChops

from monoformer.document import Document, Image, Text
from monoformer.gallery import Cell, Section, draw_gallery, drawable, find_font
from monoformer.pipeline import Pipeline
from monoformer.tokenizer import Tokenizer
from tests import tiny

CHINESE = "请画一个红色的大圆，放在白色背景上。"
SCRIPTS = (
    CHINESE,
    "赤い丸を描いて",
    "нарисуй круг",
    "ارسم دائرة",
    "한 개의 원",
    "mixed 中文 and English 😀\n第二行\t<eos>",
)


@pytest.mark.parametrize("text", SCRIPTS)
def test_any_script_comes_back_from_its_tokens(text: str) -> None:
    for tokenizer in (tiny.tokenizer(), Tokenizer.train([CHINESE] * 20, vocabulary=300)):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & {tokenizer.bos, tokenizer.eos, tokenizer.boi, tokenizer.eoi}


def test_a_tokenizer_that_saw_chinese_needs_fewer_tokens() -> None:
    learned = Tokenizer.train([CHINESE] * 20, vocabulary=400)
    assert len(learned.encode(CHINESE)) < len(tiny.tokenizer().encode(CHINESE)) / 2


def test_the_engine_draws_and_writes_from_a_chinese_prompt() -> None:
    pipeline = Pipeline(tiny.pretrained("add"))
    prompts = [CHINESE, CHINESE.replace("红", "蓝")]
    first, other = pipeline.generate_images(prompts, seed=[3, 3], steps=2)
    assert ImageChops.difference(first, other).getbbox(), "another word, another picture"
    again = pipeline.generate_images(CHINESE, seed=3, steps=2)[0]
    assert max(high for _, high in ImageChops.difference(first, again).getextrema()) <= 1
    said = Document((Image.from_pil(first, role="user"), Text("这是什么？", "user")))
    answers = pipeline.generate(said, want="text", choices=["一个圆", "一个方块"])
    assert next(s.text for s in answers[0].segments if isinstance(s, Text)) in ("一个圆", "一个方块")
    assert isinstance(pipeline.generate_text(CHINESE, max_tokens=4)[0], str)


def test_what_no_font_has_is_said_and_not_boxed() -> None:
    assert drawable("a red circle") == "a red circle"
    chinese = any("CJK" in font.name for font in font_manager.fontManager.ttflist)
    if not chinese:
        assert drawable("圆 circle 红色") == "[no font: 1] circle [no font: 2]"
    assert drawable("∀x") == "∀x"
    assert find_font("∀x", 11) is not find_font("x", 11), "a font of this machine takes the place of Pillow's"
    picture = PILImage.new("RGB", (32, 32), "red")
    sheet = draw_gallery([Section("画", (Cell((picture,), CHINESE), Cell((picture,), "a red circle")))])
    assert sheet.height > 168

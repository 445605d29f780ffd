"""The page in a real browser, served as a user serves it: a person draws, looks, edits, describes and talks."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

pytestmark = [pytest.mark.slow, pytest.mark.browser]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
PATIENCE = 120_000  # milliseconds; a busy machine is slow


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server of the tiny run on a free port, and its process."""
    for package in ("gradio", "fastapi", "uvicorn", "playwright"):
        pytest.importorskip(package)
    if not CHROMIUM:
        pytest.skip("there is no chromium")
    command = [sys.executable, "-m", "monoformer", "serve", str(run / "model"), "--port=0", "--device=cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", said)
        assert found, said
        yield found[0], process
        process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(server: tuple[str, Any], browser: Any) -> Iterator[Any]:
    """The page, opened; afterwards no request has left this machine, and no script has failed."""
    address, asked, failed = server[0], [], []
    page = browser.new_page(viewport={"width": 1180, "height": 860})
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#draw")
    yield page
    page.close()
    assert len(asked) > 10
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not failed


def draw(page: Any, prompt: str) -> None:
    page.locator("#draw-prompt textarea").fill(prompt)
    page.locator("#draw-count input[type=number]").fill("2")
    page.click("#draw")
    page.wait_for_selector("#draw-gallery img")


def download(page: Any, button: str, to: Path) -> PILImage.Image:
    with page.expect_download() as started:
        page.click(button)
    started.value.save_as(to)
    with PILImage.open(to) as picture:
        picture.load()
        return picture


def test_a_person_draws_edits_and_describes(page: Any, tmp_path: Path) -> None:
    draw(page, "a small blue ring on a mint background")
    assert page.locator("#draw-gallery img").count() == 2
    first = download(page, "#draw-download", tmp_path / "first.png")
    assert first.size == (32, 32)
    said = json.loads(first.info["monoformer"])
    assert (said["prompt"], said["seed"], said["steps"]) == ("a small blue ring on a mint background", 0, 2)
    page.click("#draw-describe")
    page.wait_for_function("document.querySelector('#draw-said textarea')?.value.length > 0")
    page.locator("#draw-gallery button img").nth(1).click()
    page.wait_for_timeout(1000)
    second = download(page, "#draw-download", tmp_path / "second.png")
    assert json.loads(second.info["monoformer"])["seed"] == 1

    page.click("#draw-further")
    canvas = page.locator("#edit-editor canvas").first
    canvas.wait_for(state="visible")
    page.wait_for_timeout(3000)
    page.locator("#edit-text textarea").fill("make the ring red")
    page.click("#edit")
    page.wait_for_selector("#edit-both img")
    before = PILImage.open(tmp_path / "second.png").convert("RGB")
    assert shown(page, tmp_path)[0].tobytes() == before.tobytes(), "the editor has changed the picture"
    page.click("#edit-describe")
    page.wait_for_function("document.querySelector('#edit-said textarea')?.value.length > 0")

    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 20, middle[1] + 10, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    earlier = page.locator("#edit-both img").nth(1).get_attribute("src")
    page.click("#edit")
    page.wait_for_function(
        "earlier => (document.querySelectorAll('#edit-both img')[1]?.src ?? earlier) !== earlier", arg=earlier
    )
    old, new = shown(page, tmp_path)
    changed = [old.getpixel((x, y)) != new.getpixel((x, y)) for y in range(32) for x in range(32)]
    assert 0 < sum(changed) < 512
    assert not any(changed[:32] + changed[-32:])
    page.click("#edit-further")


def shown(page: Any, folder: Path) -> tuple[PILImage.Image, PILImage.Image]:
    """The pictures before and after, as the page has them."""
    found = []
    for at in range(2):
        source = page.locator("#edit-both img").nth(at).get_attribute("src")
        path = folder / f"shown-{at}.png"
        path.write_bytes(page.request.get(source).body())
        with PILImage.open(path) as picture:
            found.append(picture.convert("RGB"))
    return found[0], found[1]


def test_a_person_talks(page: Any) -> None:
    page.get_by_role("tab", name="Chat").click()
    page.get_by_text("How to answer").click()
    page.get_by_label("with a picture").check()
    box = page.locator("#chat-message textarea")
    box.fill("a red circle")
    box.press("Enter")
    page.wait_for_selector("#chat .bot img[src*='file=']")
    page.get_by_label("in words").check()
    page.wait_for_function("document.querySelector('#chat-message textarea')?.disabled === false")
    box.fill("what colour is the circle?")
    box.press("Enter")
    page.wait_for_function("document.querySelectorAll('#chat .bot').length > 1")


def test_the_prompt_is_taken_apart(page: Any) -> None:
    page.get_by_role("tab", name="How it works").click()
    page.locator("#how-prompt textarea").fill("a green cross")
    page.click("#how")
    page.wait_for_selector("#how-mask img")
    page.wait_for_selector("#how-steps >> text=picture")
    assert page.locator("#how-steps img").count() == 2
    chips = page.locator("#how-sequence .mf-chip").all_inner_texts()
    assert chips.count("16 patches") == 3  # noised, its clean copy, and the picture of the second turn
    assert "_green" in chips


def test_what_goes_wrong_is_said(page: Any, server: tuple[str, Any]) -> None:
    page.locator("#draw-prompt textarea").fill("red " * 900)
    page.click("#draw")
    toast = page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "The prompt has" in toast.inner_text()
    assert "Traceback" not in page.content()
    page.reload()
    page.wait_for_selector("#draw")
    page.click("#draw")
    page.get_by_test_id("toast-body").wait_for()
    assert "prompt is empty" in page.get_by_test_id("toast-body").inner_text()
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(f"{server[0]}/v1/nothing")
    with answer.value as error:
        assert json.load(error)["error"]["type"] == "not_found_error"


def test_an_open_page_does_not_keep_the_server(browser: Any, server: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = server
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#draw", timeout=PATIENCE)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    assert time.monotonic() - start < 20
    page.close()

"""The page of `export --target web` in a browser.

The README's picture is of the quickstart's runs::

    pocketgan quickstart
    pocketgan export pocketgan_quickstart/base --adapters pocketgan_quickstart/adapted --target web --out page
    POCKETGAN_SCREENSHOT=docs/images/web_page.png POCKETGAN_SCREENSHOT_PAGE=page \\
        pytest -n 0 -m extended tests/pocketgan/test_web_page.py -k screenshot
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from served import served
from web_runtime import runtime_at_hand

import pocketgan
from pocketgan.cli import main
from pocketgan.editor import Editor
from pocketgan.exporters.concept_pack import ConceptPack
from pocketgan.serve import HEADERS
from pocketgan.web_page_files import PAGE_FILES, RUNTIME_FILES

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--host-resolver-rules=MAP pocketgan.test 127.0.0.1",  # a name that browsers do not take for this machine
]
WIDTH, HEIGHT = 128, 92  # the height is no multiple of 8
PATIENCE_MS = 60_000


RUNTIME = runtime_at_hand()
in_browser = pytest.mark.skipif(
    CHROMIUM is None or RUNTIME is None, reason="no Chromium or no onnxruntime-web on this machine"
)


@pytest.fixture(scope="module")
def export_page(trained, tmp_path_factory):
    """A function that makes a page of the tiny runs by the command line."""

    def export_page(run, *arguments):
        folder = tmp_path_factory.mktemp("page")
        main(["export", str(trained[run]), "--target=web", f"--out={folder}", "--threads=1", *arguments])
        return folder

    return export_page


@pytest.fixture(scope="module")
def pack(export_page, trained):
    """Two concepts: the base's own, and an adapter's with low-rank changes and whole tensors."""
    return export_page("base", f"--adapters={trained['adapter']}")


@pytest.fixture(scope="module")
def one_size(export_page):
    """A concept alone, in fp32, for 64 × 64 px."""
    with pytest.warns(UserWarning, match="the L1 to the teacher's edits is not measured: .* is 32x32, below the 64 px"):
        return export_page("adapter", "--size=64", "--fixed_size")


@pytest.fixture(scope="module")
def half(export_page):
    return export_page("adapter", "--precision=fp16")


@pytest.fixture(scope="module")
def int8(export_page):
    with pytest.warns(UserWarning, match="int8 is calibrated on 8 photos alone"):
        return export_page("adapter", "--precision=int8")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    picture = Image.fromarray(skimage.data.chelsea()).crop((60, 0, 60 + 2 * WIDTH, 2 * HEIGHT)).resize((WIDTH, HEIGHT))
    path = tmp_path_factory.mktemp("photo") / "my cat.png"
    picture.save(path)
    return path


@pytest.fixture(scope="module")
def address(pack):
    with served(pack) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        yield playwright.chromium


@pytest.fixture(scope="module")
def browser(chromium):
    browser = chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
    yield browser
    browser.close()


@pytest.fixture
def open_tab(browser):
    """A function that opens a page; at the end it must have said no error and asked no other host."""
    contexts, errors, foreign = [], [], []

    def open_tab(address, *, expect_errors=False, ready=True, **options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.requested = []
        tab.set_default_timeout(PATIENCE_MS)

        def note(request):
            tab.requested.append(request.url)
            host = address.split("/?")[0]
            if not request.url.startswith((host, f"blob:{host}", "data:")):
                foreign.append(request.url)

        # the context, since workers' requests are not the page's
        context.on("request", note)
        if not expect_errors:
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        tab.goto(address)
        if ready:
            expect(tab.locator("#status")).to_contain_text("Ready", timeout=PATIENCE_MS)
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    assert errors == []
    assert foreign == []


def edit_photo(tab, photo, concept="inverted", size="128"):
    tab.get_by_label("Size").select_option(size)
    tab.get_by_label("Photo", exact=True).set_input_files(photo)
    expect_edited(tab, concept)


def expect_edited(tab, concept, name="my cat.png"):
    expect(tab.locator("#status")).to_have_text(f"{name} edited as {concept}.", timeout=PATIENCE_MS)


def pixels_of(tab, canvas="result"):
    """What a canvas shows, (H, W, 3), without transparent parts."""
    rgba = rgba_of(tab, canvas)
    assert (rgba[..., 3] == 255).all()
    return rgba[..., :3]


def rgba_of(tab, canvas="result"):
    """What a canvas shows, (H, W, 4)."""
    data, width, height = tab.evaluate(
        """id => {
            const canvas = document.getElementById(id);
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [Array.from(data), canvas.width, canvas.height];
        }""",
        canvas,
    )
    return np.array(data, dtype=np.uint8).reshape(height, width, 4)


def psnr_db(one, other):
    mean_square = np.square(one.astype(float) - other).mean()
    return np.inf if mean_square == 0 else 10 * np.log10(255**2 / mean_square)


def python_edit(page, photo, concept=None):
    """What Python makes of a photo, a file or an array, with what a page's folder holds."""
    image = Image.fromarray(photo) if isinstance(photo, np.ndarray) else Image.open(photo)
    return np.asarray(pocketgan.load(page).edit(image, concept))


@in_browser
def test_a_photo_is_edited_as_in_python(open_tab, address, pack, photo, tmp_path):
    tab = open_tab(address)
    assert tab.title() == tab.inner_text("h1") == "pocketgan: base"
    edit_photo(tab, photo)
    original = np.asarray(Image.open(photo))
    expected = python_edit(pack, photo, "inverted")
    assert np.array_equal(pixels_of(tab, "photo"), original)
    assert psnr_db(pixels_of(tab), expected) > 35
    assert psnr_db(pixels_of(tab), original) < 20, "the edit is the photo"

    assert re.fullmatch(r"[\d.]+ ms", tab.inner_text("#milliseconds"))
    assert tab.inner_text("#photo_size") == tab.inner_text("#edited_size") == f"{WIDTH} × {HEIGHT} px"
    threads = min(4, os.cpu_count())
    assert tab.inner_text("#backend") == f"WebAssembly, {threads} thread{'s' if threads > 1 else ''}"
    assert "WebGPU" in tab.inner_text("#note")
    assert "never leave this device" in tab.inner_text("header")

    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download PNG").click()
    assert download.value.suggested_filename == "my_cat_inverted.png"
    download.value.save_as(tmp_path / "saved.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "saved.png").convert("RGB")), pixels_of(tab))


@in_browser
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_transparent_parts_stay_so(open_tab, address, pack, photo, tmp_path, suffix):
    picture = Image.open(photo).convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    alpha[:20] = 255
    alpha[-20:] = 0
    picture.putalpha(Image.fromarray(alpha))
    cut_out = tmp_path / f"cut_out{suffix}"
    picture.save(cut_out, lossless=True) if suffix == ".webp" else picture.save(cut_out)
    tab = open_tab(address)
    tab.get_by_label("Size").select_option("128")
    tab.get_by_label("Photo", exact=True).set_input_files(cut_out)
    expect_edited(tab, "inverted", cut_out.name)

    def as_seen(rgba):
        """With the alpha multiplied in, since a canvas keeps no colour of what is not seen."""
        return rgba[..., :3] * (rgba[..., 3:] / 255)

    model = pocketgan.load(pack)
    for strength in (100, 60, 0):
        tab.get_by_label("Strength").fill(str(strength))
        expected = np.asarray(model.edit(Image.open(cut_out), "inverted", strength / 100))
        shown = rgba_of(tab)
        assert np.array_equal(shown[..., 3], alpha)
        assert psnr_db(as_seen(shown), as_seen(expected)) > 40
        with tab.expect_download() as download:
            tab.get_by_role("button", name="Download PNG").click()
        download.value.save_as(tmp_path / "saved.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "saved.png")), shown)
    original = rgba_of(tab, "photo")
    assert np.array_equal(original[..., 3], alpha)
    assert psnr_db(as_seen(original), as_seen(shown)) > 45, "a strength of 0 is the photo"
    clips = "[photo, result].map((canvas) => getComputedStyle(canvas).clipPath)"
    assert tab.evaluate(clips) == ["inset(0px 50% 0px 0px)", "inset(0px 0px 0px 50%)"], "one is seen through the other"

    tab.get_by_label("Photo", exact=True).set_input_files(photo)
    expect_edited(tab, "inverted")
    assert np.array_equal(pixels_of(tab, "photo"), np.asarray(Image.open(photo)))


@in_browser
def test_strength_mixes_photo_and_edit_without_a_new_edit(open_tab, address, photo):
    tab = open_tab(address)
    edit_photo(tab, photo)
    edited, original = pixels_of(tab), np.asarray(Image.open(photo))
    took = tab.inner_text("#milliseconds")
    strength = tab.get_by_label("Strength")
    strength.fill("0")
    assert np.array_equal(pixels_of(tab), original)
    strength.fill("50")
    half = (edited.astype(float) + original) / 2
    assert np.abs(pixels_of(tab) - half).max() <= 1.5
    strength.fill("100")
    assert np.array_equal(pixels_of(tab), edited)
    assert tab.inner_text("#milliseconds") == took


@in_browser
def test_concepts_change_without_the_base_anew(open_tab, address, pack, photo):
    tab = open_tab(address)
    edit_photo(tab, photo)
    inverted = pixels_of(tab)
    assert not tab.get_by_label("Adapter scale").is_visible()
    for name in ("sepia", "inverted", "sepia"):
        tab.get_by_role("radio", name=name).check()
        expect_edited(tab, name)
        expected = python_edit(pack, photo, name)
        assert psnr_db(pixels_of(tab), expected) > 35
        expect(tab.get_by_role("radio", name=name)).to_be_checked()
        assert tab.locator("#prompt").inner_text() == f"make it {name}"
    assert psnr_db(inverted, expected) < 20, "the concept changes nothing"

    scale = tab.get_by_label("Adapter scale")
    for value in ("0", "1.5"):
        tab.evaluate("document.getElementById('status').textContent = ''")
        scale.fill(value)
        expect_edited(tab, "sepia")
        editor = Editor(ConceptPack(pack).open("sepia", 1, float(value)), 8)
        scaled = np.asarray(editor.edit(Image.open(photo)))
        assert psnr_db(pixels_of(tab), scaled) > 50
        assert psnr_db(scaled, expected) < 45, "the scale changes nothing"

    names = [url.rpartition("/")[2] for url in tab.requested]
    fetched_once = ["pack.json", "base.onnx", "base.weights", "inverted.safetensors", "sepia.safetensors"]
    assert [names.count(name) for name in fetched_once] == [1] * 5
    assert (
        {"ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm"}
        <= {*names}
        <= {"", *PAGE_FILES, *RUNTIME_FILES, *fetched_once}
    )


@in_browser
# WebAssembly's int8 kernels sum in another order than the processor's, and group norms amplify what tips over
@pytest.mark.parametrize(("precision", "least_db"), [("half", 35), ("int8", 30)])
def test_a_concept_alone_in_fewer_bits(open_tab, request, photo, precision, least_db):
    page = request.getfixturevalue(precision)
    with served(page) as address:
        tab = open_tab(address)
        assert tab.title() == "pocketgan: sepia"
        edit_photo(tab, photo, "sepia")
        expected = python_edit(page, photo)
        assert psnr_db(pixels_of(tab), expected) > least_db
        assert psnr_db(expected, np.asarray(Image.open(photo))) < 20, "the edit is the photo"


# holds back what the page asks of its worker by some method, until window.free()
HELD_MESSAGES = """(method) => {
    const { postMessage } = Worker.prototype;
    const held = new Promise((resolve) => {
        window.free = () => { Worker.prototype.postMessage = postMessage; resolve(); };
    });
    Worker.prototype.postMessage = function (message, transfer) {
        if (message.method === method) held.then(() => postMessage.call(this, message, transfer));
        else postMessage.call(this, message, transfer);
    };
}"""


def downloaded_name(tab):
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download PNG").click()
    return download.value.suggested_filename


@in_browser
def test_what_is_downloaded_is_what_was_chosen(open_tab, address, photo, tmp_path):
    other = tmp_path / "other.png"
    Image.linear_gradient("L").save(other)
    tab = open_tab(address)
    button = tab.get_by_role("button", name="Download PNG")
    expect(button).to_be_disabled()
    edit_photo(tab, photo)
    # the edit, the concept and the photo may each be under way
    steps = (("edit", photo, "sepia"), ("choose", photo, "inverted"), ("edit", other, "inverted"))
    for held_back, path, concept in steps:
        expect(button).to_be_enabled()
        tab.evaluate(HELD_MESSAGES, held_back)
        tab.get_by_role("radio", name=concept).check()
        if path == other:
            tab.get_by_label("Photo", exact=True).set_input_files(other)
        expect(tab.locator("#stage")).to_have_attribute("aria-busy", "true")
        expect(button).to_be_disabled()
        tab.evaluate("() => window.free()")
        expect_edited(tab, concept, path.name)
        assert downloaded_name(tab) == f"{path.stem.replace(' ', '_')}_{concept}.png"
    assert tab.locator("#stage").get_attribute("aria-busy") == "false"


@in_browser
def test_a_download_of_the_camera_is_named_after_what_is_computed(open_tab, address):
    tab = open_tab(address, permissions=["camera"])
    tab.get_by_label("Size").select_option("128")
    tab.get_by_role("button", name="Start camera").click()
    expect(tab.locator("#status")).to_have_text("The camera is live, edited as inverted.", timeout=PATIENCE_MS)
    tab.evaluate(HELD_MESSAGES, "choose")
    tab.get_by_role("radio", name="sepia").check()
    assert downloaded_name(tab) == "Camera_inverted.png"
    tab.evaluate("() => window.free()")
    expect(tab.locator("#status")).to_have_text("The camera is live, edited as sepia.", timeout=PATIENCE_MS)
    assert downloaded_name(tab) == "Camera_sepia.png"


@in_browser
def test_the_camera_is_edited_live(open_tab, address, pack):
    tab = open_tab(address, permissions=["camera"])
    tab.get_by_label("Size").select_option("128")
    tab.get_by_role("button", name="Start camera").press("Enter")
    expect(tab.locator("#frames")).to_have_text(re.compile(r"^\d+\.\d$"), timeout=PATIENCE_MS)
    assert tab.inner_text("#status") == "The camera is live, edited as inverted."
    expect(tab.get_by_role("button", name="Stop camera")).to_be_focused()
    photo, edit = pixels_of(tab, "photo"), pixels_of(tab)
    assert edit.shape == (96, 128, 3)
    assert photo.std() > 10, "Chromium's fake camera shows a green screen with a clock"
    tab.get_by_role("radio", name="sepia").check()
    expect(tab.locator("#status")).to_have_text("The camera is live, edited as sepia.", timeout=PATIENCE_MS)

    tab.get_by_role("button", name="Stop camera").click()
    expect(tab.locator("#status")).to_have_text("The camera is off.")
    assert tab.inner_text("#frames") == "–"
    photo, edit = pixels_of(tab, "photo"), pixels_of(tab)
    assert psnr_db(photo, edit) < 20, "the last frame stays, edited"
    assert psnr_db(edit, python_edit(pack, photo, "sepia")) > 35


# counts the cameras that are on in <body data-live>, and holds back what a test lets go by window.free()
HELD_BACK = """(what) => {
    const { mediaDevices } = navigator, { body } = document;
    const { stop } = MediaStreamTrack.prototype, { play } = HTMLMediaElement.prototype;
    const getUserMedia = mediaDevices.getUserMedia.bind(mediaDevices);
    const held = new Promise((resolve) => { window.free = resolve; });
    const live = new Set();
    const count = () => { body.dataset.live = live.size; };
    mediaDevices.getUserMedia = async (wanted) => {
        body.dataset.asked = "prompt";
        if (what === "prompt") await held;
        const stream = await getUserMedia(wanted);
        for (const track of stream.getTracks()) live.add(track);
        body.dataset.given = Number(body.dataset.given ?? 0) + 1;
        count();
        return stream;
    };
    MediaStreamTrack.prototype.stop = function () { stop.call(this); live.delete(this); count(); };
    HTMLMediaElement.prototype.play = async function () {
        body.dataset.asked = "play";
        if (what === "play") await held;
        return play.call(this);
    };
}"""


@in_browser
@pytest.mark.parametrize("held_back", ["prompt", "play"])
def test_many_clicks_start_one_camera(open_tab, address, held_back):
    tab = open_tab(address, permissions=["camera"])
    tab.get_by_label("Size").select_option("128")
    tab.evaluate(HELD_BACK, held_back)
    body = tab.locator("body")
    tab.evaluate("() => { camera.click(); camera.click(); }")
    expect(body).to_have_attribute("data-asked", held_back)
    expect(tab.get_by_role("button", name="Start camera")).to_be_disabled()
    tab.evaluate("() => { camera.click(); window.free(); }")
    expect(tab.locator("#status")).to_have_text("The camera is live, edited as inverted.", timeout=PATIENCE_MS)
    expect(body).to_have_attribute("data-given", "1")
    tab.get_by_role("button", name="Stop camera").click()
    expect(tab.locator("#status")).to_have_text("The camera is off.", timeout=PATIENCE_MS)
    expect(body).to_have_attribute("data-live", "0")

    tab.evaluate("() => { camera.click(); camera.click(); }")
    expect(tab.locator("#status")).to_contain_text("The camera is live", timeout=PATIENCE_MS)
    expect(body).to_have_attribute("data-live", "1")
    tab.evaluate("() => { camera.click(); camera.click(); }")  # off and on
    expect(body).to_have_attribute("data-given", "3")
    expect(body).to_have_attribute("data-live", "1")


@in_browser
def test_a_photo_is_not_replaced_by_a_camera_that_was_asked_for_before(open_tab, address, photo):
    tab = open_tab(address, permissions=["camera"])
    tab.evaluate(HELD_BACK, "prompt")
    button = tab.get_by_role("button", name="Start camera")
    button.click()
    expect(button).to_be_disabled()
    edit_photo(tab, photo)
    expect(button).to_be_enabled()
    tab.evaluate("() => window.free()")
    body = tab.locator("body")
    expect(body).to_have_attribute("data-given", "1")
    expect(body).to_have_attribute("data-live", "0")
    assert np.array_equal(pixels_of(tab, "photo"), np.asarray(Image.open(photo)))
    assert tab.inner_text("#frames") == "–"
    button.click()
    expect(tab.locator("#status")).to_contain_text("The camera is live", timeout=PATIENCE_MS)
    expect(body).to_have_attribute("data-live", "1")
    tab.get_by_label("Photo", exact=True).set_input_files(photo)
    expect_edited(tab, "inverted")
    expect(body).to_have_attribute("data-live", "0")


@in_browser
def test_of_two_photos_the_later_is_shown(open_tab, address, photo, tmp_path):
    tab = open_tab(address)
    Image.new("RGB", (64, 64)).save(tmp_path / "slow.png")
    tab.evaluate(
        """() => {
            const read = createImageBitmap;
            const held = new Promise((resolve) => { window.free = resolve; });
            window.createImageBitmap = async (file, ...options) => {
                if (file.name === "slow.png") await held;
                document.body.dataset.read = file.name;
                return read(file, ...options);
            };
        }"""
    )
    tab.get_by_label("Photo", exact=True).set_input_files(tmp_path / "slow.png")
    edit_photo(tab, photo)
    tab.evaluate("() => window.free()")
    expect(tab.locator("body")).to_have_attribute("data-read", "slow.png")
    tab.get_by_role("radio", name="sepia").check()
    expect_edited(tab, "sepia")


@in_browser
def test_a_refused_camera_and_none_at_all(open_tab, address):
    tab = open_tab(address, ready=False)
    tab.get_by_role("button", name="Start camera").click()
    expect(tab.get_by_role("alert")).to_contain_text("may not be used: allow it in the browser's settings")
    tab.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    tab.get_by_role("button", name="Start camera").click()
    expect(tab.get_by_role("alert")).to_contain_text("This browser gives pages no camera")
    assert tab.get_by_role("button", name="Start camera").is_visible()


@in_browser
def test_photos_are_dropped_and_pasted(open_tab, address, photo):
    tab = open_tab(address)
    tab.get_by_label("Size").select_option("128")
    give = """([bytes, kind, name]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
        const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true })
                                       : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        tab.evaluate(give, [list(photo.read_bytes()), kind, f"{kind}.png"])
        expect_edited(tab, "inverted", name=f"{kind}.png")
        assert np.array_equal(pixels_of(tab, "photo"), np.asarray(Image.open(photo)))


@in_browser
def test_what_is_no_photo_is_refused_and_a_photo_still_goes(open_tab, address, photo, tmp_path):
    tab = open_tab(address)
    heic, text, tiny, large = (tmp_path / name for name in ("phone.heic", "notes.png", "tiny.png", "large.jpg"))
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(500))
    text.write_bytes(b"no picture")
    Image.new("RGB", (10, 40)).save(tiny)
    for path, message in (
        (heic, "phone.heic cannot be read as a picture by this browser. It is a HEIC photo"),
        (text, "notes.png cannot be read as a picture by this browser. Use JPEG, PNG, WebP or AVIF."),
        (tiny, "tiny.png is 10 × 40 pixels; both sides must be at least 32."),
    ):
        tab.get_by_label("Photo", exact=True).set_input_files(path)
        expect(tab.get_by_role("alert")).to_contain_text(message)
    edit_photo(tab, photo)
    assert not tab.get_by_role("alert").is_visible()

    Image.linear_gradient("L").resize((3000, 600)).save(large)
    tab.get_by_label("Photo", exact=True).set_input_files(large)
    expect_edited(tab, "inverted", name="large.jpg")
    assert tab.inner_text("#edited_size") == "128 × 26 px"
    assert tab.inner_text("#photo_size") == "3000 × 600 px, reduced to 1024 × 205 px"
    tab.get_by_label("Size").select_option("Original, up to 1024 px")
    expect(tab.locator("#edited_size")).to_have_text("1024 × 205 px", timeout=PATIENCE_MS)


@in_browser
def test_by_the_keyboard_alone(open_tab, address, photo):
    tab = open_tab(address)
    edit_photo(tab, photo)
    tab.get_by_role("radio", name="sepia").check()
    expect_edited(tab, "sepia")
    tab.locator("body").click(position={"x": 1, "y": 1})
    reached = []
    for _ in range(9):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id || document.activeElement.value"))
        if reached[-1] not in {"cut", None}:
            seen = "document.activeElement.closest('.choice') ?? document.activeElement"
            assert tab.evaluate(f"getComputedStyle({seen}).outlineStyle") == "solid", reached[-1]
    order = ["cut", "choose", "camera", "download", "sepia", "strength", "scale", "size"]
    assert [one for one in reached if one in order] == order

    cut = tab.get_by_label("Line between before and after")
    cut.focus()
    tab.keyboard.press("ArrowRight")
    assert cut.get_attribute("aria-valuetext") == "51 % before, 49 % after"
    assert tab.evaluate("getComputedStyle(document.getElementById('result')).clipPath") == "inset(0px 0px 0px 51%)"
    tab.get_by_role("radio", name="sepia").focus()
    tab.keyboard.press("ArrowLeft")
    expect_edited(tab, "inverted")
    expect(tab.get_by_role("radio", name="inverted")).to_be_focused()
    with tab.expect_file_chooser():
        tab.get_by_role("button", name="Choose a photo").press("Enter")
    labelled = (
        "[...document.querySelectorAll('input, select, canvas')].every(one => one.ariaLabel || one.labels?.length)"
    )
    assert tab.evaluate(labelled)
    assert tab.get_by_role("img", name="After: my cat.png, edited as inverted").count() == 1


@in_browser
def test_what_a_screen_reader_says(open_tab, address, photo):
    tab = open_tab(address)
    edit_photo(tab, photo)
    tab.get_by_role("radio", name="sepia").check()
    expect_edited(tab, "sepia")
    concepts = tab.get_by_role("radiogroup", name="Concept", exact=True)
    assert [radio.is_checked() for radio in concepts.get_by_role("radio").all()] == [False, True]
    for name, value, said in (("Strength", "60", "60 %"), ("Adapter scale", "0.5", "0.50")):
        slider = tab.get_by_role("slider", name=name, exact=True)
        slider.fill(value)
        assert slider.get_attribute("aria-valuetext") == said
        field = tab.locator(".field").filter(has=slider)
        assert said in field.inner_text()
        # with the value, the name would be said twice, and each move of the slider by a live region, too
        assert said not in field.aria_snapshot()
    assert tab.get_by_role("status").count() == 1


# the least contrast of any text outside the picture with what it stands on, as WCAG 2 counts
LEAST_CONTRAST = """() => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => {
        const [r, g, b] = parts(color).map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const ground = (element) => {
        const { backgroundColor } = getComputedStyle(element);
        return parts(backgroundColor)[3] === 0 ? ground(element.parentElement) : backgroundColor;
    };
    const texts = document.evaluate("//body//text()[normalize-space()]", document, null, 7);
    const ratios = [];
    for (let index = 0; index < texts.snapshotLength; index++) {
        const element = texts.snapshotItem(index).parentElement;
        if (element.closest(".frame, noscript, :disabled") || !element.checkVisibility()) continue;
        const [one, other] = [light(getComputedStyle(element).color), light(ground(element))];
        ratios.push([Math.max(one, other) / Math.min(one, other), element.textContent]);
    }
    return ratios.sort(([one], [other]) => one - other)[0];
}"""


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(open_tab, address, photo, tmp_path, scheme):
    tab = open_tab(address, color_scheme=scheme, viewport={"width": 360, "height": 640}, has_touch=True)
    edit_photo(tab, photo)
    (tmp_path / "no photo").write_text("")
    tab.get_by_label("Photo", exact=True).set_input_files(tmp_path / "no photo")
    expect(tab.get_by_role("alert")).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    ratio, text = tab.evaluate(LEAST_CONTRAST)
    assert ratio >= 4.5, text
    choice = tab.locator(".choice", has_text="sepia").bounding_box()
    assert choice["height"] >= 36, "a finger hits it"


@in_browser
def test_no_two_sizes_are_alike(open_tab, pack, tmp_path):
    folder = Path(shutil.copytree(pack, tmp_path / "page"))
    stated = json.loads((folder / "pack.json").read_text())
    for size, chosen in ((1024, "Original, up to 1024 px"), (2048, "Original, up to 1024 px"), (384, "384 px")):
        (folder / "pack.json").write_text(json.dumps(stated | {"size": size}))
        with served(folder) as address:
            tab = open_tab(address)
            options = tab.locator("#size option")
            assert options.all_inner_texts() == [
                *(f"{size} px" for size in (128, 256, 384, 512, 768)),
                "Original, up to 1024 px",
            ]
            values = [option.get_attribute("value") for option in options.all()]
            assert len({*values}) == len(values)
            assert tab.locator("#size option:checked").inner_text() == chosen


@in_browser
def test_a_model_of_one_size_and_one_concept(open_tab, one_size, photo):
    with served(one_size) as address:
        tab = open_tab(f"{address}/?backend=wasm&threads=1")
        assert tab.locator("#size option").all_inner_texts() == ["64 px"]
        tab.get_by_label("Photo", exact=True).set_input_files(photo)
        expect_edited(tab, "sepia")
        assert tab.inner_text("#backend") == "WebAssembly, 1 thread"
        shown = pixels_of(tab, "photo")
        assert shown.shape == (46, 64, 3)
        assert psnr_db(pixels_of(tab), python_edit(one_size, shown)) > 35


@in_browser
def test_damaged_and_missing_files_are_named(open_tab, pack, photo, tmp_path):
    folder = Path(shutil.copytree(pack, tmp_path / "page"))
    whole = (folder / "sepia.safetensors").read_bytes()
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    (folder / "sepia.safetensors").write_bytes(damaged)
    with served(folder) as address:
        tab = open_tab(address, expect_errors=True)
        edit_photo(tab, photo)
        tab.get_by_role("radio", name="sepia").click()
        alert = tab.get_by_role("alert")
        expect(alert).to_contain_text("sepia.safetensors is damaged")
        assert hashlib.sha256(damaged).hexdigest() in alert.inner_text()
        assert hashlib.sha256(whole).hexdigest() in alert.inner_text()
        expect(tab.get_by_role("radio", name="inverted")).to_be_checked()
        assert downloaded_name(tab) == "my_cat_inverted.png"
        (folder / "sepia.safetensors").unlink()
        tab.get_by_role("radio", name="sepia").click()
        expect(alert).to_contain_text("sepia.safetensors is missing (the server answers 404)")
        tab.get_by_label("Strength").fill("0")
        tab.get_by_label("Photo", exact=True).set_input_files(photo)
        expect(alert).to_be_hidden()

        (folder / "base.onnx").write_bytes(b"no model")
        tab = open_tab(address, expect_errors=True, ready=False)
        expect(tab.get_by_role("alert")).to_contain_text("base.onnx is damaged: its SHA-256 is")
        stated = json.loads((folder / "pack.json").read_text())
        (folder / "pack.json").write_text(json.dumps(stated | {"version": 2}))
        tab.reload()
        expect(tab.get_by_role("alert")).to_contain_text("version 2; this page reads pocketgan-pack, version 1")


@in_browser
def test_a_server_without_the_headers_gives_one_thread(open_tab, address, photo, monkeypatch):
    monkeypatch.delitem(HEADERS, "Cross-Origin-Embedder-Policy")
    tab = open_tab(f"{address}/?threads=2")
    assert tab.inner_text("#backend") == "WebAssembly, 1 thread"
    assert "computes on one thread, because the server does not send the COOP and COEP headers" in tab.inner_text(
        "#note"
    )
    edit_photo(tab, photo)


@in_browser
def test_plain_http_from_elsewhere_is_told_what_it_lacks(open_tab, address, photo):
    tab = open_tab(address.replace("127.0.0.1", "pocketgan.test"), expect_errors=True)  # that the headers are ignored
    assert tab.inner_text("#backend") == "WebAssembly, 1 thread"
    note = tab.inner_text("#note")
    assert "WebGPU, the camera and more than one thread to https and localhost alone: open the page by https" in note
    assert "headers" not in note
    edit_photo(tab, photo)
    tab.get_by_role("button", name="Start camera").click()
    expect(tab.get_by_role("alert")).to_contain_text("open the page by https, or as localhost on the machine")


def without_device(page, folder):
    """A copy of a page in whose worker WebGPU finds a graphics card that does not work."""
    copied = Path(shutil.copytree(page, folder))
    stand_in = """const adapter = {
        info: {}, limits: {}, features: new Set(), requestDevice: async () => { throw new Error("device lost"); },
    };
    Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => adapter } });
    """
    (copied / "worker.js").write_text(stand_in + (copied / "worker.js").read_text())
    return copied


@in_browser
def test_int8_is_computed_by_the_processor_unless_one_insists(open_tab, int8, tmp_path):
    with served(without_device(int8, tmp_path / "page")) as address:
        tab = open_tab(address)
        assert tab.inner_text("#backend").startswith("WebAssembly")
        assert tab.inner_text("#note") == (
            "WebGPU has no kernels for int8, in which this model is, so the processor computes."
        )
        assert not any("webgpu" in url for url in tab.requested)
        tab = open_tab(f"{address}/?backend=webgpu", expect_errors=True)
        assert "WebGPU does not run this model" in tab.inner_text("#note")
        assert any(url.endswith("ort.webgpu.min.mjs") for url in tab.requested)


@in_browser
def test_where_webgpu_fails_the_processor_computes(open_tab, pack, photo, tmp_path):
    with served(without_device(pack, tmp_path / "page")) as address:
        tab = open_tab(address, expect_errors=True)
        assert re.search(r"WebGPU does not run this model \(.+\), so the processor computes", tab.inner_text("#note"))
        assert tab.inner_text("#backend").startswith("WebAssembly")
        edit_photo(tab, photo)
    assert any(url.endswith("ort.webgpu.min.mjs") for url in tab.requested)


@in_browser
@pytest.mark.slow
def test_webgpu_in_software_equals_python(chromium, address, pack, photo):
    """Chromium's SwiftShader stands in for a graphics card."""
    options = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    options += [*(option for option in OPTIONS if option != "--disable-gpu"), "--ignore-gpu-blocklist"]
    browser = chromium.launch(executable_path=CHROMIUM, args=[*options, "--use-vulkan=swiftshader"])
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE_MS)
    tab.goto(f"{address}/?backend=webgpu")
    expect(tab.locator("#status")).to_contain_text("Ready", timeout=5 * PATIENCE_MS)
    assert tab.inner_text("#backend") == "WebGPU"
    edit_photo(tab, photo)
    assert psnr_db(pixels_of(tab), python_edit(pack, photo, "inverted")) > 35
    tab.goto(address)
    expect(tab.locator("#status")).to_contain_text("Ready", timeout=PATIENCE_MS)
    assert tab.inner_text("#backend").startswith("WebAssembly"), "software that is slower than WebAssembly"
    browser.close()


@in_browser
def test_screenshot(open_tab, pack, tmp_path):
    """See the module's docstring for how the README's is made."""
    # tests run in a folder of their own: paths are from the repository's root
    out = ROOT / (os.environ.get("POCKETGAN_SCREENSHOT") or tmp_path / "web_page.png")
    cat = tmp_path / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(cat)
    page = ROOT / (os.environ.get("POCKETGAN_SCREENSHOT_PAGE") or pack)
    concepts = json.loads((page / "pack.json").read_text())["concepts"]
    adapted = max(concepts, key=lambda concept: concept["bytes"])["name"]
    with served(page) as address:
        tab = open_tab(address)
        tab.get_by_role("radio").and_(tab.locator(f"[value={adapted}]")).check()
        tab.get_by_label("Photo", exact=True).set_input_files(cat)
        expect_edited(tab, adapted.replace("_", " "), "chelsea.png")
        expect(tab.get_by_label("Adapter scale")).to_be_visible()
        expect(tab.get_by_role("button", name="Download PNG")).to_be_enabled()
        tab.screenshot(path=out, full_page=True)
    with Image.open(out) as shown:
        assert shown.width == 1100
        assert shown.height >= 600
        assert len(shown.convert("RGB").getcolors(2**24)) > 1000, "a picture is in it"

"""The page about runs, its parts and in a browser."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny import fit_base

from pocketgan.cli import main
from pocketgan.run_report import curve, read_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a page shows and fetches."""

    def __init__(self, file):
        super().__init__()
        self.sources, self.tags, self.text = [], [], ""
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in {"src", "href"}]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    other = fit_base(trained["pairs"], folder / "other", "--data.concepts=[sepia]", "--model.reconstruction_weight=20")
    main(["report", str(trained["base"]), str(other), f"--out={folder / 'out' / 'report.html'}"])
    return folder / "out" / "report.html"


def test_it_needs_no_other_file(page):
    sources = Page(page).sources
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]+", "", page.read_text())


def test_differences_come_first(page):
    shown = Page(page).text
    differences = shown.index("What the runs do otherwise")
    assert differences < shown.index("val/reconstruction")
    assert "model.init_args.reconstruction_weight30.020.0" in shown.replace(" ", "")
    assert "trainer.default_root_dir" not in shown[differences : shown.index("val/reconstruction")]


def test_pictures_curves_tables_config_and_environment(page, trained):
    parsed = Page(page)
    pairs = min(4, 2)  # validation photos of the tiny set
    assert parsed.tags.count("img") == 2 * 2 * pairs
    assert parsed.tags.count("input") == 2 * pairs
    for words in ("Last figures on the validation photos", "checkpoints/last.ckpt", "seed_everything", "processor"):
        assert words in parsed.text
    record = read_run(trained["base"])
    assert [images for images, _ in record.curves["val/reconstruction"]][:2] == [12, 24]
    assert next(iter(record.curves)).startswith("val/")


def test_a_curve_is_drawn_to_scale():
    drawn = curve("val/a", [(0, 1.0), (50, 3.0), (100, 2.0)])
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]+)"', drawn)[1].split()]
    (left, bottom), (middle, top), (right, half) = points
    assert middle == pytest.approx((left + right) / 2)
    assert half == pytest.approx((top + bottom) / 2)
    assert "val/a: 1 at 0 images, 2 at 100" in drawn


def test_ranks_compression_and_exports_are_told(trained, tmp_path):
    run = Path(shutil.copytree(trained["base"], tmp_path / "run"))
    figures = {"val/reconstruction": 0.5}
    trace = [{"factor": 0, "figures": figures}, {"factor": 2, "ranks": {"up": 4}, "figures": figures}]
    (run / "rank_search.json").write_text(json.dumps(trace))
    state = {"parameters": 1000, "macs": 5000, "latency_ms": 2.0, "val_loss": 0.5}
    (run / "compression.json").write_text(json.dumps({"before": state, "after": {**state, "parameters": 300}}))
    export = {"bytes": 2048, "median_ms": 1.5, "p95_ms": 2.5, "size": 32, "threads": 2}
    (run / "sepia.json").write_text(json.dumps(export))
    tables = read_run(run).tables
    assert tables["Rank search"][1] == ["factor 2", "up 4", "val/reconstruction 0.5"]
    assert tables["Compression: before, after"][0] == ["parameters", "1,000", "300"]
    assert tables["Exported"] == [["sepia", "2 KiB", "median 1.5 ms, p95 2.5 ms at 32 px, 2 threads"]]


def test_runs_of_one_name_are_told_apart(trained, tmp_path):
    copied = shutil.copytree(trained["base"], tmp_path / "base")
    main(["report", str(trained["base"]), str(copied), f"--out={tmp_path / 'report.html'}"])
    shown = Page(tmp_path / "report.html").text
    assert str(copied) in shown
    assert "The runs have the same settings." in shown


def test_what_is_no_run_or_no_page(trained, tmp_path):
    with pytest.raises(SystemExit, match=r"is not a run folder: it holds no config.yaml"):
        main(["report", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"name a file that ends in .html"):
        main(["report", str(trained["base"]), f"--out={tmp_path / 'report.pdf'}"])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser(page):
    """No script error, pictures visible, sliders move by the keyboard; in the dark and on a phone, too."""
    sync_api = pytest.importorskip("playwright.sync_api")
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        for scheme, width in (("light", 1200), ("dark", 360)):
            tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
            errors, requests = [], []
            tab.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            tab.on("console", lambda said, errors=errors: errors.append(said.text) if said.type == "error" else None)
            tab.on("request", lambda request, requests=requests: requests.append(request.url))
            tab.goto(page.as_uri())
            assert all(
                tab.evaluate("[...document.images].map(one => one.complete && one.naturalWidth > 0 && one.width > 100)")
            )
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
            slider = tab.locator(".compare input").first
            slider.focus()
            cut = "document.querySelector('.frame').style.getPropertyValue('--cut')"
            before = tab.evaluate(cut)
            tab.keyboard.press("ArrowRight")
            assert (before, tab.evaluate(cut)) == ("50%", "51%")
            colours = tab.evaluate(
                "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            )
            assert colours[0] == ("rgb(255, 255, 255)" if scheme == "dark" else "rgb(0, 0, 0)")
            assert errors == []
            assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
            tab.close()
        browser.close()

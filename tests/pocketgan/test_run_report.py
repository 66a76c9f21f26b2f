"""The page about runs, its parts and in a browser."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import sync_playwright
from tiny import config_of, fit_base
from tiny_gan import fit_unpaired, make_image_folder

from pocketgan.cli import main
from pocketgan.run_record import read_run
from pocketgan.run_report import curve

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a page shows and fetches."""

    def __init__(self, file):
        super().__init__()
        self.sources, self.tags, self.alternatives, self.text = [], [], [], ""
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in {"src", "href"}]

        self.alternatives += [value for name, value in attributes if name == "alt"]

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
    assert parsed.tags.count("img") == 2 * 3 * pairs
    assert {"Photo", "The GAN's edit", "The teacher's edit"} == set(parsed.alternatives)
    assert parsed.tags.count("input") == 2 * pairs
    for words in (
        "Last figures on the validation photos (N = 2)",
        "On the validation photos (N = 2)",
        "checkpoints/last.ckpt",
        "seed_everything",
        "processor",
    ):
        assert words in parsed.text
    record = read_run(trained["base"])
    assert [images for images, _ in record.curves["val/reconstruction"]][:2] == [12, 24]
    assert next(iter(record.curves)).startswith("val/")
    assert not {"val/measured_images", "val/images_per_concept"} & record.curves.keys()


def test_speed_does_not_push_quality_away(page):
    written = page.read_text()
    quality, speed = written.index("val/reconstruction"), written.index("speed/images_per_second")
    assert quality < speed
    assert written.rfind("<details>", 0, speed) > written.rfind("</details>", 0, speed)


def test_n_of_several_concepts_of_older_runs_and_of_gans_without_photos(trained, tmp_path):
    def told(**figures):
        run = tmp_path / "-".join(figures)
        shutil.copytree(trained["base"], run)
        names = ",".join(f"val/{name}" for name in figures)
        (run / "metrics.csv").write_text(f"images,{names}\n24,{','.join(map(str, figures.values()))}\n")
        record = read_run(run)
        return record.counts["val"], next(iter(record.tables))

    assert told(psnr=2.0, measured_images=24.0, images_per_concept=12.0) == (
        "N = 24; distances: N = 12 a concept",
        "Last figures on the validation photos (N = 24; distances: N = 12 a concept)",
    )
    assert told(psnr=2.0, images_per_concept=12.0)[0] == "distances: N = 12 a concept"
    assert told(fd_lite0=2.0, generated_images=8.0, real_images=6.0)[0] == "N = 8 generated, 6 real"
    assert told(loss=2.0) == ("", "Last figures on the validation photos")


def test_why_it_ended(page, trained, tmp_path):
    assert Page(page).text.count("Ended after 24 images, 20") == 2
    assert "the budget of 24 images is used up (ImageBudget)." in Page(page).text
    run = Path(shutil.copytree(trained["base"], tmp_path / "run"))
    (run / "ended.json").unlink()
    main(["report", str(run), f"--out={tmp_path / 'report.html'}"])
    assert "No end is noted: the training goes on, was killed" in Page(tmp_path / "report.html").text


def follow(run, **changed):
    """Leave what early stopping leaves."""
    tracking = {
        "window": 2, "threshold": 0.01, "images": 8, "every_n_batches": 2, "stopped": True, "batches": 8,
        "images_seen": 40, "batch_images": 4, "objective": [5.0, 1.0, 0.5, 0.5],
    }  # fmt: skip
    ended = {"by": "LossTrackingEarlyStopping", "reason": "below", "images": 40, "time": "2026-01-02T03:04:05+00:00"}
    (run / "loss_tracking.json").write_text(json.dumps({**tracking, **changed}))
    (run / "ended.json").write_text(json.dumps(ended))


def test_what_early_stopping_followed(trained, tmp_path):
    run = Path(shutil.copytree(trained["base"], tmp_path / "run"))
    follow(run)
    trace = read_run(run).trace
    assert trace.objective == [(8, 5.0), (16, 1.0), (24, 0.5), (32, 0.5)]  # it was followed from image 8 on
    # population variances: of (1, 0.5) it is 1/16, of (5, 1, 0.5) it is 73/18
    assert trace.ratio == [(24, pytest.approx(9 / 8 / 73)), (32, 0.0)]
    assert trace.stop == 32
    main(["report", str(run), f"--out={tmp_path / 'report.html'}"])
    written = (tmp_path / "report.html").read_text()
    assert "0 at 32; the threshold is 0.01; stop at 32 images" in written
    assert (
        "Ended after 40 images, 2026-01-02 03:04 UTC: below (LossTrackingEarlyStopping)."
        in Page(tmp_path / "report.html").text
    )

    follow(run, stopped=False, window=4, threshold=0)
    assert read_run(run).trace.stop is None
    main(["report", str(run), f"--out={tmp_path / 'report.html'}"])
    assert "It needs more than 4 values, and there were 4." in Page(tmp_path / "report.html").text

    follow(run, images_seen=36)  # of an earlier start
    assert read_run(run).trace is None

    follow(run, images_seen=None, batch_images=None)
    (run / "ended.json").unlink()  # an older version's
    trace = read_run(run).trace
    assert (trace.unit, [place for place, _ in trace.objective]) == ("batches", [0, 2, 4, 6])


def test_what_early_stopping_logged_is_not_drawn_twice(trained, tmp_path):
    run = Path(shutil.copytree(trained["base"], tmp_path / "run"))
    (run / "metrics.csv").write_text("images,train/tracked_objective,train/a\n4,1,1\n8,2,2\n")
    assert set(read_run(run).curves) == {"train/tracked_objective", "train/a"}
    follow(run)
    assert set(read_run(run).curves) == {"train/a"}


def test_a_threshold_and_a_stop_are_drawn_to_a_logarithmic_scale():
    drawn = curve("ratio", [(0, 1.0), (50, 0.01), (100, 0.0001)], threshold=0.01, stop=100)
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]+)"', drawn)[1].split()]
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2)
    assert f'y1="{points[1][1]:.1f}"' in drawn
    assert f'<line class="stop" x1="{points[2][0]:.1f}"' in drawn
    assert "threshold 0.01" in drawn


def test_differences_of_classes_in_lists(trained, tmp_path):
    runs = []
    bar = {"class_path": "lightning.pytorch.callbacks.RichProgressBar"}
    early = {"class_path": "callbacks.LossTrackingEarlyStopping", "init_args": {"window": 3}}
    for name, callbacks, stopping in (
        ("one", [bar, {"class_path": "callbacks.RankSearch", "init_args": {"factors": [1], "mode": "min"}}], None),
        (
            "two",
            [
                {"class_path": "callbacks.RankSearch", "init_args": {"factors": [1, 2], "mode": "min"}},
                {"class_path": "callbacks.AdapterWriter", "init_args": {"deep": 1}},
            ],
            early,
        ),
    ):
        run = Path(shutil.copytree(trained["base"], tmp_path / name))
        config = {**config_of(run), "early_stopping": stopping}
        config["trainer"]["callbacks"] = callbacks
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        runs.append(str(run))
    main(["report", *runs, f"--out={tmp_path / 'report.html'}"])
    first, followed = re.findall(r"<table>.*?</table>", (tmp_path / "report.html").read_text())[:2]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", first)]
    assert sorted(rows) == [
        ["early_stopping.class_path", "not there", "callbacks.LossTrackingEarlyStopping"],
        ["setting", "one", "two"],
        ["trainer.callbacks.AdapterWriter", "not there", "callbacks.AdapterWriter"],
        ["trainer.callbacks.RankSearch.factors", "[1]", "[1, 2]"],
    ]
    assert "trainer.callbacks.AdapterWriter.deep" in followed
    assert "early_stopping.init_args.window" in followed
    assert "ProgressBar" not in first + followed


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpaired")
    return fit_unpaired(make_image_folder(folder / "images"), folder / "run", "--budget.images=24")


def test_gans_without_photos_show_the_same_latents_early_and_late(unpaired, tmp_path):
    sheets = sorted((unpaired / "samples").glob("*.png"))
    assert len(sheets) == 2
    rows = read_run(unpaired).pictures
    assert [name for name, _ in rows[0].compared] == ["GAN after 12 images", "GAN after 24 images"]
    assert [name for name, _ in rows[0].beside] == ["A real image (not its target)"]
    for sheet, (_, shown) in zip(sheets, rows[0].compared, strict=True):
        with Image.open(sheet) as opened:
            box = json.loads(opened.info["layout"])["boxes"][0][-1]
            assert opened.convert("RGB").crop(box).tobytes() == shown.tobytes()

    run = Path(shutil.copytree(unpaired, tmp_path / "run"))
    sheets = sorted((run / "samples").glob("*.png"))
    with Image.open(sheets[0]) as opened:
        layout, picture = opened.info["layout"], opened.convert("RGB")
    picture.putpixel(json.loads(layout)["boxes"][0][0][:2], (1, 2, 3))  # another real image in the first row
    information = PngInfo()
    information.add_text("layout", layout)
    picture.save(sheets[0], pnginfo=information)
    first, second, *_ = read_run(run).pictures
    assert first.compared == []
    assert [name for name, _ in first.beside] == ["GAN after 24 images", "A real image (not its target)"]
    assert second.compared

    sheets[0].unlink()
    assert all(row.compared == [] for row in read_run(run).pictures)
    picture.save(sheets[1])  # says nothing of its layout
    assert read_run(run).pictures == []


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
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
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
            assert slider.get_attribute("aria-valuetext") == "51 % Photo"
            assert tab.get_by_label("Left: Photo. Right: The GAN's edit.").count() == tab.locator(".compare").count()
            assert not tab.get_by_role("img", name="speed/images_per_second").first.is_visible()
            tab.locator("summary", has_text="Speed").first.press("Enter")
            assert tab.get_by_role("img", name="speed/images_per_second").first.is_visible()
            colours = tab.evaluate(
                "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            )
            assert colours[0] == ("rgb(255, 255, 255)" if scheme == "dark" else "rgb(0, 0, 0)")
            assert errors == []
            assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
            tab.close()
        browser.close()

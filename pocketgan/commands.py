"""The commands beside LightningCLI's: typed functions whose docstrings are their help.

Heavy libraries are imported inside them, so that ``pocketgan --help`` is quick.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules import PairedImages

LARGEST_SELECTION_SIZE = 256  # the features see 224 px


def export(
    run: Path,
    out: Path,
    target: Literal["onnx", "executorch", "coreml", "litert", "web"] = "onnx",
    concept: str | None = None,
    adapters: str | None = None,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    pixels: Literal["float32", "uint8"] | None = None,
    opset: int | None = None,
    fixed_size: bool = False,
    size: int | None = None,
    threads: int = 2,
    photos: Path | None = None,
    calibration: Path | None = None,
    fine_tune_images: int = 0,
    largest_l1_increase: float = 0.02,
    photo_licence: str | None = None,
) -> None:
    """Write a run's model for a device, check it against PyTorch on real photos and time it.

    Args:
        run: Run folder of a base or an adapter.
        out: Folder for the bundle: the model (CONCEPT.onnx, CONCEPT.int8.onnx, CONCEPT.pte, …), its figures
            (….json), model_card.md and SHA256SUMS; several exports may share it, but one pack or page alone.
        target: The device's format; web is a page with ONNX Runtime in the browser, see `pocketgan serve`.
        concept: The concept to export; needed where a base knows several.
        adapters: Run folders of adapters with commas between, of which RUN is the base: a pack with all concepts, each
            costing its adapter's bytes (onnx and web).
        precision: Of weights and activations; int8 is calibrated, and leaves in float32 what it hurts.
        pixels: uint8 models take and give (B, H, W, 3) in 0 to 255, float32 ones (B, 3, H, W) in -1 to 1; if not given,
            uint8 for web and packs, else float32.
        opset: ONNX's operator set, 18 to 25 (web: to 22); if not given, 23 (web: 20).
        fixed_size: One square alone; else any height and width that the divisor divides, where the format can.
        size: Side in pixels at which it is checked and timed, and that of a model of one size; the training's if not
            given.
        threads: Threads while it is timed.
        photos: Folder of photos to check on; those bundled in scikit-image and scikit-learn if not given.
        calibration: Folder of photos that int8 is calibrated on; the training photos of the run's pair set if not
            given.
        fine_tune_images: Photos that the network is fine-tuned on before int8, to imitate itself; 0 for none.
        largest_l1_increase: Share by which the L1 to the teacher's edits may rise; more is refused.
        photo_licence: Licence of the photos that were trained on, for the model card.
    """
    from pocketgan.device_export import ExportRequest, describe, export_pack, export_run
    from pocketgan.wandb_export import record_export

    request = ExportRequest(
        target=target,
        precision=precision,
        pixels=pixels,
        opset=opset,
        dynamic_size=not fixed_size,
        size=size,
        threads=threads,
        photos=photos,
        calibration=calibration,
        fine_tune_images=fine_tune_images,
        largest_l1_increase=largest_l1_increase,
        photo_licence=photo_licence,
    )
    if adapters is not None:
        if concept is not None:
            raise ValueError("a pack holds every concept; give --concept or --adapters, not both")
        folders = [Path(name.strip()) for name in adapters.split(",") if name.strip()]
        exported = export_pack(run, folders, out, request)
    else:
        exported = [export_run(run, out, request, concept)]
    record_export(run, exported)
    for model in exported:
        print(describe(model))
    print(f"{out / 'model_card.md'} describes it, {out / 'SHA256SUMS'} has the digests")
    if target == "web":
        print(f"look at it with: pocketgan serve {out}")


def edit(
    inputs: list[Path],
    model: Path,
    out: Path,
    concept: str | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    strength: float = 1.0,
    jobs: int = 2,
    seconds: float | None = None,
    base: Path | None = None,
) -> None:
    """Edit images, videos and folders of them at their own size, or a camera live.

    Args:
        inputs: Image and video files, and folders, which are searched recursively; or one camera: camera, camera:1 for
            the second, or /dev/video0, recorded to camera.mp4 until Ctrl-C.
        model: Run folder, an adapter's, exported file, or pack.
        out: Folder for the edits, which keep their names.
        concept: The edit; needed where a base knows several.
        overwrite: Replace files that stand in ``out`` already.
        threads: Threads of the model; all cores if not given.
        strength: Share of the edit in the result, 0 to 1; the rest is the photo.
        jobs: Pictures at a time, and after them videos.
        seconds: Of a camera: end after so many.
        base: Run folder of an adapter's base, where the adapter's folder stands alone.
    """
    from pocketgan.camera import CAMERA_FILE_NAME, edit_camera, is_camera
    from pocketgan.editor import check_strength, edit_files
    from pocketgan.loaded_model import load
    from pocketgan.video import VIDEO_SUFFIXES

    check_strength(strength)
    if not any(map(is_camera, inputs)):
        if seconds is not None:
            raise ValueError("--seconds is for a camera; leave it out, or give camera as the one input")
        written = edit_files(inputs, load(model, threads, base=base).editor(concept), out, overwrite, strength, jobs)
        videos = sum(path.suffix.lower() in VIDEO_SUFFIXES for path in written)
        counts = {"picture": len(written) - videos, "video": videos}
        named = [f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in counts.items() if number]
        print(f"{' and '.join(named)} written to {out}")
        return
    if len(inputs) > 1:
        raise ValueError("a camera is edited alone; leave the other inputs out")
    file = out / CAMERA_FILE_NAME
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} exists; choose another --out, or replace it with --overwrite")
    editor = load(model, threads, base=base).editor(concept)
    recording = edit_camera(str(inputs[0]), editor, file, strength, seconds)
    print(
        f"{file}: {recording.frames} frames, {recording.frames_per_second:.1f} per second; {recording.dropped} came "
        "while the model was busy"
    )


def quickstart(photos: Path | None = None, out: Path = Path("pocketgan_quickstart")) -> None:
    """Run the whole pipeline on embedded defaults: pairs, base, adapter, test, export, edited pictures, report.

    Args:
        photos: Folder of photos to learn on; those bundled in scikit-image and scikit-learn if not given.
        out: Folder for all that it makes.
    """
    from pocketgan.cli import main
    from pocketgan.quickstart import run_quickstart

    run_quickstart(main, photos, out)


def select_concepts(
    root: Path,
    count: int,
    out: Path,
    candidates: list[str] | Path | None = None,
    method: Literal["kmeans", "random"] = "kmeans",
    text_encoder: str | None = None,
    size: int | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    choice_seed: int = 0,
) -> None:
    """Choose concepts for a base: those nearest the centres of a k-means on their edits.

    Args:
        root: Pair set that holds the pool of concepts.
        count: Number of concepts to choose.
        out: File to write, for ``--data.concepts``; an existing one is replaced.
        candidates: The pool, or a file that names it; all concepts of the set if not given.
        method: ``random`` is the control.
        text_encoder: Repo id or folder of a CLIP text encoder: clusters the prompts' features, not the edits'.
        size: Side in pixels at which pictures are decoded; with the training's, its cache is used. The pair set's own
            if not given, at most 256.
        split: As ``data.split`` of the training, so that no held-out photo has a say.
        seed: As ``data.seed`` of the training, which deals the split.
        choice_seed: Of the k-means or the draw.
    """
    import torch

    from pocketgan.metrics import EfficientNetLite0Features
    from pocketgan.selection import check_count, common_photos
    from pocketgan.text import CLIPTextEncoder

    if method == "random" and text_encoder is not None:
        raise ValueError("a random choice reads no prompts; give --text_encoder or --method random, not both")
    _check_file(out)
    data = _opened_pairs(root, candidates, size, split, seed)
    names = list(data.prompts)
    check_count(count, len(names), "candidates")
    features, described = None, "none"
    if text_encoder is not None:
        # over all tokens: those of the padding come after the prompt and have read all of it
        features = CLIPTextEncoder(text_encoder)(names, list(data.prompts.values())).mean(1)
        described = f"of the prompts by {text_encoder}, mean over tokens"
    elif method == "kmeans":
        pairs = data.datasets["train"].pairs
        photos = {name: [data.photo_name(pair) for pair in pairs if pair.concept == name] for name in names}
        common = common_photos(photos)
        print(f"features of {len(pairs)} edits: computed once, which may take minutes, then read from {data.cache}")
        of_edits = data.reference_features("train", EfficientNetLite0Features())
        used = {name: torch.tensor([photo in common for photo in photos[name]]) for name in names}
        features = torch.stack([of_edits[name][used[name]].mean(0) for name in names])
        described = f"EfficientNetLite0Features of the edits at {data.size} px, mean over {len(common)} training photos"
    _write_choice("concepts", names, features, described, count, choice_seed, data, out)


def select_photos(
    root: Path,
    count: int,
    out: Path,
    concepts: list[str] | Path | None = None,
    method: Literal["kmeans", "random"] = "kmeans",
    size: int | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    choice_seed: int = 0,
) -> None:
    """Choose photos to train on: those of the training side nearest the centres of a k-means.

    Args:
        root: Pair set or aligned folder.
        count: Number of photos to choose.
        out: File to write, for ``--data.training_photos``; an existing one is replaced.
        concepts: Choose among photos that have an edit of one of these, which a file may name; of any if not given.
        method: ``random`` is the control.
        size: Side in pixels at which pictures are decoded; with the training's, its cache is used. The pair set's own
            if not given, at most 256.
        split: As ``data.split`` of the training, so that no held-out photo is chosen or has a say.
        seed: As ``data.seed`` of the training, which deals the split.
        choice_seed: Of the k-means or the draw.
    """
    import torch

    from pocketgan.metrics import EfficientNetLite0Features, reference_features
    from pocketgan.selection import check_count

    _check_file(out)
    data = _opened_pairs(root, concepts, size, split, seed)
    names = sorted({data.photo_name(pair) for pair in data.datasets["train"].pairs})
    check_count(count, len(names), "photos on the training side")
    features, described = None, "none"
    if method == "kmeans":
        # keyed by photo where a reference is keyed by concept
        of_photos = reference_features(EfficientNetLite0Features(), data.photos("train"), cache=None)
        features = torch.cat([of_photos[name] for name in names])
        described = f"EfficientNetLite0Features of the photos at {data.size} px"
    _write_choice("photos", names, features, described, count, choice_seed, data, out)


def _check_file(out: Path) -> None:
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name the file to write, such as {out / 'chosen.txt'}")


def _opened_pairs(
    root: Path,
    concepts: list[str] | Path | None,
    size: int | None,
    split: tuple[float, float, float],
    seed: int,
) -> "PairedImages":
    from datamodules import PairedImages
    from pocketgan.pair_set import MANIFEST_FILE_NAME, read_manifest

    own_size = read_manifest(root)["size"] if (root / MANIFEST_FILE_NAME).is_file() else LARGEST_SELECTION_SIZE
    data = PairedImages(root, concepts, size or min(own_size, LARGEST_SELECTION_SIZE), split=split, seed=seed)
    data.setup("fit")
    return data


def _write_choice(
    kind: Literal["concepts", "photos"],
    names: list[str],
    features: "Tensor | None",
    described: str,
    count: int,
    choice_seed: int,
    data: "PairedImages",
    out: Path,
) -> None:
    """Choose by features, at random where there are none, and write the file."""
    from pocketgan.selection import at_random, nearest_to_centres, write_selection

    if features is None:
        places = at_random(len(names), count, choice_seed)
    else:
        places = nearest_to_centres(features, count, choice_seed)
    how = [
        f"pocketgan select {kind}",
        f"count: {count} of {len(names)}",
        f"method: {'random' if features is None else 'kmeans'}",
        f"features: {described}",
        f"choice_seed: {choice_seed}",
        f"concepts: {', '.join(data.prompts)}" if kind == "photos" else f"candidates: {', '.join(names)}",
        f"split: {list(data.fractions)}",
        f"seed: {data.seed}",
        f"pair set: {data.set_hash}",
    ]
    write_selection(out, [names[place] for place in places], "\n".join(how))
    option = "--data.concepts" if kind == "concepts" else "--data.training_photos"
    print(f"{count} of {len(names)} {kind} written to {out}; use it with {option} {out}")


def adapt(
    *,
    base: Path,
    pairs: Path,
    concepts: str,
    out: Path = Path("runs/adapters"),
    config: Path | None = None,
    ranks: Path | None = None,
    devices: int | None = None,
    fit_options: list[str] | None = None,
) -> None:
    """Adapt one base to many concepts, each by a `fit` and a `test` of its own; start again to go on.

    Args:
        base: Run folder of the base.
        pairs: Pair set.
        concepts: Names with commas between, a file of `pocketgan select concepts`, or "all" that the base was not
            trained on.
        out: Folder that gets a run folder for each concept, and adapters.csv with all that are done there.
        config: YAML of the adaptation; configs/lora_adaptation/small.yaml if not given. With rank_search.yaml beside it
            the ranks are searched on the first concept and serve all.
        ranks: File of LoRA ranks for all concepts, such as the ranks.yaml of a search; the config's if not given.
        devices: GPUs, each with one concept at a time; all that there are if not given.
        fit_options: Further options of each fit, for example '[--budget.images=800]'.
    """
    import torch

    from pocketgan.campaign import run_campaign
    from pocketgan.cli import main

    devices = devices or max(torch.cuda.device_count(), 1)
    run_campaign(main, base, pairs, concepts, out, config, ranks, devices, fit_options)


def config(*, from_run: str, out: Path | None = None) -> None:
    """Give a run's YAML back: `pocketgan fit -c` of it trains the same again.

    Args:
        from_run: Run folder, or ENTITY/PROJECT/ID of a run at Weights & Biases.
        out: File to write; printed if not given.
    """
    from pocketgan.files import write_whole
    from pocketgan.run_config import config_of_run

    text = config_of_run(from_run)
    if out is None:
        print(text, end="")
        return
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another --out, or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text.encode())
    print(f"written to {out}; `pocketgan fit -c {out} --trainer.default_root_dir NEW` trains it again")


def report(runs: list[Path], out: Path = Path("report.html")) -> None:
    """Write one page about runs, side by side: pictures before and after, curves, ranks, sizes, latency, config.

    Args:
        runs: Run folders.
        out: HTML file to write; an existing one is replaced.
    """
    from pocketgan.run_report import write_run_report

    write_run_report(runs, out)
    print(f"{out}: {out.stat().st_size / 1024:.0f} KiB, open it in a browser; it needs no other file")


def serve(folder: Path, port: int = 8000, host: str = "127.0.0.1") -> None:
    """Show a page that ``export --target web`` wrote, until Ctrl-C.

    Args:
        folder: Holds index.html.
        port: To listen on; 0 takes a free one.
        host: Address to listen on; 0.0.0.0 lets other devices in, to which browsers give no camera and no WebGPU over
            plain http.
    """
    from pocketgan.serve import address_for_others, page_server

    with page_server(folder, port, host) as server:
        port = server.server_port
        # 0.0.0.0 means every address of this machine, and is none that a browser opens
        everywhere = server.server_address[0] == "0.0.0.0"
        print(f"{folder} is shown at http://{'127.0.0.1' if everywhere else host}:{port}/ until Ctrl-C", flush=True)
        if everywhere:
            print(
                f"Other devices open http://{address_for_others()}:{port}/; over plain http browsers give them no "
                "camera and no WebGPU, for which https is needed",
                flush=True,
            )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")


def sweep(
    file: Path,
    local: bool = False,
    trials: int | None = None,
    jobs: int = 1,
    out: Path | None = None,
    project: str = "pocketgan",
    entity: str | None = None,
) -> None:
    """Run a sweep's file: at Weights & Biases with an agent here, or with --local on this machine with no account.

    Args:
        file: The sweep, such as configs/sweeps/base_gan.yaml.
        local: Choose values by Optuna; started again it goes on.
        trials: Trials in all, the file's run_cap or its whole grid if not given; of the agent here: runs that it makes.
        jobs: Local trials at a time; each has a GPU of its own where there are some.
        out: Folder for local trials, their table and plot; runs/sweeps/NAME_OF_THE_FILE if not given.
        project: At Weights & Biases.
        entity: Its user or team; the account's own if not given.
    """
    from pocketgan.cli import main
    from pocketgan.local_sweep import run_local_sweep
    from pocketgan.sweep import check_sweep, read_sweep
    from pocketgan.wandb_sweep import run_wandb_sweep

    read = read_sweep(file)
    check_sweep(read, main)
    if local:
        run_local_sweep(read, out or Path("runs/sweeps") / file.stem, trials, jobs)
    else:
        run_wandb_sweep(read, project, entity, trials)


def pairs_import(
    source: Path,
    *,
    out: Path,
    concept: str | None = None,
    prompts: dict[str, str] | Path | None = None,
    size: int = 256,
    image_format: Literal["png", "jpeg"] = "png",
) -> None:
    """Make a pair set of pairs of your own: photos/NAME with edits/NAME or edits/CONCEPT/NAME.

    Args:
        source: Folder with photos and edits.
        out: Root of the pair set; an import that was broken off goes on.
        concept: Name of the edits, where they lie in edits itself.
        prompts: Text of each concept, for example '{oil: an oil painting}', or a YAML file of them; its name where
            there is none.
        size: Side in pixels that is stored, of the largest centred square.
        image_format: Of the stored files.
    """
    from pocketgan.pair_import import import_pairs
    from pocketgan.text import as_prompts

    count, left_out = import_pairs(source, out, concept, as_prompts(prompts), size, image_format)
    for reason in left_out.values():
        print(f"left out: {reason}")
    print(f"{out} holds {count} pairs, {len(left_out)} were left out; train on it with --data.root {out}")


def pairs_convert(
    source: Path,
    *,
    out: str,
    to: Literal["pairs", "imagefolder", "aligned", "litdata"] = "pairs",
    concepts: list[str] | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    prompts: dict[str, str] | Path | None = None,
    size: int | None = None,
) -> None:
    """Write a pair set in another tool's layout, or make a pair set of such a layout.

    Args:
        source: A pair set for all but "pairs", else what lies in one of the other layouts, which is recognised.
        out: Folder to make; of a pair set its root, where a conversion that was broken off goes on.
        to: imagefolder for Hugging Face datasets, aligned for pytorch-CycleGAN-and-pix2pix, litdata for StreamedPairs.
        concepts: Of a pair set: those to write; all if not given.
        split: Of a pair set to imagefolder and aligned: fractions of the photos for train, val and test.
        seed: Likewise: deals the split, as data.seed of a training.
        prompts: To a pair set: text of each concept, for example '{facades: a facade}', or a YAML file of them; its
            name where there is none.
        size: To a pair set: side in pixels that is stored, of the largest centred square; the pictures' own if not
            given.
    """
    from pocketgan.pair_chunks import is_address
    from pocketgan.pair_convert import export_pairs, import_converted, kind_of
    from pocketgan.text import as_prompts

    if is_address(out):
        raise ValueError(
            f"{out} is in object storage; convert to a local folder, then copy it there, for example with `aws s3 cp "
            "--recursive`"
        )
    kind = kind_of(source)
    if to == "pairs":
        if kind == "pairs":
            raise ValueError(f"{source} is a pair set; say what to make of it: --to imagefolder, aligned or litdata")
        count = import_converted(source, Path(out), as_prompts(prompts), size)
        print(f"{out} holds {count} pairs of {source} ({kind}); train on it with --data.root {out}")
        return
    if kind != "pairs":
        raise ValueError(f"{source} is {kind}; make it a pair set first: `pocketgan pairs convert {source} --out ROOT`")
    count = export_pairs(source, Path(out), to, concepts, split, seed)
    use = {
        "imagefolder": f'load it with datasets.load_dataset("imagefolder", data_dir="{out}")',
        "aligned": f"train on it with pytorch-CycleGAN-and-pix2pix's --dataroot {out}, or here with --data.root {out}",
        "litdata": f"train on it with --data StreamedPairs --data.root {out}, or copy it to object storage first",
    }
    print(f"{out} holds {count} pairs of {source} as {to}; {use[to]}")


def pairs_inspect(
    root: Path,
    out: Path = Path("contact_sheet.png"),
    gates: Path | None = None,
    apply: bool = False,
) -> None:
    """Show what a pair set's gates kept and dropped and why; try other limits without generating again.

    Args:
        root: Pair set.
        out: Picture to write: pairs that were dropped, and the worst and best that were kept.
        gates: YAML of gates by name, as under ``gates`` in a synthesis: one that the set has is replaced, another is
            added and measured, null takes one away. Without it, those of the set.
        apply: Write scores, marks and gates to the set.
    """
    import io

    from rich import get_console

    from pocketgan.files import write_whole
    from pocketgan.pair_inspection import contact_sheet, inspect_pairs, print_inspection

    if out.suffix.lower() != ".png":
        raise ValueError(f"{out} would not be a PNG; name a file that ends in .png")
    inspection = inspect_pairs(root, gates, apply)
    print_inspection(inspection, get_console())
    if not inspection.pairs:
        return
    buffer = io.BytesIO()
    contact_sheet(inspection).save(buffer, "PNG")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, buffer.getvalue())
    print(f"contact sheet written to {out}" + (f"; {root} is marked accordingly" if apply else ""))

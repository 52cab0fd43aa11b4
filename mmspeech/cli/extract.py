"""`mmspeech extract`: mouth tracks, features and units, stored beside the cuts that carry them."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmspeech import files
from mmspeech.console import say
from mmspeech.errors import UserError

app = typer.Typer()


@app.command()
def mouth(
    cuts: Annotated[list[Path], typer.Argument(help="Files of cuts, as written by `mmspeech prepare`.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: the same files of cuts, now with mouth tracks.")],
    landmarks: Annotated[
        Path | None,
        typer.Option(help="Folder with SPLIT/SPEAKER/CLIP.npy, (T, 68, 2) pixels at 25 Hz, instead of the detector."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; a shard of 32 clips is the unit of work.")] = (
        os.cpu_count() or 1
    ),
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first clip without a track.")] = False,
) -> None:
    """Cut the mouth out of every clip: 96x96 grey at 25 frames per second, aligned to a mean face.

    OUT also gets mouth/ (the tracks), report.json, rejected.jsonl (clips set aside, with reasons) and
    contact-sheet.jpg: look at it. Cuts without video pass through. Stopped, it goes on where it was. Without
    landmark files, faces are found by MediaPipe (`bin/setup synth video`, Python 3.11 or 3.12).

    Example: `mmspeech extract mouth exp/data/cuts_*.jsonl.gz exp/my-mouths`
    """
    from mmspeech.cli.cluster import check_names, check_strict
    from mmspeech.data import mouth_shards

    check_names(cuts, out)
    if landmarks is not None and not landmarks.is_dir():
        raise UserError(f"{landmarks}: no such folder of landmarks; mend the path, or leave out --landmarks to detect")
    inputs = cuts if landmarks is None else [*cuts, landmarks]
    stage = files.Stage(out, inputs, {"step": "mouth"})
    if stage.is_current():
        check_strict(out, strict)
        return
    with stage.resuming(), files.Rejects(out / "rejected.jsonl", strict) as rejects:
        report = mouth_shards.extract(cuts, out, landmarks, jobs, rejects)
    say(report.line())


@app.command()
def features(
    cuts: Annotated[
        list[Path], typer.Argument(help="Files of cuts, from `prepare` or `extract mouth`; or one video or sound file.")
    ],
    out: Annotated[
        Path,
        typer.Argument(help="Folder to write: the same files of cuts, now with frames. Of one file: X.safetensors."),
    ],
    feature: Annotated[
        str | None, typer.Option(help="mfcc (39 values), fbank26 (104, the encoders' input) or fbank80 (320).")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option("--encoder", "--model", help="Or: `encoder` folder of a pre-training run, or a recognizer's."),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Of the encoder: k for block k, 0 for the fused features. Of one file: several with commas."),
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option(help="Subsets of streams it gets: av, a, v, or names as in audio+video. Without: what a cut has."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one, for --feature the CPU.")
    ] = None,
    batch_seconds: Annotated[float, typer.Option(min=1.0, help="Speech in one batch, padding included.")] = 120.0,
    jobs: Annotated[int, typer.Option(min=1, help="Threads that read ahead.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first cut that cannot be used.")] = False,
) -> None:
    """Frames at 25 per second for `mmspeech cluster`: spectral features, or a layer of an encoder.

    OUT also gets features/ (half precision) and rejected.jsonl. With --modalities each subset has a folder of its own,
    OUT/av, OUT/a ..., for `cluster fit` to learn from any of them or all; cuts that lack a stream of it are not in
    there. Stopped, it goes on where it was. If OUT ends in .safetensors, the input is one video or sound file, read as
    by `mmspeech transcribe`: OUT receives a tensor `layer_K` (T, D) of each layer, and in its metadata what was read.

    Example: `mmspeech extract features exp/mouth/cuts_*.jsonl.gz exp/my-mfcc --feature mfcc`

    Example: `mmspeech extract features exp/mouth/cuts_*.jsonl.gz exp/my-frames --encoder exp/iter2/encoder --layer 3`

    Example: `mmspeech extract features exp/mouth/cuts_*.jsonl.gz exp/my-subsets --encoder exp/iter2/encoder --layer 3
    --modalities av,a,v`

    Example: `mmspeech extract features talk.mp4 talk.safetensors --model exp/synth-av/model --layer 2,3`
    """
    from mmspeech import config as configs
    from mmspeech import dist
    from mmspeech.cli import extract_features, extract_file
    from mmspeech.cli.cluster import check_names, check_strict
    from mmspeech.data.reading import named_streams
    from mmspeech.models.av_encoder import check_folder, load_encoder

    known: dict[str, Any] = {}
    if encoder is not None:
        check_folder(encoder)
        known = configs.read(encoder / "config.yaml").get("inputs") or {}
    if out.suffix == ".safetensors":
        if feature is not None or encoder is None or layer is None or len(cuts) > 1:
            raise UserError(f"{out}: holds the frames of one file; give FILE OUT.safetensors --model DIR --layer 9")
        layers = extract_features.layers_of(layer)
        streams = named_streams(modalities, known, "--modalities") if modalities else None
        extract_file.extract(cuts[0], out, load_encoder(encoder).eval(), layers, streams, dist.start(device))
        return
    check_names(cuts, out)
    if (feature is None) == (encoder is None) or (encoder is None) != (layer is None):
        raise UserError("extract features: give --feature, or --encoder together with --layer")
    if feature is not None and feature not in extract_features.SPECTRAL:
        raise UserError(f"--feature {feature}: expected one of {', '.join(extract_features.SPECTRAL)}")
    layers = extract_features.layers_of(layer) if layer else []
    if len(layers) > 1:
        raise UserError(f"--layer {layer}: cuts carry the frames of one layer; give one, and another OUT for the next")
    if feature is not None and modalities:
        raise UserError(
            f"--modalities {modalities}: is for --encoder, --feature {feature} is made of sound; leave it out"
        )
    weights = [] if encoder is None else [encoder / "config.yaml", *encoder.glob("*.safetensors")]
    due: list[tuple[list[str] | None, files.Stage]] = []
    for subset in modalities.split(",") if modalities else [None]:
        streams = None if subset is None else named_streams(subset, known, "--modalities")
        settings = {"feature": feature, "layer": layers[0] if layers else None, "modalities": streams}
        stage = files.Stage(out if subset is None else out / subset, [*cuts, *weights], settings)
        if stage.is_current():
            check_strict(stage.output, strict)
        else:
            due.append((streams, stage))
    if not due:
        return
    place = dist.start(device or ("cpu" if feature else None))  # of sound, reading takes longer than computing
    model = None if encoder is None else load_encoder(encoder)
    for streams, stage in due:
        if feature is not None:
            extractor = extract_features.spectral(feature, place)
        else:
            assert model is not None
            extractor = extract_features.from_encoder(model, layers[0], streams, place)
        extract_features.run(stage, cuts, extractor, streams or [], strict=strict, batch_s=batch_seconds, jobs=jobs)


@app.command("units")
def extract_units(
    inputs: Annotated[
        list[Path], typer.Argument(help="Files of cuts; with `--from text` files of sentences, .txt or .txt.gz.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write: the same files of cuts, now with units; or text cuts.")],
    name: Annotated[str, typer.Option(help="Name of the units: the cuts carry them as units_NAME.")],
    source: Annotated[
        Literal["speech", "text"], typer.Option("--from", help="What units are made of: sound and lips, or sentences.")
    ] = "speech",
    encoder: Annotated[
        Path | None, typer.Option(help="Of speech: `encoder` folder of a pre-training run, or a recognizer's.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Of the encoder: k for block k, 0 for the fused features.")] = None,
    codebook: Annotated[
        Path | None, typer.Option(help="Of speech: folder of `mmspeech cluster fit`, learnt from that layer.")
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option(help="Streams that the encoder gets: av, a, or names as in audio+video. Without: what a cut has."),
    ] = None,
    phone2unit: Annotated[
        Path | None, typer.Option(help="Of text: `model` folder of a `phone2unit` pre-training run.")
    ] = None,
    lexicon: Annotated[
        Path | None, typer.Option(help="Of text: lines of WORD PHONE PHONE ...; without, CMUdict.")
    ] = None,
    language: Annotated[str, typer.Option(help="Of text: en, or another, whose phones espeak-ng gives.")] = "en",
    silence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of text: how often a pause stands between two words.")
    ] = 0.25,
    max_s: Annotated[float, typer.Option(min=0.04, help="Of text: what would take longer is set aside.")] = 20.0,
    shard: Annotated[
        str, typer.Option(help="Of text: i/n makes every n-th shard from the i-th on, i from 0: for array jobs.")
    ] = "0/1",
    seed: Annotated[int, typer.Option(help="Of text: fixes where pauses stand.")] = 0,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of text: of the model's products.")] = "fp32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    batch_seconds: Annotated[
        float, typer.Option(min=1.0, help="Of speech: seconds in one batch, padding included.")
    ] = 120.0,
    jobs: Annotated[int, typer.Option(min=1, help="Of speech: threads that read ahead.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at what cannot be used first.")] = False,
) -> None:
    """Units of one codebook for everything (VATLM Sec. III-C): lips with sound, sound alone, and text.

    Speech: the nearest centre of each frame of a layer; no frames are stored. Paired sound and text get the units of
    their sound (--modalities a). Text: each line becomes phones, a phoneme-to-unit model gives their units and
    durations, and OUT receives cuts_FILE-00000.jsonl.gz ..., 100,000 lines each, whose cuts carry `phones`, four ids
    per unit, and the units. Stopped, both go on where they were. Lines that are empty, cannot be pronounced, or are too
    long are counted in units.json; the first reasons are in rejected.jsonl.

    Example: `mmspeech extract units exp/mouth/cuts_*.jsonl.gz exp/my-units --name km --encoder exp/iter2/encoder
    --layer 3 --codebook exp/my-codebook --modalities av`

    Example: `mmspeech extract units --from text sentences.txt.gz exp/text --name km --phone2unit exp/p2u/model`
    """
    from mmspeech import config as configs
    from mmspeech import dist
    from mmspeech.cli import extract_features, extract_text
    from mmspeech.cli.cluster import check_names, check_strict

    speech = {"--encoder": encoder, "--layer": layer, "--codebook": codebook}
    text = {"--phone2unit": phone2unit}
    needed, others = (speech, text) if source == "speech" else (text, speech | {"--modalities": modalities})
    if lacking := [option for option, value in needed.items() if value is None]:
        raise UserError(f"extract units: --from {source} needs {' and '.join(lacking)}; see --help")
    if given := [option for option, value in others.items() if value is not None]:
        raise UserError(f"extract units: {given[0]} is not for --from {source}; leave it out")
    check_names(inputs, out)
    if source == "text":
        assert phone2unit is not None
        settings = extract_text.Settings(
            name=name, language=language, silence=silence, max_s=max_s, seed=seed, precision=precision
        )
        share = extract_text.Share.of(shard)
        extract_text.run(inputs, out, phone2unit, lexicon, settings, share, device=device, strict=strict)
        return

    import torch

    from mmspeech.data.reading import named_streams
    from mmspeech.models.av_encoder import check_folder, load_encoder
    from mmspeech.pretraining import kmeans

    assert encoder is not None and layer is not None and codebook is not None
    check_folder(encoder)
    known = configs.read(encoder / "config.yaml").get("inputs") or {}
    streams = named_streams(modalities, known, "--modalities") if modalities else None
    weights = [encoder / "config.yaml", *encoder.glob("*.safetensors")]
    stage = files.Stage(out, [*inputs, *weights, codebook], {"name": name, "layer": layer, "modalities": streams})
    if stage.is_current():
        check_strict(out, strict)
        return
    place = dist.start(device)
    model, centres = load_encoder(encoder), kmeans.Codebook.load(codebook).centroids
    if centres.shape[1] != model.dim:
        raise UserError(
            f"{codebook}: learnt from frames of {centres.shape[1]} values, but the encoder's have {model.dim}; give "
            "the codebook of this encoder's frames"
        )
    on_device = torch.from_numpy(centres).to(place)
    extractor = extract_features.from_encoder(
        model, layer, streams, place, lambda frames: kmeans.assign(frames, on_device), f"units_{name}"
    )
    extract_features.run(stage, inputs, extractor, streams or [], strict=strict, batch_s=batch_seconds, jobs=jobs)

"""`mmspeech extract units`: units of one codebook for speech and text, VATLM's unified tokenizer (Sec. III-C)."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mmspeech import files
from mmspeech.errors import UserError


def run(
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
        str,
        typer.Option(
            help="Of text: i/n makes every n-th shard from the i-th on, i from 0: for array jobs. torchrun's "
            "processes share a job's shards."
        ),
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
    from mmspeech.cli import extract_text
    from mmspeech.cli.cluster import check_names

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
    assert encoder is not None and layer is not None and codebook is not None
    of_speech(inputs, out, name, encoder, layer, codebook, modalities, device, batch_seconds, jobs, strict)


def of_speech(
    cuts: list[Path],
    out: Path,
    name: str,
    encoder: Path,
    layer: int,
    codebook: Path,
    modalities: str | None,
    device: str | None,
    batch_s: float,
    jobs: int,
    strict: bool,
) -> None:
    """The nearest centre of each frame of a layer, in one pass. Raises UserError for a codebook of other frames."""
    import torch

    from mmspeech import dist
    from mmspeech.cli import extract_features
    from mmspeech.cli.cluster import check_strict
    from mmspeech.data.reading import named_streams
    from mmspeech.models.av_encoder import load_encoder
    from mmspeech.pretraining import kmeans

    known, weights = extract_features.described(encoder)
    streams = named_streams(modalities, known, "--modalities") if modalities else None
    stage = files.Stage(out, [*cuts, *weights, codebook], {"name": name, "layer": layer, "modalities": streams})
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
    extract_features.run(stage, cuts, extractor, streams or [], strict=strict, batch_s=batch_s, jobs=jobs)

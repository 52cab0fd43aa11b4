"""`mmspeech extract`: mouth tracks, features, phones and units, stored beside the cuts that carry them."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmspeech import files
from mmspeech.cli import extract_units, pseudo_labels
from mmspeech.console import say
from mmspeech.errors import UserError

app = typer.Typer()
app.command("pseudo-labels")(pseudo_labels.run)
app.command("units")(extract_units.run)


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
    from mmspeech import dist
    from mmspeech.cli import extract_features, extract_file
    from mmspeech.cli.cluster import check_names, check_strict
    from mmspeech.data.reading import named_streams
    from mmspeech.models.av_encoder import load_encoder

    known, weights = extract_features.described(encoder) if encoder else ({}, [])
    media = next((path for path in cuts if path.suffix not in ("", ".gz", ".jsonl")), None)
    if feature is not None and (media or out.suffix == ".safetensors"):
        raise UserError(f"--feature {feature}: is for cuts; of a media file give --model DIR --layer 9 instead")
    if media and out.suffix != ".safetensors":
        raise UserError(f"{media}: a media file: its OUT must end in .safetensors, as {media.stem}.safetensors")
    if out.suffix == ".safetensors":
        if modalities and "," in modalities:
            raise UserError(f"--modalities {modalities}: of one file, one subset, as in av; take the others in turn")
        if encoder is None or layer is None or len(cuts) > 1:
            raise UserError(f"{out}: holds the frames of one file; give FILE OUT.safetensors --model DIR --layer 9")
        layers = extract_features.layers_of(layer)
        streams = named_streams(modalities, known, "--modalities") if modalities else None
        extract_file.extract(cuts[0], out, load_encoder(encoder).eval(), layers, streams, dist.start(device))
        return
    check_names(cuts, out)
    number = check_choice(feature, encoder, layer, modalities)
    due: list[tuple[list[str] | None, files.Stage]] = []
    for subset in modalities.split(",") if modalities else [None]:
        streams = None if subset is None else named_streams(subset, known, "--modalities")
        settings = {"feature": feature, "layer": number, "modalities": streams}
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
            assert model is not None and number is not None
            extractor = extract_features.from_encoder(model, number, streams, place)
        extract_features.run(stage, cuts, extractor, streams or [], strict=strict, batch_s=batch_seconds, jobs=jobs)


def check_choice(feature: str | None, encoder: Path | None, layer: str | None, modalities: str | None) -> int | None:
    """The one layer that cuts get, if it is an encoder's. Raises UserError for options that do not go together."""
    from mmspeech.cli import extract_features

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
    return layers[0] if layers else None


@app.command()
def phones(
    cuts: Annotated[list[Path], typer.Argument(help="Files of cuts with phone alignments or transcripts.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: the same files of cuts, now with phones.")],
    aligner: Annotated[
        Path | None, typer.Option(help="Align transcripts with this CTC recognizer of phones (EXP/model).")
    ] = None,
    durations: Annotated[
        Literal["aligned", "cut-or-pad"],
        typer.Option(help="cut-or-pad: as public VATLM, every phone of a transcript equally long; cut to the sound."),
    ] = "aligned",
    phone_ms: Annotated[
        int | None, typer.Option(min=10, help="Of cut-or-pad: length of a phone, in steps of 10; 80 if not given.")
    ] = None,
    lexicon: Annotated[
        Path | None, typer.Option(help="File with lines WORD PH PH ..., instead of CMUdict or the aligner's.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="en, or a code of espeak-ng (es, de, fr ...); by default the aligner's, or en.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Of the aligner: cpu or cuda; by default the GPU if there is one.")
    ] = None,
    batch_seconds: Annotated[float, typer.Option(min=1.0, help="Speech in one batch of the aligner.")] = 120.0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first cut that cannot be used.")] = False,
) -> None:
    """Phones for a text stream (VATLM): ids at 100 Hz, four per frame of 25 Hz, with the sound they belong to.

    They come from the cuts' phone alignments (ARPAbet or IPA, as of MFA); or, with --aligner, from their transcripts
    and a recognizer that `mmspeech finetune` made with `tokenizer: {kind: phones}`; or, without their times, from
    transcripts. OUT also gets phones/ (the arrays), phones.txt (what the ids stand for; `size` in YAML is its length)
    and rejected.jsonl. Languages other than English are spelt in IPA, by espeak-ng (`bin/setup synth`). Stopped, it
    goes on where it was. Next: `text: {reader: phones}` under `data.streams`, `text: {frontend: phones, size: 46}`
    under `model.streams`.

    Example: `mmspeech extract phones exp/mouth/cuts_*.jsonl.gz exp/my-phones`

    Example: `mmspeech extract phones exp/mouth/cuts_*.jsonl.gz exp/my-phones --aligner exp/phones/model`
    """
    import torch

    from mmspeech import dist
    from mmspeech.cli import extract_phones
    from mmspeech.cli.cluster import check_names, check_strict
    from mmspeech.data.phones import Lexicon

    check_names(cuts, out)
    fixed = durations == "cut-or-pad"
    if fixed and aligner is not None:
        raise UserError(f"--aligner {aligner}: with --durations cut-or-pad nothing is aligned; leave one of them out")
    if phone_ms is not None and (not fixed or phone_ms % 10):
        raise UserError(f"--phone-ms {phone_ms}: expected a multiple of 10, with --durations cut-or-pad; mend it")
    if lexicon is not None and not fixed and aligner is None:
        raise UserError(f"--lexicon {lexicon}: alignments have phones already; give --aligner too, or leave it out")
    parts = ("config.yaml", "model.safetensors", "tokenizer.json", "lexicon.txt") if aligner is not None else ()
    model_files = [aligner / part for part in parts if (aligner / part).exists()]  # type: ignore[operator]
    each = (phone_ms or 80) // 10 if fixed else None
    origin = "cut-or-pad" if fixed else "alignment" if aligner is None else "aligner"
    asked = language if aligner is not None else language or "en"
    settings = {"phones": origin, "language": asked, "ids_per_phone": each}
    stage = files.Stage(out, [*cuts, *model_files, *([lexicon] if lexicon else [])], settings)
    if stage.is_current():
        check_strict(out, strict)
        return
    if aligner is not None:
        place: torch.device = dist.start(device)
        model, words = extract_phones.load_aligner(aligner, place)
        if language not in (None, words.language):
            raise UserError(f"--language {language}: {aligner} knows phones of {words.language}; leave it out")
        words = words if lexicon is None else Lexicon.load(lexicon, words.language)
        spoken = words.language
        extractor = extract_phones.from_aligner(model, words, place)
    elif each is not None:
        spoken = language or "en"
        extractor = extract_phones.from_lexicon(Lexicon.load(lexicon, spoken), each)
    else:
        spoken = language or "en"
        extractor = extract_phones.from_alignment(spoken)
    extract_phones.run(stage, cuts, extractor, spoken, strict=strict, batch_s=batch_seconds)

"""`mmspeech score modalities`: an encoder and cuts -> whether its features tell which modality they come from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmspeech import files
from mmspeech.console import say
from mmspeech.errors import UserError


def run(
    encoder: Annotated[Path, typer.Argument(help="`encoder` folder of a pre-training run, or a recognizer's.")],
    cuts: Annotated[list[Path], typer.Argument(help="Cuts with all the streams, e.g. cuts_test.jsonl.gz.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, e.g. exp/modalities.")],
    modalities: Annotated[
        str | None,
        typer.Option(
            help="Inputs to compare: av,a,v, or names as in audio+video. Without: all streams, and each alone."
        ),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Of the encoder: k for block k; default: the last.")] = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames that the classifier gets under each input.")] = 2000,
    points: Annotated[int, typer.Option(min=2, help="Of these, how many t-SNE shows.")] = 500,
    label: Annotated[str, typer.Option(help="Name of the model in tables; by default the encoder's experiment.")] = "",
    seed: Annotated[int, typer.Option(help="Fixes the frames and the resamples.")] = 0,
    resamples: Annotated[int, typer.Option(min=200, help="Of the utterances, for the intervals.")] = 1000,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    batch_seconds: Annotated[float, typer.Option(min=1.0, help="Speech in one batch, padding included.")] = 120.0,
    jobs: Annotated[int, typer.Option(min=1, help="Threads that read ahead.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first cut that cannot be used.")] = False,
) -> None:
    """How far the features of different inputs overlap: a classifier's accuracy, and t-SNE (VATLM, Figure 3).

    The encoder gets the same utterances from each input, alone and together; a linear classifier, cross-validated by
    utterance, tells which input a frame comes from: at chance, the modalities share one space. OUT receives
    modalities.json .md, tsne.json .png and rejected.jsonl; `mmspeech score report` shows them. Does nothing if OUT is
    current.

    Example: `mmspeech score modalities exp/iter2/encoder exp/mouth/cuts_test.jsonl.gz exp/space --modalities av,a,v`
    """
    import hashlib
    import shutil

    import numpy as np

    from mmspeech import dist  # torch and lhotse, which other scores do not need
    from mmspeech.cli import score_codebooks as work
    from mmspeech.cli.extract_features import check_layers
    from mmspeech.data.reading import named_streams
    from mmspeech.models.av_encoder import load_encoder
    from mmspeech.scoring import codebooks
    from mmspeech.scoring import modalities as measure

    model = load_encoder(encoder)
    layer = model.config.num_layers if layer is None else layer
    check_layers(model, [layer])
    subsets: dict[str, list[str]] = work.subsets_of(model)
    if modalities:
        given = [named_streams(one, model.inputs, "--modalities") for one in modalities.split(",")]
        subsets = {"+".join(streams): streams for streams in given}
        if len(subsets) < 2:
            raise UserError(f"--modalities {modalities}: one input; name two or more to tell apart, as in av,a,v")
    settings = {"modalities": list(subsets), "layer": layer, "frames": frames, "points": points, "seed": seed}
    settings |= {"resamples": resamples, "label": label}
    weights = sorted(encoder.glob("*.safetensors"))
    stage = files.Stage(out, list(dict.fromkeys([*cuts, encoder / "config.yaml", *weights])), settings)
    if not stage.is_current():
        how: dict[str, Any] = {"device": dist.start(device), "batch_s": batch_seconds, "jobs": jobs}
        with stage.writing() as folder, files.Rejects(folder / "rejected.jsonl", strict) as rejects:
            rejects.path = out / "rejected.jsonl"  # where it will be found
            (folder / "frames").mkdir()
            stored = work.store_frames(cuts, model, layer, subsets, folder / "frames", "cuts", rejects, **how)
            drawn = work.draw_frames(work.named_frames(stored, subsets), frames, seed=seed)
            answers = measure.classify(np.stack([one.values for one in drawn]), [one.cut for one in drawn])
            found = measure.Separability(
                label=label or encoder.resolve().parent.name,
                modalities=list(subsets),
                utterances_hash=hashlib.sha256(
                    "\n".join(f"{one.cut} {one.frame}" for one in drawn).encode()
                ).hexdigest(),
                layer=layer,
                seed=seed,
                encoder=str(encoder),
                corpus="+".join(work.corpora_of(stored)),
                **measure.summary(answers, seed=seed, resamples=resamples),  # type: ignore[arg-type]
            )
            measure.save(found, answers, folder)
            some = drawn[:: -(-len(drawn) // points)]
            codebooks.save_points(work.project(some, subsets, seed=seed), found.label, folder)
            shutil.rmtree(folder / "frames")
    found = measure.load(out / "modalities.json")
    say(f"{found.label}: {measure.described(found)}")
    say(f"{out / 'modalities.md'}, {out / 'tsne.png'}")

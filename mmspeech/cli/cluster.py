"""`mmspeech cluster`: hidden units from frames, and how they agree with phones."""

from pathlib import Path
from typing import Annotated

import typer

from mmspeech import files
from mmspeech.console import console, progress, say
from mmspeech.errors import BadItem, UserError

app = typer.Typer()

Cuts = Annotated[list[Path], typer.Argument(help="Cuts with frames, as written by `mmspeech extract features`.")]
Name = Annotated[str, typer.Option(help="Name of the units: the cuts carry them as units_NAME.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first cut that cannot be used.")]


@app.command()
def fit(
    cuts: Cuts,
    codebook: Annotated[Path, typer.Argument(help="Folder to write, e.g. exp/iter1/codebooks/mfcc.")],
    clusters: Annotated[int, typer.Option(min=2, help="Size of the codebook.")] = 100,
    seed: Annotated[int, typer.Option(help="Fixes the sample of frames and the first centres.")] = 0,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the utterances to learn from.")] = 1.0,
    starts: Annotated[int, typer.Option(min=1, help="Choices of first centres; the best is kept.")] = 20,
) -> None:
    """Learn a codebook of hidden units from a stream of frames, in constant memory.

    CODEBOOK receives codebook.safetensors (`centroids`) and codebook.json. Does nothing if the output is current.
    Next: `mmspeech cluster label`, which writes every cut's units.

    Example: `mmspeech cluster fit exp/iter1/features/cuts_pretrain.jsonl.gz exp/my-codebook --clusters 50`
    """
    from mmspeech.data import units
    from mmspeech.pretraining import kmeans

    stage = files.Stage(
        codebook, inputs=cuts, settings={"clusters": clusters, "seed": seed, "share": share, "starts": starts}
    )
    if stage.is_current():
        return
    with stage.writing() as folder:
        found = kmeans.fit(
            lambda: units.stream_frames(cuts, share=share, seed=seed), clusters, seed=seed, starts=starts
        )
        found.save(folder)
    say(f"{codebook}: {clusters} clusters from {found.facts['frames']} frames")


@app.command()
def label(
    cuts: Cuts,
    codebook: Annotated[Path, typer.Argument(help="Folder of `mmspeech cluster fit`.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: the same files of cuts, now with units.")],
    name: Name,
    device: Annotated[
        str | None, typer.Option(help="Where distances are taken: cpu or cuda; by default the GPU if there is one.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Give every frame of every cut its unit: the nearest centre of the codebook.

    OUT also gets units/ (the arrays) and rejected.jsonl. The frames are not carried on. Next: `mmspeech pretrain`.

    Example: `mmspeech cluster label exp/iter1/features/cuts_*.jsonl.gz exp/my-codebook exp/my-units --name km`
    """
    from collections import Counter

    import torch

    from mmspeech import dist
    from mmspeech.data import cutfiles, sizes, units
    from mmspeech.pretraining import kmeans

    check_names(cuts, out)
    stage = files.Stage(out, [*cuts, codebook], {"name": name})
    if stage.is_current():
        check_strict(out, strict)
        return
    place = dist.start(device)
    centroids = torch.from_numpy(kmeans.Codebook.load(codebook).centroids).to(place)
    labelled: dict[str, sizes.Durations] = {path.name: Counter() for path in cuts}
    with stage.resuming() as folder, files.Rejects(out / "rejected.jsonl", strict) as rejects:
        for path in cuts:
            shard_path = out / "units" / f"{path.name.removesuffix('.jsonl.gz')}.bin"
            # The shard is complete before the cuts that point into it appear.
            with cutfiles.writing_cuts(out / path.name) as writer, units.RawShardsWriter(shard_path) as shard:
                found = [] if cutfiles.is_empty(path) else cutfiles.open_cuts(path)
                for cut in progress(found, f"label {path.name}"):
                    try:
                        frames = torch.from_numpy(units.read_features(cut))
                    except BadItem as error:
                        rejects.add(cut.id, str(error))
                        continue
                    if frames.shape[1] != centroids.shape[1]:
                        raise UserError(
                            f"{cut.id}: its frames have {frames.shape[1]} values, but {codebook} was learnt from "
                            f"{centroids.shape[1]}; give the codebook of these frames"
                        )
                    values = kmeans.assign(frames.to(place), centroids).cpu().numpy().astype("int32")
                    del cut.custom[units.FEATURES]
                    streams = cut.custom.pop(units.made_from_field(units.FEATURES), None)
                    cut.custom[f"units_{name}"] = shard.store(cut, values)
                    if streams is not None:
                        cut.custom[units.made_from_field(f"units_{name}")] = streams
                    writer.write(cut)
                    labelled[path.name][cut.duration] += 1
        if not any(labelled.values()):
            raise UserError(f"{', '.join(map(str, cuts))}: no cut could be labelled; reasons in {rejects.path}")
        sizes.write_note(folder, labelled)
    say(f"{out}: {sum(one.total() for one in labelled.values())} cuts with units_{name}")


@app.command()
def purity(
    cuts: Annotated[
        list[Path], typer.Argument(help="Cuts with units (`mmspeech cluster label`) and phone alignments.")
    ],
    name: Name,
    out: Annotated[Path | None, typer.Option(help="Write the measures as JSON to this file, too.")] = None,
    strict: Strict = False,
) -> None:
    """Compare units with phone alignments: PNMI, phone purity, cluster purity.

    The phone of a frame is the one at its centre; frames and cuts without a phone are left out and counted.

    Example: `mmspeech cluster purity exp/iter1/units/cuts_valid.jsonl.gz --name km`
    """
    import dataclasses
    import json

    from rich.table import Table

    from mmspeech.data import cutfiles, units
    from mmspeech.data.audio import FRAMES_PER_S
    from mmspeech.scoring import pnmi

    counts, skipped = pnmi.JointCounts(), []
    for cut in cutfiles.open_cuts(cuts):
        alignments = [supervision.alignment or {} for supervision in cut.supervisions]
        phones = [item for alignment in alignments for item in alignment.get("phone", [])]
        try:
            if not phones:
                raise BadItem(f"{cut.id}: expected a phone alignment, found none; give aligned cuts")
            values = units.read_units(cut, name)
        except BadItem as error:
            if strict:
                raise UserError(f"{error} (--strict stops here)") from None
            skipped.append(str(error))
            continue
        intervals = [(item.start, item.end, item.symbol) for item in phones]
        counts.add(values, pnmi.phones_of_frames(intervals, len(values), FRAMES_PER_S))
    if skipped:
        say(f"{len(skipped)} cut(s) left out, the first: {skipped[0]}")
    try:
        measures = dataclasses.asdict(counts.agreement()) | {"name": name, "cuts_left_out": len(skipped)}
    except BadItem as error:
        raise UserError(f"{', '.join(map(str, cuts))}: {error}") from None
    table = Table(title=f"units_{name} and phones")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for key, value in measures.items():
        table.add_row(key.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)
    print(json.dumps(measures))
    if out is not None:
        files.write_json(out, measures)


def check_names(cuts: list[Path], out: Path) -> None:
    """Raise UserError if two files of cuts would be written to one place."""
    if len({path.name for path in cuts}) < len(cuts):
        raise UserError(f"{', '.join(map(str, cuts))}: two files of one name would overwrite each other in {out}")


def check_strict(out: Path, strict: bool) -> None:
    """Raise UserError if an earlier run, which was not strict, set items aside and this one allows none."""
    rejected = out / "rejected.jsonl"
    if strict and rejected.exists() and rejected.stat().st_size:
        raise UserError(f"{out}: items were set aside, see {rejected} (--strict allows none)")

"""`mmspeech extract pseudo-labels`: unlabelled cuts and what a recognizer heard in them -> transcribed cuts."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from mmspeech import files
from mmspeech.console import progress, say
from mmspeech.errors import UserError


def run(
    cuts: Annotated[Path, typer.Argument(help="Cuts without transcripts, e.g. exp/vox/mouth/cuts_pretrain.jsonl.gz.")],
    decoded: Annotated[Path, typer.Argument(help="What `mmspeech decode` made of them: a folder with hyp.jsonl.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: a file of cuts of the same name, with transcripts.")],
    min_s: Annotated[float, typer.Option(min=0.0, help="Seconds; shorter cuts are dropped.")] = 2.0,
    min_confidence: Annotated[
        float | None,
        typer.Option(max=0.0, help="Mean log probability of a token, e.g. -0.3; what has less is dropped."),
    ] = None,
    min_rate: Annotated[float, typer.Option(help="Characters per second; what has less is dropped.")] = 2.0,
    max_rate: Annotated[float, typer.Option(help="Characters per second; what has more is dropped.")] = 30.0,
) -> None:
    """Self-training: the hypotheses that can be trusted become transcripts (VATLM Sec. V-B).

    OUT receives the kept cuts, to fine-tune on beside labelled ones (`--set "data.cuts=[...]"`), report.json with how
    many were dropped for which reason, and dropped.jsonl that names them. Each cut says where its transcript comes
    from: supervision.custom["pseudo_label"] has the model, its digest, streams, score and confidence. Does nothing if
    OUT is current.

    Example: `mmspeech decode exp/av/model exp/vox/mouth/cuts_pretrain.jsonl.gz exp/heard --modality av`

    Example: `mmspeech extract pseudo-labels exp/vox/mouth/cuts_pretrain.jsonl.gz exp/heard/pretrain-av-clean exp/labels
    --min-confidence -0.3`
    """
    from mmspeech.data import cutfiles, pseudo_labels

    rules = pseudo_labels.Rules(min_s=min_s, min_confidence=min_confidence, min_rate=min_rate, max_rate=max_rate)
    facts = pseudo_labels.read_facts(decoded)
    stage = files.Stage(out, [cuts, decoded / "hyp.jsonl"], dataclasses.asdict(rules), anew=True)
    if stage.is_current():
        return
    heard = pseudo_labels.read_heard(decoded)
    model = str(facts.get("model", ""))
    origin = {"model": model, "digest": digest_of(decoded, model), "streams": facts.get("modality", "")}
    report = pseudo_labels.Report()
    with stage.writing() as folder, open(folder / "dropped.jsonl", "w", encoding="utf-8") as dropped:
        with cutfiles.writing_cuts(folder / cuts.name) as writer:
            for cut in progress(cutfiles.open_cuts(cuts), f"pseudo-labels of {cuts.name}"):
                broken = rules.against(cut, heard.get(cut.id))
                report.add(cut, broken)
                if broken is None:
                    writer.write(pseudo_labels.with_label(cut, heard[cut.id], origin))
                else:
                    dropped.write(json.dumps({"item": cut.id, "reason": broken}) + "\n")
        if not report.kept and set(report.dropped) == {"not decoded"}:
            raise UserError(f"{decoded}: has no hypothesis of the cuts in {cuts}; give those that were decoded")
        if not report.kept:
            raise UserError(f"{decoded}: no hypothesis is good enough ({'; '.join(report.lines[1:])}); relax the rules")
        files.write_json(folder / "report.json", report.facts)
    for line in report.lines:
        say(f"{out}: {line}")


def digest_of(decoded: Path, model: str) -> str:
    """Of the model that decoded, from the folder's record; "" where that is not known."""
    try:
        return str(json.loads((decoded / "stage.json").read_text(encoding="utf-8"))["inputs"][model])
    except (OSError, ValueError, KeyError):
        return ""

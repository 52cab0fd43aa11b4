"""`mmspeech decode`: a recognizer and cuts -> hypotheses, for any streams, noise and widths of the search."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from mmspeech import config as configs
from mmspeech import dist, files
from mmspeech.cli import beams
from mmspeech.cli.cluster import check_strict
from mmspeech.cli.decode_parts import Output, decode, discard
from mmspeech.console import say
from mmspeech.data import cutfiles
from mmspeech.data.frozen_noise import FrozenNoise
from mmspeech.data.noise import find_kinds, parse_kind, parse_kinds
from mmspeech.data.reading import has_stream, named_streams
from mmspeech.data.text import Tokenizer
from mmspeech.decoding.beam import BeamConfig
from mmspeech.errors import UserError
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.ctc import CTCSearchConfig
from mmspeech.scoring import table

SEARCHES = {"seq2seq": BeamConfig, "ctc": CTCSearchConfig}


def run(
    model: Annotated[Path, typer.Argument(help="Folder of the recognizer, e.g. exp/av/model.")],
    cuts: Annotated[Path, typer.Argument(help="Cuts to decode, e.g. exp/mouth/cuts_test.jsonl.gz.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; gets one folder per condition.")],
    modality: Annotated[
        str | None,
        typer.Option(help="Streams the model gets: av, a, v, or names as in audio+video; several with commas. [av]"),
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="clean, CATEGORY:DECIBELS as in babble:0, or grid; several with commas. [clean]")
    ] = None,
    noise_sets: Annotated[
        Path | None, typer.Option(help="Frozen noise, as written by `mmspeech prepare noisy`.")
    ] = None,
    search: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the search: --set beam=20 --set length_penalty=0.")
    ] = None,
    beam: Annotated[
        str, typer.Option(help="Width of the search; several with commas, 1,5,20: all in one run, encoded once.")
    ] = "",
    choose_on: Annotated[
        Path | None,
        typer.Option(help="Validation cuts: of the widths in --beam, the one that is best on these is taken."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All streams together, each alone; clean and all that is in --noise-sets.")
    ] = False,
    noise_grid: Annotated[
        bool, typer.Option("--noise-grid", help="Clean, and babble, speech and music at -10 ... 10 dB; of av and a.")
    ] = False,
    batch_seconds: Annotated[float, typer.Option(min=1.0, help="Speech in one batch, padding included.")] = 120.0,
    workers: Annotated[int, typer.Option(help="Processes that read cuts.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    label: Annotated[str, typer.Option(help="Name of the system in tables; by default the model's folder.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Stop, and write nothing, if a cut cannot be read.")] = False,
) -> list[Path]:
    """Decode cuts under every combination of streams and noise.

    OUT/SET-STREAMS-NOISE/ receives hyp.jsonl, ref.jsonl, decode.json, and rejected.jsonl with the cuts that could not
    be read; then `mmspeech score wer` or `score report`. Noise falls on sound: lips alone are decoded once, clean,
    whatever --noise says. A condition with a stream that no cut has is skipped, with a line. What is current is not
    decoded again; stopped, it goes on where it was. On several GPUs: `torchrun --nproc-per-node 8 -m mmspeech decode
    MODEL CUTS OUT`.

    OUT holds one model with one search: give another OUT for another. But several widths in --beam give a folder each,
    SET-STREAMS-NOISE-beamN, and a row each in the table, with the real-time factor that the width has alone.
    `--set nbest=5` writes the five best of each cut; `--set ctc_weight=0.3` searches by attention and CTC jointly, if
    the model was tuned with both.

    With --choose-on VALID the widths are tried on VALID, clean, in OUT-beams; CUTS are decoded with the one whose mean
    over the streams is best there, so that no width is chosen on what is reported.

    Example: mmspeech decode exp/synth-av/model exp/mouth/cuts_test.jsonl.gz exp/decode-beam5 --set beam=5 --modality
    av,a,v --noise clean,babble:0 --noise-sets exp/noisy

    --noise-grid is VATLM's protocol (Table IV) for what --modality names, by default AVSR and ASR: `mmspeech prepare
    noisy --noise grid` freezes its noises, `mmspeech score noise` prints its table.

    Example: mmspeech decode exp/synth-av/model exp/mouth/cuts_test.jsonl.gz exp/all --all --noise-sets exp/noisy

    Example: mmspeech decode exp/synth-av/model exp/mouth/cuts_test.jsonl.gz exp/grid --noise-grid --noise-sets
    exp/noisy
    """
    where = dist.start(device)
    loaded = recognizer.load(model, where)
    check_out(out, model)
    tokenizer = Tokenizer.load(model)
    searches = searches_of(search or [], beam, SEARCHES[loaded.task])
    if choose_on and not beam:
        raise UserError(f"--choose-on {choose_on}: chooses among widths of the search; name them, --beam 5,10,25")
    if everything:
        if modality or noise:
            raise UserError("--all: stands for all streams and noises; leave out --modality and --noise, or --all")
        modality, noise = all_conditions(loaded, noise_sets)
    if noise_grid:
        if noise:
            raise UserError("--noise-grid: names the noises; leave out --noise and --all, or --noise-grid")
        modality, noise = modality or "av,a", "clean,grid"
    wanted = list(conditions(loaded, modality or "av", noise or "clean", cuts, noise_sets))
    if choose_on:
        tried = run(
            model, choose_on, out.with_name(f"{out.name}-beams"), modality=modality, search=search, beam=beam,
            batch_seconds=batch_seconds, workers=workers, device=device, label=label, strict=strict,
        )  # fmt: skip
        dist.barrier()  # the first rank has written what it reads
        chosen = dist.gather_on_host(beams.best(tried) if dist.is_first() else 0)[0]
        searches = searches_of(search or [], str(chosen), SEARCHES[loaded.task])
    folders: list[Path] = []  # the call from Python wants to know
    for condition in possible(wanted, loaded, cuts):
        folders += [out / (condition.name + one.suffix) for one in searches]
        inputs = [model, cuts, *([condition.noise_file] if condition.noise_file else [])]
        stages = list(due(searches, condition, inputs, out, label, strict))
        if not stages:
            continue
        frozen = FrozenNoise(condition.noise_file) if condition.noise_file else None
        settings = [one.config for one, _ in stages]
        key = {"searches": [configs.plain(one) for one in settings], "streams": condition.streams, "s": batch_seconds}
        parts = files.Stage(out / f".parts-{condition.name}", inputs=inputs, settings=key, anew=True)
        outputs = decode(
            loaded, tokenizer, cuts, condition.streams, frozen, settings, parts,
            title=condition.name, batch_s=batch_seconds, workers=workers, device=where, strict=strict,
        )  # fmt: skip
        if not dist.is_first():
            continue
        if not outputs[0].lines:
            discard(parts)
            raise UserError(f"{cuts}: no cut could be decoded as {condition.name}; see the reasons above")
        for (one, stage), output in zip(stages, outputs, strict=True):
            about = facts(condition, frozen, one, output)
            about |= {"text": loaded.text, "model": str(model), "label": (label or model.parent.name) + one.mark}
            write(stage, output, about)
            tell(stage.output, output, frozen, loaded.text)
        discard(parts)
    return folders


def tell(folder: Path, output: Output, frozen: FrozenNoise | None, text: str) -> None:
    """What was decoded, how fast, and what no error rate will count; `text` is what the model writes: transcript."""
    what = f", noise {table.hash_mark(frozen.sha256)}" if frozen else ""
    speed = output.seconds / max(output.audio_seconds, 1e-9)
    say(f"{folder}: {len(output.lines)} utterances{what}, {speed:.3f} x real time")
    if untold := sum(not line["ref"] for line in output.lines):
        say(f"{folder}: {untold} of {len(output.lines)} cuts have no {text}; they are not scored")
    if output.bad:
        reasons = folder / "rejected.jsonl"
        say(f"{folder}: {len(output.bad)} cut(s) set aside and in no error rate; reasons in {reasons}")


def check_out(out: Path, model: Path) -> None:
    """Raise UserError if OUT holds what another model wrote: neither this folder, trained anew, nor one that moved."""
    for path in sorted(out.glob("[!.]*/decode.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            label, before = facts["label"], Path(facts["model"])
            inputs = json.loads((path.parent / "stage.json").read_text(encoding="utf-8"))["inputs"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no folder of ours: its stage refuses it
        if before.resolve() != model.resolve() and files.digest(model) not in inputs.values():
            raise UserError(f"{out}: holds hypotheses of {label} ({before}), not of {model}; give another OUT")


class Search(NamedTuple):
    """One way to search."""

    config: BeamConfig | CTCSearchConfig
    suffix: str = ""  # of the folder, where several beams are swept
    mark: str = ""  # behind the label, then


def searches_of(settings: list[str], beam: str, kind: type) -> list[Search]:
    """The searches that --set and --beam name. Raises UserError for what they do not know or do not allow."""
    tree = configs.tree_of(settings)
    widths = [text.strip() for text in beam.split(",")] if beam else []
    for text in widths:
        if not text.isdecimal() or int(text) < 1 or "beam" in tree:
            raise UserError(f"--beam {beam}: expected widths from 1 on, as in 1,5,20, and no --set beam=; mend it")
    built = [search_of(tree | {"beam": int(text)}, kind) for text in widths]
    if len(set(widths)) > 1:
        return [Search(config, f"-beam{config.beam}", f", beam {config.beam}") for config in dict.fromkeys(built)]
    return [Search(built[0] if built else search_of(tree, kind))]


def search_of(tree: Mapping[str, Any], kind: type) -> BeamConfig | CTCSearchConfig:
    """A search of this kind. Raises UserError for a setting that is not one of its own."""
    own = [field.name for field in dataclasses.fields(kind)]
    others = {field.name for field in dataclasses.fields(BeamConfig)} - set(own)
    if alien := [key for key in tree if key in others]:
        raise UserError(
            f"--set {alien[0]}: this is a CTC model, which has {', '.join(own)}; those with an attention decoder have "
            "more; leave it out"
        )
    return configs.build(tree, kind, Path("--set"))


def due(
    searches: list[Search], condition: "Condition", inputs: list[Path], out: Path, label: str, strict: bool
) -> Iterator[tuple[Search, files.Stage]]:
    """The searches of a condition whose folder is not current, with it."""
    for one in searches:
        settings = {"search": configs.plain(one.config), "streams": condition.streams, "label": label + one.mark}
        stage = files.Stage(out / (condition.name + one.suffix), inputs=inputs, settings=settings)
        if stage.is_current():
            check_strict(stage.output, strict)
        else:
            yield one, stage


def facts(condition: "Condition", frozen: FrozenNoise | None, one: Search, output: Output) -> dict[str, object]:
    """What decode.json says of the condition, the search and how it went."""
    found = {
        "set": condition.set,
        "modality": condition.modality,
        "noise": condition.noise,
        "noise_hash": frozen.sha256 if frozen else None,
        "hears_noise": condition.hears_noise,
        "set_aside": len(output.bad),
        "search": configs.plain(one.config),
        "seconds": round(output.seconds, 3),  # encoding and this search
        "encoding_seconds": round(output.encoding_seconds, 3),
        "audio_seconds": round(output.audio_seconds, 3),
    }
    return found | ({"swept_beam": one.config.beam} if one.mark else {})


def write(stage: files.Stage, output: Output, facts: dict[str, object]) -> None:
    """A condition's folder."""
    with stage.writing() as new:
        # A reason begins with the cut, or with the file that could not be read.
        rejected = [{"item": why.partition(": ")[0], "reason": why} for why in output.bad]
        write_lines(new / "rejected.jsonl", rejected)
        write_lines(new / "hyp.jsonl", [{k: v for k, v in line.items() if k != "ref"} for line in output.lines])
        told = [line for line in output.lines if line["ref"]]
        write_lines(new / "ref.jsonl", [{"id": line["id"], "text": line["ref"]} for line in told])
        files.write_json(new / "decode.json", facts)


@dataclass(frozen=True)
class Condition:
    """One way to decode a set."""

    set: str
    modality: str  # as typed
    streams: list[str]
    noise: str  # clean or CATEGORY:DECIBELS
    noise_file: Path | None
    hears_noise: bool  # whether noise changes any of its streams

    @property
    def name(self) -> str:
        """The folder's name."""
        kind = "clean" if self.noise_file is None else self.noise_file.stem
        return f"{self.set}-{self.modality}-{kind}"


def conditions(
    model: recognizer.Recognizer, modality: str, noise: str, cuts: Path, noise_sets: Path | None
) -> Iterator[Condition]:
    """Every combination that makes sense. Raises UserError for streams or noise that are not there."""
    name = cuts.name.removesuffix(".gz").removesuffix(".jsonl").removeprefix("cuts_")
    kinds = [kind for one in noise.split(",") for kind in ([one] if one == "clean" else map(str, parse_kinds([one])))]
    kinds = list(dict.fromkeys(kinds))
    file_names = {kind: parse_kind(kind).file_name for kind in kinds if kind != "clean"}
    for typed, streams in tuned_streams(model, modality, name).items():
        heard = any(model.inputs[stream]["reader"] == "logmel" for stream in streams)
        if not heard and "clean" not in kinds:
            say(f"{name}-{typed}-clean: decoded in place of {noise}, because {typed} hears no noise")
        for kind in kinds if heard else ["clean"]:
            if kind == "clean":
                yield Condition(name, typed, streams, kind, None, heard)
            else:
                file_name = file_names[kind]
                if noise_sets is None or not (noise_sets / file_name).exists():
                    raise UserError(
                        f"--noise {kind}: no frozen noise {file_name} in {noise_sets or '--noise-sets'}; make it with "
                        f"`mmspeech prepare noisy {cuts} NOISE_DIR DIR --noise {kind}` (grid: those of --noise-grid)"
                    )
                yield Condition(name, typed, streams, kind, noise_sets / file_name, heard)


def tuned_streams(model: recognizer.Recognizer, modality: str, name: str) -> dict[str, list[str]]:
    """Of what --modality names, as typed -> streams, that which the model was tuned with; a line for each other.

    A plan tests all its recognizers with the same. Raises UserError for streams nobody knows, and if none is left.
    """
    known = [*model.inputs, *model.removed]
    named = {typed: named_streams(typed, known, "--modality") for typed in modality.split(",")}
    left = {typed: streams for typed, streams in named.items() if not set(streams) & set(model.removed)}
    if not left:
        raise UserError(f"--modality {modality}: {model.folder} was tuned without; it knows {', '.join(model.inputs)}")
    for typed in named:
        if typed not in left:
            say(f"{name}-{typed}: skipped, {model.folder} was tuned without {' and '.join(model.removed)}")
    return left


def all_conditions(model: recognizer.Recognizer, noise_sets: Path | None) -> tuple[str, str]:
    """What --all stands for, as one would type it: all streams, then fewer; clean, then every frozen noise.

    Raises UserError if a folder for frozen noise is given and there is none in it.
    """
    names = list(model.inputs)
    subsets = [subset for size in range(len(names), 0, -1) for subset in itertools.combinations(names, size)]
    if len({name[0] for name in names}) == len(names):
        modality = ",".join("".join(name[0] for name in subset) for subset in subsets)
    else:
        modality = ",".join(map("+".join, subsets))
    if noise_sets is None:
        say("--all: clean only, as there is no --noise-sets")
        return modality, "clean"
    kinds = find_kinds(noise_sets)
    if not kinds:
        raise UserError(f"{noise_sets}: no frozen noise in there; make it with `mmspeech prepare noisy --noise all`")
    return modality, ",".join(["clean", *map(str, kinds)])


def possible(wanted: list[Condition], model: recognizer.Recognizer, cuts: Path) -> list[Condition]:
    """Those whose streams some cut has; a line for each other one. Raises UserError if none is left."""
    missing = dict(model.inputs)
    for cut in cutfiles.open_cuts(cuts):
        missing = {name: settings for name, settings in missing.items() if not has_stream(cut, settings)}
        if not missing:
            return wanted
    left = [condition for condition in wanted if not set(condition.streams) & missing.keys()]
    if not left:
        there = " or ".join(name for name in model.inputs if name not in missing)
        advice = f"decode {there} alone with --modality" if there else "give cuts that have some"
        raise UserError(f"{cuts}: no cut has {' or '.join(missing)}; {advice}")
    for condition in wanted:
        if condition not in left:
            lacking = " or ".join(name for name in condition.streams if name in missing)
            say(f"{condition.name}: skipped, no cut in {cuts} has {lacking}")
    return left


def write_lines(path: Path, lines: list[dict]) -> None:
    """JSON lines, in a folder that appears as a whole."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

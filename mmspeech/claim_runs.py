"""The trainings and figures behind claims: which commands make them, each when it is first asked for."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmspeech import plan
from mmspeech.claim_terms import Claims, Encoder, Recognizer, Term
from mmspeech.errors import UserError
from mmspeech.plan_sources import PHONE2UNIT, source_lines

ROOT = Path(__file__).parents[1]
# Of sources beside the corpus itself: the parts that run.sh takes.
PARTS = {"vox": "pretrain", "tedlium": "trainval", "gigaspeech": "trainval"}


class Runs:
    """The trainings behind the figures, each made when first asked for."""

    def __init__(self, claims: Claims, folder: Path, exp: Path, nproc: int) -> None:
        self.claims, self.folder, self.exp, self.nproc = claims, folder, exp, nproc
        self.done: set[str] = set()  # commands of this call

    def shared(self, name: str) -> Path:
        """The folder of a plan, run to the end of its pre-training: its corpus, its units, its encoder of seed 1.

        Plans of one corpus share the corpus of the first, so that their figures are of the same clips.
        """
        exp = self.exp / Path(name).stem
        first = next(other for other in self._plans() if self._plan(other).synth == self._plan(name).synth)
        if first != name:
            for part in ("corpus", "data", "noise", "mouth"):
                (exp / part).parent.mkdir(parents=True, exist_ok=True)
                if not (exp / part).exists():
                    (exp / part).symlink_to(self.shared(first) / part)
        words = ["--corpus", "synth", "--conf", self.folder / name, "--exp", exp, "--nproc", self.nproc]
        self._run(["bash", ROOT / "recipes/lrs3/run.sh", *words, "--stop-stage", 5], exp)
        return exp

    def encoder(self, name: str, seed: int) -> Path:
        """The folder of an encoder."""
        if name not in self.claims.encoders:
            raise UserError(f"encoder `{name}`: not in the file; there are {', '.join(self.claims.encoders)}")
        wanted = self.claims.encoders[name]
        shared, settings = self.shared(self._plan_of(wanted)), self._plan(self._plan_of(wanted))
        exp = shared / f"iter{len(settings.pretrain)}"
        own = (self.folder / self._plan_of(wanted)).parent / settings.pretrain[-1]
        if seed != 1 or wanted.sources or wanted.streams or (self.folder / wanted.conf).resolve() != own.resolve():
            exp = self.exp / "-".join(
                [Path(wanted.conf).stem, shared.name, *wanted.sources, *wanted.streams, str(seed)]
            )
            sets = [*self._data(shared, settings, wanted), f"seed={seed}"]
            self._train("pretrain", wanted.conf, exp, sets)
        if wanted.at is None:
            return exp / "encoder"
        out = exp / f"encoder-{wanted.at}"
        self._mmspeech("export", exp / f"checkpoints/step-{wanted.at:07d}.ckpt", out)
        return out

    def _data(self, shared: Path, settings: plan.Plan, wanted: Encoder) -> list[str]:
        """What the last iteration of a plan is trained on, as run.sh gives it, as far as it is wanted."""
        last = len(settings.pretrain)
        units, mouth = shared / f"iter{last}/units", shared / "mouth"
        used = [one for one in settings.sources if not wanted.sources or one.cuts in wanted.sources]
        used = [dataclasses.replace(one, streams=wanted.streams or one.streams) for one in used]
        sources = []
        for line in source_lines(used, last, settings.pseudo_labels, settings.codebook):
            name, subset, _, rest = line.split("\t")
            place = units / name if settings.clusters_units else mouth
            cuts = [place]  # of text: its shards, as many as there are lines for
            if subset != PHONE2UNIT:
                cuts = [place / f"cuts_{part}.jsonl.gz" for part in PARTS.get(name, name).split("+")]
            sources.append(f"{{cuts: [{', '.join(map(_text, cuts))}]{rest}}}")
        valid = units / "valid" if settings.clusters_units else mouth
        sets = [
            f"data.sources=[{', '.join(sources)}]",
            f"data.valid_cuts=[{_text(valid / 'cuts_valid.jsonl.gz')}]",
            f"data.noise.cuts={_text(shared / 'noise')}",
        ]
        if settings.clusters_units:
            sets += ["data.units=km", f"objective.num_units={settings.clusters[-1]}"]
        return sets

    def _plans(self) -> list[str]:
        return list(
            dict.fromkeys([self.claims.plan, *(one.plan or self.claims.plan for one in self.claims.encoders.values())])
        )

    def _plan(self, name: str) -> plan.Plan:
        return plan.load(self.folder / name)

    def _plan_of(self, encoder: Encoder) -> str:
        return encoder.plan or self.claims.plan

    def recognizer(self, name: str, seed: int) -> Path:
        """The experiment of a recognizer."""
        if name not in self.claims.recognizers:
            raise UserError(f"recognizer `{name}`: not in the file; there are {', '.join(self.claims.recognizers)}")
        wanted, exp = self.claims.recognizers[name], self.exp / f"{name}-{seed}"
        mouth = self._shared_of(wanted) / "mouth"
        sets = [f"seed={seed}", f"data.noise.cuts={_text(mouth.parent / 'noise')}"]
        sets += [
            f"data.cuts=[{', '.join(_text(self._labels(part, wanted, seed)) for part in wanted.labelled.split('+'))}]"
        ]
        sets += [f"data.valid_cuts=[{_text(mouth / 'cuts_valid.jsonl.gz')}]"]
        self._train("finetune", wanted.conf, exp, sets, "--encoder", self.encoder(wanted.encoder, seed))
        return exp

    def _labels(self, part: str, wanted: Recognizer, seed: int) -> Path:
        """A file of cuts to tune on; `vox`: the unlabelled clips with the teacher's hypotheses."""
        shared = self._shared_of(wanted)
        if part == "tedlium":
            return shared / "tedlium/mouth/cuts_trainval.jsonl.gz"
        if part != "vox":
            return shared / f"mouth/cuts_{part}.jsonl.gz"
        heard, out = self.exp / f"heard-{wanted.teacher}-{seed}", self.exp / f"labels-{wanted.teacher}-{seed}"
        cuts = shared / "mouth/cuts_pretrain.jsonl.gz"
        self._mmspeech("decode", self.recognizer(wanted.teacher, seed) / "model", cuts, heard, "--modality", "av")
        trusted = self._plan(self.claims.plan).trusted.split()
        self._mmspeech("extract", "pseudo-labels", cuts, heard / "pretrain-av-clean", out, *trusted)
        return out / cuts.name

    def decoded(self, term: Term, seed: int) -> Path:
        """The decode folder of a figure."""
        exp = self.recognizer(term.name, seed)
        shared = self._shared_of(self.claims.recognizers[term.name])
        noises = []
        if term.second != "clean":
            kind = term.second.replace(":", "_")
            noises = ["--noise-sets", shared / f"noisy-{kind}"]
            self._mmspeech("prepare", "noisy", shared / "data/cuts_test.jsonl.gz", shared / "noise", noises[1],
                           "--noise", term.second)  # fmt: skip
        self._mmspeech("decode", exp / "model", shared / "mouth/cuts_test.jsonl.gz", exp / "decode", "--modality",
                       term.first, "--noise", term.second, *noises, "--label", term.name, "--set",
                       f"beam={self.claims.recognizers[term.name].beam}")  # fmt: skip
        return exp / f"decode/test-{term.first}-{term.second.replace(':', '_') + 'dB' if noises else 'clean'}"

    def codebooks(self, term: Term, seed: int) -> Path:
        """The folder of an encoder's codebooks and their PNMI on validation clips."""
        encoder = self.encoder(term.name, seed)
        name = self._plan_of(self.claims.encoders[term.name])
        cuts, settings = self.shared(name) / "mouth/cuts_test.jsonl.gz", self._plan(name)
        out = encoder.with_name(f"codebooks-of-{encoder.name}")
        self._mmspeech("score", "codebooks", encoder, cuts, out, "--layer", settings.units[-1], "--clusters",
                       settings.clusters[-1])  # fmt: skip
        return out

    def modalities(self, term: Term, seed: int) -> Path:
        """The folder of how well an encoder's features tell their inputs apart."""
        encoder = self.encoder(term.name, seed)
        cuts = self.shared(self._plan_of(self.claims.encoders[term.name])) / "mouth/cuts_test.jsonl.gz"
        out = encoder.with_name(f"modalities-of-{encoder.name}-{term.first.replace(',', '-')}")
        self._mmspeech("score", "modalities", encoder, cuts, out, "--modalities", term.first)
        return out

    def _shared_of(self, recognizer: Recognizer) -> Path:
        return self.shared(self._plan_of(self.claims.encoders[recognizer.encoder]))

    def _train(self, command: str, conf: str, exp: Path, sets: Sequence[str], *more: object) -> None:
        words = [command, self.folder / conf, exp, *more]
        for one in sets:
            words += ["--set", one]
        launch = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", self.nproc] if self.nproc > 1 else []
        )
        self._run([sys.executable, *launch, "-m", "mmspeech", *words], exp)

    def _mmspeech(self, *words: object) -> None:
        self._run([sys.executable, "-m", "mmspeech", *words], None)

    def _run(self, words: Sequence[object], exp: Path | None) -> None:
        """Run a command; how long a training took stands in times.jsonl. Raises UserError if it fails."""
        key = "\n".join(map(str, words))
        if key in self.done:
            return
        began = time.monotonic()
        code = subprocess.run(list(map(str, words)), cwd=ROOT).returncode
        if code:
            raise UserError(
                f"{' '.join(map(str, words[:6]))} ...: ended with exit code {code}; the reason stands above"
            )
        seconds = time.monotonic() - began
        if exp is not None and seconds > 20:  # else it was current
            with open(self.exp / "times.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"run": exp.name, "seconds": round(seconds)}) + "\n")
        self.done.add(key)


def _text(path: Path) -> str:
    """A path as YAML text."""
    return "'" + str(path).replace("'", "''") + "'"

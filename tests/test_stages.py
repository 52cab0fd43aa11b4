"""bin/stages.sh and bin/slurm.sh: options, stages, and what is said when one fails."""

import subprocess
from pathlib import Path

import pytest

BIN = Path(__file__).parents[1] / "bin"

RECIPE = """#!/usr/bin/env bash
# A tiny recipe.
#   run.sh --corpus lrs3
set -euo pipefail
here=$(dirname "$0")

corpus=synth     # made here; or lrs3
data=
max_hours=3
source "STAGES" "$@"
data=${data:-nothing}

if begin_stage 1 "make things"; then
  echo "one corpus=$corpus data=$data hours=$max_hours"
fi

if begin_stage 2 "break things" && [ "$corpus" != none ]; then
  echo two
  if [[ $corpus == bad ]]; then ls /nowhere-at-all | cat; fi
  echo survived
fi

if begin_stage 3 "end things"; then
  echo three
fi
"""


@pytest.fixture
def recipe(tmp_path):
    """Run the tiny recipe: `recipe("--stage", "2")` -> the finished process."""
    script = tmp_path / "run.sh"
    script.write_text(RECIPE.replace("STAGES", str(BIN / "stages.sh")))

    def run(*words):
        return subprocess.run(["bash", script, *words], capture_output=True, text=True, timeout=20)

    return run


def test_variables_are_options_and_all_stages_run(recipe):
    done = recipe("--corpus", "lrs3", "--data=a b*", "--max-hours", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["one corpus=lrs3 data=a b* hours=4", "two", "survived", "three"]
    assert "== stage 2: break things (" in done.stderr
    assert "== done after 0:00:0" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--stage", "2"), ["two", "survived", "three"]),
        (("--stop-stage", "1"), ["one corpus=synth data=nothing hours=3"]),
        (("--stage", "3", "--stop-stage", "3"), ["three"]),
    ],
)
def test_only_the_stages_asked_for_run(recipe, words, expected):
    assert recipe(*words).stdout.splitlines() == expected


def test_a_failed_stage_ends_the_run_and_says_how_to_go_on(recipe):
    done = recipe("--corpus", "bad", "--stage", "1", "--data", "a b")
    assert done.returncode != 0
    assert "survived" not in done.stdout and "three" not in done.stdout
    assert "error: stage 2 (break things) ended with exit code" in done.stderr
    assert "run.sh --corpus bad --data a\\ b --stage 2" in done.stderr


def test_help_shows_header_options_and_stages(recipe):
    done = recipe("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("A tiny recipe.\n  run.sh --corpus lrs3\n")
    for line in ("--corpus           made here; or lrs3 [synth]", "--max-hours        [3]", "2  break things"):
        assert line in done.stdout
    assert "--here" not in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--corpsu", "x"),
            "unknown option --corpsu; known are --corpus --data --max-hours --stage --stop-stage --help",
        ),
        (("--here", "x"), "unknown option --here"),
        (("lrs3",), "unknown option lrs3"),
        (("--data",), "--data needs a value"),
        (("--data", "--stage", "1"), "--data needs a value"),
        (("--stage", "two"), "--stage needs a number"),
        (("--stage", "3", "--stop-stage", "2"), "nothing would run"),
        (("--stage", "4"), "after the last one, 3"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(recipe, words, message):
    done = recipe(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_slurm_dry_run_prints_a_job_that_spreads_torchrun(tmp_path):
    script = tmp_path / "run.sh"
    script.write_text("#!/usr/bin/env bash\ntorchrun --nproc-per-node 4 -m x\n")
    words = [
        "--partition",
        "gpu",
        "--nodes",
        "2",
        "--gpus",
        "4",
        "--time",
        "1:00:00",
        "--dry-run",
        "--",
        script,
        "--data",
        "a b",
    ]
    done = subprocess.run([BIN / "slurm.sh", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in ("#SBATCH --partition=gpu", "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=4", "#SBATCH --time=1:00:00"):
        assert line in done.stdout.splitlines()
    assert done.stdout.rstrip().endswith("run.sh --data a\\ b --nproc 4")
    assert "PET_RDZV_BACKEND=c10d" in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0


def test_slurm_job_sends_the_recipes_torchrun_through_srun(tmp_path):
    """The job is run with stand-ins for scontrol and srun: every torchrun of the recipe arrives at srun."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node1; echo node2\n")
    (tmp_path / "srun").write_text('#!/bin/sh\necho "srun $@ at $PET_RDZV_ENDPOINT"\n')
    (tmp_path / "run.sh").write_text("#!/usr/bin/env bash\nset -euo pipefail\ntorchrun -m mmspeech pretrain\n")
    for name in ("scontrol", "srun", "run.sh"):
        (tmp_path / name).chmod(0o755)
    job = subprocess.run(
        [BIN / "slurm.sh", "--nodes", "2", "--dry-run", "--", tmp_path / "run.sh", "--stage", "1"],
        capture_output=True,
        text=True,
    ).stdout
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "8"}
    done = subprocess.run(
        ["bash"], input=job, env={"PATH": f"{tmp_path}:/usr/bin:/bin", **slurm}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("srun --nodes=2 --ntasks-per-node=1")
    assert done.stdout.rstrip().endswith("torchrun -m mmspeech pretrain at node1:20007")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nods", "2"), "unknown option --nods"),
        (("--nodes", "2"), "no command"),
        (("--nodes", "x", "--", "FILE", "a"), "are numbers"),
        (("--", "/no/run.sh", "a"), "no such recipe"),
    ],
)
def test_slurm_mistakes_are_one_line(words, message):
    words = [str(BIN / "stages.sh") if word == "FILE" else word for word in words]
    done = subprocess.run([BIN / "slurm.sh", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1

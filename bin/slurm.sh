#!/usr/bin/env bash
# Submit a recipe, or some of its stages, as one batch job:
#
#   bin/slurm.sh --partition gpu --nodes 2 --gpus 8 --time 24:00:00 -- recipes/lrs3/run.sh --stage 4 --stop-stage 4
#
#   --partition P   queue [the cluster's default]       --nodes N   machines [1]
#   --gpus G        per machine; also --nproc [1]       --cpus C    per GPU [8]
#   --time T        limit, as sbatch reads it [24:00:00]  --name J  of the job and its log [from the recipe]
#   --dry-run       print the job instead of submitting it
#
# The recipe runs on the first machine; each torchrun in it starts on all of them and they meet there (c10d). A job
# that is requeued, or whose process dies, goes on from the last checkpoint: the recipe's stages know what is current.
set -euo pipefail

partition= nodes=1 gpus=1 cpus=8 time=24:00:00 name= dry_run=
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --help | -h) sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
    --dry-run) dry_run=1; shift ;;
    --partition | --nodes | --gpus | --cpus | --time | --name)
      [[ $# -ge 2 && $2 != --* ]] || { echo "error: $1 needs a value; see --help" >&2; exit 2; }
      printf -v "${1#--}" '%s' "$2"; shift 2 ;;
    *) echo "error: unknown option $1; known are --partition --nodes --gpus --cpus --time --name --dry-run --help" >&2; exit 2 ;;
  esac
done
[[ $# -ge 2 ]] || { echo "error: no command; end with -- recipes/<corpus>/run.sh OPTIONS" >&2; exit 2; }
shift
[[ -f $1 ]] || { echo "error: $1: no such recipe; give the path of a run.sh" >&2; exit 2; }
[[ $nodes =~ ^[1-9][0-9]*$ && $gpus =~ ^[0-9]+$ && $cpus =~ ^[1-9][0-9]*$ ]] ||
  { echo "error: --nodes, --gpus and --cpus are numbers, not '$nodes', '$gpus', '$cpus'" >&2; exit 2; }
name=${name:-$(basename "$(dirname "$1")")}
nproc=$((gpus > 0 ? gpus : 1))

job() {
  echo "#!/usr/bin/env bash"
  echo "#SBATCH --job-name=$name"
  echo "#SBATCH --output=$name-%j.log"
  echo "#SBATCH --open-mode=append"
  echo "#SBATCH --requeue"
  [[ -z $partition ]] || echo "#SBATCH --partition=$partition"
  echo "#SBATCH --nodes=$nodes"
  echo "#SBATCH --ntasks-per-node=1"
  [[ $gpus -eq 0 ]] || echo "#SBATCH --gpus-per-node=$gpus"
  echo "#SBATCH --cpus-per-task=$((cpus * nproc))"
  echo "#SBATCH --time=$time"
  cat <<'JOB'
set -euo pipefail
# torchrun reads its options from PET_*, so the recipe need not know on how many machines it runs.
export PET_NNODES=$SLURM_NNODES PET_RDZV_BACKEND=c10d PET_RDZV_ID=$SLURM_JOB_ID PET_MAX_RESTARTS=3
export PET_RDZV_ENDPOINT=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))
torchrun() {
  srun --nodes="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 torchrun "$@"
}
export -f torchrun
JOB
  printf 'cd %q\n' "$PWD"
  printf '%q ' "$@" --nproc "$nproc"
  echo
}

if [[ -n $dry_run ]]; then job "$@"; else job "$@" | sbatch; fi

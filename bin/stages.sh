# Options and stages for a recipe's run.sh, which sources this file after its variables and before its first stage:
#
#   corpus=synth    # what the comment says stands in --help
#   source "$here/../../bin/stages.sh" "$@"
#   if begin_stage 3 "first units: k-means on MFCC frames"; then
#     ...
#   fi
#
# Every variable assigned above the source line is an option: `corpus` is --corpus, `max_hours` is --max-hours
# (`here` is not); one assigned `no` is a switch that its option turns to `yes`. --stage N starts at stage N,
# --stop-stage M ends after stage M. A stage that fails says how to go on from there.

_script=${BASH_SOURCE[1]}
_called_with=()   # the options without --stage: with these a failed run is resumed
_now=
_now_text=
_began=$SECONDS
stage=0
stop_stage=999

# The lines above the one that sources this file.
_head() { sed -e '/^ *source .*stages\.sh/,$d' -e '/^ *\. .*stages\.sh/,$d' "$_script"; }
_names() { _head | sed -n 's/^\([a-z][a-z0-9_]*\)=.*/\1/p' | grep -vx here || true; }
_stages() { sed -n 's/^ *\(if \)\{0,1\}begin_stage \([0-9][0-9]*\) "\([^"]*\)".*/\2 \3/p' "$_script"; }
_fail() { echo "error: $*" >&2; trap - EXIT; exit 2; }
_time() { printf '%d:%02d:%02d' $(($1 / 3600)) $(($1 / 60 % 60)) $(($1 % 60)); }

_help() {
  sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$_script"
  echo
  echo "Options:"
  local name line
  for name in $(_names); do
    line=$(_head | sed -n "s/^$name=//p" | head -n 1)
    local value=${line%%#*} text=
    [[ $line == *"#"* ]] && text=${line#*#}
    value=$(echo $value)
    printf '  %-18s %s%s\n' "--${name//_/-}" "${text:+${text# } }" "[${value:-none}]"
  done
  printf '  %-18s %s\n' --stage "start at this stage [0]" --stop-stage "end after this stage [the last]" --help "this text"
  echo
  echo "Stages:"
  _stages | while read -r number text; do printf '  %3d  %s\n' "$number" "$text"; done
}

_options() {
  local names known flag name value given
  names=" $(_names | tr '\n' ' ')stage stop_stage "
  known=$(for name in $names; do printf -- '--%s ' "${name//_/-}"; done)
  while [[ $# -gt 0 ]]; do
    if [[ $1 == --help || $1 == -h ]]; then _help; trap - EXIT; exit 0; fi
    given=("$1")
    flag=${1%%=*}
    name=${flag#--}
    name=${name//-/_}
    if [[ $flag != --* || $names != *" $name "* ]]; then
      _fail "$_script: unknown option $flag; known are ${known% } --help"
    fi
    if [[ $1 == *=* ]]; then
      value=${1#*=}
    elif [[ ${!name} == no || ${!name} == yes ]]; then
      value=yes
    else
      if [[ $# -lt 2 || $2 == --* ]]; then _fail "$_script: $flag needs a value; see --help"; fi
      value=$2
      given+=("$2")
      shift
    fi
    shift
    printf -v "$name" '%s' "$value"
    if [[ $name == stage || $name == stop_stage ]]; then
      [[ $value =~ ^[0-9]+$ ]] || _fail "$_script: $flag needs a number, not '$value'; see --help"
      printf -v "$name" '%d' "$((10#$value))"
    fi
    [[ $name == stage ]] || _called_with+=("${given[@]}")
  done
  [[ $stage -le $stop_stage ]] || _fail "$_script: --stage $stage is after --stop-stage $stop_stage; nothing would run"
  local last
  last=$(_stages | tail -n 1)
  [[ $stage -le ${last%% *} ]] || _fail "$_script: --stage $stage is after the last one, ${last%% *}; see --help"
}

# begin_stage N "what it does": succeeds if the stage is to run, and prints its line.
begin_stage() {
  [[ $1 -ge $stage && $1 -le $stop_stage ]] || return 1
  _now=$1
  _now_text=$2
  printf '\n== stage %s: %s (%s, after %s)\n' "$1" "$2" "$(date +%H:%M:%S)" "$(_time $((SECONDS - _began)))" >&2
}

# plan KEY [ITERATION]: what the plan ($conf) says, one line per entry.
plan() { python -m mmspeech.plan "$conf" "$@"; }

# train COMMAND ...: `mmspeech COMMAND ...` in $nproc processes.
train() {
  if [[ -n ${PET_RDZV_ENDPOINT:-} ]]; then   # several machines: bin/slurm.sh has said where they meet
    torchrun --nproc-per-node "${nproc:-1}" -m mmspeech "$@"
  elif [[ ${nproc:-1} -gt 1 ]]; then
    torchrun --standalone --nproc-per-node "$nproc" -m mmspeech "$@"
  else
    mmspeech "$@"
  fi
}

# stop "message": end the recipe for a mistake in its options.
stop() { _fail "$_script: $*"; }

_end() {
  local status=$?
  # Stopped by a signal (bash then says 0): what runs gets it, too, and is waited for. A trainer saves where it is, and
  # who went on at once would start a second one beside it.
  if pkill -TERM -P $$ 2> /dev/null; then
    while pgrep -P $$ > /dev/null; do sleep 0.2; done
    [[ $status -ne 0 ]] || status=143
  fi
  if [[ $status -ne 0 && -n $_now ]]; then
    {
      echo
      echo "error: stage $_now ($_now_text) ended with exit code $status; go on from there with"
      printf '  %q' "$0" ${_called_with[@]+"${_called_with[@]}"} --stage "$_now" | sed 's/  */ /g; s/^/ /'
      echo
    } >&2
  elif [[ $status -eq 0 && -n $_now ]]; then
    printf '\n== done after %s\n' "$(_time $((SECONDS - _began)))" >&2
  fi
  exit $status
}
trap _end EXIT

_venv=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin
command -v mmspeech > /dev/null || PATH=$_venv:$PATH   # made by bin/setup

_options "$@"
command -v mmspeech > /dev/null || _fail "mmspeech is not installed; run bin/setup synth video first"

#!/usr/bin/env bash
# u-HuBERT (with AV-HuBERT in it), VATLM and AV-data2vec, from clips on disk to a table of word error rates.
#   recipes/lrs3/run.sh                                             everything, on a small corpus that we make
#   recipes/lrs3/run.sh --corpus lrs3 --data /data/lrs3 --nproc 8 --conf recipes/lrs3/conf/uhubert/large-lrs3.yaml
#   recipes/lrs3/run.sh --system av-data2vec --exp exp/data2vec     the same without units: a teacher gives the targets
#   recipes/lrs3/run.sh --system vatlm --exp exp/vatlm              lips, sound, sound with text and text in one model
#   recipes/lrs3/run.sh --corpus grid --data /data/grid --stage 3 --stop-stage 4
#   recipes/lrs3/run.sh --corpus clips --data my_videos --init base_vox_iter5.pt     own clips on a published model
#   recipes/lrs3/run.sh --corpus lrs2 --data /data/lrs2 --init exp/iter5/encoder     LRS2 on an encoder of our own
#   recipes/lrs3/run.sh --corpus lrs3 --data /data/lrs3 --musan /data/musan --row recipes/lrs3/conf/uhubert/rows/FILE
#   recipes/lrs3/run.sh --corpus lrs3 --data /data/lrs3 --vox /data/voxceleb2 --vox-ids vox-en.id --tedlium /data/TEDLIUM_release-3 \
#     --musan /data/musan --nproc 8 --conf recipes/lrs3/conf/uhubert/uhubert-large-td.yaml
# Every stage may be run again: what is current is not made again, and training goes on where it stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

system=uhubert   # or av-data2vec, vatlm: whose plans are meant, conf/SYSTEM
corpus=synth     # synth (made by stage 0), lrs3, lrs2, grid, or clips: any folder of own videos or sound
data=            # folder of the corpus, as it was published
musan=           # folder of MUSAN for noisy training and tests; synth brings its own noise
vox=             # folder of VoxCeleb2, for plans that pre-train on it
vox_ids=         # file with its English clips, one SPEAKER/VIDEO/CLIP per line; else all languages are taken
tedlium=         # folder TEDLIUM_release-3, for plans that pre-train on it
gigaspeech=      # folder of GigaSpeech, for plans that pre-train on it
text=            # files of sentences, one per line, also compressed (.gz), with commas between, for plans that pre-train on text
talk_alignments= # folder of TextGrid or CTM files with the phones of TED-LIUM; without, a recognizer is tuned to find them; or cut-or-pad
lexicon=         # file of lines WORD PHONE PHONE ..., instead of CMUdict
landmarks=       # folder of face landmarks; without it they are detected (bin/setup synth video)
exp=exp          # folder for everything that is made
conf=            # plan: iterations, fine-tunings, tests; by default conf/SYSTEM/CORPUS.yaml
init=            # start from this model, without pre-training: a published checkpoint (.pt), or a folder of ours
row=             # a row of a paper's table, conf/*/rows/*.yaml, in place of --conf: rows share their pre-training
dry_run=no       # only build the models, take one update on an invented clip, say sizes and memory: no corpus needed
nproc=1          # training processes on this machine, one per GPU
jobs=            # processes that prepare and extract; by default one per core
babbles=         # mixtures of 30 voices; by default 10000, for synth 150
max_clip=15      # seconds; longer utterances of LRS3 and LRS2 are split at pauses
valid_ids=       # only lrs3: file with the validation clips, one SPEAKER/CLIP of trainval per line; else by speaker
alignments=      # only lrs3, lrs2: folder of TextGrid or CTM files with phones, to measure units against
translations=    # only lrs3: file of lines SPLIT/SPEAKER/CLIP, a tab and the translation, for plans that translate
source "$here/../../bin/stages.sh" "$@"   # reads the options above, --stage, --stop-stage, --help; defines begin_stage
case $corpus in synth | lrs3 | lrs2 | grid | clips) ;; *) stop "--corpus $corpus: expected synth, lrs3, lrs2, grid or clips" ;; esac
case $system in uhubert | av-data2vec | vatlm) ;; *) stop "--system $system: expected uhubert, av-data2vec or vatlm" ;; esac
jobs=${jobs:-$(getconf _NPROCESSORS_ONLN)}
# A row of LRS2 is tuned there on what was pre-trained elsewhere.
[ -z "$row" ] || [ -z "$conf$init" ] || { [ -z "$conf" ] && [ "$corpus" = lrs2 ]; } || stop "--row $row: a row is a plan of its own; leave --conf and --init out"
plan=$corpus
[ -z "$init" ] || [[ $corpus != clips && $corpus != grid && $corpus != lrs2 ]] || plan=init
conf=${row:-${conf:-$here/conf/$system/$plan.yaml}}
if [ -n "$row" ] && [ ! -e "$row" ]; then
  near=$(find "$here"/conf/*/rows -name '*.yaml' -not -path '*/rows/base/*' -exec basename {} .yaml \; | python -c '
import difflib, sys
rows, typed = sorted(set(sys.stdin.read().split())), sys.argv[1]
begin = [row for row in rows if row.startswith(typed)]
print(*(begin or difflib.get_close_matches(typed, rows, 12, 0.5))[:12])' "$(basename "$row" .yaml)")
  stop "--row $row: no such file${near:+; recipes/lrs3/conf/SYSTEM/rows has $near}"
fi
if [ ! -e "$conf" ]; then
  plans=$(find "$here/conf/$system" -maxdepth 1 -name '*.yaml' ! -name '*claims*' -exec basename {} \; | sort | paste -sd ' ')
  [ "$conf" != "$here/conf/$system/$plan.yaml" ] || stop "--system $system: has no plan for --corpus $corpus; tune a model that you have (--init), or name a plan (--conf): conf/$system has $plans"
  stop "--conf $conf: not there; conf/$system has $plans"
fi
domain=$([ -z "$row" ] || plan labelled_corpus)
case $(cut -d+ -f1 <<< "${domain:-LRS3}") in
  LRS3) [ -z "$row" ] || [ "$corpus" != lrs2 ] || stop "--row $row: is tuned on LRS3; give --corpus lrs3" ;;
  LRS2) [ "$corpus" = lrs2 ] || stop "--row $row: is tuned on LRS2; give --corpus lrs2 --data, and --init with the encoder that was pre-trained" ;;
  *) stop "--row $row: is tuned on $domain; that is what recipes/librispeech/run.sh does" ;;
esac
pretrained=$(plan pretrain)
finetuned=$(plan finetune)
last=$(printf '%s' "$pretrained" | grep -c . || true)   # number of iterations; 0: a row without pre-training
if [ -n "$row" ] && [ "$corpus" = lrs2 ] && [ "$last" -gt 0 ] && [ -z "$init" ] && [ "$dry_run" = no ]; then
  # One of LRS3 on the same pre-training leaves it in the folder that this row would look for.
  same=$(grep -lxF -- "$(grep '^base:' "$row")" "$(dirname "$row")"/*.yaml | xargs grep -L '^corpus: LRS2' | sed -n 1p || true)
  [ -n "$same" ] || stop "--init: missing; LRS2 is only tuned on. Pre-train on LRS3 with a plan that ends with $(plan pretrain | sed -n '$p'), and give the encoder of its last iteration"
  stop "--init: missing; LRS2 is only tuned on. Pre-train on LRS3 with --corpus lrs3 --row $same --stop-stage 5, and give EXP/$(plan folders | sed -n '$p')/encoder"
fi
folders=$([ -z "$row" ] || plan folders)
iter() { if [ -n "$row" ]; then echo "$exp/$(sed -n "$1p" <<< "$folders")"; else echo "$exp/iter$1"; fi; }
recognizer() { basename "${row:-$1}" .yaml; }   # its folder and label; a row has one
noise=$(plan noise)
loud=$(plan "noisy${init:+-finetune}")   # files that train with noise: the others must not, though there be --musan
noisy=$(sed -n 1p <<< "$loud")
sweeps=$(plan sweeps)   # fine-tunings that are sweeps, and the noises they are selected under
language=$(plan texts | sed -n 's/^translation\.//p' | sed -n 1p)
[ "$corpus" = lrs3 ] || [ -z "$valid_ids$translations" ] || stop "--valid-ids and --translations are for --corpus lrs3; leave them out"
[[ $corpus == lrs[23] ]] || [ -z "$alignments" ] || stop "--alignments is for --corpus lrs3 or lrs2; leave it out"
if [ "$corpus" = synth ]; then
  [ -z "$data$musan$landmarks" ] || stop "--data, --musan, --landmarks: the embedded corpus brings its own; add --corpus lrs3, grid or clips"
  data=$exp/corpus/lrs3 musan=$exp/corpus/musan landmarks=$exp/corpus/landmarks alignments=$exp/corpus/alignments
  babbles=${babbles:-150} translations=${language:+$exp/corpus/translations/$language.tsv}
fi
[ -n "$data" ] || [ "$dry_run" = yes ] || stop "--data: the folder of corpus $corpus is missing; give it, or leave --corpus out"
# Now, not after the days until that file's turn.
[ -n "$musan" ] || [ -z "$noisy" ] || [ "$stage" -gt 6 ] || [ "$dry_run" = yes ] || stop "--musan: missing, but $noisy trains with noise; give MUSAN's folder, or a --conf without noise"
[ -n "$musan" ] || [[ $sweeps != *:* ]] || [ "$stage" -gt 6 ] || [ "$dry_run" = yes ] || stop "--musan: missing, but $conf selects among its sweep's models in noise; give MUSAN's folder"
[ -n "$translations" ] || [ -z "$language" ] || [ "$stage" -gt 1 ] || [ "$dry_run" = yes ] || stop "--translations: missing, but $conf translates to $language; give a file of lines SPLIT/SPEAKER/CLIP, a tab and the translation (--corpus lrs3)"
if [ "$corpus" != synth ] && [ -z "$landmarks" ] && [ "$dry_run" = no ] && [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ] && ! python -c "import mediapipe" 2> /dev/null; then
  echo "no MediaPipe: pictures cannot be cropped, videos will stop at stage 2; run bin/setup synth video, or give --landmarks" >&2
fi
# Corpora beside --corpus that the plan pre-trains on: name, corpus (- for text, which needs no preparing), options.
extra=$([ -n "$init" ] || plan extra | grep . || true)
for name in vox tedlium; do   # what is only tuned on
  ! plan labelled | tr '+' '\n' | grep -qx "$name" || grep -q "^$name " <<< "$extra" || extra+=$'\n'$name$([ $name = vox ] && echo " voxceleb2" || echo " tedlium3")
done
extra=$(grep . <<< "$extra" || true)
if [ "$corpus" = synth ]; then
  [ -z "$tedlium$gigaspeech$text$talk_alignments" ] || stop "--tedlium, --gigaspeech, --text, --talk-alignments: the embedded corpus brings its own; add --corpus lrs3"
  tedlium=$exp/corpus/tedlium gigaspeech=$exp/corpus/gigaspeech text=$exp/corpus/text/sentences.txt
  talk_alignments=$exp/corpus/talk-alignments
fi
while IFS=' ' read -r name kind options; do
  [ -z "$name" ] || [ -n "${!name}" ] || [ "$stage" -gt 5 ] || [ "$dry_run" = yes ] || stop "--$name: missing, but $conf pre-trains on it; give the folder of $kind, or another --conf"
done <<< "$extra"
if [ "$corpus" != synth ] && [ "$dry_run" = no ] && [ "$stage" -le 2 ]; then   # now: some are opened days later
  for name in data musan vox vox_ids tedlium gigaspeech lexicon landmarks alignments valid_ids translations; do
    [ -z "${!name}" ] || [ -e "${!name}" ] || stop "--${name//_/-}: ${!name} is not there; mend the path"
  done
  while IFS= read -r name; do
    [ -z "$name" ] || [ -e "$name" ] || stop "--text: $name is not there; mend the path"
  done <<< "${text//,/$'\n'}"
  case $talk_alignments in '' | cut-or-pad) ;; *) [ -e "$talk_alignments" ] || stop "--talk-alignments: $talk_alignments is not there; mend the path" ;; esac
fi
[[ $extra == *vox* ]] || [ -z "$vox$vox_ids" ] || stop "--vox: $conf does not pre-train on it; leave it out, or give another --conf"
for name in tedlium gigaspeech text; do
  [ "$corpus" = synth ] || grep -q "^$name " <<< "$extra" || [ -z "${!name}" ] || stop "--$name: $conf does not pre-train on it; leave it out, or give another --conf"
done
if [ -z "$musan" ] && [ "$noise" != clean ]; then
  echo "no --musan: tests are clean only, the plan's are $noise" >&2
  noise=clean
fi
# From here on only ends of lines separate words, and no pattern is looked up: paths may hold anything else.
IFS=$'\n'
set -f
if [ "$dry_run" = yes ]; then
  sizes=$(tail -n 1 <<< "$pretrained")
  for file in $({ echo "$pretrained"; [ -n "$init" ] || plan phone2unit; } | grep . | sort -u); do echo "$file" >&2; mmspeech pretrain "$file" "$exp" --dry-run; done
  for file in $({ [ -n "$init" ] || { plan aligner; plan teacher; }; echo "$finetuned"; } | awk '/./ && !seen[$0]++'); do echo "$file" >&2; mmspeech finetune "$file" "$exp" --encoder "${sizes:-$(plan encoder)}" --dry-run; done
  exit
fi
words() { tr -s ' ,' '\n'; }
if [ -n "$init" ]; then   # what is fine-tuned
  [ -e "$init" ] || stop "--init: $init is not there; give a published checkpoint, or the folder of an encoder or a recognizer"
  encoder=$init
  # Now, so that a file that cannot be read is told before the hours that clips take.
  [ -d "$init" ] || { encoder=$exp/init; mmspeech import "$init" "$encoder"; }
elif [ "$last" -gt 0 ]; then
  encoder=$(iter "$last")/encoder
elif [ -n "$row" ]; then
  encoder=$(plan encoder)   # its sizes: nothing is pre-trained
else
  stop "--init: missing, and $conf has no pre-training; give a model to start from, or a plan with pretrain:"
fi
trains() {   # whether there is pre-training to do
  [ -z "$init" ] || { echo "$1: skipped, --init $init is the model" >&2; return 1; }
  [ "$last" -gt 0 ]
}
speech="pretrain trainval valid"   # what is pre-trained on, and validated on
# Sources of sound whose transcripts are read along, as phones; `NAME-valid` are the clips of such a source to validate on.
taken=$([ -n "$init" ] || plan sources "$last")
paired=$(awk -F '\t' '$2 != "phone2unit" && $4 ~ /text/ { print $1 }' <<< "$taken")
# Phones of these in time (VATLM Sec. III-C): from a folder, or by a recognizer of phones, tuned before the iteration that
# reads them on the model of the one before; cut-or-pad is the public code's way.
aligner= joins=1
if [ -n "$paired" ] && [ -z "$talk_alignments" ]; then
  until plan sources "$joins" | cut -f 1 | grep -qxF "$paired"; do joins=$((joins + 1)); done
  aligner=$(plan aligner)
  [ -n "$aligner" ] && [ "$joins" -gt 1 ] || stop "--talk-alignments: missing, and $conf tunes no \`aligner:\` before iteration $joins, which reads phones; give a folder of TextGrid or CTM files"
elif [ "$talk_alignments" = cut-or-pad ] && grep -q $'\tphone2unit\t' <<< "$taken"; then
  stop "--talk-alignments cut-or-pad: $conf learns from phones and units how text is said, and these have no times; leave it out, or give a folder"
fi
phones() { if [ -n "$aligner" ]; then echo "$(iter $((joins - 1)))/phones/$1"; else echo "$exp/$1/phones"; fi; }
# Where the cuts of a source of the plan lie, and which files of cuts it is.
place() {
  if grep -qxF "${1%-valid}" <<< "$paired"; then phones "${1%-valid}"; return; fi
  case $1 in vox | tedlium | gigaspeech) echo "$exp/$1/mouth" ;; *) echo "$exp/mouth" ;; esac
}
parts() {
  case $1 in vox) echo pretrain ;; tedlium | gigaspeech) echo trainval ;; *-valid) echo valid ;; *) echo "${1//+/ }" ;; esac
}
files() { for name in $(words <<< "$2"); do echo "$1/cuts_$name.jsonl.gz"; done; }
quoted() { sed "s/'/''/g; s/.*/'&'/"; }                       # lines as YAML text
listed() { quoted | paste -sd, - | sed 's/.*/[&]/'; }         # lines as a YAML list
# Whether a file of cuts has a line like $2. A missing file counts as one that has: the command that reads it says so.
has() { [ ! -e "$1" ] || [ "$(gzip -dc "$1" | grep -c "$2")" -gt 0 ]; }
can() {   # what, file of cuts, a line that it must have, in words: goes on, or says why not
  has "$2" "$3" || { echo "$1: skipped, no cut $4 in $2" >&2; return 1; }
}
transcribed() { can "$1" "$exp/mouth/cuts_trainval.jsonl.gz" '"text": *"[^"]' "with a transcript"; }
tested() { transcribed "$1" && can "$1" "$exp/mouth/cuts_test.jsonl.gz" . "to test on"; }
common=()   # settings of all trainings: validation cuts, where there are any
settings() {   # files of validation cuts
  common=(--set "data.valid_cuts=$(printf '%s\n' "$@" | listed)")
  can validation "$exp/mouth/cuts_valid.jsonl.gz" . "to validate on" || common=(--set "data.valid_cuts=[]")
}
heard=()   # where the noise of one training lies, if its file names noise
hears() { heard=(); [ -z "$musan" ] || ! grep -qxF "$1" <<< "$loud" || heard=(--set "data.noise.cuts=$(quoted <<< "$exp/noise")"); }

if begin_stage 0 "make the embedded corpus (only --corpus synth)" && [ "$corpus" = synth ]; then
  mmspeech prepare synth "$exp/corpus" --jobs "$jobs" $(plan synth | words)
fi

if begin_stage 1 "cuts: audio as FLAC, transcripts, splits; noise if there is any"; then
  own=()   # options of this corpus
  case $corpus in synth | lrs3 | lrs2)
    own=(--max-s "$max_clip")
    [ -z "$valid_ids" ] || own+=(--valid-ids "$valid_ids")
    [ -z "$alignments" ] || own+=(--alignments "$alignments")
    [ -z "$translations" ] || own+=(--translations "$translations" --translation-language "${language:-es}") ;;
  esac
  mmspeech prepare "${corpus/synth/lrs3}" "$data" "$exp/data" --jobs "$jobs" ${own[@]+"${own[@]}"}
  while IFS=' ' read -r name kind options; do
    [ -n "$name" ] && [ "$kind" != - ] || continue
    own=($(words <<< "$options"))
    [ "$name" != vox ] || [ -z "$vox_ids" ] || own+=(--ids "$vox_ids")
    [ "$name" != tedlium ] || [[ -z $talk_alignments || $talk_alignments = cut-or-pad ]] || own+=(--alignments "$talk_alignments")
    mmspeech prepare "$kind" "${!name}" "$exp/$name/data" --jobs "$jobs" ${own[@]+"${own[@]}"}
  done <<< "$extra"
  if [ -n "$musan" ]; then
    mmspeech prepare musan "$musan" "$exp/noise" --jobs "$jobs" --babbles "${babbles:-10000}"
  fi
fi

spell() {   # how: phones of what is read along
  for name in $paired; do
    mmspeech extract phones $(files "$exp/$name/mouth" "$(parts "$name") valid") "$(phones "$name")" "$@"
  done
}

if begin_stage 2 "mouth tracks; phones of what is read along"; then
  found=()
  [ -z "$landmarks" ] || found=(--landmarks "$landmarks")
  mmspeech extract mouth $(files "$exp/data" "$speech test") "$exp/mouth" --jobs "$jobs" ${found[@]+"${found[@]}"}
  for name in $(awk '$2 != "-" { print $1 }' <<< "$extra"); do
    also=$(! grep -qxF "$name" <<< "$paired" || echo " valid")
    mmspeech extract mouth $(files "$exp/$name/data" "$(parts "$name")$also") "$exp/$name/mouth" --jobs "$jobs"
  done
  given=()
  if [ "$talk_alignments" = cut-or-pad ]; then
    given=(--durations cut-or-pad)
    [ -z "$lexicon" ] || given+=(--lexicon "$lexicon")
  fi
  [ -n "$aligner" ] || spell ${given[@]+"${given[@]}"}
fi

# Files of a list that exist.
there() { for file in $1; do [ ! -e "$file" ] || echo "$file"; done; }

align() {   # iteration: tunes a recognizer of phones on its model, which finds them in what is read along
  local at learnt known given=()
  at=$(iter "$1")
  learnt=$(for name in $paired; do files "$exp/$name/mouth" "$(parts "$name")"; done)
  known=$(for name in $paired; do files "$exp/$name/mouth" valid; done)
  [ -z "$lexicon" ] || given=(--set "tokenizer.lexicon=$(quoted <<< "$lexicon")")
  train finetune "$aligner" "$at/aligner" --encoder "$at/encoder" --set "data.cuts=$(listed <<< "$learnt")" \
    --set "data.valid_cuts=$(there "$known" | listed)" ${given[@]+"${given[@]}"}
  spell --aligner "$at/aligner/model"
}

# Frames of a source in an iteration: of all that its cuts have (-), or of a subset of streams.
frames() { echo "$(iter "$1")/features/$2$([ "$3" = - ] || echo "/$3")"; }

units() {   # iteration, then how frames are made: frames and units of every source, and of the validation cuts
  local i=$1 sources written name file subset learnt settings inputs given book=() at
  at=$(iter "$i")
  shift
  sources=$(plan sources "$i")
  ! has "$exp/mouth/cuts_valid.jsonl.gz" . || sources+=$'\nvalid\t-\tvalid'
  written=$(grep $'\tphone2unit\t' <<< "$sources" || true)   # text alone: its units come last
  sources=$(grep -v $'\tphone2unit\t' <<< "$sources")
  for name in $(cut -f 1 <<< "$sources" | grep -xF "${paired:--}"); do
    ! has "$(place "$name")/cuts_valid.jsonl.gz" . || sources+=$'\n'"$name-valid"$'\taudio\tvalid'
  done
  while IFS=$'\t' read -r name subset learnt settings; do
    [ "$learnt" != none ] || continue   # labelled below, in one pass: frames of GigaSpeech would take 500 GB
    inputs=$(files "$(place "$name")" "$(parts "$name")")
    given=()
    [ "$subset" = - ] || given=(--modalities "$subset")
    mmspeech extract features $inputs "$at/features/$name" "$@" ${given[@]+"${given[@]}"}
    case $learnt in
      valid) ;;
      same) book+=($(files "$(frames "$i" "$name" "$subset")" "$(parts "$name")")) ;;
      *)
        mmspeech extract features $inputs "$at/codebook-features/$name" "$@" --modalities "$learnt"
        for subset in $(words <<< "$learnt"); do book+=($(files "$at/codebook-features/$name/$subset" "$(parts "$name")")); done
        ;;
    esac
  done <<< "$sources"
  mmspeech cluster fit "${book[@]}" "$at/codebook" --clusters "$(plan clusters | sed -n "${i}p")" $(plan cluster | words)
  while IFS=$'\t' read -r name subset learnt settings; do
    if [ "$learnt" = none ]; then
      given=()
      [ "$subset" = - ] || given=(--modalities "$subset")
      mmspeech extract units $(files "$(place "$name")" "$(parts "$name")") "$at/units/$name" --name km "$@" --codebook "$at/codebook" ${given[@]+"${given[@]}"}
    else
      mmspeech cluster label $(files "$(frames "$i" "$name" "$subset")" "$(parts "$name")") "$at/codebook" "$at/units/$name" --name km
    fi
  done <<< "$sources"
  [ -n "$written" ] || return 0
  # Phones and units of speech teach a model that gives text alone its units (VATLM Sec. III-C).
  learnt=$(for name in $paired; do files "$at/units/$name" "$(parts "$name")"; done)
  given=$(for name in $paired; do files "$at/units/$name-valid" valid; done)
  train pretrain "$(plan phone2unit)" "$at/phone2unit" --set data.units=km --set "model.num_units=$(plan clusters | sed -n "${i}p")" \
    --set "data.cuts=$(listed <<< "$learnt")" --set "data.valid_cuts=$(there "$given" | listed)"
  train extract units --from text $(tr ',' '\n' <<< "$text") "$at/units/text" --name km --phone2unit "$at/phone2unit/model" \
    ${lexicon:+--lexicon} ${lexicon:+"$lexicon"}
}

clustered=$(plan units)   # nothing: the system predicts no units
clusters() { [ -n "$clustered" ] || { echo "$1: skipped, $(basename "$conf") has no units" >&2; return 1; }; }
if begin_stage 3 "first units: k-means on MFCC frames" && trains "first units" && clusters "first units"; then
  units 1 --feature mfcc
fi

pretrain() {   # iteration, its configuration
  local name subset learnt rest sources= at place validated=$exp/mouth known targets=()
  at=$(iter "$1")
  if [ -n "$clustered" ]; then
    validated=$at/units/valid
    targets=(--set data.units=km --set "objective.num_units=$(plan clusters | sed -n "$1p")")
  fi
  known=("$validated/cuts_valid.jsonl.gz")
  while IFS=$'\t' read -r name subset learnt rest; do
    if [ -n "$clustered" ] && grep -qxF "$name" <<< "$paired" && has "$(place "$name")/cuts_valid.jsonl.gz" .; then
      known+=($(files "$at/units/$name-valid" valid))   # else only lips with sound would be validated on
    fi
    place=$([ -n "$clustered" ] && echo "$at/units/$name" || place "$name")
    if [ "$subset" = phone2unit ]; then
      sources+="{cuts: $(listed <<< "$place")$rest}, "   # the folder: an argument of a command holds 128 KiB
    else
      sources+="{cuts: $(files "$place" "$(parts "$name")" | listed)$rest}, "
    fi
  done < <(plan sources "$1")
  settings "${known[@]}"
  hears "$2"
  train pretrain "$2" "$at" --set "data.sources=[$sources]" ${targets[@]+"${targets[@]}"} "${common[@]}" ${heard[@]+"${heard[@]}"}
}

if begin_stage 4 "pre-training, iteration 1" && trains "iteration 1"; then
  pretrain 1 "$(sed -n 1p <<< "$pretrained")"
fi

if begin_stage 5 "pre-training, further iterations: features of the last one, units, training" && trains "further iterations"; then
  for i in $(seq 2 "$last"); do
    [ -z "$aligner" ] || [ "$i" != "$joins" ] || align "$((i - 1))"
    units "$i" --encoder "$(iter $((i - 1)))/encoder" --layer "$(plan units | sed -n "${i}p")"
    pretrain "$i" "$(sed -n "${i}p" <<< "$pretrained")"
  done
fi

frozen() {   # noises, split, ending of the folder: freezes noise for the split's cuts, pieces that no other split hears
  local kinds
  kinds=$(words <<< "$1" | grep -vx clean | awk '{ print "--noise"; print }' || true)
  [ -z "$kinds" ] || mmspeech prepare noisy "$exp/data/cuts_$2.jsonl.gz" "$exp/noise" "$exp/noisy${3:-}" --split "$2" $kinds
}

labels() {   # trainval+tedlium: cuts with transcripts, of VoxCeleb2 with those that a recognizer made
  local part
  for part in $(tr '+' '\n' <<< "$1"); do
    case $part in
      vox) echo "$exp/vox/labels-$heard_by/cuts_pretrain.jsonl.gz" ;;
      tedlium) echo "$exp/tedlium/mouth/cuts_trainval.jsonl.gz" ;;
      *) echo "$exp/mouth/cuts_$part.jsonl.gz" ;;
    esac
  done
}

if begin_stage 6 "fine-tuning on transcribed cuts" && transcribed fine-tuning; then
  settings "$exp/mouth/cuts_valid.jsonl.gz"
  teacher=$(plan teacher)
  if [ -n "$teacher" ]; then   # self-training (VATLM Sec. V-B); rows with other teachers share the folder
    heard_by=$(basename "$teacher" .yaml)
    labelled=$(plan labelled | grep vox | sed -n '1s/+vox//p')
    streams=$(plan teacher-streams)
    hears "$teacher"
    train finetune "$teacher" "$exp/teacher-$heard_by" --encoder "$encoder" --set "data.cuts=$(labels "$labelled" | listed)" \
      "${common[@]}" ${heard[@]+"${heard[@]}"}
    unheard=$(files "$exp/vox/mouth" "$(parts vox)")
    train decode "$exp/teacher-$heard_by/model" "$unheard" "$exp/vox/heard-$heard_by" --modality "$streams" --label teacher \
      $(plan search | awk 'NF { print "--set"; print }')
    mmspeech extract pseudo-labels "$unheard" "$exp/vox/heard-$heard_by/pretrain-$streams-clean" \
      "$exp/vox/labels-$heard_by" $(plan trusted | words)
  fi
  louder=$(plan noisy_validation)
  number=0
  for file in $finetuned; do
    number=$((number + 1))
    labelled=$(plan labelled | sed -n "${number}p")
    kinds=$(grep -F "$file"$'\t' <<< "$sweeps" | cut -f 2 || true) sets=()
    if [[ $kinds == *:* ]]; then
      frozen "$kinds" valid -valid
      sets=(--noise-sets "$exp/noisy-valid")
    fi
    hears "$file"
    if [ "$louder" = True ] && [ -n "${heard[*]-}" ]; then
      frozen "$noise" valid -valid
      kinds=$(for kind in $(words <<< "$noise" | grep :); do echo "$exp/noisy-valid/${kind/:/_}dB.jsonl"; done)
      sets+=(--set "data.valid_noise=$(listed <<< "$kinds")")
    fi
    train finetune "$file" "$exp/$(recognizer "$file")" --encoder "$encoder" ${sets[@]+"${sets[@]}"} \
      --set "data.cuts=$(labels "$labelled" | listed)" "${common[@]}" ${heard[@]+"${heard[@]}"}
  done
fi

if begin_stage 7 "decoding the test set: every recognizer, streams and noise" && tested decoding; then
  frozen "$noise" test
  widths=() number=0
  beams=$(plan beams | paste -sd, -)
  [ -z "$beams" ] || ! can "choosing the beam" "$exp/mouth/cuts_valid.jsonl.gz" . "to choose it on" ||
    widths=(--beam "$beams" --choose-on "$exp/mouth/cuts_valid.jsonl.gz")   # never on the test set
  decode() {   # recognizer, its name, streams
    mmspeech decode "$1" "$exp/mouth/cuts_test.jsonl.gz" "$exp/$2/decode" --modality "$3" --noise "$noise" \
      --noise-sets "$exp/noisy" --label "$2" ${widths[@]+"${widths[@]}"} $(plan search | awk 'NF { print "--set"; print }')
  }
  if [ -n "$init" ] && [ -e "$encoder/model.safetensors" ]; then
    decode "$encoder" as-given "$(plan modality)"   # a recognizer, before it was tuned
  fi
  for file in $finetuned; do
    number=$((number + 1))
    name=$(recognizer "$file")
    decode "$exp/$name/model" "$name" "$(plan modalities | sed -n "${number}p")"
  done
fi

if begin_stage 8 "word error rates, table and report" && tested scoring; then
  for text in $(plan texts); do   # transcript, translation.es
    out=$exp/floor-$text
    mmspeech score floor "$exp/mouth/cuts_trainval.jsonl.gz" "$exp/mouth/cuts_test.jsonl.gz" "${out%-transcript}" --text "$text"
  done
  if [ -n "$paired" ]; then   # sound, lips and phones of the same clips in one space (VATLM, Figure 3)
    shown=$exp/mouth inputs=av,a,v given=()
    if [ -n "$alignments$aligner" ]; then
      [ -n "$alignments" ] || given=(--aligner "$(iter $((joins - 1)))/aligner/model")
      mmspeech extract phones "$exp/mouth/cuts_test.jsonl.gz" "$(phones test)" ${given[@]+"${given[@]}"}
      shown=$(phones test) inputs=av,a,v,text
    fi
    mmspeech score modalities "$encoder" "$shown/cuts_test.jsonl.gz" "$(iter "$last")/modalities" --modalities "$inputs"
  fi
  paper=()
  [ -z "$row" ] || paper=(--against "$row")
  mmspeech score report "$exp" --cuts "$exp/mouth/cuts_test.jsonl.gz" ${paper[@]+"${paper[@]}"}
fi

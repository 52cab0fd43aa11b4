#!/usr/bin/env bash
# Labels of another domain (u-HuBERT, Table 3): an encoder that was pre-trained on talks is tuned on read speech, sound
# alone, and tested on talks, on sound and lips.
#   recipes/lrs3/run.sh && recipes/librispeech/run.sh                   on small corpora that we make
#   recipes/librispeech/run.sh --corpus librispeech --data /data/LibriSpeech --encoder exp/lrs3/iter5/encoder \
#     --test exp/lrs3/mouth/cuts_test.jsonl.gz --noise exp/lrs3/noise --nproc 8
# Every stage may be run again: what is current is not made again, and training goes on where it stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

corpus=synth     # synth (made by stage 0) or librispeech
data=            # folder of the corpus, with train-clean-100 or others in it
encoder=exp/iter2/encoder            # pre-trained, as recipes/lrs3/run.sh leaves it
test=exp/mouth/cuts_test.jsonl.gz    # cuts with lips to test on, from the same recipe
noise=exp/noise  # noise for training and tests, as `mmspeech prepare musan` leaves it; --noise= for none
exp=exp-librispeech                  # folder for everything that is made
conf=            # plan: fine-tunings and tests; by default conf/uhubert/CORPUS.yaml
nproc=1          # training processes on this machine, one per GPU
jobs=            # processes that prepare; by default one per core
source "$here/../../bin/stages.sh" "$@"   # reads the options above, --stage, --stop-stage, --help; defines begin_stage
case $corpus in synth | librispeech) ;; *) stop "--corpus $corpus: expected synth or librispeech" ;; esac
jobs=${jobs:-$(getconf _NPROCESSORS_ONLN)}
conf=${conf:-$here/conf/uhubert/$corpus.yaml}
kinds=$(plan noise)
loud=$(plan noisy)   # files that train with noise: the others must not
noisy=$(sed -n 1p <<< "$loud")
if [ "$corpus" = synth ]; then
  [ -z "$data" ] || stop "--data: the embedded corpus is made; add --corpus librispeech"
  data=$exp/corpus
fi
[ -n "$data" ] || stop "--data: the folder of corpus $corpus is missing; give it (openslr.org/12), or leave --corpus out"
# Now, not after the hours until their turn.
[ -d "$encoder" ] || [ "$stop_stage" -lt 2 ] || stop "--encoder: no folder $encoder; run recipes/lrs3/run.sh first, or name a pre-trained encoder"
[ -e "$test" ] || [ "$stop_stage" -lt 3 ] || stop "--test: no file $test; run recipes/lrs3/run.sh first, or name cuts to test on"
[ -z "$noise" ] || [ -d "$noise" ] || stop "--noise: no folder $noise; run recipes/lrs3/run.sh first, name what \`mmspeech prepare musan\` made, or give --noise= for none"
[ -n "$noise" ] || [ -z "$noisy" ] || [ "$stage" -gt 2 ] || stop "--noise: missing, but $noisy trains with noise; give what \`mmspeech prepare musan\` made, or a --conf without noise"
if [ -z "$noise" ] && [ "$kinds" != clean ]; then
  echo "no --noise: tests are clean only, the plan's are $kinds" >&2
  kinds=clean
fi
# From here on only ends of lines separate words, and no pattern is looked up: paths may hold anything else.
IFS=$'\n'
set -f
words() { tr -s ' ,' '\n'; }
quoted() { sed "s/'/''/g; s/.*/'&'/"; }   # lines as YAML text

if begin_stage 0 "make digits read aloud (only --corpus synth)" && [ "$corpus" = synth ]; then
  mmspeech prepare synth-read "$exp/corpus" --jobs "$jobs" $(plan synth | words)
fi

if begin_stage 1 "cuts: transcripts, splits"; then
  mmspeech prepare librispeech "$data" "$exp/data" --jobs "$jobs"
fi

if begin_stage 2 "fine-tuning on sound alone"; then
  valid=$exp/data/cuts_valid.jsonl.gz
  common=(--set "data.cuts=[$(quoted <<< "$exp/data/cuts_trainval.jsonl.gz")]" --set "data.valid_cuts=[$(quoted <<< "$valid")]")
  if [ -e "$valid" ] && [ "$(gzip -dc "$valid" | grep -c .)" = 0 ]; then
    echo "validation: skipped, no dev part in $data" >&2
    common[3]="data.valid_cuts=[]"
  fi
  for file in $(plan finetune); do
    heard=()
    [ -z "$noise" ] || ! grep -qxF "$file" <<< "$loud" || heard=(--set "data.noise.cuts=$(quoted <<< "$noise")")
    train finetune "$file" "$exp/$(basename "$file" .yaml)" --encoder "$encoder" "${common[@]}" ${heard[@]+"${heard[@]}"}
  done
fi

if begin_stage 3 "decoding the test set of talks: every recognizer, streams and noise"; then
  noisy=$(words <<< "$kinds" | grep -vx clean | awk '{ print "--noise"; print }' || true)
  if [ -n "$noisy" ]; then
    mmspeech prepare noisy "$test" "$noise" "$exp/noisy" $noisy
  fi
  for file in $(plan finetune); do
    name=$(basename "$file" .yaml)
    mmspeech decode "$exp/$name/model" "$test" "$exp/$name/decode" --modality "$(plan modality)" \
      --noise "$kinds" --noise-sets "$exp/noisy" --label "$name" $(plan search | awk 'NF { print "--set"; print }')
  done
fi

if begin_stage 4 "word error rates, table and report"; then
  mmspeech score floor "$exp/data/cuts_trainval.jsonl.gz" "$test" "$exp/floor"
  mmspeech score report "$exp" --cuts "$test"
fi

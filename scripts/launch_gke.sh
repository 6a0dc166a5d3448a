#!/usr/bin/env bash
# Trains on a GKE cluster created with XPK, with TPUs or GPUs, from a container image.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=quote.sh
source "$(dirname "$0")/quote.sh"

usage() {
  cat <<EOF
usage: $0 --cluster C --zone Z --project P --workload NAME --image IMAGE (--tpu-type T | --device-type T) [options]
          -- TRAIN-ARGUMENTS
Submits python -m jworld.train as an XPK workload. The image is built from Containerfile.

  --tpu-type T        type of a TPU slice, such as v5p-128 or v6e-256
  --device-type T     type of a GPU node, such as h100-80gb-8
  --slices N          number of TPU slices (default: 1)
  --nodes N           number of GPU nodes (default: 1)
  --storage NAME      storage attached to the cluster by xpk, with the data and --workdir
  --restarts N        restarts after interruptions (default: 50)
  --grace N           seconds between the notice of a preemption and the end (default: 120)
  --dry-run           print the command and stop

example: $0 --cluster c --zone us-east5-a --project p --workload ar-8b --image gcr.io/p/jworld:tpu --tpu-type v5p-128 \\
           --storage bucket -- --config=configs/ar_mem.py:8b --workdir=/bucket/runs/8b
EOF
}

cluster='' zone='' project='' workload='' image='' device=() slices=1 nodes=1 storage='' restarts=50 grace=120 dry=''
while (($#)); do
  case $1 in
    --cluster) require_value "$@" && cluster=$2 && shift 2 ;;
    --zone) require_value "$@" && zone=$2 && shift 2 ;;
    --project) require_value "$@" && project=$2 && shift 2 ;;
    --workload) require_value "$@" && workload=$2 && shift 2 ;;
    --image) require_value "$@" && image=$2 && shift 2 ;;
    --tpu-type | --device-type) require_value "$@" && device=("$1=$2") && shift 2 ;;
    --slices) require_value "$@" && slices=$2 && shift 2 ;;
    --nodes) require_value "$@" && nodes=$2 && shift 2 ;;
    --storage) require_value "$@" && storage=$2 && shift 2 ;;
    --restarts) require_value "$@" && restarts=$2 && shift 2 ;;
    --grace) require_value "$@" && grace=$2 && shift 2 ;;
    --dry-run) dry=1 && shift ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$(quote "$1") is not an option; see $0 --help" ;;
  esac
done
if [[ -z $cluster || -z $zone || -z $project || -z $workload || -z $image || ${#device[@]} -eq 0 || $# -eq 0 ]]; then
  fail "--cluster, --zone, --project, --workload, --image, --tpu-type or --device-type and, after --, the" \
    "arguments of jworld.train are required; see $0 --help"
fi
require_number --slices "$slices"
require_number --nodes "$nodes"
require_number --restarts "$restarts"
require_number --grace "$grace"
[[ "$*" != *$'\n'* ]] || fail "the arguments of jworld.train hold a newline, which xpk cannot pass on: leave it out"

# exec: xpk sends SIGTERM to the shell that it starts, so the program must replace that shell.
train="exec python -m jworld.train $(quote "$@")"
if [[ ${device[0]} == --device-type=* ]]; then
  train+=" --num-processes=\$NNODES --process-id=\$NODE_RANK"
  device+=("--num-nodes=$nodes")
else
  device+=("--num-slices=$slices")
fi
# Some hosts may need minutes more than others to pull the image. Exit code 75: the run was interrupted; 1: an error,
# which may be temporary. xpk adds 42 and 127 to 255, so only 2 ends the run permanently.
command=(xpk workload create "--cluster=$cluster" "--zone=$zone" "--project=$project" "--workload=$workload"
  "--docker-image=$image" "${device[@]}" ${storage:+"--storage=$storage"} "--max-restarts=$restarts"
  "--restart-on-exit-codes=1,75" "--termination-grace-period-seconds=$grace")
if [[ -n $dry ]]; then
  quote "${command[@]}" "--env-file=<a file with JWORLD_START_SECONDS=900 and JWORLD_TOKEN>" "--command=$train"
  exit 0
fi
variables=$(mktemp)
trap 'rm -f "$variables"' EXIT
printf 'JWORLD_START_SECONDS=900\nJWORLD_TOKEN=%s\n' "$(make_token)" >"$variables"
"${command[@]}" "--env-file=$variables" "--command=$train"
echo "log of process 0: kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=$workload,batch.kubernetes.io/job-completion-index=0"

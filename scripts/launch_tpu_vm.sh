#!/usr/bin/env bash
# Trains on all hosts of a TPU VM slice, from a container image in a registry.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=quote.sh
source "$(dirname "$0")/quote.sh"

usage() {
  cat <<EOF
usage: $0 --name TPU --zone Z --project P --image IMAGE [options] -- TRAIN-ARGUMENTS
       $0 --name TPU --zone Z --project P --logs DIR
       $0 --name TPU --zone Z --project P --stop
Starts python -m jworld.train in a container on every host of the slice. The image is built from Containerfile.

  --mount DIR      folder of the hosts to mount in the container at the same path: a bucket or file server with the
                   data and --workdir (default: /mnt/jworld)
  --restarts N     restarts after interruptions (default: 20)
  --logs DIR       copy the output of every host to DIR, and stop
  --stop           save a checkpoint and end the run
  --dry-run        print the command and stop

example: $0 --name pod --zone us-east5-a --project p --image gcr.io/p/jworld:tpu -- \\
           --config=configs/ar_mem.py:8b --workdir=/mnt/jworld/runs/8b
EOF
}

name='' zone='' project='' image='' mount=/mnt/jworld restarts=20 logs='' stop='' dry=''
while (($#)); do
  case $1 in
    --name) require_value "$@" && name=$2 && shift 2 ;;
    --zone) require_value "$@" && zone=$2 && shift 2 ;;
    --project) require_value "$@" && project=$2 && shift 2 ;;
    --image) require_value "$@" && image=$2 && shift 2 ;;
    --mount) require_value "$@" && mount=$2 && shift 2 ;;
    --restarts) require_value "$@" && restarts=$2 && shift 2 ;;
    --logs) require_value "$@" && logs=$2 && shift 2 ;;
    --stop) stop=1 && shift ;;
    --dry-run) dry=1 && shift ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$(quote "$1") is not an option; see $0 --help" ;;
  esac
done
if [[ -z $name || -z $zone || -z $project || (-z $logs && -z $stop && (-z $image || $# -eq 0)) ]]; then
  fail "--name, --zone, --project, --image and, after --, the arguments of jworld.train are required; see $0 --help"
fi
require_match --name "$name" '[A-Za-z0-9_][A-Za-z0-9_.@-]*' "the name of a TPU"
require_match --mount "$mount" '/[^:,]*' "an absolute folder without colons and commas"
require_number --restarts "$restarts"

place=("--zone=$zone" "--project=$project" --worker=all)
command=(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}")
copy=()
if [[ -n $logs ]]; then
  command+=("--output-directory=$logs" "--command=sudo docker logs --timestamps jworld 2>&1")
elif [[ -n $stop ]]; then
  command+=("--command=sudo docker stop --time 300 jworld")
else
  # The token comes in a file that only its owner can read.
  copy=(gcloud compute tpus tpu-vm scp "${place[@]}")
  remote="export JWORLD_TOKEN=\"\$(cat .jworld-token)\"; rm -f .jworld-token; sudo docker rm jworld 2>/dev/null; "
  remote+="sudo --preserve-env=JWORLD_TOKEN docker run --env=JWORLD_TOKEN --detach --name jworld --net=host --privileged --stop-timeout=300 "
  # Some hosts may need minutes more than others to pull the image.
  remote+="--env=JWORLD_START_SECONDS=900 "
  # Emergency checkpoints lie in the host's memory, which outlives the container.
  remote+="--volume=/dev/shm/jworld:/dev/shm/jworld "
  remote+="$(quote "--volume=$mount:$mount" "$image" scripts/run_until_done.sh "$restarts" python -m jworld.train "$@")"
  command+=("--command=$remote")
fi
if [[ -n $dry ]]; then
  [[ -z $logs ]] || printf 'mkdir -p %s\n' "$(quote "$logs")"
  [[ ${#copy[@]} -eq 0 ]] || quote "${copy[@]}" "<a file with JWORLD_TOKEN>" "$name:.jworld-token"
  quote "${command[@]}"
  exit 0
fi
[[ -z $logs ]] || mkdir -p -- "$logs"
if [[ ${#copy[@]} -gt 0 ]]; then
  token=$(mktemp)
  trap 'rm -f "$token"' EXIT
  make_token >"$token"
  "${copy[@]}" "$token" "$name:.jworld-token"
fi
"${command[@]}"
if [[ -z $logs && -z $stop ]]; then
  echo "log of process 0: $(quote gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" "--project=$project" \
    "--command=sudo docker logs --follow jworld")"
fi

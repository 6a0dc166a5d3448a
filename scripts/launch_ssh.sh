#!/usr/bin/env bash
# Trains on hosts reached by ssh: one process each, all with the same folder and the same files.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=quote.sh
source "$(dirname "$0")/quote.sh"

usage() {
  cat <<EOF
usage: $0 --hosts A,B,... [options] -- TRAIN-ARGUMENTS
Starts python -m jworld.train on every host; the first host coordinates.

  --hosts A,B,...   names of the hosts for ssh; the others must reach the first host by its name
  --folder DIR      folder of this project on every host (default: the current folder)
  --python FILE     interpreter on the hosts, relative to the folder (default: .venv/bin/python)
  --port N          free port of the first host (default: 8476)
  --restarts N      restarts after interruptions (default: 20)
  --logs DIR        local folder for one log per host (default: logs)
  --dry-run         print the commands and stop
Ctrl-C saves a checkpoint and ends the run. The exit code is the highest of all hosts.

example: $0 --hosts gpu1,gpu2 -- --config=configs/ar_mem.py:8b --workdir=/shared/runs/8b
EOF
}

hosts='' folder=$PWD python=.venv/bin/python port=8476 restarts=20 logs=logs dry=''
while (($#)); do
  case $1 in
    --hosts) require_value "$@" && hosts=$2 && shift 2 ;;
    --folder) require_value "$@" && folder=$2 && shift 2 ;;
    --python) require_value "$@" && python=$2 && shift 2 ;;
    --port) require_value "$@" && port=$2 && shift 2 ;;
    --restarts) require_value "$@" && restarts=$2 && shift 2 ;;
    --logs) require_value "$@" && logs=$2 && shift 2 ;;
    --dry-run) dry=1 && shift ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$(quote "$1") is not an option; see $0 --help" ;;
  esac
done
if [[ -z $hosts || $# -eq 0 ]]; then
  fail "--hosts and, after --, the arguments of jworld.train are required; see $0 --help"
fi
require_number --port "$port"
require_number --restarts "$restarts"

host='[A-Za-z0-9_][A-Za-z0-9_.@-]*'
require_match --hosts "$hosts" "$host(,$host)*" "names of hosts such as gpu1,gpu2 or me@gpu1,me@gpu2"
IFS=, read -ra names <<<"$hosts"
# Without the names of users.
addresses=("${names[@]#*@}")
# shellcheck disable=SC2016 # the hosts expand it
pid_file='"/tmp/jworld-$(id -u)'-$port.pid'"'
token=$(make_token)
pids=()
# shellcheck disable=SC2329 # the trap calls it
stop() {
  for name in "${names[@]}"; do
    # shellcheck disable=SC2029 # the name of the file is expanded here on purpose
    ssh "$name" "kill -TERM \$(cat $pid_file)" || true
  done
}
[[ -n $dry ]] || { mkdir -p -- "$logs" && trap stop INT TERM; }
for index in "${!names[@]}"; do
  train=("$python" -m jworld.train "$@" "--coordinator=${addresses[0]}:$port" "--num-processes=${#names[@]}"
    "--process-id=$index")
  # The token comes through standard input.
  remote="cd -- $(quote "$folder") && echo \$\$ > $pid_file && IFS= read -r JWORLD_TOKEN && "
  remote+="export JWORLD_TOKEN JWORLD_HOSTS=$(IFS=,; quote "${addresses[*]}") && "
  remote+="exec scripts/run_until_done.sh $restarts $(quote "${train[@]}")"
  if [[ -n $dry ]]; then
    printf '%s %s\n' "$(quote ssh -o ServerAliveInterval=30 "${names[index]}" "$remote")" \
      "<<<\"\$JWORLD_TOKEN\" >>$(quote "$logs/${names[index]}.log") 2>&1 &"
  else
    # shellcheck disable=SC2029
    ssh -o ServerAliveInterval=30 "${names[index]}" "$remote" <<<"$token" >>"$logs/${names[index]}.log" 2>&1 &
    pids+=($!)
  fi
done
[[ -z $dry ]] || exit 0
echo "started on $hosts; log of the first host: tail -f $logs/${names[0]}.log"
worst=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal ended the wait
    code=0
    wait "$pid" || code=$?
  done
  ((code <= worst)) || worst=$code
done
echo "ended with exit code $worst; logs are in $logs"
exit "$worst"

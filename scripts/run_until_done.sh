#!/usr/bin/env bash
# Runs a command again while it ends as one that another start may help: neither 0 (done) nor 2 (a mistake).
set -u
if [[ ${1:-} == --help || $# -lt 2 ]]; then
  echo "usage: $0 RESTARTS COMMAND...
Runs COMMAND, and again up to RESTARTS times while its exit code is neither 0 nor 2.
SIGTERM goes on to COMMAND and is the last: it is not started again."
  exit $(($# < 2 && 2))
fi
restarts=$1
shift
stopped='' child=''
trap 'stopped=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM INT
for ((start = 0; ; start++)); do
  "$@" &
  child=$!
  [[ -z $stopped ]] || kill -TERM "$child" 2>/dev/null # it came before `child` was known
  wait "$child"
  code=$?
  # A signal to this script ends `wait`, not the command.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  case $code in 0 | 2) exit "$code" ;; esac
  if [[ -n $stopped ]] || ((start >= restarts)); then
    exit "$code"
  fi
  echo "$0: exit code $code, start $((start + 2)) of at most $((restarts + 1)) in 10 s" >&2
  child=''
  sleep "${PAUSE_SECONDS:-10}"
  [[ -z $stopped ]] || exit "$code"
done

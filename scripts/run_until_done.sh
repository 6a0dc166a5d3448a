#!/usr/bin/env bash
# Restarts a command until its exit code is 0 (done) or 2 (a user error).
set -u
if [[ ${1:-} == --help || $# -lt 2 ]]; then
  echo "usage: $0 RESTARTS COMMAND...
Runs COMMAND, and restarts it up to RESTARTS times while its exit code is neither 0 nor 2.
SIGTERM is forwarded to COMMAND, which is then not restarted."
  exit $(($# < 2 && 2))
fi
restarts=$1
if ! [[ $restarts =~ ^[0-9]{1,9}$ ]]; then
  printf 'error: RESTARTS is %q, expected a whole number; see %s --help\n' "$restarts" "$0" >&2
  exit 2
fi
shift
stopped='' child=''
trap 'stopped=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM INT
for ((start = 0; ; start++)); do
  "$@" &
  child=$!
  [[ -z $stopped ]] || kill -TERM "$child" 2>/dev/null # the signal came before `child` was set
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

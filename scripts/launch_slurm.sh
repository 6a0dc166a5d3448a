#!/usr/bin/env bash
# Trains on GPU nodes under SLURM: one process per GPU, detected by JAX from SLURM's variables.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=quote.sh
source "$(dirname "$0")/quote.sh"

usage() {
  cat <<EOF
usage: $0 [options] -- TRAIN-ARGUMENTS
Submits python -m jworld.train to SLURM, in this folder, which must be on a shared file system.

  --nodes N           number of nodes (default: 1)
  --gpus N            GPUs per node (default: 8)
  --cpus N            cores per GPU (default: 8)
  --time T            time limit (default: 1-00:00:00); the run saves and requeues itself two minutes before it
  --sbatch "ARGS"     further options of sbatch, such as "--partition=gpu --account=me"
  --python FILE       interpreter (default: .venv/bin/python)
  --restarts N        times that the job requeues itself (default: 20)
  --logs DIR          folder for <job>.out and <job>-<process>.log (default: logs)
  --dry-run           print the batch script and stop

example: $0 --nodes 4 --sbatch "--partition=h100" -- --config=configs/ar_mem.py:8b --workdir=/shared/runs/8b
EOF
}

nodes=1 gpus=8 cpus=8 time=1-00:00:00 extra='' python=.venv/bin/python restarts=20 logs=logs dry=''
while (($#)); do
  case $1 in
    --nodes) require_value "$@" && nodes=$2 && shift 2 ;;
    --gpus) require_value "$@" && gpus=$2 && shift 2 ;;
    --cpus) require_value "$@" && cpus=$2 && shift 2 ;;
    --time) require_value "$@" && time=$2 && shift 2 ;;
    --sbatch) VALUES=any require_value "$@" && extra=$2 && shift 2 ;;
    --python) require_value "$@" && python=$2 && shift 2 ;;
    --restarts) require_value "$@" && restarts=$2 && shift 2 ;;
    --logs) require_value "$@" && logs=$2 && shift 2 ;;
    --dry-run) dry=1 && shift ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$(quote "$1") is not an option; see $0 --help" ;;
  esac
done
if (($# == 0)); then
  fail "the arguments of jworld.train are missing, after --; see $0 --help"
fi
require_number --nodes "$nodes"
require_number --gpus "$gpus"
require_number --cpus "$cpus"
require_number --restarts "$restarts"
require_match --time "$time" '[0-9]+(-[0-9]+)?(:[0-9]+){0,2}' "a time limit such as 1-00:00:00"
# SLURM replaces %j and %t in names of files; %% is a percent sign.
files=${logs//%/%%}

# --signal reaches the processes, not this script. --open-mode keeps the log after a requeue. Exit codes 0 (done) and 2
# (a user error) do not requeue.
script=$(
  cat <<EOF
#!/bin/bash
#SBATCH --job-name=jworld
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
JWORLD_TOKEN=\$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export JWORLD_TOKEN
export JWORLD_HOSTS=\$(scontrol show hostnames "\$SLURM_JOB_NODELIST" | paste -sd,)
srun --kill-on-bad-exit=0 --cpus-per-task=$cpus --open-mode=append --output=$(quote "$files/%j-%t.log") \\
  $(quote "$python" -m jworld.train "$@")
code=\$?
echo "exit code \$code"
case \$code in 0 | 2) exit \$code ;; esac
if ((\${SLURM_RESTART_COUNT:-0} < $restarts)); then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$code
EOF
)
# xargs splits like a shell, and expands nothing.
split=$(xargs printf '%s\n' <<<"$extra" 2>/dev/null) || fail "--sbatch is $(quote "$extra"), expected options of sbatch"
options=("--output=$files/%j.out")
while IFS= read -r option; do
  [[ -z $option ]] || options+=("$option")
done <<<"$split"
if [[ -n $dry ]]; then
  printf 'mkdir -p %s\n' "$(quote "$logs")"
  printf "%s <<'EOF'\n%s\nEOF\n" "$(quote sbatch "${options[@]}")" "$script"
  exit 0
fi
mkdir -p -- "$logs"
sbatch "${options[@]}" <<<"$script"
printf 'log of process 0: tail -F %s\n' "$(quote "$logs")/<job>-0.log"

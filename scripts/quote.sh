# shellcheck shell=bash
# Functions that the launchers share.

# quote WORD...: print the words quoted for a shell.
quote() {
  local LC_ALL=C word words=() mark="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$mark}'"
    words+=("$word")
  done
  local IFS=' '
  printf '%s\n' "${words[*]}"
}

# fail WORD...: print one line and end as after a user's mistake.
fail() {
  local IFS=' '
  local message=$*
  printf 'error: %s\n' "${message//$'\n'/ }" >&2
  exit 2
}

# require_value FLAG [VALUE]...: end unless a value comes after the flag. "any" as the environment's VALUES accepts one
# that looks like a flag.
require_value() {
  if (($# < 2)) || [[ -z $2 || (${VALUES:-} != any && $2 == --*) ]]; then
    fail "$1 has no value; see $0 --help"
  fi
}

# require_number FLAG VALUE: end unless the value is a whole number of up to 9 digits.
require_number() {
  [[ $2 =~ ^[0-9]{1,9}$ ]] || fail "$1 is $(quote "$2"), expected a whole number"
}

# require_match FLAG VALUE PATTERN MEANING: end unless the value matches the pattern.
require_match() {
  local LC_ALL=C
  [[ $2 =~ ^$3$ ]] || fail "$1 is $(quote "$2"), expected $4"
}

# make_token: print the secret with which the processes of a run recognize each other: that of the environment, or a new
# one. It never stands on a command line, which every user of a host can read.
make_token() {
  printf '%s\n' "${JWORLD_TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}"
}

# shellcheck shell=bash
# quote WORD...: the words as a shell would have to be told them.
quote() {
  local word words=() mark="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$mark}'"
    words+=("$word")
  done
  echo "${words[*]}"
}

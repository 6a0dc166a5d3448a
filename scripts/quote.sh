# shellcheck shell=bash
# quote WORD...: print the words quoted for a shell.
quote() {
  local word words=() mark="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$mark}'"
    words+=("$word")
  done
  echo "${words[*]}"
}

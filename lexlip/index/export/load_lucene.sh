#!/usr/bin/env bash
# Makes an index and loads the documents beside this script.
#
#   bash load.sh http://localhost:9200 lexlip            # CURL_OPTIONS="-u user:password" for what curl needs besides
#   curl -s http://localhost:9200/lexlip/_search -H 'Content-Type: application/json' -d @query.json
#
# The second line must find what expected.json holds, up to the order of equal scores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
url=${1:?the address, such as http://localhost:9200}/${2:-lexlip}
read -ra options <<< "${CURL_OPTIONS:-}"
send() { curl --silent --show-error --fail-with-body ${options[@]+"${options[@]}"} "$@"; }  # bash 3 minds empty lists

send -X PUT "$url" -H 'Content-Type: application/json' --data-binary @index.json
for file in documents/*.ndjson; do
  [ -e "$file" ] || break  # an index without documents
  answer=$(send -X POST "$url/_bulk?filter_path=errors,items.*.error" -H 'Content-Type: application/x-ndjson' \
    --data-binary "@$file")
  case $answer in
    *'"errors":false'*) ;;
    *) printf '%s: %s\n' "$file" "$answer" >&2; exit 1 ;;
  esac
done
send -X PUT "$url/_settings" -H 'Content-Type: application/json' -d '{"index": {"refresh_interval": null}}'
send -X POST "$url/_forcemerge?max_num_segments=1"
send -X POST "$url/_refresh"

#!/usr/bin/env bash
# Builds Anserini's index from the documents beside this script, and searches it. Run it with ANSERINI naming the jar:
#
#   ANSERINI=anserini-fatjar.jar bash load.sh lucene-index
#
# run.txt must begin with what expected.json holds, up to equal scores and rounding.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
: "${ANSERINI:?the path of the jar}"
index=${1:-lucene-index}
java -cp "$ANSERINI" io.anserini.index.IndexCollection -collection JsonVectorCollection -input documents \
  -index "$index" -generator DefaultLuceneDocumentGenerator -threads 1 -impact -pretokenized -optimize
# Its usage says how it spells this option: -topicreader until Anserini 0.2x.
reader=$(java -cp "$ANSERINI" io.anserini.search.SearchCollection 2>&1 | grep -io -m 1 -e -topicreader || echo -topicReader)
java -cp "$ANSERINI" io.anserini.search.SearchCollection -index "$index" -topics query.tsv "$reader" TsvInt \
  -output run.txt -impact -pretokenized -hits 10

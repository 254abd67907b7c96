#!/bin/bash
# kill -9 over a whole `make replicate`: kill_replicate.sh CLONE SECONDS... ends its process group that long after each start, then runs to the end.
# Compare with an undisturbed clone: python benchmarks/same_outputs.py CLONE OTHER
cd "$1" || exit 1; shift
for t in "$@"; do
  setsid make replicate > "kill-$t.log" 2>&1 & p=$!
  sleep "$t"
  if kill -0 $p 2>/dev/null; then kill -9 -- -$p; echo "killed after $t s in $(grep -o '^\[ *[0-9]*/[0-9]*\] [^ ]*' "kill-$t.log" | tail -1)"; sleep 6; else echo "ended before $t s"; break; fi
done
time make replicate > kill-end.log 2>&1; echo "exit $?"

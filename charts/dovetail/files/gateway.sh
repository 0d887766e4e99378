#!/bin/sh
# Runs HAProxy, and has it read its certificate again when that was renewed.
#
# Usage: gateway.sh CONFIG CERTIFICATES SECONDS
# TERM ends it gently: connections that are idle are closed, requests that run are finished.
set -eu
config=$1 certificates=$2 every=$3

seen() { cat "$certificates"/* | cksum; }

haproxy -W -db -f "$config" &
child=$!
# again and again, because HAProxy's master is deaf while it starts and while it reads anew
trap '(while kill -USR1 "$child" 2>/dev/null; do sleep 1; done) &' TERM INT
(
  before=$(seen)
  while sleep "$every" && kill -0 "$child" 2>/dev/null; do
    now=$(seen)
    if [ "$now" != "$before" ]; then
      before=$now
      kill -USR2 "$child"
    fi
  done
) &
# a signal ends `wait` too, and then HAProxy may still be finishing
while kill -0 "$child" 2>/dev/null; do
  wait "$child" && status=0 || status=$?
done
exit "$status"

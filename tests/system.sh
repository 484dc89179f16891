#!/bin/sh
# Makes sure that the browser and the database server which some tests use are there, where that is allowed.
# Never fails: what cannot be installed is named, and the tests that need it say so and skip.
need=""
[ -x /usr/bin/chromium ] || need="$need chromium"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need="$need postgresql"
[ -n "$need" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing$need"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need; } \
        >/tmp/tilth-system.log 2>&1 || echo "Could not install$need: the tests that need it are skipped"
else
    echo "Not installed:$need. The tests that need it are skipped; install it and run again."
fi
exit 0

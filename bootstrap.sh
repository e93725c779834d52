#!/bin/sh
# Owns getting from a fresh clone to a running Node 24: installs the npm packages when they are missing or older than
# the lock file, then runs the given program with the Node among them.
# Must need nothing but sh and the machine's own npm (Node 20 or newer).
#
# usage: sh bootstrap.sh FILE.ts [ARGUMENT...]
set -eu
cd "$(dirname "$0")"

# npm writes this file at the end of an installation, so it also tells a whole one from an interrupted one.
installed=node_modules/.package-lock.json
if [ ! -e "$installed" ] || [ -n "$(find package-lock.json -newer "$installed")" ]; then
  if ! command -v npm >/dev/null; then
    echo 'npm is missing: install Node.js 20 or newer (Debian: apt-get install npm, or see nodejs.org).' >&2
    exit 1
  fi
  echo 'installing npm packages (once; about a minute)'
  npm ci --no-audit --no-fund --loglevel=error
  # npm leaves an older time when nothing changed.
  touch "$installed"
fi
if [ ! -x node_modules/node/bin/node ]; then
  echo 'node_modules has no Node 24. Does npm ignore install scripts here? Try: npm rebuild node esbuild' >&2
  exit 1
fi

# The same Node for whatever the program starts.
PATH=$PWD/node_modules/.bin:$PATH
export PATH
exec node_modules/node/bin/node "$@"

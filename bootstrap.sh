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
  # Nothing but what the lock names, by its integrity: a package's own script could fetch more. All of it, whatever the
  # machine's settings leave out.
  npm ci --ignore-scripts --include=dev --include=optional --no-audit --no-fund --loglevel=error
  # npm leaves an older time when nothing changed.
  touch "$installed"
fi
# npm names the package by the processor; here it has one path.
if [ ! -x node_modules/node/bin/node ]; then
  for package in node_modules/node-linux-*; do
    if [ -x "$package/bin/node" ]; then ln -sfn "${package#node_modules/}" node_modules/node; fi
  done
fi
if [ ! -x node_modules/node/bin/node ]; then
  echo 'node_modules has no Node 24: there is one for Linux on x64 and arm64. Remove node_modules and try again.' >&2
  exit 1
fi

# The same Node for whatever the program starts.
PATH=$PWD/node_modules/.bin:$PATH
export PATH
exec node_modules/node/bin/node "$@"

#!/usr/bin/env bash
# Makes the golden repositories of format version 1: tests/golden/v1/{encrypted,open,fastcdc} and v1/expected.json, about 1 MiB.
# Done once per format version, with the program that first writes it, and then committed and never edited:
# tests/tests/golden.rs reads them for ever. Refuses if they exist.
# usage: [PENSTOCK_BIN=…] bash tests/golden/make-v1.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/penstock-target}"
if [ -e tests/golden/v1 ]; then
  echo "tests/golden/v1 exists; a golden repository is never made again" >&2
  exit 1
fi
if [ -z "${PENSTOCK_BIN:-}" ]; then
  cargo build --quiet --release -p penstock
  export PENSTOCK_BIN="$CARGO_TARGET_DIR/release/penstock"
fi
cargo run --quiet -p penstock-tests --bin golden-make -- tests/golden/v1
du -sh tests/golden/v1

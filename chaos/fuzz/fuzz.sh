#!/usr/bin/env bash
# Coverage-guided fuzzing: fuzz.sh [TARGET…], all targets without one. Settings by environment:
#   SECONDS_EACH=60   how long each target runs
#   KEEP=1            afterwards the repository's corpora become a smallest set of inputs with the same coverage
# Stable Rust: LLVM's coverage pass is in every rustc. Needs a C++ compiler for libFuzzer, which cargo's cache holds.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${SECONDS_EACH:-60}
work=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target the flags are not those of build scripts. Overflows and assertions count as findings.
flags=(-Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cdebug-assertions -Coverflow-checks --cfg=fuzzing)
CARGO_TARGET_DIR=$work CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 RUSTFLAGS="${flags[*]}" \
    cargo build --quiet --locked --release --target "$host" -p chaos-fuzz --features libfuzzer
fuzz=$work/$host/release/warren-fuzz

targets=("$@")
[[ $# -gt 0 ]] || mapfile -t targets < <("$fuzz" list)
failed=()
for target in "${targets[@]}"; do
    corpus=$work/corpus/$target found=$work/found/$target kept=chaos/fuzz/corpora/$target
    mkdir -p "$corpus" "$found" "$kept"
    "$fuzz" seeds "$target" "$corpus"
    words=()
    [[ ! -s $corpus.words ]] || words=(-dict="$corpus.words")
    echo "$target: $seconds s"
    if ! "$fuzz" run "$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="$found/" "${words[@]}" "$corpus" "$kept" >"$found.log" 2>&1; then
        failed+=("$target")
        grep -a "panicked at" -A2 "$found.log" | head -5 || true
        echo "$target: found something: $found.log; keep its input in $kept once it is mended"
    fi
    grep -a "stat::number_of_executed_units\|DONE" "$found.log" | tail -2 || true
    if [[ ${KEEP:-} == 1 ]]; then
        merged=$(mktemp -d)
        "$fuzz" run "$target" -merge=1 -max_len=4096 "$merged" "$kept" "$corpus" >"$found.merge.log" 2>&1
        # Inputs that have a name of their own were findings: they stay.
        find "$kept" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
        find "$merged" -type f -size -4k -exec mv {} "$kept/" \;
        rm -rf "$merged"
    fi
    rmdir --ignore-fail-on-non-empty "$kept"
done
[[ ${#failed[@]} -eq 0 ]] || { echo "failed: ${failed[*]}"; exit 1; }

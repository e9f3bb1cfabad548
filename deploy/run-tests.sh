#!/usr/bin/env bash
# Runs all tests and closes with what happened:
#
#   skipped: <why> (n tests)            one line per reason, where a test lacked root, BPF or etcd
#   N passed, N failed, N skipped
#
# Exit 1 if a test failed, or if one could not be built or run. Skipped tests ran, and said why they could not.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0

# What cargo's own runner says of a test binary, or of a crate's documentation tests.
count_libtest() {
    awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 } END { print passed + 0, failed + 0, ignored + 0 }' "$1"
}

# The agent that tests upgrade to, beside the one that they upgrade from.
cargo build --locked -p node-agent --bin warrend-next --features next-layout || status=1

cargo test --locked --workspace --doc 2>&1 | tee "$log" || status=1
read -r passed failed ignored < <(count_libtest "$log")

if command -v cargo-nextest >/dev/null; then
    report=target/nextest/default/junit.xml # nextest's own folder, wherever cargo builds
    rm -f "$report"
    cargo nextest run --locked --workspace --color never 2>&1 | tee "$log" || status=1
    [[ -e $report ]] || { echo "no report: the tests did not run"; exit 1; }
    more_ignored=$(sed -n 's/^ *Summary \[.* \([0-9]*\) skipped$/\1/p' "$log")
    ignored=$((ignored + ${more_ignored:-0}))
    # One line per test: passed, failed, or the reason why it skipped itself.
    awk '
        function close_test() { if (open) print failed ? "failed" : skipped ? skipped : "passed"; open = 0 }
        /<testcase / { close_test(); open = 1; failed = 0; skipped = "" }
        /<(failure|error)[ >]/ { failed = 1 }
        match($0, /(^|>|\.\.\. )skipped: .*/) { skipped = substr($0, RSTART); sub(/^.*skipped: /, "skipped: ", skipped); sub(/<.*/, "", skipped) }
        END { close_test() }
    ' "$report" >"$log"
    passed=$((passed + $(grep -cx passed "$log" || true)))
    failed=$((failed + $(grep -cx failed "$log" || true)))
    unescape='s/&lt;/</g; s/&gt;/>/g; s/&quot;/"/g; s/&amp;/\&/g'
    sed -n "/^skipped: /{$unescape; p}" "$log" >"$log.skipped"
else
    cargo test --locked --workspace --lib --bins --tests --no-fail-fast -- --show-output 2>&1 | tee "$log" || status=1
    read -r more_passed more_failed more_ignored < <(count_libtest "$log")
    grep '^skipped: ' "$log" >"$log.skipped" || true
    passed=$((passed + more_passed - $(wc -l <"$log.skipped")))
    failed=$((failed + more_failed))
    ignored=$((ignored + more_ignored))
fi

echo
sort "$log.skipped" | uniq -c | sed 's/^ *\([0-9]*\) \(.*\)/\2 (\1 tests)/'
skipped=$((ignored + $(wc -l <"$log.skipped")))
rm -f "$log.skipped"
echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"

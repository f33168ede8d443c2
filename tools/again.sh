#!/usr/bin/env bash
# Runs tests, and by itself what failed beside the others: again.sh cargo test ...
# Tests wait for real clocks on machines that are shared, so one in a thousand fails for want of a core. It fails for good if it
# does so alone as well; else it is named at the end as unsteady, which is a defect to mend.
set -uo pipefail
most=3

log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
[ "$status" != 0 ] || exit 0

# Cargo names each program before what it prints, in parentheses.
failed=$(awk '
    /^ *Running .*\(.*\)$/ { program = $NF; gsub(/[()]/, "", program) }
    /^ *Doc-tests / { program = "" }
    /^test .* \.\.\. FAILED$/ && program { print program, $2 }
' "$log")
counted=$(awk '/^test result: FAILED/ { for (i = 2; i <= NF; i++) if ($i ~ /^failed/) sum += $(i - 1) } END { print sum + 0 }' "$log")
named=$(grep -c . <<<"$failed")
# Programs that did not compile or crashed, or many at once: nothing of which a busy machine is the cause.
if [ "$counted" = 0 ] || [ "$counted" != "$named" ] || [ "$named" -gt "$most" ]; then
    exit "$status"
fi

while read -r program name; do
    echo "again, alone: $name"
    "$program" --exact "$name" </dev/null || exit "$status"
done <<<"$failed"
while read -r _ name; do
    echo "unsteady: $name failed beside others, and not alone"
done <<<"$failed"

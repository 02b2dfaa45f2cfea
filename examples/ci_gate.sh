#!/bin/sh
# Lets a model pass only if, in the precision found earlier, it still gives the tokens of fp32 and is still faster.
#
#     ci_gate.sh CONFIG BLOCKLIST MODEL DATA MIN_EXACT_MATCH [MORE ...]
#
# CONFIG is of the search that found BLOCKLIST, MODEL what is to pass (and what CONFIG names), DATA are sentences that took
# no part in the search. MORE goes to verify: the --prefix and --max-length that CONFIG has under [calibration]. Leaves the
# run in ./gate-run and its model in ./gate-run/model. The exit code is that of the step that fails:
# 1 the answer is no; 2 config or input; 3 this machine; 4 an internal error; 130 interrupted.
set -eu
config=$1 blocklist=$2 model=$3 data=$4 least=$5
shift 5

# 1 where the plan is not stable on the calibration sentences, or is not faster than fp32.
precision-search --quiet run "$config" --blocklist "$blocklist" --out gate-run

# 1 where fewer of the other sentences are kept.
precision-search --quiet verify gate-run/model --reference "$model" --data "$data" --min-exact-match "$least" "$@"

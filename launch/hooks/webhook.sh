#!/usr/bin/env bash
# A job.hook that posts JSON to a web service: {"event", "run", "run_dir", "job", "step", "why", "text"}. Slack and
# Mattermost show text.
#   PERDURE_WEBHOOK_URL     where (required)
#   PERDURE_WEBHOOK_EVENTS  of which words (default: all)
# In a chain set them by slurm.environment, or keep the address in a file of yours that this is changed to read. Compute
# nodes of many sites reach no service: there let cron on a login node call `perdure status --check --tell`.
set -euo pipefail

event=${1:?usage: webhook.sh EVENT}
[[ -z ${PERDURE_WEBHOOK_EVENTS:-} || " $PERDURE_WEBHOOK_EVENTS " == *" $event "* ]] || exit 0
url=${PERDURE_WEBHOOK_URL:?webhook.sh: PERDURE_WEBHOOK_URL says where}

# As a string of JSON; what else is below a space is left out.
quoted() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "$(tr -d '\000-\037' <<<"$text")"
}
text="perdure ${PERDURE_RUN:-run}: $event at step ${PERDURE_STEP:-?}${PERDURE_WHY:+: $PERDURE_WHY}"
fields=()
for field in "event=$event" "run=${PERDURE_RUN:-}" "run_dir=${PERDURE_RUN_DIR:-}" "job=${PERDURE_JOB:-}" \
  "step=${PERDURE_STEP:-}" "why=${PERDURE_WHY:-}" "text=$text"; do
  fields+=("$(quoted "${field%%=*}"):$(quoted "${field#*=}")")
done
body=$(IFS=,; printf '{%s}' "${fields[*]}")

# The address may hold a secret, which others would see among curl's arguments.
curl --silent --show-error --fail --max-time 30 --header 'Content-Type: application/json' --data-binary "$body" \
  --output /dev/null --config <(printf 'url = "%s"\n' "$url")

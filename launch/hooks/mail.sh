#!/usr/bin/env bash
# A job.hook that sends a mail: by `mail` where there is one, else by `sendmail`.
#   PERDURE_MAIL_TO      to whom (default: whoever runs it)
#   PERDURE_MAIL_EVENTS  of which words (default: complete stopped look); began and left come with every job
# In a chain set them by slurm.environment. What perdure says is in $1 and PERDURE_*: docs/operating.md.
set -euo pipefail

event=${1:?usage: mail.sh EVENT}
[[ " ${PERDURE_MAIL_EVENTS:-complete stopped look} " == *" $event "* ]] || exit 0
to=${PERDURE_MAIL_TO:-$(id -un)}
[[ $to != -* ]] || { echo "mail.sh: PERDURE_MAIL_TO=$to is no address" >&2; exit 2; }
subject="perdure ${PERDURE_RUN:-run}: $event at step ${PERDURE_STEP:-?}"
# One line, or what follows would be headers.
subject=${subject//[$'\r\n']/ }

body() {
  printf '%s\n\nrun        %s\ndirectory  %s\njob        %s\nstep       %s\n' "${PERDURE_WHY:-$event}" \
    "${PERDURE_RUN:-?}" "${PERDURE_RUN_DIR:-?}" "${PERDURE_JOB:-?}" "${PERDURE_STEP:-?}"
  printf '\nlook with: perdure status %s\n' "${PERDURE_RUN_DIR:-?}"
}

if command -v mail >/dev/null; then
  body | mail -s "$subject" "$to"
elif PATH=$PATH:/usr/sbin:/usr/lib command -v sendmail >/dev/null; then
  { printf 'To: %s\nSubject: %s\n\n' "$to" "$subject"; body; } | PATH=$PATH:/usr/sbin:/usr/lib sendmail -i -t
else
  echo "mail.sh: neither mail nor sendmail is here: ask your site, or use webhook.sh" >&2
  exit 1
fi

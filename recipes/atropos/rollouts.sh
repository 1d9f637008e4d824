#!/usr/bin/env bash
# All that the trainer of this recipe talks to: rollouts.sh [MODEL]. Ends when one of the three does, or with Ctrl-C.
set -euo pipefail
model=${1:-runs/atropos/model}
api=http://127.0.0.1:${API_PORT:-8000} server=http://127.0.0.1:${SERVE_PORT:-9001}
logs=runs/atropos/logs
mkdir -p "$logs"
trap 'exit 130' INT TERM
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

# Atropos' API has no password: keep it on the loopback
run-api --host 127.0.0.1 --port "${api##*:}" > "$logs/api.log" 2>&1 &
online-sft serve "$model" --port "${server##*:}" > "$logs/serve.log" 2>&1 &
python -m recipes.atropos.environment serve --env.rollout_server_url "$api" --env.tokenizer_name "$model" \
  --openai.base_url "$server/v1" --openai.model_name "$model" --openai.tokenizer_name "$model" \
  > "$logs/environment.log" 2>&1 &
wait -n

#!/usr/bin/env bash
# Two Ray nodes that share no network stack and no shard cache, and a bucket between them: teach and distill complete.
#
#   sudo docs/two_hosts.sh FOLDER      FOLDER receives pictures, cache, runs and logs; needs `ip netns` and the dev extras
#
# Node A (10.77.0.1) runs the head, the driver and an S3 server; node B (10.77.0.2) a worker that is reached through a
# virtual cable. With KILL=1 node B is killed in the middle of teaching and again of training, and comes back each time.
# The last lines are the sha256 of what was made and when: the same with and without KILL, each shard written once.
set -euo pipefail
folder=$(realpath -m "${1:?usage: two_hosts.sh FOLDER}")
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
mkdir -p "$folder"
A=faculty-a B=faculty-b

at() { local name=$1; shift; ip netns exec "$name" env "${common[@]}" FACULTY_NODE_CACHE="$folder/node-$name" RAY_TMPDIR="$folder/r-$name" "$@"; }
stop() {
  for name in $A $B; do ip netns pids $name 2>/dev/null | xargs -r kill -9 2>/dev/null || true; done
  ip netns del $A 2>/dev/null || true
  ip netns del $B 2>/dev/null || true
}
trap stop EXIT
stop

for name in $A $B; do ip netns add $name; ip -n $name link set lo up; mkdir -p "$folder/r-$name"; done
ip link add fa netns $A type veth peer name fb netns $B
ip -n $A addr add 10.77.0.1/24 dev fa && ip -n $A link set fa up
ip -n $B addr add 10.77.0.2/24 dev fb && ip -n $B link set fb up

common=(RAY_AUTH_MODE=token RAY_AUTH_TOKEN=two-hosts-demonstration-0123456789 RAY_USAGE_STATS_ENABLED=0 PYTHONPATH="$here"
  AWS_ENDPOINT_URL=http://10.77.0.1:9555 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1
  OMP_NUM_THREADS=1 RAY_health_check_period_ms=1000 RAY_health_check_failure_threshold=3
  RAY_health_check_initial_delay_ms=0)
start=(-m ray.scripts.scripts start --num-cpus=1 --object-store-memory=100000000 --disable-usage-stats)

at $A "$python" -m moto.server -H 10.77.0.1 -p 9555 >"$folder/s3.log" 2>&1 &
at $A "$python" "${start[@]}" --head --node-ip-address=10.77.0.1 --port=6399 --include-dashboard=true \
  --dashboard-port=8299 >"$folder/head.log" 2>&1
worker() { at $B "$python" "${start[@]}" --address=10.77.0.1:6399 --node-ip-address=10.77.0.2 >"$folder/worker.log" 2>&1; }
worker
at $A "$python" -c 'import boto3; boto3.client("s3").create_bucket(Bucket="faculty")'

run() {
  at $A "$python" -m pipeline.cli distill "$here/recipes/demo.yaml" --address 10.77.0.1:6399 \
    --set "data.train=[$here/demo/pictures/train]" --set data.test=[] --set tracking.enabled=false \
    --set cache.root=s3://faculty/cache --set output=s3://faculty/runs --set cache.shard_mb=1 \
    --set train.steps=200 --set train.evaluate_every=50 --set teach.actors=2 \
    --set "teachers=[{checkpoint: $here/demo/teachers/edsr_x2.safetensors, name: edsr, precision: fp32}, {checkpoint: $here/demo/teachers/compact_x2.safetensors, name: compact, precision: fp32}]"
}
count() { # objects of the bucket whose key matches
  at $A "$python" -c 'import re, sys, boto3
found = boto3.client("s3").list_objects_v2(Bucket="faculty", Prefix=sys.argv[1]).get("Contents", [])
print(sum(bool(re.search(sys.argv[2], f["Key"])) for f in found))' "$@"
}
again() {
  ip netns pids $B | xargs -r kill -9
  echo "$(date +%T) node B killed in $1"
  sleep 10
  worker
  echo "$(date +%T) node B is back"
}
if [ "${KILL:-}" ]; then
  (
    until [ "$(count cache/outputs '[.]arrow[.]json$')" -ge 3 ]; do sleep 0.5; done
    again teach
    until [ "$(count runs 'step-.*[.]json$')" -ge 1 ]; do sleep 0.5; done
    again distill
  ) &
fi
time run
at $A "$python" - <<'PY'
import hashlib
import boto3

s3 = boto3.client("s3")
for item in s3.list_objects_v2(Bucket="faculty")["Contents"]:
    if item["Key"].endswith(("weights.safetensors", ".arrow")):
        body = s3.get_object(Bucket="faculty", Key=item["Key"])["Body"].read()
        print(hashlib.sha256(body).hexdigest()[:16], item["LastModified"].strftime("%H:%M:%S"), item["Key"])
PY
du -sh "$folder"/node-* 2>/dev/null || true

#!/usr/bin/env bash
# A real fine-tune from nothing to a verified adapter: `make demo`.
#
# Where a cluster can run (Docker, or root on Debian): a local Kubernetes, the operator by its Helm chart, the job of
# examples/lora-sft.yaml. Where none can: the same job by `finetune run`, as local processes. It can be run again at any
# time; each step keeps what is there already.
#
# Environment: CLUSTER=current uses the cluster that kubectl talks to; then OPERATOR_IMAGE and TRAINER_IMAGE name images
# that its nodes can pull. NAMESPACE (finetune-demo). ASSETS: folder of models and data (in the cache).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1

NAMESPACE=${NAMESPACE:-finetune-demo}
ASSETS=${ASSETS:-${XDG_CACHE_HOME:-$HOME/.cache}/finetune-operator/assets/out}
SYSTEM=finetune-system
MANIFEST=examples/lora-sft.yaml
JOB=$(sed -n 's/^  name: //p' "$MANIFEST")
STEP=""
WHERE_TO_LOOK="the messages above"

step() { # TITLE: ends the step before, and says how long it took
    [ -z "$STEP" ] || printf '    done in %d s\n' "$((SECONDS - STEP_STARTED))"
    STEP=$1 STEP_STARTED=$SECONDS
    [ -z "$STEP" ] || printf '\n==> %s\n' "$STEP"
}

finish() {
    local status=$?
    [ "$status" = 0 ] && return
    printf '\nThe demo stopped (exit %d) at: %s\nWhere to look: %s\n' "$status" "${STEP:-the start}" "$WHERE_TO_LOOK" >&2
    exit "$status"
}
trap finish EXIT

why_no_cluster() { # says why no cluster can run here; nothing where one can
    [ "${CLUSTER:-}" = current ] && return
    docker info >/dev/null 2>&1 && return
    if [ "$(id -u)" != 0 ]; then
        echo "there is no Docker engine, and a node in its own namespaces needs root"
    elif ! command -v apt-get >/dev/null; then
        echo "there is no Docker engine, and a node in its own namespaces is made with Debian's packages"
    elif ! unshare --mount --net --pid --fork true 2>/dev/null; then
        echo "there is no Docker engine, and this machine does not let root make namespaces"
    fi
}

main() {
    local reason
    reason=$(why_no_cluster)
    if [ -n "$reason" ]; then
        printf 'No cluster can run on this machine: %s.\nThe same job runs as local processes instead.\n' "$reason"
        run_locally
    else
        run_in_cluster
    fi
}

run_locally() {
    make_assets
    step "Running $MANIFEST as local processes"
    local models=$ASSETS/local/models # beside, not among, the assets: the result is put here too
    mkdir -p "$models"
    ln -sfn "$ASSETS/models/smollm2-135m-instruct" "$models/smollm2-135m-instruct"
    WHERE_TO_LOOK="$ASSETS/local/$JOB"
    finetune run "$MANIFEST" --fresh --workspace "$ASSETS/local/$JOB" --volume "datasets=$ASSETS/data" --volume "models=$models"
    step ""
    printf '\nThe adapter is in %s; README.md in it is its model card.\n' "$models/$JOB"
}

run_in_cluster() {
    fetch_assets >/dev/null 2>&1 &
    FETCHING=$!
    bring_up_cluster
    provide_images
    install_operator
    make_assets
    load_volumes
    run_job
    summarise
}

bring_up_cluster() {
    if [ "${CLUSTER:-}" = current ]; then
        step "Using the current cluster"
        kubectl cluster-info | sed -n 1p
        return
    fi
    step "Bringing up a local Kubernetes (from nothing about ten minutes, then ten seconds)"
    python3 tests/cluster up
    KUBECONFIG=$(python3 tests/cluster kubeconfig)
    export KUBECONFIG
    PROGRAMS=$(python3 tests/cluster binaries kubectl helm | xargs -n 1 dirname | paste -sd:)
    export PATH="$PROGRAMS:$PATH"
    kubectl get nodes
}

provide_images() {
    if [ -n "${OPERATOR_IMAGE:-}" ] && [ -n "${TRAINER_IMAGE:-}" ]; then
        step "Using the images that OPERATOR_IMAGE and TRAINER_IMAGE name"
    elif [ "${CLUSTER:-}" = current ]; then
        echo "CLUSTER=current needs OPERATOR_IMAGE and TRAINER_IMAGE: images that its nodes can pull" >&2
        return 64
    else
        step "Building the images of operator and trainer (from nothing about five minutes, then seconds)"
        local built
        built=$(python3 tests/cluster images)
        eval "$built"
    fi
    printf '    %s\n' "$OPERATOR_IMAGE" "$TRAINER_IMAGE"
}

install_operator() {
    step "Installing the operator with its Helm chart"
    helm upgrade --install finetune-operator charts/finetune-operator --namespace "$SYSTEM" --create-namespace \
        --set "image.repository=${OPERATOR_IMAGE%:*}" --set-string "image.tag=${OPERATOR_IMAGE##*:}" \
        --set "trainer.image.repository=${TRAINER_IMAGE%:*}" --set-string "trainer.image.tag=${TRAINER_IMAGE##*:}" \
        --wait --timeout 3m >/dev/null
    kubectl -n "$SYSTEM" get deployments
}

make_assets() {
    step "Fetching a small real model and building data (once; kept in $ASSETS)"
    [ -z "${FETCHING:-}" ] || wait "$FETCHING" || true # it began with the demo; what went wrong is said now
    fetch_assets
}

fetch_assets() {
    python examples/assets.py "$ASSETS" --only smollm2-135m-instruct --only docstrings --only sources
}

load_volumes() {
    step "Loading model and data into volumes of the namespace $NAMESPACE"
    kubectl create namespace "$NAMESPACE" --dry-run=client -o yaml | kubectl apply -f - >/dev/null
    kubectl label namespace "$NAMESPACE" pod-security.kubernetes.io/enforce=restricted --overwrite >/dev/null
    IMAGE=$TRAINER_IMAGE examples/load.sh "$ASSETS" --namespace "$NAMESPACE"
}

run_job() {
    step "Applying $MANIFEST and watching it"
    WHERE_TO_LOOK="kubectl -n $NAMESPACE describe ftj $JOB; finetune logs $JOB -n $NAMESPACE; kubectl -n $SYSTEM logs deploy/finetune-operator"
    kubectl -n "$NAMESPACE" delete finetunejob "$JOB" --ignore-not-found --cascade=foreground --timeout=3m
    kubectl -n "$NAMESPACE" apply -f "$MANIFEST"
    finetune watch "$JOB" --namespace "$NAMESPACE"
    kubectl -n "$NAMESPACE" wait "finetunejob/$JOB" --for=condition=Complete --timeout=10s >/dev/null
}

summarise() {
    step ""
    kubectl -n "$NAMESPACE" get finetunejob "$JOB" -o go-template="$SUMMARY"
    cat <<END
Look further:
    $([ "${CLUSTER:-}" = current ] || echo "export KUBECONFIG=$KUBECONFIG PATH=$PROGRAMS:\$PATH")
    kubectl -n $NAMESPACE get ftj
    .venv/bin/finetune describe $JOB -n $NAMESPACE
    kubectl explain ftj.spec.method.lora
    kubectl -n $SYSTEM port-forward service/finetune-operator 8080   # then: curl localhost:8080/metrics
Clean up:
    $([ "${CLUSTER:-}" = current ] && echo "helm uninstall finetune-operator -n $SYSTEM; kubectl delete namespace $NAMESPACE $SYSTEM" || echo "make cluster-down")
END
}

read -r -d '' SUMMARY <<'END' || true
{{with .status}}
Succeeded.
  held-out loss   {{printf "%.3f" .evaluation.base.loss}} before, {{printf "%.3f" .evaluation.tuned.loss}} after ({{.data.testExamples}} records that training never saw)
  adapter         {{.artifact.uri}}, {{.artifact.sizeBytes}} bytes
  digest          {{.artifact.digest}}
{{range .evaluation.samples}}
  prompt          {{printf "%q" .prompt}}
  before          {{printf "%q" .before}}
  after           {{printf "%q" .after}}
{{end}}
{{end}}
END

main

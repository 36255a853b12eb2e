# The operator image.
#
#   docker build  -t finetune-operator .
#   buildah build -t finetune-operator --layers --build-arg DEPS_IMAGE=deps .   (1.28 overlooks the default)
#
# Same shape as trainer_image/Dockerfile: dependencies below, our code above.

# Any image with Python 3.11 to 3.13 as `python3`; a release pins it by digest.
ARG BASE_IMAGE=python:3.11-slim-bookworm
# An image whose `python` has the dependencies, instead of the stage below.
ARG DEPS_IMAGE=deps

FROM ${BASE_IMAGE} AS install
# Where packages come from; pip's own default when not given. An address with credentials belongs into a secret, which
# leaves no trace in the image: --secret id=pip.conf,src=/etc/pip.conf
ARG PIP_INDEX_URL
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
# Debian's own python3 keeps the venv module in a package of its own.
RUN python3 -c 'import ensurepip, venv' 2>/dev/null \
    || { apt-get update && apt-get install --yes --no-install-recommends python3-venv; }
COPY requirements/operator.txt /tmp/requirements.txt
# --no-deps: the list is complete and what it says is what we get; `pip check` holds it to that.
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-deps --require-hashes --only-binary :all: --requirement /tmp/requirements.txt \
    && /opt/venv/bin/pip check \
    && /opt/venv/bin/pip uninstall --yes --quiet pip setuptools

FROM ${BASE_IMAGE} AS deps
COPY --from=install /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin

FROM ${DEPS_IMAGE} AS code
COPY crds/finetune_api /app/finetune_api
COPY operator/finetune_operator /app/finetune_operator
# The root file system is read-only when this runs, so now is the only chance; the files never change, so nobody checks.
RUN python -m compileall -q --invalidation-mode unchecked-hash /app && chmod -R a+rX /app

FROM ${DEPS_IMAGE}
RUN grep -q '^finetune:' /etc/passwd \
    || { echo 'finetune:x:10001:' >>/etc/group && echo 'finetune:x:10001:10001::/tmp:/usr/sbin/nologin' >>/etc/passwd; }
COPY --from=code /app /app

ENV PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=finetune \
    DO_NOT_TRACK=1

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="finetune-operator" \
      org.opencontainers.image.description="Runs FineTuneJobs: fine-tuning of language models on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

WORKDIR /tmp
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["python", "-m", "finetune_operator"]

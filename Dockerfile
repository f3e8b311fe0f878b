# One image for the API and the workers; docker-compose.yml says which of the two a container runs. It is for CPUs. With the build
# arguments PADDLE and PADDLE_INDEX, which compose.gpu.yaml gives, the same file makes the image for NVIDIA GPUs.
# It builds with BuildKit and without. The Debian release is named because the package below is one of that release.
ARG BASE=python:3.12-slim-trixie

# --- builder: the virtual environment ------------------------------------------------------------------------------------
FROM ${BASE} AS builder

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/descent
ENV PATH=/opt/descent/bin:$PATH

WORKDIR /build
# The libraries first and alone: a change of our own code then installs nothing large again.
# Wheels only, so that nothing needs a compiler and nothing runs a setup script.
# A Paddle other than the lock's comes from an index of its own, together with its CUDA libraries; the lock's hashes cannot know
# them. Everything else is the lock's all the same: what that index has of it is not asked for, and cannot replace it.
ARG PADDLE=""
ARG PADDLE_INDEX=""
COPY requirements.lock ./
RUN if [ -z "$PADDLE" ]; then \
        pip install --require-hashes --only-binary :all: -r requirements.lock; \
    else \
        : "${PADDLE_INDEX:?is needed with PADDLE: the address of the package index that has it}" \
        && awk '/^[a-z0-9]/ { other = !/^paddlepaddle==/ } other' requirements.lock > libraries.lock \
        && pip install --require-hashes --only-binary :all: -r libraries.lock \
        && pip freeze > libraries.txt \
        && pip install --only-binary :all: --index-url "$PADDLE_INDEX" --constraint libraries.txt "$PADDLE"; \
    fi

COPY . ./
RUN pip install --no-deps --no-build-isolation .

# --- kernels: the fused layer, ahead of time, for every kind of CPU; the compiler stays behind in this stage ---------------
FROM builder AS kernels
RUN apt-get update && apt-get install --yes --no-install-recommends g++ libgomp1
RUN python -m core.training.fused.build --out /opt/kernels

# --- the image -----------------------------------------------------------------------------------------------------------
FROM ${BASE}

LABEL org.opencontainers.image.title="Descent" \
      org.opencontainers.image.description="A REST training-job server: its API and its workers."

# The one library Paddle's wheel neither carries nor finds in a slim image: GNU's OpenMP.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

# A new named volume takes over the owner of /data. Home is there too: nothing else can be written.
RUN groupadd --gid 10001 descent \
    && useradd --uid 10001 --gid descent --home-dir /data --no-create-home --shell /usr/sbin/nologin descent \
    && install --directory --owner descent --group descent --mode 0700 /data

# Owned by root: the server can run its code and cannot change it. pip stays: data sets are fetched with it.
COPY --from=builder /opt/descent /opt/descent
COPY --from=kernels /opt/kernels /opt/kernels

ENV PATH=/opt/descent/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    HOME=/data \
    DESCENT_KERNELS=/opt/kernels \
    DESCENT_HOME=/data \
    DESCENT_HOST=0.0.0.0 \
    DESCENT_PORT=8000 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# By number, so that a cluster can check that it is not root.
USER 10001:10001
WORKDIR /data
EXPOSE 8000

# No HEALTHCHECK: the API and the worker need different ones, and docker-compose.yml has both.
CMD ["descent", "api"]

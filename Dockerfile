# Training and the web app in a container.
#   docker build -t joint .                              # on CPUs
#   docker build -t joint --build-arg DEVICE=cuda .      # on NVIDIA GPUs; docker run --gpus all
#   docker run --rm -p 127.0.0.1:7860:7860 -v "$PWD/runs:/joint/runs" joint                                # the web app
#   docker run --rm --shm-size 4g -v "$PWD/runs:/joint/runs" -v "$PWD/dataset:/joint/dataset" joint train.py --run runs/a
# The folders that are mounted must be writable for user 1000, or give --user "$(id -u)".
FROM python:3.12-slim-bookworm

# What Open3D's wheel wants of the system. Debian keeps no older versions that one could name here.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libusb-1.0-0 libgl1 libegl1 libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /joint
ARG DEVICE=cpu
# torch.compile on a GPU (train.py --compile true, --backend compile) builds C with Triton. The default back end does not.
# hadolint ignore=DL3008
RUN if [ "$DEVICE" = cuda ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
# PyPI's torch brings CUDA, 5 GB of it. Afterwards both fulfil requirements.txt.
RUN case "$DEVICE" in \
        cpu) index=https://download.pytorch.org/whl/cpu ;; \
        cuda) index=https://pypi.org/simple ;; \
        *) echo "error: DEVICE is $DEVICE; it must be cpu or cuda" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir --index-url "$index" "torch>=2.11" "torchvision>=0.26"
COPY requirements.txt ./
COPY requirements requirements
RUN pip install --no-cache-dir -r requirements.txt -r requirements/deploy.txt -r requirements/video.txt \
        -r requirements/3d.txt -r requirements/app.txt
RUN useradd --uid 1000 --create-home joint && install -d -o joint -g joint /joint/runs /joint/dataset /joint/model
COPY --chown=1000:1000 . .
USER 1000
ENV HOME=/tmp PYTHONUNBUFFERED=1
EXPOSE 7860
ENTRYPOINT ["python"]
CMD ["app.py", "--host", "0.0.0.0"]

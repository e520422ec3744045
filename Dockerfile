# One image for CPUs and GPUs: PyTorch's packages for Linux bring CUDA along.
#   docker build -t rsslib .
#   docker run --rm -it -p 8888:8888 rsslib                       # JupyterLab on the notebooks
#   docker run --rm --gpus all rsslib make reproduce PROFILE=paper
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /rsslib
COPY . .
RUN make setup
EXPOSE 8888
CMD ["make", "lab", "ARGS=--ip=0.0.0.0 --no-browser --allow-root"]

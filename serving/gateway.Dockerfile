# HAProxy for the chart's gateway; any image with HAProxy 2.6 or later and a shell does as well.
#
# From the root of the tree:
#   docker build -f serving/gateway.Dockerfile -t dovetail/gateway .
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends haproxy \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/*
USER 65532:65532
ENTRYPOINT ["haproxy"]

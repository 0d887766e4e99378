# HAProxy for the gateway of the chart, which brings its configuration.
#
# From the root of the tree:
#   docker build -f serving/gateway.Dockerfile -t dovetail/gateway .
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends haproxy \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/* \
      /usr/share/doc /usr/share/man /usr/share/locale
USER 65532:65532
ENTRYPOINT ["haproxy"]

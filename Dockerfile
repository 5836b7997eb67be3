# syntax=docker/dockerfile:1
# The image of every role: `docker build -t paceline .`, then `docker run paceline worker` and so on.
# Needs BuildKit (the default of Docker 23 and later) or Buildah: the build's caches are mounts, not layers, so that
# a changed file compiles what depends on it and no more.

ARG RUST_VERSION=1.95
ARG DEBIAN=trixie

# The slim image of Rust has the C compiler that SQLite and ring are built with.
FROM rust:${RUST_VERSION}-slim-${DEBIAN} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY migrations migrations
# The workspace wants the manifest of each member; only the binary's own dependencies are built.
COPY tests tests
COPY crates crates
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --package paceline-cli --bin paceline \
    && install -D -m 0755 target/release/paceline /out/usr/bin/paceline
COPY LICENSE LICENSE-APACHE LICENSE-MIT ops/paceline.toml /out/usr/share/doc/paceline/

FROM debian:${DEBIAN}-slim
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Paceline" \
      org.opencontainers.image.description="A fleet of e-mail send workers that holds every limit exactly" \
      org.opencontainers.image.source="https://github.com/paceline/paceline" \
      org.opencontainers.image.documentation="https://github.com/paceline/paceline/blob/main/docs/deploying.md" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out /
# What the embedded parts write belongs to the user below, also where a new volume is laid over it.
RUN install -d -m 0700 -o 10001 -g 10001 /var/lib/paceline
WORKDIR /var/lib/paceline
# By number, so that "must not run as root" can be checked without a look into the image.
USER 10001:10001
EXPOSE 8025
STOPSIGNAL SIGTERM
# Alive, not ready: a worker that waits for a service to come back is not helped by a restart.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 CMD ["/usr/bin/paceline", "healthcheck", "--live"]
ENTRYPOINT ["/usr/bin/paceline"]
CMD ["--help"]

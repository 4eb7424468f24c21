# S3 for a try-out on a cluster that cannot take local images: versitygw, as one static program.
#   docker build -f examples/quickstart/s3.Dockerfile -t registry.example/ml/versitygw:1.8.0 .
FROM docker.io/library/golang:1.26 AS build
RUN CGO_ENABLED=0 go install github.com/versity/versitygw/cmd/versitygw@v1.8.0

FROM scratch
COPY --from=build /go/bin/versitygw /versitygw
USER 65532:65532
ENTRYPOINT ["/versitygw"]

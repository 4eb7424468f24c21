"""A real Kubernetes on this machine, for the tests and the quickstart: no download but Go modules and Debian packages.

`local_cluster` is the whole thing, one node included (root needed); `light` is an API server with etcd and controllers
alone; `s3` is versitygw as a process, and as a manifest for the cluster. `python -m tests.cluster` is the command line.
Only the standard library is imported, so that any Python 3.11 runs it before anything is installed.
"""

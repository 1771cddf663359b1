#!/usr/bin/env bash
# Prepare a run on a GPU machine, without a GPU: build the wheel for it (sm_90) and collect everything
# that first.sh and second.sh need in .gpu/ and .gpu2/. Takes some 3 minutes on two cores. See README.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
shared=${SITENET_SHARED:-../shared}
[ -d "$shared/golden" ] || { echo "no test data in $shared: set SITENET_SHARED"; exit 1; }
python=${PYTHON:-$(ls -d "$HOME"/.pyenv/versions/3.12.*/bin/python 2>/dev/null | tail -1)}
[ -n "$python" ] || { echo "set PYTHON to the Python version of the GPU machine, such as python3.12"; exit 1; }
for folder in /.gpu/ /.gpu2/; do
    grep -qxF "$folder" .git/info/exclude || echo "$folder" >> .git/info/exclude
done
rm -rf .gpu .gpu2
mkdir -p .gpu/whl .gpu/shared/data .gpu2/whl

venv=$(mktemp -d)/venv
"$python" -m venv "$venv"
. "$venv/bin/activate"
pip install -q 'scikit-build-core>=0.11' 'pybind11>=3' ninja cmake pyarrow
pip wheel -q . --no-build-isolation --no-deps -w .gpu/whl \
    --config-settings=cmake.define.SITENET_CUDA=ON \
    --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=90-real \
    --config-settings=cmake.define.CMAKE_CUDA_FLAGS=-lineinfo
# Dependencies that images with torch usually lack.
pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
    -d .gpu/whl ${GPU_PACKAGES:-gemmi spglib filelock}

cp -r "$shared/golden" "$shared/golden_e2e" .gpu/shared/
cp "$shared/data/matbench_mp_gap_sample_4000.parquet" .gpu/shared/data/
cp "$here"/{first.sh,probe.py,profile_kernels.py} .gpu/
cp .gpu/whl/*.whl .gpu2/whl/
cp "$here/second.sh" .gpu2/
python - "$shared/data/matbench_mp_gap_folds1234.parquet" <<'PY'
import sys
import pyarrow.parquet as parquet

table = parquet.read_table(sys.argv[1], columns=["id", "cif", "band_gap_eV", "matbench_fold"])
options = {"compression": "zstd", "compression_level": 22, "row_group_size": 100_000}
parquet.write_table(table, ".gpu2/folds.parquet", **options)
PY
# A run carries one of the folders with the repository.
repository=$(git ls-files -z | xargs -0 du -ck | awk 'END { print $1 }')
for folder in .gpu .gpu2; do
    kib=$(($(du -sk $folder | cut -f1) + repository))
    echo "$folder with the repository: $((kib / 1024)) MiB"
    [ $kib -lt $((60 * 1024)) ] || { echo "more than the 60 MiB that a run may carry"; exit 1; }
done

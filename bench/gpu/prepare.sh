#!/usr/bin/env bash
# Prepare runs on a GPU machine, without a GPU: build the wheel for it (sm_90) and collect everything
# that first.sh needs in .gpu/, and second.sh and third.sh in .gpu2/. Takes some 6 minutes on two
# cores. See README.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
shared=${SITENET_SHARED:-../shared}
[ -d "$shared/golden" ] || { echo "no test data in $shared: set SITENET_SHARED"; exit 1; }
python=${PYTHON:-$(ls -d "$HOME"/.pyenv/versions/3.12.*/bin/python 2>/dev/null | tail -1)}
[ -n "$python" ] || { echo "set PYTHON to the Python version of the GPU machine, such as python3.12"; exit 1; }
exclude=$(git rev-parse --git-path info/exclude)
for folder in /.gpu/ /.gpu2/; do
    grep -qxF "$folder" "$exclude" || echo "$folder" >> "$exclude"
done
rm -rf .gpu .gpu2
mkdir -p .gpu/whl .gpu/shared/data .gpu2/whl

venv=$(mktemp -d)/venv
"$python" -m venv "$venv"
. "$venv/bin/activate"
pip install -q 'scikit-build-core>=0.11' 'pybind11>=3' ninja cmake pyarrow
# Weights come with the repository.
pip wheel -q . --no-build-isolation --no-deps -w .gpu/whl \
    --config-settings=cmake.define.SITENET_CUDA=ON \
    --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=90-real \
    --config-settings=cmake.define.CMAKE_CUDA_FLAGS=-lineinfo \
    "--config-settings=wheel.exclude=**/*.safetensors"
# Dependencies that images with torch usually lack.
pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
    -d .gpu/whl ${GPU_PACKAGES:-gemmi spglib filelock}

cp -r "$shared/golden" "$shared/golden_e2e" .gpu/shared/
cp "$shared/data/matbench_mp_gap_sample_4000.parquet" .gpu/shared/data/
cp "$here"/{install.sh,first.sh,probe.py,profile_kernels.py} .gpu/
cp .gpu/whl/*.whl .gpu2/whl/
cp "$here"/{install.sh,second.sh,third.sh} .gpu2/
python "$here/tables.py" "$shared/data/matbench_mp_gap_folds1234.parquet" \
    "$shared/data/matbench_mp_e_form.parquet" .gpu2/tables.parquet

# A run carries one of the folders with the repository.
repository=$(git ls-files -z | xargs -0 du -ck | awk 'END { print $1 }')
for folder in .gpu .gpu2; do
    kib=$(($(du -sk $folder | cut -f1) + repository))
    echo "$folder with the repository: $((kib / 1024)) MiB"
    [ $kib -lt $((60 * 1024)) ] || { echo "more than the 60 MiB that a run may carry"; exit 1; }
done

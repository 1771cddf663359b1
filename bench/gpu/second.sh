#!/usr/bin/env bash
# Second run on a GPU: train `sphere` on three of the four folds of Matbench's band gaps.
# $OUT receives the model, its metrics, config and predictions.
export PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 PYTHONPATH=/tmp/site PIP_DISABLE_PIP_VERSION_CHECK=1
OUT=${OUT:-.gpu2/out}
mkdir -p "$OUT"
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target /tmp/site .gpu2/whl/*.whl
echo "== train (after $SECONDS s)"
timeout 200 python3 -m sitenet train .gpu2/folds.parquet --target band_gap_eV \
    --split-column matbench_fold --fold 1 --valid 0.03 --out /tmp/run --config sphere \
    --device cuda --capture --epochs "${EPOCHS:-20}" 2>&1 | tail -40
cp /tmp/run/{metrics.jsonl,model.safetensors,config.yaml,predictions.csv} "$OUT/"
echo "== done (after $SECONDS s)"

#!/usr/bin/env bash
# Second run on a GPU: train on three of the four folds of Matbench's band gaps, from random weights.
# $OUT receives the model, its metrics, config and predictions.
#   CONFIG   sphere (default) or density
#   EPOCHS   20 by default
#   ON       options that choose the device and how to start its kernels
carried=.gpu2
. $carried/install.sh
OUT=${OUT:-.gpu2/out}
mkdir -p "$OUT"
install_wheels
echo "== train (after $SECONDS s)"
timeout "${SECONDS_OF_TRAINING:-400}" python3 -m sitenet train .gpu2/tables.parquet \
    --target band_gap_eV --split-column fold --fold 1 --valid 0.03 --out /tmp/run \
    --config "${CONFIG:-sphere}" ${ON:---device cuda --capture} --epochs "${EPOCHS:-20}" \
    2>&1 | tail -40
cp /tmp/run/{metrics.jsonl,model.safetensors,config.yaml,predictions.csv} "$OUT/"
echo "== done (after $SECONDS s)"

